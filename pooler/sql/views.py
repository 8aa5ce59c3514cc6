"""References to the system views that show what a session has: pg_prepared_statements, and pg_settings' reset values.

On a shared connection they show what the connection has. Lives here: where a text refers to them. Not here: what its
session must see instead (`pooler.views`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pooler.sql.parser import statements

if TYPE_CHECKING:
    from pooler.sql.purity import Facts

_REFERENCE = re.compile(
    rb"""(?: "pg_catalog" | pg_catalog ) \s* \. \s* "?pg_(?:prepared_statements|settings)"? (?! \w )
       | "?pg_(?:prepared_statements|settings)"? (?! \w )""",
    re.IGNORECASE | re.VERBOSE,
)
_RESET_VALUES = re.compile(rb"reset_val|source|\*|\btable\b", re.IGNORECASE)
"""Without one of these nobody looks at what pg_settings would tell wrongly."""
_TABLE = re.compile(rb"\btable\s+$", re.IGNORECASE)
_READERS = frozenset(
    "SelectStmt InsertStmt UpdateStmt DeleteStmt MergeStmt ExplainStmt DeclareCursorStmt CopyStmt "
    "CreateTableAsStmt".split()
)
"""Statements that read a view now. What is stored (CREATE VIEW, PREPARE) is left as it is."""


class Reference(NamedTuple):
    """One place in a text, in bytes from `start` to `end`, where `view` stands.

    `before`, `after`: what must stand around the query that takes its place.
    """

    start: int
    end: int
    view: str
    before: bytes = b"("
    after: bytes = b")"

    def by(self, query: bytes) -> tuple[int, int, bytes]:
        """The edit that puts `query` in its place."""
        return self.start, self.end, self.before + query + self.after


def references(text: bytes, statements: Sequence[Facts]) -> tuple[Reference, ...]:
    """The references in `text` that a query may take the place of; none where one of them is unclear."""
    found = []
    for facts in statements:
        if facts.name not in _READERS:
            continue
        for relation in facts.shown:
            if (None, relation.relname) in facts.local_names and not relation.schemaname:
                continue
            if relation.relname == "pg_settings" and not _RESET_VALUES.search(text):
                continue
            reference = _reference(text, relation.location, relation.relname, aliased=relation.HasField("alias"))
            if reference is None:
                return ()
            found.append(reference)
    found.sort()
    return tuple(found) if found and _still_reads(text, found) else ()


def _reference(text: bytes, location: int, view: str, *, aliased: bool) -> Reference | None:
    match = _REFERENCE.match(text, location)
    if match is None:
        return None
    after = b")" if aliased else b") AS " + view.encode()
    table = _TABLE.search(text, 0, location)
    if table is not None:
        return Reference(table.start(), match.end(), view, b"SELECT * FROM (", after)
    return Reference(location, match.end(), view, b"(", after)


def _still_reads(text: bytes, found: list[Reference]) -> bool:
    """Whether a query may stand in those places: not where a view is written to, or locked."""
    try:
        statements(edited(text, [reference.by(b"SELECT 1") for reference in found]))
    except Exception:
        return False
    return True


Edit = tuple[int, int, bytes]
"""(start, end, what stands there instead), in bytes of a text."""


def edited(text: bytes, edits: Sequence[Edit]) -> bytes:
    """`text` with `edits` made; they are in order and do not overlap."""
    pieces: list[bytes] = []
    position = 0
    for start, end, new in edits:
        pieces += (text[position:start], new)
        position = end
    pieces.append(text[position:])
    return b"".join(pieces)


def place_before(text: bytes, edits: Sequence[Edit], place: int) -> int:
    """The character (from 1) of `text` that is number `place` of `edited(text, edits)`, a new part's beginning."""
    shift = 0  # how much further on what follows stands in the edited text, in characters
    for start, end, new in edits:
        begins = len(text[:start].decode(errors="replace")) + 1
        if place < begins + shift:
            break
        added = len(new.decode(errors="replace"))
        if place < begins + shift + added:
            return begins
        shift += added - len(text[start:end].decode(errors="replace"))
    return place - shift
