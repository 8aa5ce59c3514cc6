"""What a session wants set and what an origin connection has set: immutable, interned, compared by identity.

Lives here: `Settings`, the statements that turn one into another, and `Reports`. Not here: reading a SET
(`pooler.sql`), what transactions do to settings (`state`), deciding when to send the difference (`session`).

A setting is kept as the SQL statement that makes it so: two clients that wrote the same SET share it, and nothing is
lost in translating lists, identifiers and quoting. A setting that is absent has the origin's default for the role and
database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary, WeakValueDictionary

from pooler.sql.effects import set_config_sql
from protocol import framing

_OFF = re.compile(r"(=|\bto\b|,)\s*E?'?(off|false|no|0)\b", re.IGNORECASE)
_IDENTITY = ("session_authorization", "role")
"""Who one is decides what one may set: taken off before the others are set, put on after them, in this order."""


class Settings:
    """An interned set of settings: name (lower case) -> SQL statement. Make one with `Settings.of`."""

    __slots__ = ("__weakref__", "_differences", "cache_off", "customs", "items", "label", "plain_user", "size")

    _known: WeakValueDictionary[tuple[tuple[str, str], ...], Settings] = WeakValueDictionary()

    def __init__(self, items: tuple[tuple[str, str], ...]) -> None:
        self.items = items
        self._differences: WeakKeyDictionary[Settings, bytes] = WeakKeyDictionary()
        self.label = tuple(item for item in items if item[0] != "application_name")
        """What of it can decide an answer: part of every cache key."""
        self.customs = frozenset(name for name, _ in items if "." in name)
        """Custom settings, of which a connection keeps a trace."""
        self.size = sum(len(name) + len(statement) for name, statement in items)
        """What it takes to say them, in bytes."""
        wanted = dict(items)
        self.plain_user = not any(name in wanted for name in _IDENTITY)
        """Whether nobody has changed who the session is."""
        self.cache_off = _OFF.search(wanted.get("pgnear.cache", "")) is not None
        """SET pgnear.cache = off: the session's reads are not answered from the cache."""

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

    def doubted(self) -> Settings:
        """These on a connection whose role may not be the one any more that has its name: to be taken again."""
        return Settings.of({name: "" if name in _IDENTITY else sql for name, sql in self.items})

    def difference_to(self, wanted: Settings) -> bytes:
        """The Query frame that turns a connection with these settings into one with the `wanted` ones."""
        frame = self._differences.get(wanted)
        if frame is None:
            frame = self._differences[wanted] = framing.query(self._statements_to(wanted))
        return frame

    def _statements_to(self, wanted: Settings) -> str:
        mine, theirs = dict(self.items), dict(wanted.items)
        changed = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        steps = [f"RESET {name}" for name in reversed(_IDENTITY) if name in mine]
        steps += [theirs.get(name) or f"RESET {_quote_name(name)}" for name in changed if name not in _IDENTITY]
        steps += [theirs[name] for name in _IDENTITY if name in theirs]
        return "\n;".join(steps)

    def restore(self, names: Iterable[str]) -> list[str]:
        """The statements behind a RESET of `names` ("" for all) that make them what these settings say."""
        wanted = dict(self.items)
        if "" in names:
            return [sql for name, sql in wanted.items() if name not in _IDENTITY]
        if "session_authorization" in names:
            names = [*names, "role"]  # whose default comes with that of the session's user
        return [wanted[name] for name in names if name in wanted]

    def __repr__(self) -> str:
        return f"<Settings {', '.join(name for name, _ in self.items) or 'none'}>"


DEFAULTS = Settings.of({})
"""No setting at all: what a fresh connection has."""


def _quote_name(name: str) -> str:
    """`name` as an identifier, each part of a custom `app.name` quoted by itself."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def from_startup(parameters: dict[str, str]) -> Settings:
    """The settings that a startup packet's parameters ask for, `options` included.

    Each is made with `set_config`, which reads a value as the startup packet does (a list stays a list).
    """
    return Settings.of({name.lower(): set_config_sql(name.lower(), value) for name, value in parameters.items()})


class Reports:
    """What a server reports of itself in ParameterStatus messages: immutable, interned, compared by identity."""

    __slots__ = ("__weakref__", "_frames", "values")

    _known: WeakValueDictionary[frozenset[tuple[str, str]], Reports] = WeakValueDictionary()

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self._frames: bytes | None = None

    @property
    def frames(self) -> bytes:
        """A ParameterStatus frame for each value; made once, as many clients are told the same."""
        if self._frames is None:
            self._frames = self.difference_from(Reports.of({}))
        return self._frames

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Reports:
        items = frozenset(values.items())
        known = cls._known.get(items)
        if known is None:
            known = cls._known[items] = cls(dict(values))
        return known

    def with_value(self, name: str, value: str) -> Reports:
        return Reports.of({**self.values, name: value})

    def difference_from(self, told: Reports) -> bytes:
        """The ParameterStatus frames for a client that was `told` something else."""
        return b"".join(
            framing.frame(b"S", name.encode() + b"\0" + value.encode() + b"\0")
            for name, value in self.values.items()
            if told.values.get(name) != value
        )
