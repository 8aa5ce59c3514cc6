"""Which reads may go to a replica: those whose tables nobody has written since a moment that the replica has reached.

Lives here: what is known of each replica, and the choice. Not here: asking servers where they stand
(`ceremony.standing`), which statements are pure reads (`caching`: only what may be cached may go to a replica), what
becomes of a session that has a replica's connection (`detour`).

**Read your writes.** Again and again the cache's clock is noted, and then the primary's place in its log. A replica
that has replayed up to there has every write that pgnear knew to be complete by that clock: the cache's question
whether any of a read's tables was invalidated since (`Store.is_current`) then also says whether a replica may answer
it, to whomever, and whether its answer may be cached. Writes past pgnear are seen `max_lag` later at most.

Which tables a READ ONLY block will read is not known at its beginning: then the question is about all tables, or
only about what the same client has written (`read_only_transactions`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from pooler.roles import READ_ONLY

if TYPE_CHECKING:
    from pooler.cache.store import Store
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.session import Session
    from pooler.settings import Settings
    from pooler.sql.statement import Statement
    from pooler.unit import Capture

REMEMBERED = 600
"""Points of the primary: with one each half second, those of five minutes."""

_HARMLESS = frozenset(
    "application_name bytea_output client_encoding client_min_messages datestyle default_transaction_read_only "
    "enable_hashjoin enable_mergejoin enable_nestloop enable_seqscan extra_float_digits "
    "idle_in_transaction_session_timeout intervalstyle lc_messages lc_monetary lc_numeric lc_time lock_timeout role "
    "search_path standard_conforming_strings statement_timeout timezone work_mem".split()
)
"""Settings that mean the same on a replica; with others (a default isolation of SERIALIZABLE) it may refuse."""

Blocks = Literal["never", "own", "all"]
"""Which writes a replica must have before a READ ONLY block may go there: its client's own, or those of all."""


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
      lag_bytes: of the primary's log, that it has not replayed.
      latency: seconds that it takes to answer, smoothed. problem: why it is not known, or None.
      reads, blocks: how many it was given.
    """

    def __init__(self, pool: Pool, max_lag: float, max_lag_bytes: int = 0, blocks_after: Blocks = "never") -> None:
        self.pool = pool
        self.max_lag = max_lag
        self.max_lag_bytes = max_lag_bytes
        self.blocks_after = blocks_after
        self.lag_bytes: int | None = None
        self.known: Point | None = None
        self.latency = 0.0
        self.problem: str | None = "not asked yet"
        self.reads = self.blocks = 0

    def has_replayed(self, lsn: int, points: deque[Point], latency: float) -> None:
        """It says that it has replayed the primary's log up to `lsn`."""
        self.latency = latency if not self.latency else 0.8 * self.latency + 0.2 * latency
        self.problem = None
        self.lag_bytes = max(0, points[-1].lsn - lsn) if points else None
        for point in reversed(points):
            if point.lsn <= lsn:
                self.known = point
                return

    def lost(self, problem: str) -> None:
        """Nothing is known of it."""
        self.known, self.lag_bytes, self.problem = None, None, problem

    def lag(self, now: float) -> float | None:
        """It may lack what was committed in the last so many seconds; None where that is not known."""
        return now - self.known.at if self.known is not None else None

    def shortfall(self, now: float) -> str | None:
        """Why it is not asked now, in words; None where it may be."""
        if self.known is None:
            return self.problem or "it is not known how far it has come"
        if (lag := now - self.known.at) > self.max_lag:
            return f"{lag:.1f} s behind, and max_lag is {self.max_lag:g} s"
        if 0 < self.max_lag_bytes < (self.lag_bytes or 0):
            return f"{self.lag_bytes} bytes behind, and max_lag_bytes is {self.max_lag_bytes}"
        return None if self.pool.breaker.closed else "its breaker is open"

    def usable(self, now: float) -> bool:
        return (
            self.known is not None
            and now - self.known.at <= self.max_lag
            and not 0 < self.max_lag_bytes < (self.lag_bytes or 0)
            and self.pool.breaker.closed
        )


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
        tables = tuple(capture.tables)
        taken = self._nearest(session, lambda _, stamp: cache.is_current(capture.database, tables, stamp))
        if taken is None:
            return None
        replica, known, origin = taken
        capture.stamp, capture.sent_at = known.stamp, known.at
        replica.reads += 1
        return origin

    def take_for_block(self, session: Session, cache: Store) -> Origin | None:
        """The same for a READ ONLY block: all of it will be done there."""
        clocks = {"own": session.last_write, "all": cache.last_invalidation(session.namespace)}
        taken = self._nearest(
            session, lambda replica, stamp: replica.blocks_after != "never" and clocks[replica.blocks_after] <= stamp
        )
        if taken is None:
            return None
        taken[0].blocks += 1
        return taken[2]

    def _nearest(
        self, session: Session, has_all: Callable[[Replica, int], bool]
    ) -> tuple[Replica, Point, Origin] | None:
        """The replica that answers fastest of those that may be used and have a connection free.

        Args:
          has_all: whether a replica that has everything up to that clock has all that `session` must find.
        """
        now = perf_counter()
        if session.mode == "session" or not harmless(session.settings):
            return None
        for replica in sorted(self.all, key=lambda each: each.latency):
            known = replica.known
            if known is None or not replica.usable(now) or not has_all(replica, known.stamp):
                continue
            origin = replica.pool.acquire(session)
            if origin is not None:
                return replica, known, origin
            replica.pool.withdraw(session)
        self.not_taken += 1
        return None


def begins_reading(session: Session, statement: Statement) -> bool:
    """Whether `statement` begins a READ ONLY block, as a replica can do it: not a SERIALIZABLE one."""
    if session.pool.replicas is None or statement.isolation in ("", "serializable"):
        return False
    if statement.isolation == "default" and not session.pool.reads_committed:
        return False  # it may be SERIALIZABLE
    if statement.access:
        return statement.access == "read only"
    return session.settings.get(READ_ONLY) is not None and session.reports.values.get(READ_ONLY) == "on"


def harmless(settings: Settings) -> bool:
    """Whether a replica can be given these settings."""
    return all(name in _HARMLESS or "." in name for name, _ in settings.items)
