"""The corpus, and a little of the long run, with a fixed seed."""

from __future__ import annotations

import time

import pytest

from tests.fuzz_protocol.growth import MAY_KEEP_BYTES, left_behind
from tests.fuzz_protocol.mutation import corpus, inputs, limited
from tests.fuzz_protocol.targets import AGAIN, TARGETS
from tests.support.compiled import needs_stand_ins

SECONDS = 1.0
PLAYED_AGAIN = 8


each = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=needs_stand_ins) if name == "machine" else name for name in TARGETS]
)


@each
def test_what_once_broke_something_or_reached_something_new_breaks_nothing(target: str) -> None:
    kept = corpus(target)
    assert kept
    for data in kept:
        with limited():
            TARGETS[target](data)


@each
def test_inputs_that_nobody_would_send_break_nothing(target: str) -> None:
    end = time.monotonic() + SECONDS
    for data in inputs(target, seed=6):
        with limited():
            TARGETS[target](data)
        if time.monotonic() > end:
            return


@each
def test_the_same_again_and_again_leaves_nothing_behind(target: str) -> None:
    for data in corpus(target)[:PLAYED_AGAIN]:
        for run in AGAIN[target]:
            assert left_behind(run(data)) <= MAY_KEEP_BYTES


def test_what_is_left_behind_is_seen() -> None:
    """Else the test above would be quiet about anything."""
    kept: list[bytes] = []
    assert left_behind(lambda: kept.append(bytes(100))) >= 100
