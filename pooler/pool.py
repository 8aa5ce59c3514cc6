"""The origin connections of one database and role, and who gets them.

Lives here: every decision about them (idle, busy, waiting, limits, ageing), in plain synchronous code with no I/O of
its own. Which idle connection suits whom is in `matching`. Opening and resetting connections is ceremony, which the
pool only asks for through `PoolCeremonies`.

Users take turns (`queue`); a connection that becomes free goes to the waiter whose turn it is before anybody else can
see it. Who would wait in vain is refused at once: the queue is full or too slow, or the origin is down (`breaker`).
Administrators have connections in reserve that nobody else is given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from config import Config, Target
from pooler.breaker import Breaker
from pooler.defaults import Defaults
from pooler.logs import get_logger
from pooler.matching import take_idle
from pooler.queue import Queued, WaitQueue
from pooler.roles import READ_ONLY, fits
from pooler.stats import Histogram, Stats
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.cache.advice import Advice
    from pooler.cache.catalog import Catalog
    from pooler.origin import Origin
    from pooler.replicas import Replicas
    from pooler.settings import Reports, Settings

log = get_logger(__name__)

PEEK_AFTER_SECONDS: Final = 0.02
"""A connection that was idle for longer is looked at before it is trusted with a query."""

ASIDE_SECONDS = 10.0
"""How long a database that is being dropped is left alone; PostgreSQL itself waits 5 s for others to leave."""

EXPRESS_BYTES = 8192
"""Longer requests are not looked at for the express lane."""

NO_SUCH_DATABASE = "3D000"


class Waiter(Queued, Protocol):
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

    def soon(self, function: Callable[[], None]) -> None:
        """Run `function` when whoever called the pool is done."""


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
        self.breaker = Breaker(0, 1.0, 1.0, 1.0)
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
        self._released_at = 0.0
        self._aside_until = 0.0
        self.defaults = Defaults()
        self.sequence_tables: frozenset[str] = frozenset()  # whose rows get values of sequences by themselves
        self._renewed_at = 0.0  # connections made before have other defaults or credentials (monotonic seconds)
        self.idle: list[Origin] = []
        self.origins: set[Origin] = set()
        self.waiting: WaitQueue[Waiter] = WaitQueue(self.size)
        self.reserve: set[Origin] = set()  # of `origins`, those for administrators alone
        self.reserve_idle: list[Origin] = []
        self._reserve_connecting = 0  # of `connecting_count`
        self._refusals: dict[Waiter, PgError] = {}  # to be told soon
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
        self.administrators = config.administrators() if config.reserve_pool_size else frozenset()
        breaker = config.breaker
        self.breaker.limit(breaker.failures, breaker.timeout_rate, breaker.retry_after, breaker.retry_at_most)
        self.max_entry_bytes: int = config.cache.max_entry_bytes
        self.max_message_bytes: int = config.max_message_bytes
        self.high_water: int = config.buffer_high_water
        self.max_prepared: int = config.max_prepared_statements
        self.express_bytes: int = min(EXPRESS_BYTES, config.max_message_bytes)
        self.reuses_statements: bool = config.reuses_statements(self.name)

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
                if origin.traces and waiter.insists and not origin.traces <= waiter.traces:
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
        error = self._why_not_wait(waiter, now)
        if error is not None:
            self._refuse_soon(waiter, error)
            return None
        self.waiting.push(waiter, now)
        self._grow()
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

    def _why_not_wait(self, waiter: Waiter, now: float) -> PgError | None:
        """Why `waiter` would wait in vain; None if it would not, or nobody knows."""
        if self.held_since is not None:
            return None
        if self.paused(now):
            return self._paused_error(now)
        if waiter.user in self.administrators:
            return None
        limit = self.config.max_waiting
        if limit and len(self.waiting) >= limit:
            self.stats.pool_refusals += 1
            return errors.queue_full(self.name, limit)
        expected, patience = self.waiting.expected_wait(waiter.user, now), waiter.patience
        if expected > patience:
            self.stats.pool_refusals += 1
            return errors.queue_too_slow(self.name, expected, patience)
        return None

    def paused(self, now: float) -> bool:
        """Whether there is no connection, and the breaker lets none be opened now."""
        return not self.breaker.closed and not self._usable and not self.breaker.may_try(now)

    @property
    def _usable(self) -> bool:
        """Whether there is a connection that may become free for somebody."""
        return any(not origin.retired for origin in self.origins)

    def _paused_error(self, now: float) -> PgError:
        self.stats.breaker_refusals += 1
        reason = self.last_failure.message if self.last_failure is not None else "it was lost"
        return errors.origin_paused(reason, self.breaker.failures_in_a_row, self.breaker.retry_in(now))

    def _refuse_soon(self, waiter: Waiter, error: PgError) -> None:
        """`waiter` hears of `error` when it is ready to: not while it is still asking."""
        if not self._refusals:
            self._ceremonies.soon(self._refuse_now)
        self._refusals[waiter] = error

    def _refuse_now(self) -> None:
        while self._refusals:  # one at a time: what one is told may make another leave
            waiter = next(iter(self._refusals))
            waiter.refused(self._refusals.pop(waiter))

    def take(self, origin: Origin) -> bool:
        """Take this very connection, if it is idle and nobody waits."""
        if self.waiting.users or origin not in self.idle:
            return False
        self.idle.remove(origin)
        return True

    def acquire_spare(self, settings: Settings) -> Origin | None:
        """A connection for work that nobody waits for, never the last that is free; None where there is none."""
        if self.waiting.users or not self.idle or len(self.idle) + self.size - self._ordinary < 2:
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
            self._refusals.pop(waiter, None)

    @property
    def _ordinary(self) -> int:
        """Connections that are not in reserve, those being opened included."""
        return len(self.origins) - len(self.reserve) + self.connecting_count - self._reserve_connecting

    def _grow(self) -> None:
        """Ask for as many new connections as there are waiters without one coming, within the limits."""
        if self.closing or self.held_since is not None or not self.waiting.users:
            return
        now = monotonic()
        while self.connecting_count < len(self.waiting) and self._ordinary < self.size and self.breaker.may_try(now):
            self.open_one()
        if self._ordinary >= self.size and self.waiting.head(self.administrators) is not None:
            self._open_reserve(now)
        if not self.connecting_count and self.paused(now):
            self.waiting_hear(self._paused_error(now))

    def _open_reserve(self, now: float) -> None:
        taken = len(self.reserve) + self._reserve_connecting
        if not self._reserve_connecting and taken < self.config.reserve_pool_size and self.breaker.may_try(now):
            self._reserve_connecting += 1
            self.open_one()

    def waiting_hear(self, error: PgError) -> None:
        """Everybody who waits is refused."""
        for waiter in self.waiting.clear():
            self._refuse_soon(waiter, error)

    def open_one(self) -> None:
        self.breaker.begin()
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
        if self.breaker.succeeded():
            log.warning("origin_breaker_closed", pool=self.name)
        self.origins.add(origin)
        self.place = origin.target.place
        if self._reserve_connecting and self._ordinary >= self.size:
            self._reserve_connecting -= 1
            self.reserve.add(origin)
        self.release(origin)
        self._grow()

    def connect_failed(self, error: PgError, *, timed_out: bool = False) -> None:
        """A new connection could not be made. With no other left that could serve them, the waiters hear it.

        Otherwise they wait on, and `tick` tries again as the breaker allows.
        """
        self.connecting_count -= 1
        self._reserve_connecting = min(self._reserve_connecting, self.connecting_count)
        self.stats.origin_connect_failures += 1
        self.last_failure = error
        now, breaker = monotonic(), self.breaker
        was_closed = breaker.closed
        if error.sqlstate == NO_SUCH_DATABASE:
            breaker.succeeded()  # the origin answers; the database may be made at any moment, through pgnear even
        elif breaker.failed(now, timed_out=timed_out):
            self.ready = False
            log.log(
                logging.ERROR if was_closed else logging.WARNING,
                "origin_breaker_open",
                pool=self.name,
                failures=breaker.failures_in_a_row,
                retry_in_seconds=round(breaker.retry_in(now), 3),
                reason=error.message,
            )
        if not self.connecting_count and not self._usable and self.held_since is None:
            self.ready = False
            self.waiting_hear(error)

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
        reserved = origin in self.reserve
        waiter = self.waiting.head(self.administrators if reserved else None) if self.waiting.users else None
        if waiter is not None:
            if origin.traces and waiter.insists and not origin.traces <= waiter.traces:
                self._replace(origin)
                return
            self.wait_histogram.observe(now - self.waiting.serve(waiter, now))
            waiter.granted(origin)
            return
        if now < self._aside_until:
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
        self.reserve.discard(origin)
        for idle in (self.idle, self.reserve_idle):
            if origin in idle:
                idle.remove(origin)
        self.closes += 1
        self._grow()

    # ---- time --------------------------------------------------------------------------------------------------------

    def _too_old(self, origin: Origin, now: float) -> bool:
        lifetime = self.limits.origin_lifetime
        return (
            origin.retired
            or origin.created < self._renewed_at
            or (len(self.origins) - len(self.reserve) > self.size and origin not in self.reserve)
            or (lifetime > 0 and now - origin.created > lifetime)
        )

    def renew(self) -> None:
        """New connections begin with something else (defaults, credentials, address): the old ones go, once idle."""
        self._renewed_at = monotonic()
        self.greetings = {}  # who is just asking for one may still add to the old ones
        self._close_idle()

    def role_reported(self, origin: Origin, name: str) -> None:
        """A server was promoted or demoted. If it is not what is wanted any more, its connections drain."""
        wanted = self.target.session_attrs
        promoted = name == "in_hot_standby" and origin.reports.values[name] == "off"
        if not (promoted and wanted == "prefer-standby") and fits(origin.reports.values, wanted) is not False:
            return
        place = origin.target.place
        leaving = [each for each in self.origins if each.target.place == place and not each.retired]
        log.warning("origin_role_changed", pool=self.name, host=place, wanted=wanted, connections=len(leaving))
        self.stats.origin_role_changes += 1
        self.leave(leaving)

    def leave(self, leaving: Iterable[Origin]) -> None:
        """These drain: they are closed when they are idle."""
        for each in leaving:
            each.retired = True
        self._close_retired()

    def _look_at_roles(self) -> None:
        """What came among the answers to pgnear's own questions is seen here, at the latest."""
        for origin in self.idle:
            if (
                origin.settings.get(READ_ONLY) is None
                and fits(origin.reports.values, self.target.session_attrs) is False
            ):
                self.role_reported(origin, READ_ONLY)
                return

    def found_read_only(self, origin: Origin) -> None:
        """A statement was refused as in a read-only transaction: before PostgreSQL 14 only that tells of a demotion."""
        if self.target.session_attrs in ("read-write", "primary") and fits(origin.reports.values, "primary") is None:
            origin.retired = True

    def _close_retired(self) -> None:
        for origin in (*self.idle, *self.reserve_idle):
            if origin.retired:
                origin.close()

    def _close_idle(self) -> None:
        for origin in (*self.idle, *self.reserve_idle):
            origin.close()

    def tick(self, now: float) -> None:
        """Housekeeping, several times a second: waits that took too long, connections that are too old or lacking."""
        if self.held_since is not None:
            self._refuse_held(now, self.held_since)
        else:
            if self.oldest_wait_seconds(now) > self.shortest_wait:
                self._refuse_overdue(now)
            if not self.breaker.closed and self.breaker.may_try(now) and self._ordinary < self.size:
                self.open_one()
            self._grow()
        if self.target.session_attrs != "any":
            self._look_at_roles()
        idle_limit = self.limits.origin_idle_timeout
        for origin in (*self.idle, *self.reserve_idle):
            aged = self._too_old(origin, now)
            surplus = origin in self.reserve or len(self.origins) > self.config.min_pool_size
            if aged or (surplus and 0 < idle_limit < now - origin.idle_since):
                origin.close()

    # ---- held back by an operator ------------------------------------------------------------------------------------

    def hold(self) -> None:
        """No connection is handed out or opened, and each is closed as it becomes idle; who wants one waits."""
        if self.held_since is None:
            self.held_since = monotonic()
        self._close_idle()

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
        self._close_idle()

    @property
    def missing(self) -> int:
        """How many connections are lacking to `min_pool_size`."""
        if self.held_since is not None or not self.breaker.closed or monotonic() < self._aside_until:
            return 0
        return max(0, min(self.config.min_pool_size, self.size) - self._ordinary)

    def close(self) -> None:
        """Close every connection and refuse every waiter: the process ends."""
        self.closing = True
        for waiter in self.waiting.clear():
            waiter.refused(errors.admin_shutdown())
        for origin in list(self.origins):
            origin.close()


def _why(origin: Origin, reason: str) -> str:
    return f"{reason}: {origin.fatal.message}" if origin.fatal is not None else reason
