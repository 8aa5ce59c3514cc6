"""Batches that are answered without an origin: one whole read from the cache, and what pgnear knows by itself.

Lives here: whether a batch is of a shape that the cache may answer, and the messages that an answer becomes. Not here:
whether there is an answer (`caching`), what becomes of other batches (`extended`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from pooler.cache.entry import Entry
from pooler.cache.keys import ALL_TEXT, has_temporal_parameter, in_formats, normal_tail
from pooler.caching import ask, make_ready
from pooler.statements import Prepared
from protocol.framing import BIND_COMPLETE, CLOSE_COMPLETE, PARSE_COMPLETE

if TYPE_CHECKING:
    from pooler.operations import Operation
    from pooler.session import Session

_PARSE, _BIND, _DESCRIBE, _EXECUTE, _CLOSE = b"PBDEC"
_STATEMENT = ord("S")
NO_PARAMETER_DESCRIPTION: Final = b"t\0\0\0\6\0\0"


def look_up(session: Session, data: bytes, operations: list[Operation]) -> Any:
    """True: answered from the cache. A Capture: cacheable, to be stored. WAIT: hold. None: not for the cache."""
    shape = _read_shape(session, data, operations)
    if shape is None:
        return None
    prepared, tail, described, stated = shape
    if not prepared.statement.cacheable or prepared.warns or has_temporal_parameter(tail):
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


def answer_locally(session: Session, operations: list[Operation]) -> bool:
    """Answer a batch that no origin is needed for: Parse of a statement that is known to be right, and Close.

    Outside a transaction there are no portals, and statements are ours. This spares the origin a round trip, and a
    client that prepares does not wait for a connection.
    """
    parts = []
    for operation in operations:
        if operation[0] == _CLOSE and operation[3] in b"SP":
            parts.append(CLOSE_COMPLETE)
        elif operation[0] == _PARSE and operation[4].proven == session.circumstances and not operation[4].warns:
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
    session.answer(b"".join(parts) + session.ready_now)
    return True
