"""Marks of tests that the compiled hot path (`make test-accelerated`) cannot pass."""

from __future__ import annotations

import pytest

from pooler import accelerated

needs_stand_ins = pytest.mark.skipif(accelerated(), reason="compiled classes take no stand-ins for each other")
needs_counting = pytest.mark.skipif(accelerated(), reason="compiled functions are not counted")
