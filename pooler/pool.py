"""The origin connections of one database and role, and who gets them.

Lives here: every decision about them (idle, busy, waiting, limits, ageing), in plain synchronous code with no I/O of
its own. Opening and resetting connections is ceremony, which the pool only asks for through `PoolCeremonies`.

A waiter is granted a connection in the order it asked (first in, first out); a connection that becomes free goes to
the waiter at the head before anybody else can see it.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from config import Config, Target
from pooler.defaults import Defaults
from pooler.logs import get_logger
from pooler.stats import Histogram, Stats
from protocol import errors
from protocol.errors import PgError

if TYPE_CHECKING:
    from pooler.cache.advice import Advice
    from pooler.cache.catalog import Catalog
    from pooler.origin import Origin
    from pooler.settings import Reports, Settings

log = get_logger(__name__)

PEEK_AFTER_SECONDS: Final = 0.02
"""A connection that was idle for longer is looked at before it is trusted with a query."""

ASIDE_SECONDS = 10.0
"""How long a database that is being dropped is left alone; PostgreSQL itself waits 5 s for others to leave."""

MATCH_DEPTH = 8
"""How many idle connections are compared with the session's settings before the latest one is taken."""


EXPRESS_BYTES = 8192
"""Longer requests are not looked at for the express lane."""


class Waiter(Protocol):
    """Somebody who waits for a connection."""

    @property
    def settings(self) -> Settings: ...

    @property
    def patience(self) -> float:
        """How long it waits, in seconds."""

    @property
    def traces(self) -> frozenset[str]:
        """What of it may be on a connection for good, so that it expects to find it."""

    @property
    def insists(self) -> bool:
        """Whether traces of others would show."""

    def granted(self, origin: Origin) -> None: ...

    def refused(self, error: PgError) -> None: ...


class PoolCeremonies(Protocol):
    """What the pool asks of those who may wait."""

    def connect(self, pool: Pool) -> None:
        """Open one connection; ends in `pool.connected` or `pool.connect_failed`."""

    def reset(self, pool: Pool, origin: Origin) -> None:
        """Roll back and discard what a session left; ends in `pool.release` or a closed connection."""


class Pool:
    """Up to `size` origin connections.

    Args:
      name: what clients call the database.
      target: where the connections lead.
    """

    def __init__(self, name: str, target: Target, config: Config, stats: Stats, ceremonies: PoolCeremonies) -> None:
        self.name = name
        self.target = target
        self.stats = stats
        self.adopt(config, target.pool_size)
        self.catalog: Catalog | None = None
        self.advice: Advice | None = None
        self.reads_committed = False  # READ COMMITTED is the default on its connections, as far as is known
        self.ready = False  # one connection was authenticated and none has failed to connect since
        self.closing = False
        self.schema_epoch = 0  # how often DDL was seen
        self.disabled = False  # it takes no new clients
        self.held_since: float | None = None  # an operator holds its clients back (monotonic seconds)
        self._released_at = 0.0
        self._aside_until = 0.0
        self.defaults = Defaults()
        self._renewed_at = 0.0  # connections made before have other defaults or credentials (monotonic seconds)
        self.idle: list[Origin] = []
        self.origins: set[Origin] = set()
        self.waiting: deque[tuple[float, Waiter]] = deque()
        self.connecting_count = 0
        self.wait_histogram = Histogram()
        self.connects = 0
        self.closes = 0
        self.last_failure: PgError | None = None
        self.greetings: dict[Settings, Reports] = {}  # ParameterStatus values by startup settings
        self._ceremonies = ceremonies

    def adopt(self, config: Config, size: int) -> None:
        """Follow `config` from now on. Connections above a smaller `size` are closed when they become idle."""
        self.config = config
        self.limits = config.deadlines(self.name, None)
        self.shortest_wait = config.shortest("pool_wait_timeout")
        self.size: int = size
        self.max_entry_bytes: int = config.cache.max_entry_bytes
        self.max_message_bytes: int = config.max_message_bytes
        self.high_water: int = config.buffer_high_water
        self.max_prepared: int = config.max_prepared_statements
        self.express_bytes: int = min(EXPRESS_BYTES, config.max_message_bytes)
        self.reuses_statements: bool = config.reuses_statements(self.name)

    # ---- what it looks like ------------------------------------------------------------------------------------------

    @property
    def idle_count(self) -> int:
        return len(self.idle)

    @property
    def busy_count(self) -> int:
        return len(self.origins) - len(self.idle)

    @property
    def waiting_count(self) -> int:
        return len(self.waiting)

    def oldest_wait_seconds(self, now: float) -> float:
        """Seconds that the waiter at the head has waited, at `now` (monotonic)."""
        return now - self.waiting[0][0] if self.waiting else 0.0

    # ---- asking for a connection -------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter) -> Origin | None:
        """A connection now, or None: then `waiter` is in the queue and is granted one or refused later."""
        if not self.waiting:
            while self.idle:
                origin = self._take_idle(waiter.settings, waiter.traces)
                if origin.traces and waiter.insists and not origin.traces <= waiter.traces:
                    self._replace(origin)
                    break
                if monotonic() - origin.idle_since > PEEK_AFTER_SECONDS and origin.transport.has_news():
                    origin.readable()  # it may only be a notice; if it is the end, the connection leaves the pool
                    if origin.closed:
                        self.stats.retries += 1
                        continue
                return origin
        self.waiting.append((monotonic(), waiter))
        self._grow()
        return None

    def at_hand(self, settings: Settings, traces: frozenset[str]) -> Origin | None:
        """The connection that `acquire` would give, where that needs no thought: the last of `idle`, still in there."""
        idle = self.idle
        if not idle or self.waiting:
            return None
        origin = idle[-1]
        if (
            origin.settings is not settings
            or origin.traces != traces
            or monotonic() - origin.idle_since > PEEK_AFTER_SECONDS
        ):
            return None
        return origin

    def take(self, origin: Origin) -> bool:
        """Take this very connection, if it is idle and nobody waits."""
        if self.waiting or origin not in self.idle:
            return False
        self.idle.remove(origin)
        return True

    def acquire_spare(self, settings: Settings) -> Origin | None:
        """A connection for work that nobody waits for, never the last that is free; None where there is none."""
        if self.waiting or len(self.idle) + self.size - len(self.origins) - self.connecting_count < 2 or not self.idle:
            return None
        return self._take_idle(settings, settings.customs)

    def _take_idle(self, settings: Settings, traces: frozenset[str]) -> Origin:
        """The latest one, but for one that has the same settings; before both, one with the same traces.

        So clients with custom settings and clients without them keep to connections of their own, where there are
        enough.
        """
        idle = self.idle
        last = len(idle) - 1
        if idle[last].settings is not settings or idle[last].traces != traces:
            second = last
            found = 1 if idle[last].traces <= traces else 0
            for index in range(last, max(-1, last - MATCH_DEPTH), -1):
                origin = idle[index]
                if origin.traces == traces:
                    if origin.settings is settings:
                        return idle.pop(index)
                    fits = 3
                else:
                    fits = 2 if origin.settings is settings and origin.traces <= traces else 0
                if fits > found:
                    second, found = index, fits
            return idle.pop(second)
        return idle.pop()

    def _replace(self, origin: Origin) -> None:
        """Close a connection that has traces which its next client must not see; another one is opened."""
        self.stats.origin_connections_replaced += 1
        log.debug("origin_replaced", pool=self.name, origin_pid=origin.pid, traces=sorted(origin.traces))
        origin.close()

    def withdraw(self, waiter: Waiter) -> None:
        """`waiter` no longer waits: it left, or was cancelled."""
        for index, (_, queued) in enumerate(self.waiting):
            if queued is waiter:
                del self.waiting[index]
                return

    def _grow(self) -> None:
        """Ask for as many new connections as there are waiters without one coming, within `size`."""
        while (
            not self.closing
            and self.held_since is None
            and self.connecting_count < len(self.waiting)
            and len(self.origins) + self.connecting_count < self.size
        ):
            self.open_one()

    def open_one(self) -> None:
        self.connecting_count += 1
        self._ceremonies.connect(self)

    # ---- connections that come and go --------------------------------------------------------------------------------

    def connected(self, origin: Origin) -> None:
        """A new connection is authenticated and registered."""
        self.connecting_count -= 1
        self.connects += 1
        self.stats.origin_connections_opened += 1
        self.ready = True
        self.last_failure = None
        self.origins.add(origin)
        self.release(origin)

    def connect_failed(self, error: PgError) -> None:
        """A new connection could not be made. With no other left that could serve them, the waiters hear it."""
        self.connecting_count -= 1
        self.stats.origin_connect_failures += 1
        self.last_failure = error
        if not self.origins and not self.connecting_count and self.held_since is None:
            self.ready = False
            waiting, self.waiting = self.waiting, deque()
            for _, waiter in waiting:
                waiter.refused(error)

    def release(self, origin: Origin) -> None:
        """`origin` is clean: idle, outside a transaction, every answer read."""
        if origin.closed or self.closing or self.held_since is not None:
            origin.close()
            return
        origin.session = None
        origin.draining = False
        if origin.cancels:  # a cancel that is still on its way must not hit the next client's query
            return
        now = monotonic()
        if self._too_old(origin, now):
            origin.close()
            self._grow()
            return
        if self.waiting:
            since, waiter = self.waiting[0]
            if origin.traces and waiter.insists and not origin.traces <= waiter.traces:
                self._replace(origin)
                return
            self.waiting.popleft()
            self.wait_histogram.observe(now - since)
            waiter.granted(origin)
            return
        if now < self._aside_until:
            origin.close()
            return
        origin.idle_since = now
        self.idle.append(origin)

    def cancel_done(self, origin: Origin) -> None:
        """A cancel request for `origin` is over; if it waited for that, it is free now."""
        origin.cancels -= 1
        if not origin.cancels and not origin.closed and origin.session is None and not origin.draining:
            self.release(origin)

    def abandon(self, origin: Origin, *, dirty: bool) -> None:
        """The session of `origin` is gone.

        Answers that are still owed are read and dropped first. Then a transaction is rolled back, and session
        state (`dirty`) discarded, before anybody else gets the connection.
        """
        origin.session = None
        origin.draining = True
        origin.block_since = 0.0
        if dirty:
            origin.prepared.clear()
            origin.unnamed = None
        origin.fatal = None
        if not origin.units:
            self._clean(origin, dirty=dirty)
        elif dirty:
            origin.close()
            self._grow()

    def drained(self, origin: Origin) -> None:
        """The last answer owed to a session that is gone has been read."""
        self._clean(origin, dirty=False)

    def _clean(self, origin: Origin, *, dirty: bool) -> None:
        if origin.status == ord("I") and not dirty:
            origin.draining = False
            self.release(origin)
            return
        if origin.status != ord("I"):
            self.stats.transactions_rolled_back += 1
        origin.leave_reactor()
        self._ceremonies.reset(self, origin)

    def lost(self, origin: Origin, reason: str, *, idle: bool) -> None:
        """`origin` broke. Called after `remove`."""
        self.stats.origin_connections_lost += 1
        log.warning(
            "origin_connection_lost",
            pool=self.name,
            origin_pid=origin.pid,
            idle=idle,
            reason=_why(origin, reason),
        )

    def remove(self, origin: Origin) -> None:
        """`origin` is closed: forget it."""
        self.origins.discard(origin)
        if origin in self.idle:
            self.idle.remove(origin)
        self.closes += 1
        self._grow()

    # ---- time --------------------------------------------------------------------------------------------------------

    def _too_old(self, origin: Origin, now: float) -> bool:
        lifetime = self.limits.origin_lifetime
        return (
            origin.created < self._renewed_at
            or len(self.origins) > self.size
            or (lifetime > 0 and now - origin.created > lifetime)
        )

    def renew(self) -> None:
        """New connections begin with something else (defaults, credentials, address): the old ones go, once idle."""
        self._renewed_at = monotonic()
        self.greetings = {}  # who is just asking for one may still add to the old ones
        for origin in list(self.idle):
            origin.close()

    def tick(self, now: float) -> None:
        """Housekeeping, several times a second: waits that took too long, connections that are too old."""
        if self.held_since is not None:
            self._refuse_held(now, self.held_since)
        elif self.waiting and now - self.waiting[0][0] > self.shortest_wait:
            self._refuse_overdue(now)
        idle_limit = self.limits.origin_idle_timeout
        for origin in list(self.idle):
            aged = self._too_old(origin, now)
            surplus = len(self.origins) > self.config.min_pool_size
            if aged or (surplus and 0 < idle_limit < now - origin.idle_since):
                origin.close()

    # ---- held back by an operator ------------------------------------------------------------------------------------

    def hold(self) -> None:
        """No connection is handed out or opened, and each is closed as it becomes idle; who wants one waits."""
        if self.held_since is None:
            self.held_since = monotonic()
        for origin in list(self.idle):
            origin.close()

    def let_go(self) -> None:
        """The opposite of `hold`. Who waited meanwhile has its whole patience again."""
        self.held_since = None
        self._released_at = monotonic()
        self._grow()

    def _refuse_held(self, now: float, held_since: float) -> None:
        limit = self.limits.pause_timeout
        if not 0 < limit < now - held_since:
            return
        for since, waiter in [each for each in self.waiting if now - max(each[0], held_since) > limit]:
            self.withdraw(waiter)
            self.wait_histogram.observe(now - since)
            self.stats.expired("pause_timeout")
            waiter.refused(errors.paused(self.name, limit))

    def _refuse_overdue(self, now: float) -> None:
        free_since = self._released_at
        overdue = [each for each in self.waiting if now - max(each[0], free_since) > each[1].patience]
        for since, waiter in overdue:
            self.withdraw(waiter)
            self.wait_histogram.observe(now - since)
            self.stats.pool_timeouts += 1
            self.stats.expired("pool_wait_timeout")
            log.warning("pool_wait_timeout", pool=self.name, size=self.size, waiting=len(self.waiting) + 1)
            waiter.refused(errors.pool_timeout(self.name, waiter.patience, self.size))

    def step_aside(self) -> None:
        """Somebody needs the database for himself: close what is idle, and open nothing unasked for a while."""
        self._aside_until = monotonic() + ASIDE_SECONDS
        for origin in list(self.idle):
            origin.close()

    @property
    def missing(self) -> int:
        """How many connections are lacking to `min_pool_size`."""
        if self.held_since is not None or monotonic() < self._aside_until:
            return 0
        wanted = min(self.config.min_pool_size, self.size)
        return max(0, wanted - len(self.origins) - self.connecting_count)

    def close(self) -> None:
        """Close every connection and refuse every waiter: the process ends."""
        self.closing = True
        waiting, self.waiting = self.waiting, deque()
        for _, waiter in waiting:
            waiter.refused(errors.admin_shutdown())
        for origin in list(self.origins):
            origin.close()


def _why(origin: Origin, reason: str) -> str:
    return f"{reason}: {origin.fatal.message}" if origin.fatal is not None else reason
