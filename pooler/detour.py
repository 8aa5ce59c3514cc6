"""What goes to a replica instead of the primary, seen from the session: it may come back, and nothing follows it there.

Lives here: what a client sends while it has a replica's connection (`Session.away`) waits until that is over, since
what comes behind may be for the primary; and a request that a replica refuses, or is lost with, is asked of the primary
as long as its client has got nothing of the answer: the first `HELD_BYTES` of it are held back until its end. Not here:
which requests go there (`replicas`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pooler import ending
from pooler.logs import get_logger
from protocol import errors
from protocol.framing import length_at

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.session import Session
    from pooler.unit import Unit

log = get_logger(__name__)

HELD_BYTES: Final = 65536
"""A longer answer passes as it comes."""

_CANCELED = b"\0C57014\0"
_PARSE = 0x50
_IDLE = 0x49


def begin(session: Session, request: bytes) -> None:
    """`request`, up to its ReadyForQuery, is on its way; at an origin it changes nothing."""
    if session.origin is not None and session.origin.status == _IDLE:
        session.detour = request


def wait(session: Session) -> bool:
    """Whether what comes next must wait for the end of what the replica does. Called when a message was handled."""
    origin = session.origin
    if origin is not None and origin.units and origin.open_unit is None:
        session.hold()
    return session.holding


def turns_back(origin: Origin, unit: Unit, frame: bytes) -> bool:
    """Whether an ErrorResponse is not for the client, because the primary is to be asked instead.

    It is, but for a query that was cancelled: only the primary's answer is the truth. (A conflict with recovery, a
    table that is not there yet, a server that shuts down: none of this would happen there.)
    """
    if unit.swallow or _CANCELED in frame:
        return False
    unit.undo()
    unit.again = None
    unit.failed = unit.silent = True
    unit.drop_capture()
    origin.unnamed = None
    return True


def over(session: Session, origin: Origin, unit: Unit, status: int) -> None:
    """ReadyForQuery of `unit`, from a replica: in a block, what waits goes on."""
    request, session.detour = session.detour, b""
    if request and unit.silent and unit.failed:
        if status != _IDLE:  # the rest of the batch had opened a transaction
            session.origin = None
            origin.close()
        _again(session, request, origin)
        return
    if status != _IDLE:
        _go_on(session)


def home(session: Session) -> None:
    """The replica's connection has been given back."""
    session.away = False
    _go_on(session)


def _go_on(session: Session) -> None:
    if session.inbox or not session.transport.reading:
        session.release_hold()
    else:
        session.holding = False


def lost(session: Session, origin: Origin) -> bool:
    """The replica's connection is gone; whether the primary is asked instead."""
    request, session.detour = session.detour, b""
    if not request:
        return False
    session.origin = None
    session.to_origin.clear()
    _again(session, request, origin)
    return True


def call_back(pool: Pool) -> None:
    """The replica of `pool` does not answer: what it works on, and has not begun to tell, the primary is asked."""
    for origin in list(pool.origins):
        if origin.session is not None and origin.session.detour:
            origin.lost("the replica does not answer")


def forget(session: Session) -> None:
    """The replica was sent nothing: the walk begins again."""
    session.away = session.holding = False
    session.detour = b""


def strand(session: Session, origin: Origin) -> None:
    """State pins the session to a replica's connection, where it could not write any more: it ends."""
    if not origin.units and session.state.pins:
        ending.fatal(session, errors.pinned_on_replica(session.pinned))


def _again(session: Session, request: bytes, origin: Origin) -> None:
    """Walk over `request` once more, soon, and not to a replica."""
    session.service.stats.replica_retries += 1
    reason = origin.fatal.message if origin.fatal else "the connection was lost"
    log.info("replica_read_repeated", pool=origin.pool.name, reason=reason)
    _unlearn(session, request)
    session.inbox = request + session.inbox
    session.holding = False
    session.direct = True

    def go_on() -> None:
        session.away = False
        session.resume_walk()
        session.direct = False

    session.service.reactor.call_soon(go_on)


def _unlearn(session: Session, request: bytes) -> None:
    """Forget named statements that `request` has made: they would be there already when it makes them again."""
    position = 0
    while position < len(request):
        if request[position] == _PARSE and (name := request[position + 5 : request.index(b"\0", position + 5)]):
            session.statements.pop(name, None)
        position += 1 + length_at(request, position + 1)[0]
