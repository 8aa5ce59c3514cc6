"""The walk over what a client sends: frames into messages and batches, each to where it is handled.

Lives here: input that is incomplete or must wait, bounds on it, messages that break the protocol, and what is handled
at once. Not here: whole requests in ordinary shapes, which come by `express` first; what a Query becomes (`simple`) and
what batches do (`extended`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pooler import copying, detour, ending, extended, function_call, simple
from pooler.logs import get_logger
from protocol import errors
from protocol.framing import FLUSH_FRAME, READY_IDLE, TERMINATE_FRAME, bad_length, length_at
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.session import Session

log = get_logger(__name__)

QUERY, PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, FLUSH, FUNCTION_CALL, TERMINATE = b"QPBDECSHFX"
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
_SKIPPABLE = frozenset({QUERY, PARSE, BIND})
_BATCH_ENDS = frozenset({SYNC, FLUSH})
_BATCHED = frozenset({PARSE, BIND, DESCRIBE, EXECUTE, CLOSE})

PARTIAL_BATCH_BYTES = 65536
"""Extended messages without a Sync or Flush are held back up to so many bytes, or until their client sends no more
(`hurry`); then they go to the origin as they are.
"""


def take(session: Session, data: bytes) -> None:
    """Handle what has come from the client, behind what it has sent before."""
    session.stirred = True
    if session.discard:
        dropped = min(session.discard, len(data))
        session.discard -= dropped
        data = data[dropped:]
    if session.missing > len(data):
        session.chunks.append(data)
        session.missing -= len(data)
        return
    if session.chunks:
        session.chunks.append(data)
        data = b"".join(session.chunks)
        session.chunks.clear()
    session.missing = 0
    if session.inbox:
        data = session.inbox + data
        session.inbox = b""
    if session.waiting or session.leaving or session.holding:
        _keep(session, data)
        return
    walk(session, data)


def _keep(session: Session, data: bytes) -> None:
    session.inbox = data
    if session.service.draining and session.holding and not session.busy:
        session.service.reactor.call_soon(lambda: ending.shutdown(session))
        return
    if len(data) > session.pool.high_water:
        session.transport.pause(heed_end=not session.leaving)
        session.service.crowded[session] = None


def held_bytes(session: Session) -> int:
    """How much of what the client has sent is kept until more of it comes; 0 where it waits for something else."""
    if session.closed or session.leaving or session.waiting or session.holding:
        return 0
    return len(session.inbox) + sum(map(len, session.chunks))


def hurry(session: Session) -> None:
    """A client sends no more of a batch that it has not finished: it may wait for an error, which needs no Flush."""
    if session.chunks:
        session.inbox = b"".join(session.chunks)
        session.chunks.clear()
        session.missing = 0
    session.hurried = True
    session.resume_walk()


def walk(session: Session, data: bytes, held: int = PARTIAL_BATCH_BYTES) -> None:
    """Handle every whole message in `data`; keep what is incomplete or must wait.

    `held`: so many bytes of an unfinished batch are kept back.
    """
    end = len(data)
    limit = session.pool.max_message_bytes
    position = copying.pass_stream(session, data) if session.stream_left else 0
    batch: list[tuple[int, int, int]] = []
    kept = position  # everything before it is handled
    while end - position >= 5:
        kind = data[position]
        length = length_at(data, position + 1)[0]
        frame_end = position + 1 + length
        if length > limit and kind in _SKIPPABLE and session.origin is None and not session.deferred:
            _skip_message(session, kind, frame_end - end, bad_length(kind, length, limit))
            return
        if not 4 <= length <= limit:
            ending.refuse(session, bad_length(kind, length, limit))
            return
        if frame_end > end:
            if kind == COPY_DATA and not batch:
                session.stream_begun = copying.pass_on(session, data[position:end])
                session.stream_left = frame_end - end
                kept = end
            else:
                session.missing = frame_end - end
            break
        if kind in _BATCHED:
            batch.append((kind, position, frame_end))
            position = frame_end
            if frame_end - kept < held:
                continue
            handled = session.skipping or _guard(session, data, extended.submit, kept, batch, 0)
        elif kind in _BATCH_ENDS:
            if session.skipping:
                if kind == SYNC:
                    session.skipping = False
                    session.out.append(READY_IDLE)
                handled = True
            else:
                handled = _guard(session, data, extended.submit, kept, batch, kind)
            position = frame_end
        else:
            if batch and not session.skipping:  # a Query or CopyData behind messages without Sync
                if not _guard(session, data, extended.submit, kept, batch, 0):
                    break
                batch = []
                kept = position
            handled = _guard(session, data, _single, position, kind, frame_end)
            position = frame_end
        if session.closed or session.leaving:
            return
        if not handled:
            break
        kept = position
        batch = []
        if session.away and detour.wait(session):
            break
        if session.out_bytes > session.pool.high_water:
            session.flush_client()
            if session.closed:
                return
            if session.transport.pending > session.pool.high_water:
                break
    if kept < end:
        _keep_rest(session, data[kept:] if kept else data)
        if batch and (more_awaited := held_bytes(session)):
            session.service.unfinished[session] = more_awaited
    if session.out:  # answers from here are for what came before anything that an origin was asked
        session.flush_client()
        if session.closed:
            return
    if session.to_origin:
        session.flush_origin(data)


def _skip_message(session: Session, kind: int, rest: int, error: PgError) -> None:
    """A message is over the limit and nothing else is under way: it fails, and the session goes on behind it."""
    log.warning("message_too_large", user=session.user, client=session.transport.peer, reason=error.message)
    session.discard = max(rest, 0)
    session.answer(error.response())
    if kind == QUERY:
        session.answer(READY_IDLE)
    else:
        session.skipping = True
    session.flush_client()


def _keep_rest(session: Session, rest: bytes) -> None:
    if session.missing and not (session.waiting or session.holding):
        session.chunks.append(rest)
    else:
        session.missing = 0
        _keep(session, rest)


def _guard(session: Session, data: bytes, handle: Callable[..., bool], *arguments: object) -> bool:
    """Run one handler; a message that breaks the protocol ends the session with an error it can read."""
    try:
        return handle(session, data, *arguments)
    except ValueError:
        ending.refuse(session, errors.protocol_violation("a message ended before its last field"))
        return False
    except PgError as error:
        ending.refuse(session, error)
        return False


def _single(session: Session, data: bytes, position: int, kind: int, frame_end: int) -> bool:
    """A message that is no part of an extended batch; False if it must wait."""
    if kind in (QUERY, FUNCTION_CALL) and session.origin is not None and session.origin.open_unit is not None:
        if session.origin.open_unit.failed:
            return True  # the origin skips everything up to a Sync
        if session.origin.open_unit.steps:
            session.origin.flush_made_up()  # all that was missing, where the origin has been asked for nothing
            if session.closed:
                return True  # its client has gone meanwhile
        if session.origin.open_unit.steps:
            _hold_for_answers(session)
            return False
        session.origin.spoiled = True  # PostgreSQL 18 may be left in a state that the next client would meet
    if kind == QUERY:
        return simple.submit(session, data, position, frame_end)
    if kind == TERMINATE:
        if copying.is_open(session):
            session.send_later(TERMINATE_FRAME)  # it is no part of COPY: what the origin says to it is the last word
        elif session.origin is not None and session.origin.open_unit is not None:
            session.send_later(FLUSH_FRAME)  # what it sent is carried out, and the end of it must be seen
        session.flush_origin(data)
        ending.end(session, abrupt=False)
    elif kind in (COPY_DATA, COPY_DONE, COPY_FAIL):
        copying.pass_on(session, data[position:frame_end])
        if kind != COPY_DATA:
            session.copying = None
    elif kind == FUNCTION_CALL:
        return function_call.submit(session, data, position, frame_end)
    else:
        ending.refuse(session, errors.protocol_violation(f"invalid frontend message type {kind}"))
    return True


def _hold_for_answers(session: Session) -> None:
    """Whether what comes now is carried out or skipped depends on what is still under way: wait for that."""
    session.hold()
    session.send_later(FLUSH_FRAME)
