"""The extended query protocol: what a client's Parse/Bind/Describe/Execute/Close become on a shared origin connection.

A batch is what a client sent up to a Sync or Flush. `submit` takes one through:

    1. read the frames into operations (names, statements)
    2. if the session is unlinked and the batch is one cacheable read: look in the cache, and answer from it
    3. link; where DDL has passed since a statement was prepared, and this connection has no plan of it, ask first
       whether its result type is what the client was told
    4. translate (`translation`): the messages that go to this connection, and what is done with their answers

Source: PostgreSQL documentation, "Message Flow", section "Extended Query".
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from pooler import views
from pooler.cache.entry import Entry
from pooler.cache.keys import ALL_TEXT, has_temporal_parameter, in_formats, normal_tail
from pooler.caching import WAIT, ask, make_ready, may_be_asked, study
from pooler.origin import IDLE
from pooler.settings import DEFAULTS
from pooler.sql.names import renaming
from pooler.sql.statement import Statement
from pooler.statements import Prepared
from pooler.translation import CLOSE_COMPLETE, PARSE_COMPLETE, Translation
from pooler.unit import Unit
from protocol import errors, framing
from protocol.framing import FLUSH_FRAME, READY_IDLE, SYNC_FRAME

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

_PARSE, _BIND, _DESCRIBE, _EXECUTE, _CLOSE = b"PBDEC"
_SYNC = ord("S")
_STATEMENT = ord("S")
BIND_COMPLETE: Final = b"2\0\0\0\4"
NO_PARAMETER_DESCRIPTION: Final = b"t\0\0\0\6\0\0"

NOTHING = Statement()

MAX_REMEMBERED_PARSE = 2048
"""Longer Parse messages, in bytes, are read each time."""

KEPT_AFTER = 2
"""So many times a client must have parsed a text without a name before a connection keeps it as a statement."""

Operation = tuple[Any, ...]


def submit(session: Session, data: bytes, start: int, batch: list[tuple[int, int, int]], terminator: int) -> bool:
    """Handle the frames of `batch` in `data`, which began at `start` and end with `terminator` (0: none yet).

    Returns False where the session must wait for a connection; the batch is then given again.

    Raises:
      ValueError: a message ended before its last field.
      PgError: a bound was passed.
    """
    operations = [_read(session, data, frame) for frame in batch]
    end = batch[-1][2] if batch else start
    capture: Any = None
    if session.origin is None:
        if terminator == _SYNC:
            if _answer_locally(session, operations):
                return True
            if session.service.cache is not None:
                lookup = _lookup(session, data, operations)
                if lookup is True:
                    return True
                if lookup is WAIT:
                    return False
                capture = lookup
        if session.mode == "statement" and any(_statement_of(session, each).begins for each in operations):
            session.answer(errors.no_transaction_blocks().response())
            session.skip_to_sync(at_sync=terminator == _SYNC)
            return True
        if session.service.classifier.recalls_seen and _recalls_sequences(session, operations):
            session.go_home()
        if session.service.classifier.looks_seen:
            session.look(b";".join(_texts_that_look(session, operations)))
        if not session.link(start, capture):
            return False
    elif terminator == _SYNC and session.only_reads and session.service.cache is not None and may_be_asked(session):
        lookup = _lookup(session, data, operations)
        if lookup is True:
            return True
        capture = lookup
    capture = session.take_pending() or capture
    origin = session.origin
    assert origin is not None
    if session.service.classifier.recalls_seen and _recalls_sequences(session, operations) and not origin.open_unit:
        session.forget_others_sequences(origin)
    if session.schema_moved and _verify(session, origin, operations):
        return False
    alone = origin.status == IDLE and (not origin.units or (len(origin.units) == 1 and origin.units[0].swallow))
    unit = _open_unit(session, origin)
    if unit.failed:  # the origin skips to the Sync; so do we
        operations = []
    translation = Translation(session, origin, unit, data)
    if alone and terminator == _SYNC and _is_worth_keeping(session, operations):
        translation.keeps = operations[0][4]
        translation.request = data[start : end + 5]
    for operation in operations:
        translation.add(operation)
    if terminator == _SYNC:
        unit.synced = session.copying is None or not session.in_copy  # which ignores it
    if translation.scripted or unit.steps is not None or terminator != _SYNC:
        unit.script(translation.steps, hides_rows=translation.hides_rows)
    if capture is not None:
        session.capture(unit, capture)
    bound = translation.bound
    if len(bound) == 1:
        prepared, tail = bound[0]
        study(session, unit, prepared.statement, prepared.text, normal_tail(tail))
    if translation.changed or not operations:
        session.send_later(b"".join(translation.messages))
        if terminator:
            session.send_later(SYNC_FRAME if terminator == _SYNC else FLUSH_FRAME)
    else:
        session.send_later(data[start : end + 5] if terminator else data[start:end])
    if not unit.synced and unit is not origin.units[-1]:
        raise errors.protocol_violation("messages were sent behind an unfinished COPY")
    if translation.discards_all and unit.synced and session.state.startup is not DEFAULTS:
        session.send_later(session.restore_startup(unit))
    return True


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


def _statement_of(session: Session, operation: Operation) -> Statement:
    """What a Parse or Bind is about; of other messages, nothing."""
    kind = operation[0]
    if kind == _PARSE:
        prepared: Prepared | None = operation[4]
    elif kind == _BIND:
        prepared = session.statements.get(operation[4])
    else:
        return NOTHING
    return prepared.statement if prepared is not None else NOTHING


def _texts_that_look(session: Session, operations: list[Operation]) -> list[bytes]:
    texts = []
    for operation in operations:
        if _statement_of(session, operation).looks:
            prepared = operation[4] if operation[0] == _PARSE else session.statements[operation[4]]
            texts.append(prepared.text)
    return texts


def _recalls_sequences(session: Session, operations: list[Operation]) -> bool:
    return any(_statement_of(session, operation).recalls_sequences for operation in operations)


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

        def done(own: Unit, prepared: Prepared = prepared) -> None:
            if own.error is None and own.rows and own.rows[0] != prepared.row_description:
                origin.verified[prepared] = False
            session.release_hold()

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
    session.push(unit)
    return unit


def _read(session: Session, data: bytes, frame: tuple[int, int, int]) -> Operation:
    """One frame as (kind, start, end, fields...)."""
    kind, start, end = frame
    body = start + 5
    if kind == _BIND:
        portal_end = data.index(b"\0", body, end)
        name_end = data.index(b"\0", portal_end + 1, end)
        return kind, start, end, data[body:portal_end], data[portal_end + 1 : name_end], name_end + 1
    if kind == _EXECUTE:
        portal_end = data.index(b"\0", body, end)
        return kind, start, end, data[body:portal_end], data[portal_end + 1 : end]
    if kind == _PARSE:
        name_end = data.index(b"\0", body, end)
        text_end = data.index(b"\0", name_end + 1, end)
        scope = session.scope
        known = scope.parses.get(data[start:end])
        if known is not None:
            known.parses += 1
            return kind, start, end, b"", known
        text = data[name_end + 1 : text_end]
        service = session.service
        types = data[text_end + 1 : end]
        statement = service.classifier(text)
        if statement.parts and statement.parts[0].named in session.statements:
            prepared = _about_another(session, text, types, statement)
        elif statement.shows:
            prepared = views.showing(session, text, types, statement)
        else:
            prepared = service.prepared.intern(text, types, statement, scope)
            if name_end == body and statement.plain and end - start <= MAX_REMEMBERED_PARSE:
                scope.remember(data[start:end], prepared)
        return kind, start, end, data[body:name_end], prepared
    if body >= end:
        raise ValueError
    return kind, start, end, data[body], data[body + 1 : data.index(b"\0", body + 1, end)]


def _about_another(session: Session, text: bytes, types: bytes, statement: Statement) -> Prepared:
    """SQL that speaks of a statement made by Parse (EXECUTE, PREPARE, DEALLOCATE), with pgnear's name for that."""
    named = statement.parts[0].named
    assert named is not None
    target = session.statements[named]
    edits = renaming(text, 0, len(text), {named: target.name})
    prepared = session.service.prepared.intern_edited(text, edits, types, statement, session.scope)
    prepared.needs = target
    return prepared


# ---- the cache -------------------------------------------------------------------------------------------------------


def _lookup(session: Session, data: bytes, operations: list[Operation]) -> Any:
    """True: answered from the cache. A Capture: cacheable, to be stored. WAIT: hold. None: not for the cache."""
    shape = _read_shape(session, data, operations)
    if shape is None:
        return None
    prepared, tail, described, stated = shape
    if not prepared.statement.cacheable or has_temporal_parameter(tail):
        return None
    started = perf_counter()
    moved = prepared.epoch != session.pool.schema_epoch
    found = ask(session, prepared, normal_tail(tail), started, described=described or stated or moved, stated=stated)
    if not isinstance(found, Entry):
        return found
    if moved and in_formats(found.row_description or b"", ALL_TEXT) != prepared.row_description:
        return None  # DDL has changed what the client was told of its rows: the origin refuses it, or not
    response = _answer(session, operations, found)
    first, last = operations[0], operations[-1]
    if session.origin is None:
        if first[0] == _PARSE and not first[3]:
            make_ready(session, data[first[1] : last[2] + 5], response, found, prepared, prepares=True)
        elif first[0] == _BIND and first[4]:
            make_ready(session, prepared.name + data[first[5] - 1 : last[2] + 5], response, found, prepared)
    session.service.stats.hit_latency.observe(perf_counter() - started)
    return True


def _read_shape(
    session: Session, data: bytes, operations: list[Operation]
) -> tuple[Prepared, bytes, bool, bool] | None:
    """(statement, Bind's tail, portal described?, statement described?) of a batch that is one whole read."""
    prepared: Prepared | None = None
    tail: bytes | None = None
    parsed: bytes | None = None
    bound = stated = None
    described = executed = False
    for operation in operations:
        kind = operation[0]
        if executed:
            return None
        if kind == _PARSE and parsed is None and tail is None and stated is None:
            parsed = operation[3]
            if parsed and parsed in session.statements:
                return None
            prepared = operation[4]
        elif kind == _BIND and tail is None and not operation[3]:
            bound = operation[4]
            if parsed is None:
                prepared = session.statements.get(bound)
            elif bound != parsed:
                return None
            tail = data[operation[5] : operation[2]]
        elif kind == _DESCRIBE and operation[3] == _STATEMENT and stated is None:
            stated = operation[4]
        elif kind == _DESCRIBE and operation[3] != _STATEMENT and tail is not None and not operation[4]:
            described = True
        elif kind == _EXECUTE and tail is not None and not operation[3] and operation[4] == b"\0\0\0\0":
            executed = True
        else:
            return None
    if prepared is None or tail is None or not executed or stated not in (None, bound):
        return None
    return prepared, tail, described, stated is not None


def _answer(session: Session, operations: list[Operation], entry: Entry) -> bytes:
    parts = []
    for operation in operations:
        kind = operation[0]
        if kind == _PARSE:
            session.remember(operation[3], operation[4])
            parts.append(PARSE_COMPLETE)
        elif kind == _BIND:
            parts.append(BIND_COMPLETE)
        elif kind == _DESCRIBE:
            assert entry.row_description is not None
            if operation[3] == _STATEMENT:
                parts.append(entry.parameter_description or NO_PARAMETER_DESCRIPTION)
                parts.append(in_formats(entry.row_description, ALL_TEXT))
            else:
                parts.append(entry.row_description)
    parts += (entry.answer, session.ready_now)
    response = b"".join(parts)
    session.answer(response)
    return response


# ---- without an origin -----------------------------------------------------------------------------------------------


def _answer_locally(session: Session, operations: list[Operation]) -> bool:
    """Answer a batch that no origin is needed for: Parse of a statement that is known to be right, and Close.

    Outside a transaction there are no portals, and statements are ours. This spares the origin a round trip, and a
    client that prepares does not wait for a connection.
    """
    parts = []
    for operation in operations:
        if operation[0] == _CLOSE and operation[3] in b"SP":
            parts.append(CLOSE_COMPLETE)
        elif operation[0] == _PARSE and operation[4].proven == session.circumstances:
            if operation[3] and operation[3] in session.statements:
                return False
            parts.append(PARSE_COMPLETE)
        else:
            return False
    for operation in operations:
        if operation[0] == _PARSE:
            session.remember(operation[3], operation[4])
        elif operation[3] == _STATEMENT:
            session.statements.pop(operation[4], None)
    session.answer(b"".join(parts) + READY_IDLE)
    return True
