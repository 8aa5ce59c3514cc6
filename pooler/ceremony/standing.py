"""Asking a primary and its replicas again and again where they stand in the log, on connections of their own.

What follows from the answers is in `replicas`. Source: PostgreSQL documentation, "Recovery Information Functions" and
"Control Data Functions".
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

from config import Target
from pooler.ceremony.connect import Connected, ask, number, text_row
from pooler.ceremony.opening import replica_target
from pooler.ceremony.origins import connect
from pooler.detour import call_back
from pooler.logs import get_logger
from pooler.replicas import Point, Replica, Replicas
from pooler.transport import TransportClosed
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

ASK_SECONDS = 0.5
"""Between two questions to one server."""

ANSWER_SECONDS = 2.0
"""A server that takes longer to answer is not known to stand anywhere."""

_PRIMARY = (
    "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0'),"
    " (SELECT system_identifier FROM pg_catalog.pg_control_system()),"
    " ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))"
    "::bit(32)::int"
)
_REPLICA = (
    "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_last_wal_replay_lsn(), '0/0'),"
    " (SELECT system_identifier FROM pg_catalog.pg_control_system()),"
    " (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()), pg_catalog.pg_is_in_recovery()"
)


class _Line:
    """A connection that is made anew after it failed."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._target: Target | None = None
        self._connected: Connected | None = None

    @property
    def place(self) -> str:
        """The host that it leads to."""
        return self._connected.target.place if self._connected is not None else ""

    async def ask(self, target: Target, timeout: float, text: str, columns: int) -> tuple[str, ...]:
        """The one row of an answer.

        Raises:
          PgError, TransportClosed, trio.TooSlowError: there is none.
        """
        try:
            if target != self._target:  # the configuration names another one now
                self.close()
            if self._connected is None:
                self._target = target
                parameters = {"application_name": "pgnear"}
                self._connected = await connect(target, self._service.reactor, parameters, timeout=timeout)
            with trio.fail_after(ANSWER_SECONDS):
                return text_row(await ask(self._connected.transport, text), columns)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._connected is not None:
            self._connected.transport.close()
            self._connected = None


async def follow_replicas(service: Service) -> None:
    """Keep knowing which replicas may answer what, of every pool that has some."""
    async with trio.open_nursery() as nursery:
        for pool in service.pools.values():
            if pool.replicas is not None:
                nursery.start_soon(_follow_primary, service, pool, pool.replicas)
                for replica in pool.replicas.all:
                    nursery.start_soon(_follow_replica, service, pool, pool.replicas, replica)


async def _follow_primary(service: Service, pool: Pool, replicas: Replicas) -> None:
    """Note where the primary stands, for as long as the process lives."""
    line, known = _Line(service), True
    assert service.cache is not None
    try:
        while True:
            at, stamp = perf_counter(), service.cache.begin()
            try:
                timeout = pool.limits.origin_connect_timeout
                lsn, system, timeline = await line.ask(pool.target, timeout, _PRIMARY, 3)
                if {pool.place, *(each.target.place for each in pool.origins)} - {"", line.place}:
                    line.close()  # writes may go to another one: ask that
                    raise TransportClosed(f"connections lead to another host than {line.place or pool.target.place}")
                replicas.primary_is(Point(at, stamp, number(lsn)), (system, timeline))
                known = True
            except (PgError, TransportClosed, trio.TooSlowError) as error:
                problem = str(error) or "no answer"
                replicas.forget(f"where the primary stands is not known: {problem}")
                if known:
                    log.warning("replicas_unused", pool=pool.name, reason=problem)
                known = False
            await trio.sleep(ASK_SECONDS)
    finally:
        line.close()


async def _follow_replica(service: Service, home: Pool, replicas: Replicas, replica: Replica) -> None:
    """Note how far a replica has come, for as long as the process lives."""
    line = _Line(service)
    told: str | None = None
    useful = True
    try:
        while True:
            try:
                target, timeout = replica_target(replica.pool), home.limits.origin_connect_timeout
                asked_at = perf_counter()
                lsn, system, timeline, standby = await line.ask(target, timeout, _REPLICA, 4)
                if standby != "t":
                    replica.lost("it is no standby")
                elif replicas.identity is None:
                    replica.lost("where the primary stands is not known")
                elif (system, timeline) != replicas.identity:
                    replica.lost("it does not follow this primary")
                else:
                    replica.has_replayed(number(lsn or "0"), replicas.points, perf_counter() - asked_at)
            except (PgError, TransportClosed, trio.TooSlowError) as error:
                replica.lost(str(error) or "no answer")
                if isinstance(error, trio.TooSlowError):
                    call_back(replica.pool)
            shortfall = replica.shortfall(perf_counter())
            if replica.problem != told or useful != (shortfall is None):
                told, useful = replica.problem, shortfall is None
                log.info("replica", pool=replica.pool.name, usable=useful, problem=shortfall)
            await trio.sleep(ASK_SECONDS)
    finally:
        line.close()
