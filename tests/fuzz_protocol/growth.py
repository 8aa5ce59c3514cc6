"""Whether something is left behind: the same input over and over, and what the allocator then holds more than before.

A leak of a few bytes for each message stays within any limit on memory while a fuzzer runs. It shows where nothing new
happens any more and memory grows all the same: each input is repeated until all is there that is kept on purpose, and
then measured.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WARM_RUNS = 4
"""After so many, bounded things are full: what a text means, statements, statistics."""

MEASURED_RUNS = (8, 60)
"""The first number tells most inputs, which leave nothing; tables that grow by steps need the second."""

MAY_KEEP_BYTES = 32
"""What a run may leave on average: integers that are no small ones any more, and the like."""


def left_behind(run: Callable[[], object]) -> float:
    """How many bytes one more `run` leaves behind, on average; nothing to speak of up to `MAY_KEEP_BYTES`."""
    left = 0.0
    with _traced():
        for _ in range(WARM_RUNS):
            run()
        for count in MEASURED_RUNS:
            before = _held()
            for _ in range(count):
                run()
            left = (_held() - before) / count
            if left <= MAY_KEEP_BYTES:
                break
    return left


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextmanager
def _traced() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # collections look only at what a run makes
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.unfreeze()
