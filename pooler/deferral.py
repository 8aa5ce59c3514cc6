"""Transaction blocks that no origin has heard of yet (`defer_begin`): BEGIN is answered here, and sent in front of the
first statement that needs an origin.

Lives here: when that may be, the answers, and the messages that open the block after all. It spares each transaction a
round trip to its origin; one that the cache answers needs none at all, nor a connection. Not here: who sends what is
opened (`link.attach`; `express`, on its own way).

A block that is deferred can do nothing but succeed: an error of pgnear's own would have to leave it failed, as
PostgreSQL leaves it, so the few that may happen to it end its client's connection (`unsent.fail`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from pooler.unit import Unit
from protocol import errors
from protocol.framing import BEGUN_FRAMES, READY_IDLE, READY_IN_BLOCK, command_complete, frame, query

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

_BEGINS: Final = {
    b"begin": b"BEGIN",
    b"begin work": b"BEGIN",
    b"begin transaction": b"BEGIN",
    b"start transaction": b"START TRANSACTION",
}
_ENDS: Final = {
    f"{word}{noise}".encode(): tag
    for word, tag in {"commit": b"COMMIT", "end": b"COMMIT", "rollback": b"ROLLBACK", "abort": b"ROLLBACK"}.items()
    for noise in ("", " work", " transaction")
}
_BEGUN: Final = {text: command_complete(tag) + READY_IN_BLOCK for text, tag in _BEGINS.items()}
_ENDED: Final = {text: command_complete(tag) + READY_IDLE for text, tag in _ENDS.items()}

_BEGIN: Final = query("BEGIN")
BEGIN_FRAMES: Final = frame(b"P", b"\0BEGIN\0\0\0") + frame(b"B", b"\0" * 8) + frame(b"E", b"\0" * 5)
"""BEGIN without a Sync: PostgreSQL keeps its answer back until that of the Query behind it, so that both are one send
and one receive on both sides. BEGUN_FRAMES is what it says."""


def answered(session: Session, text: bytes) -> bool:
    """Answer a Query that opens a block, or that ends one which is still deferred; `text` is all that has come of the
    client, which has no connection. False: it must be sent.
    """
    words = text.rstrip(b"; \n").lower()
    if session.deferred:
        answer = _ENDED.get(words)
        if answer is None:
            return False
        session.deferred = session.only_reads = False
        session.service.stats.blocks_spared += 1
    else:
        answer = _BEGUN.get(words)
        if answer is None or not _may_defer(session):
            return False
        session.deferred = True
        session.only_reads = session.service.cache is not None
        session.service.stats.begins_deferred += 1
    session.statements.pop(b"", None)  # a simple Query destroys the unnamed statement
    session.tell(answer)
    return True


def _may_defer(session: Session) -> bool:
    """Whether the cache may answer in the block, where there is one: under READ COMMITTED each statement sees what was
    committed before it.
    """
    return session.service.cache is None or (
        session.pool.reads_committed and session.settings.get("default_transaction_isolation") is None
    )


def open_block(session: Session, origin: Origin) -> None:
    """Have `origin`, which the session has just been linked to, open the block in front of the next message."""

    def done(own: Unit) -> None:
        if own.error is not None:
            session.unopened(own.error)

    _note(session, origin)
    origin.units.append(Unit.own(done))
    session.send_later(_BEGIN)


def open_with_query(session: Session, origin: Origin, unit: Unit) -> bytes:
    """The same for a Query that is sent at once, whose `unit` is the only one; what goes in front of it."""
    _note(session, origin)
    unit.prefix = BEGUN_FRAMES

    def unopened() -> None:  # the origin skips what came behind BEGIN, up to a Sync that will not come
        error = errors.origin_lost("it opened no transaction")
        session.service.reactor.call_soon(lambda: session.unopened(error))

    unit.unopened = unopened
    return BEGIN_FRAMES


def _note(session: Session, origin: Origin) -> None:
    session.deferred = False
    origin.unnamed = None
    origin.block_since = perf_counter()
