"""A message that no origin gets: refused a connection, cancelled while it waits, or sent to a connection that was dead.

Not here: what an origin has begun to work on (`ending`, `detour`), the reasons to refuse (`refusals`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pooler import detour, ending
from pooler.boarding import drop_pending, leave
from protocol import errors
from protocol.framing import READY_IDLE, length_at
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session


def fail(session: Session, error: PgError) -> None:
    """Answer the message at the head of the inbox with `error`. In a block that no origin knows of, nothing could fail
    what its client sends behind that: there it is the client's end.
    """
    if session.deferred:
        ending.fatal(session, error)
        return
    data = session.inbox
    session.answer(error.response())
    if data[:1] in (b"Q", b"F"):
        session.inbox = data[1 + length_at(data, 1)[0] :]
        session.answer(READY_IDLE)
    else:
        session.skipping = True
    session.flush_client()
    if not session.closed:
        session.resume_walk()


def cancel(session: Session) -> bool:
    """A cancel request came; if the session only waits for a connection, that is what it cancels."""
    if session.holding and session.flight is not None:
        leave(session)
        session.holding = False
        fail(session, errors.query_canceled())
        return True
    if not session.waiting:
        return False
    session.pool.withdraw(session)
    session.waiting = False
    drop_pending(session)
    fail(session, errors.query_canceled())
    return True


def send_again(session: Session, origin: Origin, data: bytes, reason: str) -> None:
    """The connection was dead. If it never got a byte for this session, the walk is repeated on another one."""
    if session.walk_from < 0 or not data:
        origin.lost(f"while sending: {reason}")
        return
    session.deferred = origin.block_since > 0  # the block that was to be opened there
    origin.session = session.origin = None
    origin.draining = True
    if session.away:
        detour.forget(session)
    origin.lost(f"before anything was sent: {reason}")
    session.service.stats.retries += 1
    session.chunks.clear()
    session.missing = session.stream_left = 0
    session.holding = False  # for an answer that will not come
    session.signal = None
    session.inbox = data[session.walk_from :]
    session.resume_walk()
