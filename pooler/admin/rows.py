"""What an answer of the console is made of, and how the answers of several workers become one.

Lives here: columns, rows, and the rules by which rows are joined. Not here: who asks whom (`everybody`), which rule a
table has (`tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

TEXT, INTEGER, FLOAT = 25, 20, 701
"""OIDs of text, bigint and double precision."""

Value: TypeAlias = str | int | float | None
Row: TypeAlias = tuple[Value, ...]
Part: TypeAlias = tuple[int, Sequence[Row]]
"""A worker's number and its rows."""


class Column(NamedTuple):
    """A column of an answer; `type` is an OID."""

    name: str
    type: int = TEXT


def columns(text: str) -> tuple[Column, ...]:
    """`name` is text, `name#` a bigint, `name~` a double precision (seconds)."""
    kinds = {"#": INTEGER, "~": FLOAT}
    return tuple(Column(word.rstrip("#~"), kinds.get(word[-1], TEXT)) for word in text.split())


class Join(Protocol):
    """How the rows of several workers are joined. With one process none of this is asked."""

    def columns(self, own: tuple[Column, ...]) -> tuple[Column, ...]:
        """The columns of what `rows` gives, where a worker's rows have those of `own`."""
        ...

    def rows(self, own: tuple[Column, ...], parts: Sequence[Part]) -> list[Row]:
        """The rows of all; `parts` is in the order of the workers."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """Each row is of one thing, which one worker has; the last column says which, unless they say so themselves."""

    named: bool = True

    def columns(self, own: tuple[Column, ...]) -> tuple[Column, ...]:
        return (*own, Column("worker", INTEGER)) if self.named else own

    def rows(self, own: tuple[Column, ...], parts: Sequence[Part]) -> list[Row]:
        return [(*row, worker) if self.named else row for worker, rows in parts for row in rows]


@dataclass(frozen=True, slots=True)
class Added:
    """Rows with the same key are one: numbers are added, and texts that differ stand one behind the other.

    Attributes:
      key: the columns that tell rows apart.
      largest, smallest: columns of which one worker's value holds; what stands in one string belongs together.
      once: values of the key's first column whose rows are the same everywhere.
    """

    key: str
    largest: tuple[str, ...] = ()
    smallest: tuple[str, ...] = ()
    once: frozenset[str] = frozenset()

    def columns(self, own: tuple[Column, ...]) -> tuple[Column, ...]:
        return own

    def rows(self, own: tuple[Column, ...], parts: Sequence[Part]) -> list[Row]:
        names = [column.name for column in own]
        keys = [names.index(name) for name in self.key.split()]
        alike: dict[Row, list[Row]] = {}
        for _, rows in parts:
            for row in rows:
                alike.setdefault(tuple(row[place] for place in keys), []).append(row)
        return [self._joined(names, keys, key, rows) for key, rows in alike.items()]

    def _joined(self, names: list[str], keys: list[int], key: Row, rows: list[Row]) -> Row:
        if len(rows) == 1 or key[0] in self.once:
            return rows[0]
        joined = [row[0] if place in keys else together(row) for place, row in enumerate(zip(*rows, strict=True))]
        for groups, choose in ((self.largest, max), (self.smallest, min)):
            for group in groups:
                places = [names.index(name) for name in group.split()]
                known = [values for row in rows if None not in (values := tuple(row[place] for place in places))]
                if known:
                    for place, value in zip(places, choose(known), strict=True):
                        joined[place] = value
        return tuple(joined)


def together(values: Sequence[Value]) -> Value:
    """One column's values, added up; texts that differ, one behind the other."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if any(isinstance(value, str) for value in known):
        return "; ".join(dict.fromkeys(map(str, known)))
    added = sum(value for value in known if not isinstance(value, str))
    return round(added, 6) if isinstance(added, float) else added
