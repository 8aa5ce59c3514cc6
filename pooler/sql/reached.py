"""Which effects on its session a statement reaches by what it names: relations, operators, types, or words in a body.

Lives here: the judgement, by what is known (`statement.Effects`). Not here: calls, which `effects` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pooler.sql.purity import Facts
from pooler.sql.statement import EVENTS, READ, REFRESH, Carrier, Effects, PinKind

_EXECUTE = frozenset(
    "SelectStmt InsertStmt UpdateStmt DeleteStmt MergeStmt CopyStmt TruncateStmt RefreshMatViewStmt CreateTableAsStmt "
    "DeclareCursorStmt ExplainStmt PrepareStmt ExecuteStmt CallStmt".split()
)
"""Statements that do what they name, or may do it later unseen. DDL and LOCK name a view, and do not read it."""

_WORD = re.compile(r"[\w\u0080-\U0010ffff]+")


def words(text: str) -> frozenset[str]:
    """What may be a name in `text`, in lower case."""
    return frozenset(word.lower()[:63] for word in _WORD.findall(text))


def is_word(name: str) -> bool:
    """Whether `words` finds `name` wherever a text names it."""
    return _WORD.fullmatch(name) is not None


def reached_by(facts: Facts, known: Effects, *, executed: bool = True, but: str | None = None) -> Iterator[PinKind]:
    """What a statement leaves by what it names.

    Args:
      executed: False of one that says what is to be done one day; its relation `but` does not count then.
    """
    if not known or (executed and facts.name not in _EXECUTE):
        return
    keys = [Carrier(READ, name) for _, name in facts.relations]
    if facts.name == "PrepareStmt" or not executed:
        keys += [Carrier(event, name) for _, name in facts.relations for event in EVENTS if event != REFRESH]
    if but is not None:
        keys = [key for key in keys if key.name != but]
    keys += [Carrier(change.value, name) for (_, name), change in facts.written]
    keys += [Carrier("operator", name) for _, name in facts.operators]
    keys += [Carrier("type", name) for _, name in facts.types]
    for key in keys:
        kind = known.get(key)
        if kind is not None:
            yield kind


def in_body(body: str, known: Effects) -> PinKind | None:
    """What a body leaves by the functions and relations that it names, whatever it does with them."""
    if not known:
        return None
    said = words(body)
    return worst(kind for key, kind in known.items() if _is_named(key, said, body))


def _is_named(key: str | Carrier, said: frozenset[str], text: str) -> bool:
    name = key if isinstance(key, str) else key.name
    return name.lower() in said if is_word(name) else name in text


def worst(kinds: Iterable[PinKind | None]) -> PinKind | None:
    """What `kinds` come to together: whether it outlives DISCARD ALL."""
    found = set(kinds) - {None}
    if not found:
        return None
    return PinKind.LASTING if PinKind.LASTING in found else PinKind.HIDDEN
