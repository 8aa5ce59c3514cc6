"""Who takes too long: queries, transactions, clients that say nothing inside a transaction or outside.

Lives here: the look at every linked origin connection, several times a second, and now and then at every client; what
each expiry does; who has sent a part of a batch and no more; who may have left behind what is not read. Not here:
waiting for a connection (`upkeep.tick`), logins (`Doors.look`, called from here), and the deadlines of ceremonies,
which are cancel scopes where they wait.

Traffic sets no timers. It notes when a ReadyForQuery was read (`Origin.ready_at`), when a transaction began
(`Origin.block_since`), and that something came from a client (`Session.stirred`); everything else is seen from here. A
deadline is exceeded by one look at most, and never comes early.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import trio

from config import Config
from config.deadlines import Deadlines
from pooler import ending
from pooler.logs import get_logger
from pooler.origin import IDLE, Origin
from pooler.transport import CHUNK_BYTES
from pooler.walk import held_bytes, hurry
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service
    from pooler.session import Session

log = get_logger(__name__)

LOOK_SECONDS = 0.1
"""Between two looks at the origin connections; a tenth of the shortest deadline where that is less."""

SHORTEST_LOOK_SECONDS = 0.01

MOST_CROWDED = 16
"""Of those who wait with more input than is read, a little of so many is, in one look."""


class DeadlineTable:
    """What holds for each database and user, looked up once.

    Attributes:
      look_seconds: between two looks at what is linked. idle_look_seconds: at all clients; 0 where none without a
        connection may be idle for too long.
    """

    def __init__(self, config: Config) -> None:
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Follow `config` from now on."""
        self._config = config
        self._known: dict[tuple[str, str], Deadlines] = {}
        watched = config.shortest("query_timeout", "transaction_timeout", "idle_in_transaction_timeout")
        self.look_seconds = max(SHORTEST_LOOK_SECONDS, min(LOOK_SECONDS, watched / 10 or LOOK_SECONDS))
        defers = config.defer_begin or any(each.defer_begin for each in config.databases.values())
        idle = config.shortest("client_idle_timeout", *(["idle_in_transaction_timeout"] if defers else []))
        self.idle_look_seconds = max(self.look_seconds, idle / 10) if idle else 0.0

    def __call__(self, database: str, user: str) -> Deadlines:
        known = self._known.get((database, user))
        if known is None:
            known = self._known[database, user] = self._config.deadlines(database, user)
        return known


async def watch_deadlines(service: Service) -> None:
    """Look again and again, for as long as the process lives."""
    idle_look_at = 0.0
    unfinished: dict[Session, int] = {}
    while True:
        await trio.sleep(service.deadlines.look_seconds)
        service.doors.look()
        unfinished = _look_at_unfinished(service, unfinished)
        if service.crowded:
            _look_at_crowded(service)
        now = perf_counter()
        for pool in service.every_pool:
            for origin in list(pool.origins):
                if origin.session is not None:
                    _look_at(service, origin, origin.session, now)
        wait = service.deadlines.idle_look_seconds
        if wait and now >= idle_look_at:
            idle_look_at = now + wait
            for session in list(service.sessions):
                _look_for_silence(service, session, now, wait)


def _look_at_unfinished(service: Service, before: dict[Session, int]) -> dict[Session, int]:
    """Whose batch has not grown since the look before may wait for an answer; who is to be looked at next time."""
    now, service.unfinished = service.unfinished, {}
    for session, size in before.items():
        held = held_bytes(session)
        if held and held == size:
            now.pop(session, None)
            hurry(session)
        elif held:
            now[session] = held
    return now


def _look_at_crowded(service: Service) -> None:
    """Read on, slowly, where a client waits that has sent more than `buffer_high_water`: it may have left, and the end
    of its connection is behind what its kernel has not yet got rid of. All together keep no more than one message may
    have.
    """
    crowded = service.crowded
    for session in [each for each in crowded if each.closed or each.transport.reading]:
        del crowded[session]
    kept = sum(len(session.inbox) for session in crowded)
    for session in list(crowded)[:MOST_CROWDED]:
        del crowded[session]  # whose turn comes again behind the others
        if kept <= service.config.max_message_bytes and (session.waiting or session.holding):
            kept += CHUNK_BYTES
            session.readable()
        if not session.closed and session.transport.heeds_end:
            crowded[session] = None


def _look_at(service: Service, origin: Origin, session: Session, now: float) -> None:
    """A client has a connection: is it at work for too long, or the client silent, or the transaction open?"""
    limits = service.deadlines(session.database, session.user)
    working = origin.owes_answers
    if working or session.stirred:
        session.stirred = False
        session.quiet_since = now
    begun = next((unit.started for unit in origin.units if unit.started), 0.0)
    since = origin.block_since if origin.status != IDLE else begun
    if since and 0 < limits.transaction_timeout < now - since:
        seconds = limits.transaction_timeout
        _end(service, session, "transaction_timeout", seconds, errors.transaction_timeout(seconds))
    elif working:
        _look_at_query(service, origin, session, now - max(begun or now, origin.ready_at), limits)
    elif since and 0 < limits.idle_in_transaction_timeout < now - max(session.quiet_since, origin.ready_at):
        seconds = limits.idle_in_transaction_timeout
        _end(service, session, "idle_in_transaction_timeout", seconds, errors.idle_in_transaction_timeout(seconds))
    elif origin.overdue is not None and not origin.cancels:
        origin.overdue = None


def _look_at_query(service: Service, origin: Origin, session: Session, seconds: float, limits: Deadlines) -> None:
    limit = limits.query_timeout
    if not 0 < limit < seconds:
        if origin.overdue is not None and not origin.cancels:
            origin.overdue = None  # what was cancelled is over, and this is another query
    elif origin.overdue is None or origin.overdue[0] is not session:
        origin.overdue = session, errors.query_timeout(limit)
        _note(service, session, "query_timeout", limit)
        service.cancel_overdue(origin)
    elif seconds > limit + limits.cancel_wait_timeout:
        log.warning("cancel_not_obeyed", pool=origin.pool.name, origin_pid=origin.pid, seconds=round(seconds, 3))
        ending.fatal(session, errors.query_timeout(limit))


def _look_for_silence(service: Service, session: Session, now: float, wait: float) -> None:
    """Whether a client that does nothing has done so for too long; `wait`: since the last look, seconds."""
    asleep = session.deferred and not session.waiting
    if session.stirred or (session.busy and session.origin is None and not asleep):
        session.stirred = False
        session.quiet_since = now
    if asleep:
        limit = service.deadlines(session.database, session.user).idle_in_transaction_timeout
        if 0 < limit < now - session.quiet_since - wait:
            error = errors.idle_in_transaction_timeout(limit)
            _end(service, session, "idle_in_transaction_timeout", limit, error)
        return
    if session.busy:  # the look at its connection says how long it is silent inside a transaction
        return
    limit = service.deadlines(session.database, session.user).client_idle_timeout
    if 0 < limit < now - session.quiet_since - wait:  # it may have been busy until just after the last look
        _end(service, session, "client_idle_timeout", limit, errors.client_idle_timeout(limit))


def _end(service: Service, session: Session, deadline: str, seconds: float, error: PgError) -> None:
    _note(service, session, deadline, seconds)
    ending.fatal(session, error)


def _note(service: Service, session: Session, deadline: str, seconds: float) -> None:
    service.stats.expired(deadline)
    log.warning(
        "deadline_exceeded",
        deadline=deadline,
        seconds=seconds,
        user=session.user,
        database=session.database,
        client=session.transport.peer,
        origin_pid=session.origin.pid if session.origin is not None else None,
    )
