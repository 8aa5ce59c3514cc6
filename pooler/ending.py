"""A session's end: its client leaves, is told to, or has lost the connection that its state was on.

Lives here: what a client hears last, and what becomes of the connection that it leaves behind. Not here: resetting that
(`ceremony.reset`), when clients are sent away (`ceremony.deadlines`, `ceremony.drain`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pooler.boarding import drop_pending, leave
from pooler.logs import get_logger
from pooler.writes import end_unsure
from protocol import errors
from protocol.framing import TERMINATE_FRAME, length_at
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

log = get_logger(__name__)


def refuse(session: Session, error: PgError) -> None:
    """The client broke the protocol or a bound: it is told, and its connection ends."""
    log.warning(
        "client_refused",
        user=session.user,
        client=session.transport.peer,
        sqlstate=error.sqlstate,
        reason=error.message,
    )
    if session.origin is not None:
        session.flush_origin(b"")
    fatal(session, error)


def fatal(session: Session, error: PgError) -> None:
    """Say `error` as the last thing and close."""
    if session.closed:
        return
    if session.origin is not None and session.origin.mid_frame:
        end(session, abrupt=True)  # words put inside a row that was cut short would be read as its values
        return
    session.answer(error.fatal().response())
    session.flush_client()
    if not session.closed:
        end(session, abrupt=True, linger=True)


def lost_because(session: Session, origin: Origin, reason: str) -> None:
    """The linked connection broke. If the origin has said why, that is what a private connection would end with."""
    lost(session, origin.fatal or errors.origin_lost(reason))


def lost(session: Session, error: PgError) -> None:
    """The linked connection is gone, and with it the client's transaction and session: `error` tells it."""
    origin, session.origin = session.origin, None
    session.to_origin.clear()
    if session.writes and origin is not None:
        end_unsure(session, origin)
    fatal(session, error)


def depart(session: Session) -> None:
    """The process ends soon, and nothing is under way here: the next thing that it asks is answered with goodbye.

    libpq takes an error that it reads together with an answer for a notice, and knows nothing of why it ended.
    """
    session.hold()
    session.service.depart_soon(session)


def shutdown(session: Session, error: PgError | None = None) -> None:
    """The process ends."""
    fatal(session, error or errors.admin_shutdown())


def hung_up(session: Session) -> None:
    """Nothing more comes from the client. One that has said Terminate has not vanished: what it sent before that is
    carried out, also where it still waits for its turn, as on a private connection.
    """
    if session.leaving or _says_goodbye(session):
        session.transport.pause()
    else:
        end(session, abrupt=True)


def _says_goodbye(session: Session) -> bool:
    """Whether what is kept of the client's input ends with Terminate: it has left, and wants all of it carried out."""
    inbox = session.inbox
    if session.stream_left or not inbox.endswith(TERMINATE_FRAME):
        return False
    position, last = 0, len(inbox) - len(TERMINATE_FRAME)
    while position < last:
        length = length_at(inbox, position + 1)[0]
        if length < 4:
            return False
        position += 1 + length
    return position == last


def end(session: Session, *, abrupt: bool, linger: bool = False) -> None:
    """The client left: by Terminate, or (abrupt) without a word; or we end it, having said why (linger)."""
    if session.closed:
        return
    origin = session.origin
    if not abrupt and origin is not None and origin.owes_answers:
        # What it sent before Terminate is carried out, as on a private connection.
        session.leaving = True
        session.transport.pause()
        session.service.leave_later(session)
        return
    session.closed = True
    if linger:
        session.transport.linger()
    else:
        session.transport.close(farewell=abrupt)
    if session.waiting:
        session.pool.withdraw(session)
        session.waiting = False
    drop_pending(session)
    leave(session)
    session.service.forget(session)
    session.chunks.clear()
    session.inbox = b""
    if origin is not None:
        session.origin = None
        if session.writes and origin.units:
            end_unsure(session, origin)
        if origin.units and not origin.owes_answers:
            origin.close()  # a batch without its Sync: closing undoes it
        elif origin.units and not origin.closed:
            session.service.cancel_abandoned(origin, within_message=session.stream_begun)
        elif not origin.closed:
            if session.state.tainted or origin.spoiled or session.stream_begun:
                origin.close()  # the rest of a message that it has begun to read will not come
            else:
                origin.pool.abandon(origin, dirty=session.state.dirty)
    session.statements.clear()
