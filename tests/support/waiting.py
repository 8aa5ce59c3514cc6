"""Deadlines for tests: nothing here or elsewhere in the tests sleeps and hopes.

`until` is for the state of another process that tells nobody when it changes (`pg_stat_activity`, a metric); what does
tell (a log line, a socket, a thread) is waited for directly. `deadline` stops a test that hangs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, within: float = 30.0, what: str = "") -> T:
    """The first true value of `condition()`, asked again and again.

    Raises:
      AssertionError: it did not come true `within` so many seconds; the message has `what` and the last value.
    """
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what or condition}: not within {within:g} s, last {value!r}"
        threading.Event().wait(0.01)  # leaves the processor to the process that is waited for


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the block takes longer."""

    def too_late(number: int, frame: object) -> None:
        raise TimeoutError(f"the test did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Background:
    """A callable running in a thread; `result` waits for it, and raises what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._value: object = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._value = work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, within: float = 40.0) -> object:
        self._thread.join(within)
        assert not self._thread.is_alive(), f"still running after {within:g} s"
        if self._error is not None:
            raise self._error
        return self._value


def together(count: int, work: Callable[[int], object], *, within: float = 90.0) -> list[object]:
    """`work(0)` to `work(count - 1)`, each in a thread of its own; their results in order."""
    running = [Background(lambda number=number: work(number)) for number in range(count)]  # type: ignore[misc]
    return [each.result(within) for each in running]
