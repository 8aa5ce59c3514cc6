"""A batch's frames as operations: what each message says, and which statement it is about.

Lives here: the fields of Parse, Bind, Describe, Execute and Close as far as pgnear must know them, and the `Prepared`
that a Parse makes, found by the message's own bytes where it came before. Not here: what becomes of an operation
(`extended`, `answers`, `translation`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pooler import views
from pooler.caching import NO_PARAMETERS
from pooler.sql.names import renaming
from pooler.sql.statement import Part, Statement
from pooler.statements import Prepared, Scope

if TYPE_CHECKING:
    from pooler.session import Session

_PARSE, _BIND, _EXECUTE = b"PBE"
_NOTHING = Statement()
_ANYWHERE = Scope("", 0, ())

MAX_REMEMBERED_PARSE = 2048
"""Longer Parse messages, in bytes, are read each time."""

Operation = tuple[Any, ...]
"""(kind, start, end) of a message in what its client sent, and then

    Parse      name, `Prepared`
    Bind       portal, name, where its formats begin
    Describe   ord("S") or ord("P"), name
    Execute    portal, its limit of rows as four bytes
    Close      as Describe
"""


def read(session: Session, data: bytes, frame: tuple[int, int, int]) -> Operation:
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
            if b"\\" in text and _has_string_syntax(session):
                prepared.warns = True
            elif name_end == body and statement.plain and end - start <= MAX_REMEMBERED_PARSE:
                scope.remember(data[start:end], prepared)
        return kind, start, end, data[body:name_end], prepared
    if body >= end:
        raise ValueError
    return kind, start, end, data[body], data[body + 1 : data.index(b"\0", body + 1, end)]


def _has_string_syntax(session: Session) -> bool:
    """Whether a backslash may mean to `session` what the parser warns of."""
    return session.scope.has_string_syntax or session.reports.values.get("standard_conforming_strings") == "off"


def _about_another(session: Session, text: bytes, types: bytes, statement: Statement) -> Prepared:
    """SQL that speaks of a statement made by Parse (EXECUTE, PREPARE, DEALLOCATE), with pgnear's name for that."""
    named = statement.parts[0].named
    assert named is not None
    target = spoken_of(session, statement.parts[0])
    edits = renaming(text, 0, len(text), {named: target.name})
    prepared = session.service.prepared.intern_edited(text, edits, types, statement, session.scope)
    prepared.needs = target
    return prepared


def spoken_of(session: Session, part: Part) -> Prepared:
    """What `part` is about on a connection, where it names a statement that its client made by Parse."""
    assert part.named is not None
    return session.statements[part.named] if part.deallocates is None else stand_in(session, part.named)


def stand_in(session: Session, name: bytes) -> Prepared:
    """What is deallocated on a connection in the place of the session's statement `name`: a text of nothing.

    That statement is not this client's alone, and where the connection lacks it, its tables may be gone.
    """
    text = b"--" + name.hex().encode()
    return session.service.prepared.intern(text, NO_PARAMETERS, _NOTHING, _ANYWHERE)


def statement_of(session: Session, operation: Operation) -> Statement:
    """What a Parse or Bind is about; of other messages, nothing."""
    kind = operation[0]
    if kind == _PARSE:
        prepared: Prepared | None = operation[4]
    elif kind == _BIND:
        prepared = session.statements.get(operation[4])
    else:
        return _NOTHING
    return prepared.statement if prepared is not None else _NOTHING


def texts_that_look(session: Session, operations: list[Operation]) -> list[bytes]:
    texts = []
    for operation in operations:
        if statement_of(session, operation).looks:
            prepared = operation[4] if operation[0] == _PARSE else session.statements[operation[4]]
            texts.append(prepared.text)
    return texts


def recall_sequences(session: Session, operations: list[Operation]) -> bool:
    return any(statement_of(session, operation).recalls_sequences for operation in operations)
