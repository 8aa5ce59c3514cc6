"""The origin connections of one database and role, and who gets them.

Lives here: every decision about them (idle, busy, waiting, limits), in plain synchronous code with no I/O of its own.
Which idle connection suits whom is in `matching`; what time and operators do to a pool in `upkeep`. Opening and
resetting connections is ceremony, which the pool only asks for through `PoolCeremonies`.

Users take turns (`queue`); a connection that becomes free goes to the waiter whose turn it is before anybody else can
see it. Who would wait in vain is refused at once: the queue is full or too slow, or the origin is down (`breaker`).
Administrators have connections in reserve that nobody else is given.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from config import Config, Target
from pooler import outage, refusals
from pooler.breaker import Breaker
from pooler.concurrency import Limit
from pooler.defaults import Defaults
from pooler.greetings import Greetings
from pooler.histogram import Histogram
from pooler.logs import get_logger
from pooler.matching import take_idle
from pooler.pulse import Pulse
from pooler.queue import Queued, WaitQueue
from pooler.refusals import Refusals
from pooler.sql.traces import shows_others
from pooler.stats import Stats
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.cache.advice import Advice
    from pooler.cache.catalog import Catalog
    from pooler.origin import Origin
    from pooler.replicas import Replicas
    from pooler.settings import Settings

log = get_logger(__name__)

PEEK_AFTER_SECONDS: Final = 0.02
"""A connection that was idle for longer is looked at before it is trusted with a query."""

EXPRESS_BYTES = 8192
"""Longer requests are not looked at for the express lane."""

NO_SUCH_DATABASE = "3D000"


class Waiter(Queued, Protocol):
    """Somebody who waits for a connection."""

    @property
    def settings(self) -> Settings: ...

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

    def probe(self, pool: Pool) -> None:
        """See whether the origin lets a connection in; ends in `outage.probe_got_through` or `probe_failed`."""

    def reset(self, pool: Pool, origin: Origin) -> None:
        """Roll back and discard what a session left; ends in `pool.release` or a closed connection."""

    def soon(self, function: Callable[[], None]) -> None:
        """Run `function` when whoever called the pool is done."""


class Pool:
    """Up to `size` origin connections; up to `allowed` of them now.

    Args:
      name: what clients call the database.
      target: where the connections lead.
    """

    def __init__(self, name: str, target: Target, config: Config, stats: Stats, ceremonies: PoolCeremonies) -> None:
        self.name = name
        self.target = target
        self.stats = stats
        self.breaker = Breaker(0, 1.0, 1.0, 1.0)
        self.pulse = Pulse()
        self.limit = Limit()
        self.waiting: WaitQueue[Waiter] = WaitQueue(target.pool_size)
        self.adopt(config, target.pool_size)
        self.catalog: Catalog | None = None
        self.home = self  # of a replica's pool, that of its primary
        self.replicas: Replicas | None = None
        self.place = ""  # the host that the last connection was made to
        self.advice: Advice | None = None
        self.reads_committed = False  # READ COMMITTED is the default on its connections, as far as is known
        self.ready = False  # one connection was authenticated and none has failed to connect since
        self.closing = False
        self.schema_epoch = 0  # how often DDL was seen
        self.disabled = False  # it takes no new clients
        self.held_since: float | None = None  # an operator holds its clients back (monotonic seconds)
        self.let_go_at = 0.0  # when he did no more
        self.awaited_until = (
            0.0  # an operator said that the origin is back; until then who waits puts up with its absence
        )
        self.aside_until = 0.0  # until then nothing idle is kept: somebody needs the database for himself
        self.defaults = Defaults()
        self.sequence_tables: frozenset[str] | None = None  # whose rows get values by themselves; None: not known
        self.renewed_at = 0.0  # connections made before have other defaults or credentials (monotonic seconds)
        self.idle: list[Origin] = []
        self.origins: set[Origin] = set()
        self.reserve: set[Origin] = set()  # of `origins`, those for administrators alone
        self.reserve_idle: list[Origin] = []
        self._reserve_connecting = 0  # of `connecting_count`
        self.refusals = Refusals(ceremonies.soon)
        self.connecting_count = 0
        self.wait_histogram = Histogram()
        self.finished = 0  # times a connection was given back, and once for each connection
        self.connects = 0
        self.closes = 0
        self.last_failure: PgError | None = None
        self.greetings = Greetings()
        self.ceremonies = ceremonies

    def adopt(self, config: Config, size: int) -> None:
        """Follow `config` from now on. Connections above a smaller `size` are closed when they become idle."""
        self.config = config
        self.limits = config.deadlines(self.name, None)
        self.shortest_wait = config.shortest("pool_wait_timeout")
        self.size: int = size
        self.waiting.limit(size)
        concurrency = config.concurrency
        self.limit.adopt(size, ceil(concurrency.least * size) if concurrency.adaptive else size, concurrency.tolerance)
        self.allowed: int = self.limit.value
        self.administrators = config.administrators() if config.reserve_pool_size else frozenset()
        breaker = config.breaker
        self.breaker.limit(breaker.failures, breaker.timeout_rate, breaker.retry_after, breaker.retry_at_most)
        self.max_entry_bytes: int = config.cache.max_entry_bytes
        self.max_message_bytes: int = config.max_message_bytes
        self.high_water: int = config.buffer_high_water
        self.max_prepared: int = config.max_prepared_statements
        self.express_bytes: int = min(EXPRESS_BYTES, config.max_message_bytes)
        self.reuses_statements: bool = config.reuses_statements(self.name)
        self.defers_begin: bool = config.defers_begin(self.name)

    # ---- what it looks like ------------------------------------------------------------------------------------------

    @property
    def idle_count(self) -> int:
        return len(self.idle) + len(self.reserve_idle)

    @property
    def busy_count(self) -> int:
        return len(self.origins) - self.idle_count

    @property
    def waiting_count(self) -> int:
        return len(self.waiting)

    def oldest_wait_seconds(self, now: float) -> float:
        """Seconds that whoever has waited longest has, at `now` (monotonic)."""
        oldest = self.waiting.oldest()
        return now - oldest if oldest is not None else 0.0

    # ---- asking for a connection -------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter) -> Origin | None:
        """A connection now, or None: then `waiter` is in the queue and is granted one or refused later."""
        if not self.waiting.users:
            while self.idle:
                origin = take_idle(self.idle, waiter.settings, waiter.traces)
                if origin.traces and waiter.insists and shows_others(origin.traces, waiter.traces):
                    if self.ordinary < self.allowed:
                        self.idle.append(origin)  # whose traces it has may come again; there is room for one more
                    else:
                        self._replace(origin)
                    break
                if monotonic() - origin.idle_since > PEEK_AFTER_SECONDS and origin.transport.has_news():
                    origin.readable()  # it may only be a notice; if it is the end, the connection leaves the pool
                    if origin.closed:
                        self.stats.retries += 1
                        continue
                return origin
        if self.reserve_idle and waiter.user in self.administrators:
            return self.reserve_idle.pop()
        now = monotonic()
        error = refusals.why_not_wait(self, waiter, now)
        if error is not None:
            self.refusals.add(waiter, error)
            return None
        self.waiting.push(waiter, now)
        self.grow()
        return None

    def at_hand(self, settings: Settings, traces: frozenset[str]) -> Origin | None:
        """The connection that `acquire` would give, where that needs no thought: the last of `idle`, still in there."""
        idle = self.idle
        if not idle or self.waiting.users:
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
        if self.waiting.users or origin not in self.idle:
            return False
        self.idle.remove(origin)
        if origin.transport.has_news():
            origin.readable()  # as in `acquire`
        return not origin.closed

    def acquire_coldest(self) -> Origin | None:
        """The connection that clients would get last, for pgnear's own work; None where none is idle. Those that a
        client is likely to come back to are left to it, where there are others.
        """
        while self.idle and not self.waiting.users:
            origin = self.idle.pop(next((at for at, each in enumerate(self.idle) if not each.asked_again), 0))
            if origin.transport.has_news():
                origin.readable()  # as in `acquire`
                if origin.closed:
                    continue
            return origin
        return None

    def release_coldest(self, origin: Origin) -> None:
        """`release` behind pgnear's own work: who asks next gets the connection that he would have got without it."""
        self.release(origin)
        if self.idle and self.idle[-1] is origin:
            self.idle.insert(0, self.idle.pop())

    def acquire_spare(self, settings: Settings) -> Origin | None:
        """A connection for work that nobody waits for, never the last that is free; None where there is none."""
        if self.waiting.users or not self.idle or len(self.idle) + self.allowed - self.ordinary < 2:
            return None
        return take_idle(self.idle, settings, settings.customs)

    def _replace(self, origin: Origin) -> None:
        """Close a connection that has traces which its next client must not see; another one is opened."""
        self.stats.origin_connections_replaced += 1
        log.debug("origin_replaced", pool=self.name, origin_pid=origin.pid, traces=sorted(origin.traces))
        origin.close()

    def withdraw(self, waiter: Waiter) -> None:
        """`waiter` no longer waits: it left, or was cancelled."""
        if not self.waiting.withdraw(waiter):
            self.refusals.withdraw(waiter)

    @property
    def ordinary(self) -> int:
        """Connections that are not in reserve, those being opened included."""
        return len(self.origins) - len(self.reserve) + self.connecting_count - self._reserve_connecting

    def grow(self) -> None:
        """Ask for as many new connections as there are waiters without one coming, within the limits."""
        if self.closing or self.held_since is not None or not self.waiting.users:
            return
        now = monotonic()
        if self.ordinary < self.allowed:
            waiting = len(self.waiting)
            while self.connecting_count < waiting and self.ordinary < self.allowed and self.breaker.may_try(now):
                self.open_one()
        admins = self.administrators
        if admins and self.ordinary >= self.allowed and self.waiting.head(admins) is not None:
            self._open_reserve(now)
        if not (self.connecting_count or self.breaker.closed) and outage.paused(self, now):
            refusals.everybody(self, refusals.origin_paused(self, now))

    def _open_reserve(self, now: float) -> None:
        taken = len(self.reserve) + self._reserve_connecting
        if not self._reserve_connecting and taken < self.config.reserve_pool_size and self.breaker.may_try(now):
            self._reserve_connecting += 1
            self.open_one()

    def open_one(self) -> None:
        self.breaker.begin()
        self.connecting_count += 1
        self.ceremonies.connect(self)

    # ---- connections that come and go --------------------------------------------------------------------------------

    def connected(self, origin: Origin) -> None:
        """A new connection is authenticated and registered."""
        self.connecting_count -= 1
        self.connects += 1
        self.stats.origin_connections_opened += 1
        outage.reached(self, monotonic())
        if not self.origins:
            self.waiting.start_over(monotonic())
        self.origins.add(origin)
        self.place = origin.target.place
        if self._reserve_connecting and self.ordinary >= self.allowed:
            self._reserve_connecting -= 1
            self.reserve.add(origin)
        self.release(origin)
        self.grow()

    def connect_failed(
        self, error: PgError, *, begun: float, absent: bool = False, timed_out: bool = False, at_once: bool = False
    ) -> None:
        """A new connection could not be made, which was `begun` at that time (monotonic seconds).

        With no other left that could serve them, who waited then hears it; who came later gets an attempt of its own.
        Otherwise, and where the origin is `absent` and to be waited for, they all wait on, and `tick` tries again as
        the breaker allows.
        """
        self.connecting_count -= 1
        self._reserve_connecting = min(self._reserve_connecting, self.connecting_count)
        self.stats.origin_connect_failures += 1
        again = self.last_failure is not None and self.last_failure.message == error.message
        self.last_failure = error
        if error.sqlstate == NO_SUCH_DATABASE:
            self.breaker.succeeded()  # the origin answers; the database may be made at any moment, through pgnear even
        else:
            outage.not_reached(self, error, monotonic(), timed_out=timed_out, at_once=at_once, again=again)
        if not self.connecting_count and not outage.usable(self) and self.held_since is None:
            self.ready = False
            if absent and outage.awaited(self, monotonic()):
                return
            self.awaited_until = 0.0
            refusals.those_from_before(self, begun, error)
            self.grow()

    def release(self, origin: Origin) -> None:
        """`origin` is clean: idle, outside a transaction, every answer read."""
        if origin.closed or self.closing or self.held_since is not None:
            origin.close()
            return
        self.finished += 1
        origin.session = None
        origin.draining = False
        if origin.cancels:  # a cancel that is still on its way must not hit the next client's query
            return
        now = monotonic()
        if self.too_old(origin, now):
            origin.close()
            self.grow()
            return
        reserved = origin in self.reserve
        waiter = self.waiting.head(self.administrators if reserved else None) if self.waiting.users else None
        if waiter is not None:
            if origin.traces and waiter.insists and shows_others(origin.traces, waiter.traces):
                self._replace(origin)
                return
            self.wait_histogram.observe(now - self.waiting.serve(waiter, now))
            waiter.granted(origin)
            return
        if now < self.aside_until:
            origin.close()
            return
        origin.idle_since = now
        idle = self.reserve_idle if reserved else self.idle
        if origin.asked_again:
            idle.insert(0, origin)
        else:
            idle.append(origin)

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
            self.grow()

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
        self.ceremonies.reset(self, origin)

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
        self.reserve.discard(origin)
        for idle in (self.idle, self.reserve_idle):
            if origin in idle:
                idle.remove(origin)
        self.closes += 1
        self.grow()

    def too_old(self, origin: Origin, now: float) -> bool:
        """Whether `origin` is to be closed rather than handed on."""
        lifetime = self.limits.origin_lifetime
        return (
            origin.retired
            or origin.created < self.renewed_at
            or (len(self.origins) - len(self.reserve) > self.allowed and origin not in self.reserve)
            or (lifetime > 0 and now - origin.created > lifetime)
        )

    # ---- its end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection and refuse every waiter: the process ends."""
        self.closing = True
        for waiter in self.waiting.clear():
            waiter.refused(errors.admin_shutdown())
        for origin in list(self.origins):
            origin.close()


def _why(origin: Origin, reason: str) -> str:
    return f"{reason}: {origin.fatal.message}" if origin.fatal is not None else reason
