"""SELECT pg_cancel_backend(...) or pg_terminate_backend(...) of a client of pgnear's, by its process id from login.

The origin knows no process by that id, so the answer is pgnear's. Lives here: when it is, and the messages that it
becomes. Not here: what such a statement looks like (`sql.signals`), who may do it to whom and the doing
(`ceremony.signal`).

Where nothing is owed to the session it is answered without an origin: who cancels need not wait for the very connection
that is too busy. On a linked connection the answer waits until all before it has been answered, and an error fails the
transaction. What stands in one batch with other statements, behind a Flush or in a failed transaction goes to the
origin as it is, as does every process id that is no client's.
"""

from __future__ import annotations

import enum
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pooler import copying
from pooler.link import link
from pooler.origin import FAILED_TRANSACTION, IDLE
from pooler.sql.effects import quote_literal
from pooler.sql.signals import Call, Signal
from pooler.translation import fail_unit
from pooler.unit import DATA_ROW, Unit
from protocol import framing
from protocol.framing import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    PARSE_COMPLETE,
    READY_IDLE,
    SYNC_FRAME,
    command_complete,
    query,
)
from protocol.responses import PgError, notice_response

if TYPE_CHECKING:
    from pooler.operations import Operation
    from pooler.session import Session
    from pooler.sql.statement import Statement
    from pooler.statements import Prepared

_PARSE, _BIND, _DESCRIBE, _EXECUTE, _CLOSE = b"PBDEC"
_STATEMENT = ord("S")
_ONE_ROW: Final = b"\0\0\0\1"
_BOOL: Final = b"\0\0\0\x10\0\1\xff\xff\xff\xff"
"""The type bool (16) in a RowDescription, its length (1), and no modifier."""


class Outcome(enum.Enum):
    """What has become of a call; an error is a `PgError` instead.

    UNDER_WAY: not known yet. CLEAR: all before it has been answered. DONE: it is true. LATE: it is false, as the
    session has not ended in time. OTHERS: it concerns no client, or something is in the way: the origin says.
    """

    UNDER_WAY = enum.auto()
    CLEAR = enum.auto()
    DONE = enum.auto()
    LATE = enum.auto()
    OTHERS = enum.auto()


class Rights(NamedTuple):
    """What the session's present role may do. `roles`: of some roles, (superuser?, has their privileges?)."""

    role: str
    roles: dict[str, tuple[bool, bool]]


def rights_query(names: frozenset[str]) -> str:
    """Asks for what `rights_of` reads; `names` are roles that targets may have."""
    listed = ",".join(map(quote_literal, sorted({*names, "pg_signal_backend"})))
    return (
        "SELECT rolname, rolsuper, pg_catalog.pg_has_role(oid, 'USAGE'), rolname OPERATOR(pg_catalog.=) current_user"
        " FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user"
        f" OR rolname OPERATOR(pg_catalog.=) ANY (ARRAY[{listed}]::pg_catalog.name[])"
    )


def rights_of(rows: list[tuple[str, ...]]) -> Rights:
    roles = {name: (is_super == "t", has == "t") for name, is_super, has, _ in rows}
    return Rights(next((name for name, _, _, is_mine in rows if is_mine == "t"), ""), roles)


# ---- simple queries --------------------------------------------------------------------------------------------------


def answer_query(session: Session, statement: Statement, position: int) -> bool | None:
    """Answer a Query that is such a call: True; False where it must wait and be given again; None: not for pgnear.

    `position`: where it begins in what is being walked.
    """
    signal = statement.signal
    call = signal.call() if signal is not None else None
    if signal is None or call is None or not _concerns_clients(session, call):
        return None
    if session.deferred and not link(session, position):
        return False  # an error must leave the block failed
    outcome = _decide(session, call)
    if outcome is Outcome.UNDER_WAY:
        return False
    if outcome is Outcome.OTHERS:
        return None
    if isinstance(outcome, PgError):
        _fail(session, outcome)
    else:
        session.answer(_row_description(signal, 0) + _result(call, outcome, 0) + _ready(session))
        _part(session)
    return True


# ---- batches ---------------------------------------------------------------------------------------------------------


class _Batch(NamedTuple):
    """A batch of nothing but such a call, or its preparation.

    `parts`: the answers to its operations, in order, but for that to its Execute, which is number `executes`.
    `format`: of its result. `suspends`: it wants one row and no more, as drivers do that fetch a value. `call`: None
    where it only prepares.
    """

    parts: list[bytes]
    executes: int
    format: int
    suspends: bool
    call: Call | None


def answer_batch(
    session: Session, data: bytes, start: int, operations: list[Operation], *, synced: bool
) -> bool | None:
    """The same for the messages of a batch, up to a Sync or not."""
    batch = _read(session, data, operations, synced=synced)
    if batch is None:
        return None
    if session.deferred and not link(session, start):
        return False
    outcome = _decide(session, batch.call)
    if outcome is Outcome.UNDER_WAY:
        return False
    if outcome is Outcome.OTHERS:
        return None
    parts = batch.parts
    if isinstance(outcome, PgError):
        _keep(session, operations[: batch.executes])
        session.answer(b"".join(parts[: batch.executes]))
        _fail(session, outcome)
        return True
    _keep(session, operations)
    if batch.call is not None:
        parts[batch.executes] = _result(batch.call, outcome, batch.format, suspends=batch.suspends)
    session.answer(b"".join(parts) + (_ready(session) if synced else b""))
    _part(session)
    return True


def _read(session: Session, data: bytes, operations: list[Operation], *, synced: bool) -> _Batch | None:
    parsed: dict[bytes, Prepared] = {}
    parts: list[bytes] = []
    bound: tuple[Signal, Call, int] | None = None
    executes, suspends = -1, False
    concerned = False
    for operation in operations:
        kind = operation[0]
        if kind == _PARSE:
            name, prepared = operation[3], operation[4]
            if name and (name in parsed or name in session.statements or name in session.state.sql_statements):
                return None
            if prepared.warns or _types(prepared) is None:
                return None
            concerned = True
            parsed[name] = prepared
            parts.append(PARSE_COMPLETE)
        elif kind == _BIND and synced and bound is None and not operation[3]:
            bound = _bound(parsed.get(operation[4]) or session.statements.get(operation[4]), data, operation)
            if bound is None or not _concerns_clients(session, bound[1]):
                return None
            parts.append(BIND_COMPLETE)
        elif kind == _DESCRIBE and operation[3] == _STATEMENT:
            described = parsed.get(operation[4]) or session.statements.get(operation[4])
            types = _types(described) if described is not None else None
            if described is None or types is None or described.statement.signal is None:
                return None
            concerned = True
            parts.append(_parameter_description(types) + _row_description(described.statement.signal, 0))
        elif kind == _DESCRIBE and bound is not None and executes < 0 and not operation[4]:
            parts.append(_row_description(bound[0], bound[2]))
        elif kind == _EXECUTE and bound is not None and executes < 0 and not operation[3]:
            executes, suspends = len(parts), operation[4] == _ONE_ROW
            parts.append(b"")
        elif kind == _CLOSE and operation[3] in b"SP" and (bound is None or executes >= 0):
            parts.append(CLOSE_COMPLETE)
        else:
            return None
    if bound is None:
        return _Batch(parts, 0, 0, False, None) if concerned else None
    return _Batch(parts, executes, bound[2], suspends, bound[1]) if executes >= 0 else None


def _types(prepared: Prepared) -> list[int] | None:
    signal = prepared.statement.signal
    return signal.types(prepared.types) if signal is not None else None


def _bound(prepared: Prepared | None, data: bytes, operation: Operation) -> tuple[Signal, Call, int] | None:
    """The call that a Bind asks for, and the format of its result."""
    types = _types(prepared) if prepared is not None else None
    if prepared is None or prepared.statement.signal is None or types is None:
        return None
    read = _values(data[operation[5] : operation[2]])
    if read is None or len(read[1]) > 1:
        return None
    values, results = read
    call = prepared.statement.signal.call(types, values)
    code = results[0] if results else 0
    return (prepared.statement.signal, call, code) if call is not None and code in (0, 1) else None


def _values(tail: bytes) -> tuple[list[tuple[int, bytes | None]], list[int]] | None:
    """(format, value) of each parameter, and the formats of the results, in a Bind from its formats on."""
    codes, position = _codes(tail, 0)
    count = int.from_bytes(tail[position : position + 2], "big")
    position += 2
    if len(codes) not in (0, 1, count):
        return None
    codes = [0] * count if not codes else codes * count if len(codes) == 1 else codes
    values: list[tuple[int, bytes | None]] = []
    for code in codes[:count]:
        size = int.from_bytes(tail[position : position + 4], "big", signed=True)
        position += 4
        values.append((code, None if size < 0 else tail[position : position + size]))
        position += max(size, 0)
    results, position = _codes(tail, position)
    return (values, results) if position == len(tail) else None


def _codes(tail: bytes, position: int) -> tuple[list[int], int]:
    """A list of format codes, and where it ends."""
    begin = position + 2
    end = begin + 2 * int.from_bytes(tail[position:begin], "big")
    return [int.from_bytes(tail[at : at + 2], "big") for at in range(begin, min(end, len(tail)), 2)], end


def _keep(session: Session, operations: list[Operation]) -> None:
    """What the batch has prepared and closed is so from now on."""
    for operation in operations:
        if operation[0] == _PARSE:
            session.remember(operation[3], operation[4])
        elif operation[0] == _CLOSE and operation[3] == _STATEMENT:
            session.statements.pop(operation[4], None)


# ---- both ------------------------------------------------------------------------------------------------------------


def _concerns_clients(session: Session, call: Call) -> bool:
    """Whether `call` may be about a client, or was: a terminated one is gone by the time that this is answered."""
    return session.signal is not None or session.service.may_have_client(call.pid)


def _decide(session: Session, call: Call | None) -> Outcome | PgError:
    """What has become of `call`, or of what is owed before its preparation; it is begun where it was not."""
    outcome, session.signal = session.signal, None
    if outcome is not None and (call is None or outcome is not Outcome.CLEAR):
        return outcome
    origin = session.origin
    if origin is None:
        if call is None:
            return Outcome.CLEAR
        _wait(session)
        session.service.signal(session, call, None)
        return Outcome.UNDER_WAY
    if origin.open_unit is not None or copying.is_open(session):
        return Outcome.OTHERS
    owed = bool(origin.units or session.to_origin)
    if not owed and origin.status == FAILED_TRANSACTION:
        return Outcome.OTHERS
    if not owed and call is None:
        return Outcome.CLEAR
    _ask_rights(session, call)
    return Outcome.UNDER_WAY


def _ask_rights(session: Session, call: Call | None) -> None:
    """Ask the linked connection who the session is now: its answer comes when all before it has been answered."""
    service, origin = session.service, session.origin
    assert origin is not None

    def done(own: Unit) -> None:
        if own.error is not None:  # what came before has failed, and so does this
            session.signal = Outcome.OTHERS
        elif call is None:
            session.signal = Outcome.CLEAR
        else:
            service.signal(session, call, rights_of(_rows(own.rows)))
            return
        service.reactor.call_soon(session.release_hold)  # at once, the connection would be given back first

    _wait(session)
    origin.unnamed = None
    session.push(Unit.own(done))
    session.send_later(query(rights_query(service.origin_roles)))


def _rows(frames: list[bytes]) -> list[tuple[str, ...]]:
    rows = [framing.data_row(frame[5:]) for frame in frames if frame[0] == DATA_ROW]
    return [tuple((value or b"").decode(errors="replace") for value in row) for row in rows]


def _wait(session: Session) -> None:
    session.signal = Outcome.UNDER_WAY
    session.hold()


def _ready(session: Session) -> bytes:
    return READY_IDLE if session.origin is not None and session.origin.status == IDLE else session.ready_now


def _part(session: Session) -> None:
    """The connection has no more to do for this: it goes back, unless something keeps it."""
    if session.origin is not None:
        session.service.reactor.call_soon(session.settled)


def _fail(session: Session, error: PgError) -> None:
    """The answer is an error, and so is the end of what it stands in, up to its ReadyForQuery."""
    origin = session.origin
    if origin is None or origin.status == IDLE:
        session.answer(error.response() + READY_IDLE)
        _part(session)
        return
    unit = Unit(perf_counter(), None)
    session.push(unit)
    fail_unit(session, unit, error.response())
    session.send_later(SYNC_FRAME)


def _result(call: Call, outcome: Outcome, code: int, *, suspends: bool = False) -> bytes:
    """What PostgreSQL says to Execute."""
    warning = b""
    if outcome is Outcome.LATE:
        told = f"backend with PID {call.pid} did not terminate within {call.timeout} milliseconds"
        warning = notice_response("01000", told, severity="WARNING")
    value = outcome is Outcome.DONE
    column = bytes([value]) if code else b"t" if value else b"f"
    end = framing.frame(b"s", b"") if suspends else command_complete(b"SELECT 1")
    return warning + framing.frame(b"D", b"\0\1\0\0\0\1" + column) + end


def _row_description(signal: Signal, code: int) -> bytes:
    return framing.frame(b"T", b"\0\1" + signal.column + b"\0" + bytes(6) + _BOOL + code.to_bytes(2, "big"))


def _parameter_description(types: list[int]) -> bytes:
    return framing.frame(b"t", len(types).to_bytes(2, "big") + b"".join(oid.to_bytes(4, "big") for oid in types))
