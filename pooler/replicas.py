"""Which reads may go to a replica: those whose tables nobody has written since a moment that the replica has reached.

Lives here: what is known of each replica, and the choice. Not here: asking servers where they stand
(`ceremony.standing`), which statements are pure reads (`caching`: only what may be cached may go to a replica).

**Read your writes.** Again and again the cache's clock is noted, and then the primary's place in its log. A replica
that has replayed up to there has every write that pgnear knew to be complete by that clock: the cache's question
whether any of a read's tables was invalidated since (`Store.is_current`) then also says whether a replica may answer
it, to whomever, and whether its answer may be cached. Writes past pgnear are seen `max_lag` later at most.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pooler.cache.store import Store
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.session import Session
    from pooler.settings import Settings
    from pooler.unit import Capture

REMEMBERED = 600
"""Points of the primary: with one each half second, those of five minutes."""

_HARMLESS = frozenset(
    "application_name bytea_output client_encoding client_min_messages datestyle enable_hashjoin enable_mergejoin "
    "enable_nestloop enable_seqscan extra_float_digits idle_in_transaction_session_timeout intervalstyle lc_messages "
    "lc_monetary lc_numeric lc_time lock_timeout role search_path standard_conforming_strings statement_timeout "
    "timezone work_mem".split()
)
"""Settings that mean the same on a replica; with others (a default isolation of SERIALIZABLE) it may refuse."""


class Point(NamedTuple):
    """Where the primary was.

    Attributes:
      at: seconds, by `perf_counter`. stamp: the cache's clock. lsn: what was in the log, after both.
    """

    at: float
    stamp: int
    lsn: int


class Replica:
    """One replica.

    Attributes:
      known: the latest point of the primary that it has reached, as far as is known; None: it must not be used.
      latency: seconds that it takes to answer, smoothed. problem: why it is not known, or None.
    """

    def __init__(self, pool: Pool, max_lag: float) -> None:
        self.pool = pool
        self.max_lag = max_lag
        self.known: Point | None = None
        self.latency = 0.0
        self.problem: str | None = "not asked yet"
        self.reads = 0

    def has_replayed(self, lsn: int, points: deque[Point], latency: float) -> None:
        """It says that it has replayed the primary's log up to `lsn`."""
        self.latency = latency if not self.latency else 0.8 * self.latency + 0.2 * latency
        self.problem = None
        for point in reversed(points):
            if point.lsn <= lsn:
                self.known = point
                return

    def lost(self, problem: str) -> None:
        """Nothing is known of it."""
        self.known, self.problem = None, problem

    def lag(self, now: float) -> float | None:
        """It may lack what was committed in the last so many seconds; None where that is not known."""
        return now - self.known.at if self.known is not None else None

    def usable(self, now: float) -> bool:
        return self.known is not None and now - self.known.at <= self.max_lag and self.pool.breaker.closed


class Replicas:
    """Those of one pool.

    Attributes:
      points: of the primary, latest last. identity: its system identifier and timeline; a replica must have the same.
    """

    def __init__(self, replicas: list[Replica]) -> None:
        self.all = replicas
        self.points: deque[Point] = deque(maxlen=REMEMBERED)
        self.identity: tuple[str, str] | None = None
        self.not_taken = 0  # reads that might have gone to one, had it been far enough or free

    def primary_is(self, point: Point, identity: tuple[str, str]) -> None:
        if identity != self.identity:
            self.forget("the primary is another one")
            self.identity = identity
        self.points.append(point)

    def forget(self, problem: str) -> None:
        """Where the primary stands is not known any more: it may be another one when it is back."""
        self.points.clear()
        self.identity = None
        for replica in self.all:
            replica.lost(problem)

    def take(self, session: Session, capture: Capture, cache: Store) -> Origin | None:
        """A free connection to the nearest replica that may answer, or None: nobody waits for a replica.

        The answer is as old as the replica: `capture` is told.
        """
        now = perf_counter()
        if session.mode == "session" or not harmless(session.settings):
            return None
        tables = tuple(capture.tables)
        for replica in sorted(self.all, key=lambda each: each.latency):
            known = replica.known
            if known is None or not replica.usable(now) or not cache.is_current(capture.database, tables, known.stamp):
                continue
            origin = replica.pool.acquire(session)
            if origin is None:
                replica.pool.withdraw(session)
                continue
            capture.stamp, capture.sent_at = known.stamp, known.at
            replica.reads += 1
            return origin
        self.not_taken += 1
        return None


def harmless(settings: Settings) -> bool:
    """Whether a replica can be given these settings."""
    return all(name in _HARMLESS or "." in name for name, _ in settings.items)
