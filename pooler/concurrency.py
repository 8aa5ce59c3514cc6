"""How many connections work at once while their origin is slower than it was: as few as cost it nothing.

Lives here: the decision, from how many transactions a pool finishes, and what the pool does of it. Not here: who is
refused meanwhile (`queue`, `refusals`: by the wait that is to be expected, which a lower limit lengthens as it should).
`Limit` neither waits nor reads a clock: `now` is seconds on any clock that only goes forward.

**The signal.** TCP Vegas, Netflix's Gradient2 and Envoy's filter compare latency with a baseline, and lower the limit
by the ratio. For a pool that misleads: a full pool makes a healthy origin's latency grow (more share the processors),
so does a batch of heavy queries, and a longer way to the origin makes each slower without making fewer of them any
faster. While clients wait for connections there is a better measure, by Little's law the same latency over the
connections at work: how many transactions are finished a second. An origin is *slow* if the pool is full, clients wait,
and it finishes fewer than one in `tolerance` of what it has finished before (`usual`: rises within seconds, sinks
within ten minutes). Whoever keeps his pace is never slow, however long each transaction takes: **with a healthy origin
the limit is the pool's size.**

**The step.** That it is slow does not say that less work at once would help. So each step, by three tenths, is a trial:
the window before it is compared with the window behind it. Of the two limits the larger one holds if it finishes more,
by a quarter of what it is larger: a step down that costs a tenth of the throughput is taken back, at once where it
costs far more. Each trial that is taken back doubles the rest before the next one; where steps down are over, steps up
are tried, so that no limit outlives its reason. As soon as the origin is not slow, or nobody waits, the limit rises by
a step each window without a trial.

**What it is not to starve.** Connections that have worked for one client for much longer than the others (reports,
pinned sessions, clients that pause inside transactions) are not counted: the limit, with its floor, is of those that
take turns. With few transactions, nothing can be told, and nothing is changed.
"""

from __future__ import annotations

import logging
from math import ceil, sqrt
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from pooler.logs import get_logger

if TYPE_CHECKING:
    from pooler.pool import Pool

log = get_logger(__name__)

STEP = 0.7
"""From one limit to the next lower one."""

WORTH = 0.25
"""A larger limit is worth it if throughput gains this part of what the limit does."""

WINDOW_SECONDS = 1.0
LONGEST_WINDOW_SECONDS = 30.0
"""Where a window has too few transactions until then, it tells nothing."""

ENOUGH = 100
"""Transactions in a window that tells something: chance makes a tenth more or fewer of them."""

SINKS_WITHIN_SECONDS = 600.0
"""In so many seconds of full slowness the usual pace has nearly become the slow one."""

FIRST_REST, LONGEST_REST = 2, 64
"""Windows between two trials."""

LASTING_SECONDS, LASTING_TIMES = 1.0, 10.0
"""A connection that has been at work for longer than both, the second in times of the average, does not take turns."""


class _Trial(NamedTuple):
    """What the limit was before the last step, how many transactions a second were finished then, and the larger limit
    over the smaller one.
    """

    before: int
    pace: float
    ratio: float


class _Window:
    """What was seen from one moment on: somebody waited all the time, there were all connections all the time."""

    def __init__(self, begun: float, finished: int) -> None:
        self.begun = begun
        self.finished = finished
        self.waited = self.whole = True


class Limit:
    """The limit of one pool.

    Attributes:
      value: how many connections may take turns, from `least` to `size`.
      usual: how many transactions the origin finishes in a second when it is well, as far as is known.
      pace: how many it has finished a second lately.
    """

    def __init__(self) -> None:
        self.size = self.least = self.value = 1
        self.tolerance = 2.0
        self.usual = 0.0
        self.pace = 0.0
        self._window: _Window | None = None
        self._settling = False  # the limit has just changed: the window tells nothing
        self._trial: _Trial | None = None
        self._down = True  # where the next one leads
        self._rest, self._next_rest = 0, FIRST_REST

    def adopt(self, size: int, least: int, tolerance: float) -> None:
        """Go by other bounds from now on."""
        if (size, least) != (self.size, self.least):
            self.size, self.least, self.value = size, min(size, least), size
            self._trial, self._settling = None, False
        self.tolerance = tolerance

    @property
    def lasting_seconds(self) -> float:
        """A connection that has been at work for one client for longer does not take turns."""
        return max(LASTING_SECONDS, LASTING_TIMES * self.value / self.pace if self.pace else 0.0)

    def pause(self) -> None:
        """What is finished meanwhile tells nothing."""
        self._window = None

    def look(self, now: float, finished: int, *, waiting: bool, whole: bool, lasting: int) -> int:
        """Look at the pool, several times a second; how many connections it may have.

        Args:
          finished: transactions since the beginning. waiting: clients wait for connections. whole: there are as many as
            there may be. lasting: so many of them do not take turns.
        """
        window = self._window
        if window is None:
            window = self._window = _Window(now, finished)
        window.waited &= waiting
        window.whole &= whole
        seconds, done = now - window.begun, finished - window.finished
        if seconds >= WINDOW_SECONDS:
            overdue = seconds >= LONGEST_WINDOW_SECONDS
            if self._collapses(seconds, done):
                self._take_back()
            elif self._settling:
                if overdue or not waiting or (whole and done >= self.value):
                    self._settling = False
                    self._window = None
            elif overdue or done >= ENOUGH or (not window.waited and self.value < self.size):
                self._window = None
                self._conclude(window, done, done / seconds, seconds, lasting)
        return min(self.size, self.value + lasting)

    def _collapses(self, seconds: float, done: int) -> bool:
        """Whether a step down costs more than its own size explains, chance allowed for."""
        trial = self._trial
        if trial is None or trial.before < self.value:
            return False
        return done + 2 * sqrt(done + 1) < STEP * trial.pace * seconds

    def _conclude(self, window: _Window, done: int, pace: float, seconds: float, lasting: int) -> None:
        telling = done >= ENOUGH
        comparable = telling and window.waited and window.whole
        if self._trial is not None and not self._judged(self._trial, pace if comparable else None):
            return
        if telling:
            self.pace = pace
            self._learn(pace, seconds, full=comparable)
        if not window.waited or (telling and pace * self.tolerance >= self.usual):
            self._rise()
        elif comparable:
            self._try(pace, lasting)

    def _learn(self, pace: float, seconds: float, *, full: bool) -> None:
        if pace > self.usual:
            self.usual = (pace + self.usual) / 2 if self.usual else pace
        elif full:
            self.usual += (pace - self.usual) * min(1.0, seconds / SINKS_WITHIN_SECONDS)

    def _judged(self, trial: _Trial, pace: float | None) -> bool:
        """Whether the step holds, by the window behind it; where that tells nothing, the larger limit does."""
        up = self.value > trial.before
        if pace is None:
            holds = up
        else:
            gained = (pace / trial.pace if up else trial.pace / pace) - 1.0
            holds = up == (gained >= WORTH * (trial.ratio - 1.0))
        if not holds:
            self._take_back()
            return False
        self._trial, self._next_rest = None, FIRST_REST
        return True

    def _take_back(self) -> None:
        """The last step was wrong, or nobody knows: not again for a while, and the other way then."""
        assert self._trial is not None
        self._down = self._trial.before < self.value
        self._step_to(self._trial.before)
        self._trial = None
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)

    def _rise(self) -> None:
        self._down = True
        self._rest, self._next_rest = 0, FIRST_REST
        if self.value < self.size:
            self._step_to(min(self.size, ceil(self.value / STEP)))

    def _try(self, pace: float, lasting: int) -> None:
        """A step, to see what comes of it."""
        if self._rest > 0:
            self._rest -= 1
            return
        most = self.size - lasting  # more than that do not take turns
        turning = min(self.value, most)
        down = max(self.least, int(turning * STEP))
        up = min(most, ceil(self.value / STEP))
        if down < turning and (self._down or up <= turning):
            self._trial = _Trial(self.value, pace, turning / down)
            self._step_to(down)
        elif up > turning:
            self._trial = _Trial(self.value, pace, up / turning)
            self._step_to(up)

    def _step_to(self, value: int) -> None:
        self.value, self._settling, self._window = value, True, None


def adapt(pool: Pool, now: float) -> None:
    """Several times a second: how many connections the pool may have, by how its origin does."""
    limit = pool.limit
    if not pool.config.concurrency.adaptive:
        return
    if pool.held_since is not None or not pool.breaker.closed:
        limit.pause()
        return
    before, value = pool.allowed, limit.value
    pool.allowed = limit.look(
        now,
        pool.finished - pool.connects,  # a new connection, too, is given to the pool
        waiting=bool(pool.waiting.users),
        whole=len(pool.origins) - len(pool.reserve) >= pool.allowed,
        lasting=_lasting(pool, limit.lasting_seconds),
    )
    pool.waiting.limit(pool.allowed)
    if limit.value != value:
        _tell(pool, value)
    if pool.allowed > before:
        pool.grow()


def _lasting(pool: Pool, seconds: float) -> int:
    """How many connections have been at work for one client for longer than that."""
    before = perf_counter() - seconds
    return sum(
        0 < (origin.block_since or origin.ready_at) < before
        for origin in pool.origins
        if origin.session is not None and origin not in pool.reserve
    )


def _tell(pool: Pool, before: int) -> None:
    limit = pool.limit
    lowered = limit.value < before
    event = "lowered" if lowered else "restored" if limit.value == limit.size else "raised"
    log.log(
        logging.WARNING if lowered else logging.INFO,
        f"concurrency_{event}",
        pool=pool.name,
        connections=limit.value,
        size=limit.size,
        finished_per_second=round(limit.pace, 1),
        usual_per_second=round(limit.usual, 1),
        waiting=len(pool.waiting),
    )
