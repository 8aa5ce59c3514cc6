"""Prepared statements as pgnear knows them: one object per distinct text and parameter types, whoever prepared it.

A client's name leads to a `Prepared`; an origin connection knows which of them it has. Both hold the object; when
nobody does it is gone. Not here: which Parse is sent when (`session`).
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from protocol import framing

if TYPE_CHECKING:
    from pooler.sql.statement import Statement

_numbers = count(1)

ORIGIN_PREFIX = b"pgnear_"
"""Names on origin connections begin so; a client's own names never reach the origin."""


class Prepared:
    """A statement that some client has prepared.

    Attributes:
      name: its name on origin connections.
      text: the statement's text as the client sent it, without the NUL.
      types: the rest of the Parse message: Int16 count, Int32 per parameter type.
      statement: what the text means.
      proven: (pool, settings, schema epoch) under which an origin has last parsed it without an error.
      parameter_description: its ParameterDescription frame, once an origin has described it.
    """

    __slots__ = ("__weakref__", "name", "parameter_description", "proven", "statement", "text", "types")

    def __init__(self, text: bytes, types: bytes, statement: Statement) -> None:
        self.name = ORIGIN_PREFIX + str(next(_numbers)).encode()
        self.text = text
        self.types = types
        self.statement = statement
        self.parameter_description: bytes | None = None
        self.proven: object = None

    def parse_frame(self, name: bytes) -> bytes:
        """The Parse message that prepares it under `name`."""
        return framing.frame(b"P", name + b"\0" + self.text + b"\0" + self.types)

    def close_frame(self) -> bytes:
        """The Close message for it on an origin connection."""
        return framing.frame(b"C", b"S" + self.name + b"\0")

    def __repr__(self) -> str:
        return f"<Prepared {self.name.decode()}>"


class PreparedStatements:
    """Every `Prepared` that somebody holds, by text and types."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[bytes, bytes], Prepared] = WeakValueDictionary()

    def intern(self, text: bytes, types: bytes, statement: Statement) -> Prepared:
        key = (text, types)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Prepared(text, types, statement)
        return known

    def __len__(self) -> int:
        return len(self._known)
