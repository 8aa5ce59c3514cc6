"""What a session wants set and what an origin connection has set: immutable, interned, compared by identity.

Lives here: `Settings`, the statements that turn one into another. Not here: reading a SET (`pooler.sql`), deciding
when to send the difference (`session`).

A setting is kept as the SQL statement that makes it so: two clients that wrote the same SET share it, and nothing is
lost in translating lists, identifiers and quoting. A setting that is absent has the origin's default for the role and
database.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakValueDictionary

from protocol import framing

# These decide how the others are applied or whether they may be, so they come first, in this order.
_FIRST = {"session_authorization": 0, "role": 1, "client_encoding": 2}


class Settings:
    """An interned set of settings: name (lower case) -> SQL statement. Make one with `Settings.of`."""

    __slots__ = ("__weakref__", "_differences", "items", "label")

    _known: WeakValueDictionary[tuple[tuple[str, str], ...], Settings] = WeakValueDictionary()

    def __init__(self, items: tuple[tuple[str, str], ...]) -> None:
        self.items = items
        self._differences: WeakKeyDictionary[Settings, bytes] = WeakKeyDictionary()
        self.label = tuple(item for item in items if item[0] != "application_name")
        """What of it can decide an answer: part of every cache key."""

    @classmethod
    def of(cls, mapping: dict[str, str]) -> Settings:
        items = tuple(sorted(mapping.items()))
        known = cls._known.get(items)
        if known is None:
            known = cls._known[items] = cls(items)
        return known

    def with_change(self, name: str, statement: str | None) -> Settings:
        """These settings after `name` was set by `statement`, or after it was reset where that is None."""
        mapping = dict(self.items)
        if statement is None:
            mapping.pop(name, None)
        else:
            mapping[name] = statement
        return Settings.of(mapping)

    def get(self, name: str) -> str | None:
        return dict(self.items).get(name)

    def difference_to(self, wanted: Settings) -> bytes:
        """The Query frame that turns a connection with these settings into one with the `wanted` ones."""
        frame = self._differences.get(wanted)
        if frame is None:
            frame = self._differences[wanted] = framing.query(self._statements_to(wanted))
        return frame

    def _statements_to(self, wanted: Settings) -> str:
        mine, theirs = dict(self.items), dict(wanted.items)
        changed = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        # A change of the session user resets the role on the server, so the role is said again after it.
        if "session_authorization" in changed and (mine.get("role") or theirs.get("role")):
            changed.add("role")
        ordered = sorted(changed, key=lambda name: (_FIRST.get(name, 9), name))
        return "\n;".join(theirs.get(name) or f"RESET {_quote_name(name)}" for name in ordered)

    def __repr__(self) -> str:
        return f"<Settings {', '.join(name for name, _ in self.items) or 'none'}>"


DEFAULTS = Settings.of({})
"""No setting at all: what a fresh connection has."""


def _quote_name(name: str) -> str:
    """`name` as an identifier, each part of a custom `app.name` quoted by itself."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def quote_literal(value: str) -> str:
    """`value` as a string literal that reads the same whatever standard_conforming_strings says."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def from_startup(parameters: dict[str, str]) -> Settings:
    """The settings that a startup packet's parameters ask for, `options` included.

    Each is made with `set_config`, which reads a value as the startup packet does (a list stays a list).
    """
    wanted = {}
    for name, value in parameters.items():
        lowered = name.lower()
        wanted[lowered] = f"SELECT pg_catalog.set_config({quote_literal(lowered)},{quote_literal(value)},false)"
    return Settings.of(wanted)
