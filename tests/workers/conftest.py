"""What the tests of several workers have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.process import Pgnear


@pytest.fixture
def house(pgnear: Start) -> Callable[..., Pgnear]:
    """A pgnear of two workers."""

    def start(*flags: str, **settings: Any) -> Pgnear:
        return pgnear(*flags, **{"workers": 2, "http": None, **settings})

    return start
