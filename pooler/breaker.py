"""Whether an origin is worth trying: opens when connecting fails too often, and then lets one probe at a time through.

Lives here: the states and what moves them. Not here: what is refused meanwhile and who probes (`pool`), connecting
(`ceremony.connect`). Nothing here waits or reads a clock: `now` is seconds on any clock that only goes forward.

    closed     connections are opened as they are needed
    open       none is, until `retry_at`
    half-open  one is being tried: its success closes the breaker, its failure opens it again, for twice as long; for
               no longer than before where the origin said no at once (nobody listens, it is starting up): asking again
               costs next to nothing then, and every second counts
"""

from __future__ import annotations

from collections import deque
from enum import Enum

TIMEOUTS_OF = 20
"""Of so many last attempts those that timed out are counted."""

LEAST_ATTEMPTS = 5
"""With fewer attempts than that there is no rate."""


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The breaker of one origin.

    Args:
      failures: so many attempts that fail in a row open it; 0: it never opens.
      timeout_rate: the part of the last attempts that may time out before it opens; 1 and more: that never does.
      retry_after: seconds from opening to the first probe, and to the next one after one that failed at once; doubled
        with each other probe that fails, up to `retry_at_most`.

    Attributes:
      state: read it, never set it.
      retry_at: when the next probe may be, while it is open.
      opened: how often it has opened from closed.
    """

    def __init__(self, failures: int, timeout_rate: float, retry_after: float, retry_at_most: float) -> None:
        self.state = State.CLOSED
        self.retry_at = 0.0
        self.opened = 0
        self.failures_in_a_row = 0
        self._wait = retry_after
        self._timeouts: deque[bool] = deque(maxlen=TIMEOUTS_OF)
        self.limit(failures, timeout_rate, retry_after, retry_at_most)

    def limit(self, failures: int, timeout_rate: float, retry_after: float, retry_at_most: float) -> None:
        """Go by other limits from now on."""
        self._failures = failures
        self._timeout_rate = timeout_rate
        self._retry_after = retry_after
        self._retry_at_most = max(retry_after, retry_at_most)

    @property
    def opens(self) -> bool:
        """Whether it ever does."""
        return self._failures > 0

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    def may_try(self, now: float) -> bool:
        """Whether an attempt may begin; one that `begin` would make the probe included."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self.retry_at)

    def begin(self) -> None:
        """An attempt begins, which `may_try` allowed."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN

    def hurry(self, now: float) -> None:
        """Somebody knows that the origin is there, or will be soon: it may be tried at once, then as at first."""
        self.retry_at = min(self.retry_at, now)
        self._wait = self._retry_after

    def succeeded(self) -> bool:
        """An attempt succeeded; whether that closes the breaker. One begun before it opened closes it, too."""
        was_closed = self.closed
        self.state = State.CLOSED
        self.failures_in_a_row = 0
        self._wait = self._retry_after
        if not was_closed:
            self._timeouts.clear()  # from before: the origin is another one now
        self._timeouts.append(False)
        return not was_closed

    def failed(self, now: float, *, timed_out: bool = False, at_once: bool = False) -> bool:
        """An attempt failed; whether that opens the breaker, or keeps it open."""
        self.failures_in_a_row += 1
        self._timeouts.append(timed_out)
        if self.closed and not (
            self.opens and (self.failures_in_a_row >= self._failures or self._times_out_too_often())
        ):
            return False
        return self._open(now, at_once=at_once)

    def trip(self, now: float) -> bool:
        """One attempt failed that was reason enough; whether that opens the breaker, or keeps it open."""
        self.failures_in_a_row += 1
        return self._open(now)

    def _open(self, now: float, *, at_once: bool = False) -> bool:
        if self.state is State.OPEN:  # begun before it opened: nothing new
            return False
        if self.state is State.HALF_OPEN:
            self._wait = self._retry_after if at_once else min(2 * self._wait, self._retry_at_most)
        else:
            self.opened += 1
            self._wait = self._retry_after
        self.state, self.retry_at = State.OPEN, now + self._wait
        return True

    def _times_out_too_often(self) -> bool:
        timeouts = self._timeouts
        return len(timeouts) >= LEAST_ATTEMPTS and sum(timeouts) > self._timeout_rate * len(timeouts)

    def retry_in(self, now: float) -> float:
        """Seconds until the next attempt may begin; 0 while it is closed, or one is under way."""
        return max(0.0, self.retry_at - now) if self.state is State.OPEN else 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value} failures={self.failures_in_a_row}>"
