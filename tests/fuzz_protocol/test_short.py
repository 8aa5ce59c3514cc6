"""The corpus, and a little of the long run, with a fixed seed."""

from __future__ import annotations

import time

import pytest

from tests.fuzz_protocol.mutation import corpus, inputs, limited
from tests.fuzz_protocol.targets import TARGETS

SECONDS = 1.0


@pytest.mark.parametrize("target", TARGETS)
def test_what_once_broke_something_or_reached_something_new_breaks_nothing(target: str) -> None:
    kept = corpus(target)
    assert kept
    for data in kept:
        with limited():
            TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_nobody_would_send_break_nothing(target: str) -> None:
    end = time.monotonic() + SECONDS
    for data in inputs(target, seed=6):
        with limited():
            TARGETS[target](data)
        if time.monotonic() > end:
            return
