"""The extended query protocol: what a client's Parse/Bind/Describe/Execute/Close become on a shared origin connection.

A batch is what a client sent up to a Sync or Flush. `submit` takes one through:

    1. read the frames into operations (`operations`: names, statements)
    2. if it cancels or terminates a client of pgnear's: `signals`; if the session is unlinked and the batch is one
       cacheable read: look in the cache, and answer from it (`answers`)
    3. link; where DDL has passed since a statement was prepared, and this connection has no plan of it, ask first
       whether its result type is what the client was told
    4. translate (`translation`): the messages that go to this connection, and what is done with their answers

Source: PostgreSQL documentation, "Message Flow", section "Extended Query".
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from pooler import copying, detour, signals
from pooler.answers import answer_locally, look_up
from pooler.boarding import WAIT, copy_answer, take_pending
from pooler.cache.keys import normal_tail
from pooler.caching import may_be_asked, study
from pooler.consequences import (
    DISCARD_SEQUENCES,
    begin_at_home,
    bring_schema,
    forget_others_sequences,
    go_home,
    look,
    must_forget,
    must_keep,
    restore_startup,
)
from pooler.link import link
from pooler.operations import Operation, read, recall_sequences, statement_of, texts_that_look
from pooler.replicas import begins_reading
from pooler.settings import DEFAULTS
from pooler.sql.statement import Statement
from pooler.statements import Prepared, same_rows
from pooler.translation import Translation
from pooler.unit import UNNAMED, Unit
from protocol import errors, framing
from protocol.framing import FLUSH_FRAME, SYNC_FRAME

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

_PARSE, _BIND, _DESCRIBE, _EXECUTE = b"PBDE"
_SYNC = ord("S")
_FLUSH = ord("H")
_STATEMENT = ord("S")

KEPT_AFTER = 2
"""So many times a client must have parsed a text without a name before a connection keeps it as a statement."""


def submit(session: Session, data: bytes, start: int, batch: list[tuple[int, int, int]], terminator: int) -> bool:
    """Handle the frames of `batch` in `data`, which began at `start` and end with `terminator` (0: none yet).

    Returns False where the session must wait for a connection; the batch is then given again.

    Raises:
      ValueError: a message ended before its last field.
      PgError: a bound was passed.
    """
    if not batch and terminator == _FLUSH and (session.origin is None or session.origin.open_unit is None):
        return True  # there is nothing that the origin could be keeping back
    operations = [read(session, data, frame) for frame in batch]
    end = batch[-1][2] if batch else start
    synced = terminator == _SYNC
    lookup: Any = None
    if session.service.classifier.signals_seen:
        answered = signals.answer_batch(session, data, start, operations, synced=synced)
        if answered is not None:
            return answered
    if session.origin is None:
        if synced and answer_locally(session, operations):
            return True
        if synced and session.service.cache is not None:
            lookup = look_up(session, data, operations)
    elif synced and session.only_reads and session.service.cache is not None and may_be_asked(session):
        lookup = look_up(session, data, operations)
    if lookup is True:
        return True
    if lookup is WAIT:
        return False
    if session.origin is None:
        if session.mode == "statement" and any(statement_of(session, each).begins for each in operations):
            session.answer(errors.no_transaction_blocks().response())
            session.skip_to_sync(at_sync=synced)
            return True
        if not _link(session, start, operations, lookup, synced=synced):
            return False
        if session.away:
            detour.begin(session, data[start : end + 5])
    capture = take_pending(session) or lookup
    assert session.origin is not None
    concerned = _prepare(session, session.origin, operations)
    if session.schema_moved and _verify(session, session.origin, operations):
        return False
    _send(session, session.origin, data, (start, end), operations, terminator, concerned, capture)
    return True


def _link(session: Session, start: int, operations: list[Operation], capture: Any, *, synced: bool) -> bool:
    """Have a connection that suits the batch; False where the session must wait for one."""
    if session.service.classifier.recalls_seen and recall_sequences(session, operations):
        go_home(session, start)
    elif session.sequence_home is not None and any(statement_of(session, each).begins for each in operations):
        begin_at_home(session, start)
    if session.service.classifier.looks_seen:
        look(session, b";".join(texts_that_look(session, operations)))
    reads_block = session.pool.replicas is not None and bool(operations) and synced
    if reads_block:
        reads_block = begins_reading(session, statement_of(session, operations[0]))
    return link(session, start, capture, reads_block=reads_block)


def _prepare(session: Session, origin: Origin, operations: list[Operation]) -> Statement | None:
    """What must be so on the connection before the batch comes; the statement before which others' sequence values are
    to be forgotten, if there is one.
    """
    if session.service.classifier.looks_seen and any(statement_of(session, each).looks for each in operations):
        bring_schema(session, origin)
    expects_recalls = session.service.classifier.recalls_seen or session.service.recallers.early
    concerned = _concerned(session, operations) if expects_recalls else None
    if concerned is not None and origin.open_unit is None:
        forget_others_sequences(session, origin, concerned)
    return concerned


def _send(
    session: Session, origin: Origin, data: bytes, place: tuple[int, int], operations: list[Operation],
    terminator: int, concerned: Statement | None, capture: Any,
) -> None:  # fmt: skip
    """Send the batch, which is at `place` in `data`, as its connection must have it."""
    start, end = place
    synced = terminator == _SYNC
    alone = origin.outside_block and (not origin.units or (len(origin.units) == 1 and origin.units[0].swallow))
    unit = _open_unit(session, origin)
    if unit.failed:  # the origin skips to the Sync; so do we
        operations = []
    translation = Translation(session, origin, unit, data)
    if alone and synced and _is_worth_keeping(session, operations):
        translation.keeps = operations[0][4]
        translation.request = data[start : end + 5]
    if concerned is not None and unit.steps is not None and must_forget(session, origin, concerned):
        translation.run_unseen(DISCARD_SEQUENCES)
    defaults_change = session.defaults_change
    for operation in operations:
        translation.add(operation)
    executes = any(operation[0] == _EXECUTE for operation in operations)
    if not executes:
        session.defaults_change = defaults_change  # what is only bound changes nothing
    _owe(session, unit, translation, synced=synced)
    if not synced and executes:
        origin.executing = True
    if capture is not None:
        copy_answer(session, unit, capture)
    bound = translation.bound
    if len(bound) == 1:
        prepared, tail = bound[0]
        study(session, unit, prepared.statement, prepared.text, normal_tail(tail))
    if translation.changed or not operations:
        session.send_later(b"".join(translation.messages))
        if terminator:
            session.send_later(SYNC_FRAME if synced else FLUSH_FRAME)
    else:
        session.send_later(data[start : end + 5] if terminator else data[start:end])
    if not unit.synced and unit is not origin.units[-1]:
        raise errors.protocol_violation("messages were sent behind an unfinished COPY")
    if translation.discards_all and unit.synced and session.state.startup is not DEFAULTS:
        session.send_later(restore_startup(session, unit))


def _owe(session: Session, unit: Unit, translation: Translation, *, synced: bool) -> None:
    """What is owed for a batch."""
    if synced:
        unit.synced = session.copying is None or not copying.is_open(session)  # which ignores it
    if translation.scripted or unit.steps is not None or not synced:
        unit.script(translation.steps, hides_rows=translation.hides_rows)
    elif translation.steps and translation.steps[0][0] == UNNAMED:
        unit.begin_with(translation.steps[0][2])


def _concerned(session: Session, operations: list[Operation]) -> Statement | None:
    """The first statement before which others' sequence values may have to be forgotten."""
    statements = [statement_of(session, operation) for operation in operations]
    recalling = next((each for each in statements if each.recalls_sequences), None)
    return recalling or next((each for each in statements if each.sequences and must_keep(session, each)), None)


def _is_worth_keeping(session: Session, operations: list[Operation]) -> bool:
    """Whether the batch is an unnamed Parse with its Bind and Execute, of a text that comes again and again.

    Then the connection keeps it under pgnear's name, and `express` need not send the Parse next time. Only outside a
    transaction, where a plan that has become outdated can be made anew unseen, and only where all that decides its
    meaning is in the scope: not beside temporary objects.
    """
    if not session.pool.reuses_statements or session.state.pins or not 3 <= len(operations) <= 4:
        return False
    parse, bind, *between, execute = operations
    return (
        parse[0] == _PARSE and not parse[3] and parse[4].parses >= KEPT_AFTER and parse[4].statement.plain
        and parse[4].needs is None and bind[0] == _BIND and not bind[3] and not bind[4] and execute[0] == _EXECUTE
        and all(each[0] == _DESCRIBE and each[3] != _STATEMENT for each in between)
    )  # fmt: skip


def _verify(session: Session, origin: Origin, operations: list[Operation]) -> bool:
    """Whether the batch must wait: a statement from before DDL is described again on a connection that lacks it.

    A private connection would say "cached plan must not change result type" where the answer differs; here the
    statement would just be parsed anew, and a client that trusts the old description would misread the rows.
    """
    if origin.open_unit is not None:
        return False
    for operation in operations:
        about = operation[0] == _BIND or (operation[0] == _DESCRIBE and operation[3] == _STATEMENT)
        prepared = session.statements.get(operation[4]) if about and operation[4] else None
        if (
            prepared is None
            or prepared.row_description is None
            or prepared.epoch == origin.pool.schema_epoch
            or prepared in origin.prepared
            or prepared in origin.verified
        ):
            continue
        origin.verified[prepared] = True

        known: bytes = prepared.row_description

        def done(own: Unit, prepared: Prepared = prepared, known: bytes = known) -> None:
            if own.error is None and own.rows and not same_rows(own.rows[0], known):
                origin.verified[prepared] = False
            session.service.reactor.call_soon(session.release_hold)  # at once, the connection would be given back first

        session.hold()
        origin.unnamed = None
        session.push(Unit.own(done))
        session.send_later(prepared.parse_frame(b"") + framing.frame(b"D", b"S\0") + SYNC_FRAME)
        return True
    return False


def _open_unit(session: Session, origin: Origin) -> Unit:
    """The unit this batch belongs to: the one that waits for its Sync, or a new one."""
    if origin.open_unit is not None:
        return origin.open_unit
    unit = Unit(perf_counter(), session.service.stats.bypass_latency)
    unit.synced = False
    origin.executing = False
    session.push(unit)
    return unit
