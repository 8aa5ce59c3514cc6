"""Renaming a prepared statement in SQL text: EXECUTE, PREPARE and DEALLOCATE of what a client knows by another name.

A statement made by Parse has a name of pgnear's on the origin; SQL that speaks of it must do so by that name.
"""

from __future__ import annotations

import re

from pooler.sql.views import Edit

_NAMED = re.compile(
    rb"""\b(execute | prepare | deallocate (?:\s+prepare\b)? ) \s+ ( "(?:[^"]|"")*" | [^\s(;"]+ )""",
    re.IGNORECASE | re.VERBOSE,
)


def renaming(text: bytes, start: int, end: int, names: dict[bytes, bytes]) -> list[Edit]:
    """The edit that renames the first prepared statement that the statement from `start` to `end` in `text` names."""
    for found in _NAMED.finditer(text, start, end):
        new = names.get(_folded(found[2]))
        if new is not None:
            return [(found.start(2), found.end(2), new)]
    return []


def _folded(name: bytes) -> bytes:
    """A name as PostgreSQL folds it: quoted as it is, otherwise in lower case."""
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name.lower()
