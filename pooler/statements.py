"""Prepared statements as pgnear knows them: one object per distinct text, parameter types and scope, whoever
prepared it.

A client's name leads to a `Prepared`; an origin connection knows which of them it has. Both hold the object; when
nobody does it is gone. Not here: which Parse is sent when (`session`).
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from pooler.sql.parser import fingerprint
from pooler.sql.views import Edit, edited
from protocol import framing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pooler.repeats import Repeated
    from pooler.sql.statement import Statement

_numbers = count(1)

ORIGIN_PREFIX = b"pgnear_"
"""Names on origin connections begin so; a client's own names never reach the origin."""


MAX_PARSES = 5000
PARSES_BYTES = 4 << 20
"""Parse messages that a scope remembers, and what they may take; then it forgets them all."""

LIGHT_TEXT = 1024
"""Of a text of so many bytes nobody counts what is known about it."""


def same_rows(one: bytes, other: bytes) -> bool:
    """Whether two RowDescription frames are of one result type to PostgreSQL: names, types and lengths; the table
    that a column comes from does not count."""
    return _without_tables(one) == _without_tables(other)


def _without_tables(row_description: bytes) -> list[bytes]:
    parts, position = [], 7
    while position < len(row_description):
        end = row_description.index(b"\0", position)
        parts += [row_description[position:end], row_description[end + 7 : end + 15]]
        position = end + 19  # the table's oid, the column's number, its type, length and typmod, and the format
    return parts


class Scope:
    """What else than its text and types decides what a statement means when it is parsed. Compared by identity.

    Clients that agree in all of it have the same scope, and share their statements.

    Attributes:
      database: its name. epoch: the schema epoch. label: the settings without application_name.
      has_string_syntax: they say what a backslash means.
      parses: whole Parse messages without a name, as the clients sent them, and what they prepare.
      queries: whole Query messages that connections keep prepared (`repeats`). asked: how often others have come, by
        their hash.
    """

    __slots__ = (
        "__weakref__", "_parses_bytes", "asked", "database", "epoch", "has_string_syntax", "label", "parses", "queries",
    )  # fmt: skip

    def __init__(self, database: str, epoch: int, label: tuple[tuple[str, str], ...]) -> None:
        self.database = database
        self.epoch = epoch
        self.label = label
        self.has_string_syntax = any(name == "standard_conforming_strings" for name, _ in label)
        self.parses: dict[bytes, Prepared] = {}
        self._parses_bytes = 0
        self.queries: dict[bytes, Repeated] = {}
        self.asked: dict[int, int] = {}

    def remember(self, frame: bytes, prepared: Prepared) -> None:
        size = len(frame) + prepared.weight
        if len(self.parses) >= MAX_PARSES or self._parses_bytes + size > PARSES_BYTES:
            self.parses.clear()
            self._parses_bytes = 0
        self._parses_bytes += size
        self.parses[frame] = prepared


class Prepared:
    """A statement that some client has prepared.

    Attributes:
      name: its name on origin connections.
      text: the statement's text as the client sent it, without the NUL.
      types: the rest of the Parse message: Int16 count, Int32 per parameter type.
      statement: what the text means.
      proven: (pool, settings, schema epoch) under which an origin has last parsed it without an error.
      needs: the statement that its text speaks of, which must be on the same connection.
      said: where pgnear has changed the text (`edits`, in bytes of what the client said), the client's own; else None.
      parameter_description, row_description: what an origin has described it with: a ParameterDescription, and a
        RowDescription or NoData frame.
      asked: (catalog, reports, user, policy, tables) of the last cacheable read of it: `caching.ask` remembers it here.
      epoch: the schema epoch that clients prepared it in; after DDL a Parse of the same text makes another one.
      parses: how often a client has sent it without a name; what comes again is worth keeping on a connection.
      warns: the parser may have a warning for its client, at each Parse.
      weight: bytes that it and what is known about it take, about.
    """

    __slots__ = (
        "__weakref__", "_fingerprint", "asked", "edits", "epoch", "name", "needs", "parameter_description", "parses",
        "proven", "row_description", "said", "statement", "text", "types", "warns", "weight",
    )  # fmt: skip

    def __init__(self, text: bytes, types: bytes, statement: Statement, epoch: int) -> None:
        self.name = ORIGIN_PREFIX + str(next(_numbers)).encode()
        self.text = text
        self.types = types
        self.statement = statement
        self.epoch = epoch
        self.needs: Prepared | None = None
        self.said: bytes | None = None
        self.edits: Sequence[Edit] = ()
        self.parameter_description: bytes | None = None
        self.row_description: bytes | None = None
        self.proven: object = None
        self.asked: Any = None
        self.parses = 0
        self.warns = False
        self.weight = len(text) + (statement.weight if len(text) > LIGHT_TEXT else 0)
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Its text's `fingerprint`."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.text)
        return self._fingerprint

    def parse_frame(self, name: bytes) -> bytes:
        """The Parse message that prepares it under `name`."""
        return framing.frame(b"P", name + b"\0" + self.text + b"\0" + self.types)

    def close_frame(self) -> bytes:
        """The Close message for it on an origin connection."""
        return framing.frame(b"C", b"S" + self.name + b"\0")

    def __repr__(self) -> str:
        return f"<Prepared {self.name.decode()}>"


class PreparedStatements:
    """Every `Prepared` that somebody holds, by text, types and scope.

    The scope is what else decides what a text means when it is parsed: database, schema epoch, settings (search_path,
    DateStyle, client_encoding, ...). Clients that agree in all of it share one.
    """

    __slots__ = ("_known", "_scopes")

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[object, ...], Prepared] = WeakValueDictionary()
        self._scopes: WeakValueDictionary[tuple[str, int, tuple[tuple[str, str], ...]], Scope] = WeakValueDictionary()

    def scope(self, database: str, epoch: int, label: tuple[tuple[str, str], ...]) -> Scope:
        """The one scope of these: whoever prepares statements in it holds it."""
        key = (database, epoch, label)
        known = self._scopes.get(key)
        if known is None:
            known = self._scopes[key] = Scope(database, epoch, label)
        return known

    def intern(self, text: bytes, types: bytes, statement: Statement, scope: Scope) -> Prepared:
        key = (text, types, scope)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Prepared(text, types, statement, scope.epoch)
        return known

    def intern_edited(
        self, said: bytes, edits: Sequence[Edit], types: bytes, statement: Statement, scope: Scope
    ) -> Prepared:
        """The one for a text that is not sent as its client `said` it."""
        text = edited(said, edits)
        key = (text, types, scope, said)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Prepared(text, types, statement, scope.epoch)
            known.said, known.edits = said, tuple(edits)
        return known

    def __iter__(self) -> Iterator[Prepared]:
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)
