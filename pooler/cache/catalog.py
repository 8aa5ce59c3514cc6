"""What the origin's own catalog says about a statement: what a read really reads, what a write really reaches.

Lives here: the judgement, which does no I/O, fails closed and is remembered by statement and search_path. Not here: the
queries (`catalog_query`) and the objects (`catalog_model`).

What is trusted: a function is as volatile as pg_proc declares it. What is not known: a session's own temporary
relations. A session that has some must not be answered from the cache, nor may its writes' reach be taken from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pooler.cache.catalog_model import Function, Model, Path, References, Relation, parse_search_path
from pooler.cache.catalog_query import CATALOG_QUERY, sections
from pooler.sql.functions import HARMLESS_EXTENSIONS, HARMLESS_TRIGGERS, READ_ONLY, SAFE, SAFE_TYPES
from pooler.sql.statement import Call, Change, Name, Statement
from protocol.errors import malformed_message

__all__ = ["CATALOG_QUERY", "Catalog", "Verdict", "parse_search_path"]

_OTHER_NAMES = {"extract": "date_part"}  # before PostgreSQL 14
_WHO_ASKS = frozenset({"current_user", "session_user"})
"""Functions whose answer is part of the cache key."""

_TRIGGER_BITS = {
    Change.INSERT: 4, Change.DELETE: 8, Change.UPDATE: 16, Change.TRUNCATE: 32, Change.TRUNCATE_CASCADE: 32,
}  # fmt: skip
_RULE_EVENTS = {Change.UPDATE: "2", Change.INSERT: "3", Change.DELETE: "4"}
_ROW_CHANGES = (Change.INSERT, Change.UPDATE, Change.DELETE)
_CASCADES = {"c": None, "n": Change.UPDATE, "d": Change.UPDATE}
"""pg_constraint's action codes that reach the referring table; "c" repeats the change."""

_NOT_CACHED = {"f": "is a foreign table", "S": "is a sequence"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a statement's answer may be cached.

    Attributes:
      reason: why not; "" where it may.
      tables: OIDs of the tables that are really read, partitions and inheriting tables included. A change of one of
        them may change the answer. A materialized view stands for itself: REFRESH changes it.
      functions: those that decide it: the one that keeps it out, or the user's and the stable ones that it relies on.
    """

    cacheable: bool
    reason: str = ""
    tables: frozenset[int] = frozenset()
    functions: frozenset[str] = frozenset()


class _Refused(Exception):
    """What keeps a statement out of the cache, in words; `function`: the one that does."""

    def __init__(self, reason: str, function: str = "") -> None:
        super().__init__(reason)
        self.function = function


class _Unknown(Exception):
    """What a statement writes cannot be told."""


class Catalog:
    """One database's catalog.

    Args:
      found: what `catalog_query.sections` gives.
      safe_functions: names ("name" or "schema.name") of the user's STABLE functions that may be cached because their
        answers follow from their arguments and the session's settings alone.
    """

    MAX_REMEMBERED = 50000

    def __init__(self, found: dict[str, list[list[Any]]], safe_functions: Iterable[str] = ()) -> None:
        self._model = Model(found)
        self._safe_functions = frozenset(safe_functions)
        self._verdicts: dict[tuple[Statement, tuple[str, ...] | None, str], Verdict] = {}
        self._reaches: dict[tuple[Statement, tuple[str, ...] | None, str], frozenset[int] | None] = {}
        self._expansions: dict[int, References] = {}

    @classmethod
    def from_frames(cls, frames: list[tuple[int, bytes]], safe_functions: Iterable[str] = ()) -> Catalog:
        """From the answer to `CATALOG_QUERY`, as (type, body) frames.

        Raises:
          MalformedMessage: it is none.
        """
        try:
            return cls(sections(frames), safe_functions)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise malformed_message("answer", f"it describes no catalog ({type(error).__name__}: {error})") from error

    @property
    def relations(self) -> dict[int, Relation]:
        """By OID."""
        return self._model.relations

    def allows(self, statement: Statement) -> str | None:
        """None where the statement may be cached whatever the search_path; otherwise the reason."""
        return self.reads(statement, None).reason or None

    def tables(self, name: Name) -> frozenset[int]:
        """OIDs of every relation that an operator may mean by `name`, with what a write to them touches."""
        found = {relation.oid for relation in self._model.find_relations(name, None)}
        return frozenset(self._down(found)) | self._up(found)

    # ---- reads -------------------------------------------------------------------------------------------------------

    def reads(self, statement: Statement, search_path: tuple[str, ...] | None, user: str = "") -> Verdict:
        """Whether the answer to `statement` may be cached, and what it depends on.

        Args:
          search_path: the session's, as names; None: unknown, so that every relation and function that a name could
            mean counts.
          user: the current role, which "$user" stands for.
        """
        key = (statement, search_path, user)
        try:
            return self._verdicts[key]
        except KeyError:
            if len(self._verdicts) >= self.MAX_REMEMBERED:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._judge(statement, self._model.path(search_path, user))
            return verdict

    def _judge(self, statement: Statement, path: Path) -> Verdict:
        if not statement.cacheable:
            return Verdict(False, statement.why_not)
        functions: set[str] = set()
        tables: set[int] = set()
        try:
            for name in sorted(statement.relations, key=str):
                for relation in self._find_relations(statement, name, path):
                    self._judge_relation(relation, tables, functions)
            for call in sorted(statement.calls, key=str):
                self._judge_call(call, path, functions)
            for column in sorted(statement.columns):
                for function in self._model.find_row_functions(column):
                    self._judge_function(function, functions, f"column {column} may be a function of its row, and ")
            for operator in sorted(statement.operators, key=str):
                for oid in self._model.find_operators(operator, path):
                    self._judge_oid(oid, functions, f"operator {operator[1]} runs a function: ")
            for name in sorted(statement.types, key=str):
                self._judge_type(name, path, functions)
            for oid in self._model.implicit_casts:
                self._judge_oid(oid, functions, "an implicit cast runs a function: ")
        except _Refused as refused:
            return Verdict(False, str(refused), functions=frozenset({refused.function} - {""}))
        return Verdict(True, tables=frozenset(tables), functions=frozenset(functions))

    def _find_relations(self, statement: Statement, name: Name, path: Path) -> list[Relation]:
        found = self._model.find_relations(name, path)
        if not found and name not in statement.shadowed:
            raise _Refused(f"relation {name[1]} is not known")
        return found

    def _judge_relation(self, relation: Relation, tables: set[int], functions: set[str]) -> None:
        """Add to `tables` what reading `relation` reads, and to `functions` what it relies on."""
        expansion = self._expand(relation.oid)
        via = "" if expansion.relations <= {relation.oid} and not expansion.functions else f"through {relation}: "
        for oid in sorted(expansion.relations):
            found = self._model.relations.get(oid)
            if found is None:
                raise _Refused(f"{via}relation {oid} is not known")
            if found.system:
                raise _Refused(f"{via}{found} is a system catalog")
            if found.kind in _NOT_CACHED:
                raise _Refused(f"{via}{found} {_NOT_CACHED[found.kind]}")
            if found.kind != "v":
                tables.add(oid)
        if expansion.problem:
            raise _Refused(f"{relation} {expansion.problem}")
        for oid in sorted(expansion.functions):
            self._judge_oid(oid, functions, via)

    def _expand(self, oid: int) -> References:
        """All that reading the relation `oid` refers to: through views, policies, partitions, and itself."""
        known = self._expansions.get(oid)
        if known is not None:
            return known
        total = References()
        todo, seen = [oid], set()
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            relation = self._model.relations.get(current)
            if relation is not None and relation.kind == "m":
                continue  # what it holds changes by REFRESH alone
            more = References()
            if relation is not None and relation.kind == "v":
                more = self._model.views.get(current, References(problem="is a view whose definition is not known"))
                if relation.system:
                    more = References()  # refused for what it is
            elif relation is not None and relation.row_security:
                more = self._model.policies.get(current, References())
            total |= more
            todo += more.relations
            todo += self._model.children.get(current, ())
        total = self._expansions[oid] = References(frozenset(seen), total.functions, total.problem)
        return total

    def _judge_call(self, call: Call, path: Path, functions: set[str]) -> None:
        found = self._model.find_functions(call, path)
        if not found and call.name in _OTHER_NAMES:
            found = self._model.find_functions(call._replace(name=_OTHER_NAMES[call.name]), path)
        for function in found:
            self._judge_function(function, functions)
        if call.arguments == 1 and (self._model.find_types((call.schema, call.name), path) or not found):
            if not found and not self._is_type((call.schema, call.name), path):
                raise _Refused(f"function {call.name} is not known", call.name)
            self._judge_type((call.schema, call.name), path, functions)  # a cast, written as a call
        elif not found:
            raise _Refused(f"function {call.name} is not known with {call.arguments} arguments", call.name)

    def _judge_oid(self, oid: int, functions: set[str], via: str = "") -> None:
        function = self._model.functions.get(oid)
        if function is None:
            raise _Refused(f"{via}function {oid} is not known")
        self._judge_function(function, functions, via)

    def _judge_function(self, function: Function, functions: set[str], via: str = "") -> None:
        if function.volatility == "i":
            if not function.built_in:
                functions.add(str(function))
            return
        if function.volatility == "s":
            if function.built_in:
                if function.name in SAFE or function.name in _WHO_ASKS or self._only_compares(function):
                    functions.add(str(function))
                    return
                raise _Refused(f"{via}function {function} is stable and not known to be safe", str(function))
            if function.name in self._safe_functions or f"{function.schema}.{function.name}" in self._safe_functions:
                functions.add(str(function))
                return
            raise _Refused(f"{via}function {function} is stable and not in cache.safe_functions", str(function))
        raise _Refused(f"{via}function {function} is volatile", str(function))

    @staticmethod
    def _only_compares(function: Function) -> bool:
        """Whether a stable built-in is one behind an operator: it depends on settings like TimeZone at most."""
        return function.name.startswith(_STABLE_OPERATORS)

    def _is_type(self, name: Name, path: Path) -> bool:
        built_in = name[0] in (None, "pg_catalog") and name[1] in SAFE_TYPES
        return built_in or bool(self._model.find_types(name, path))

    def _judge_type(self, name: Name, path: Path, functions: set[str]) -> None:
        found = self._model.find_types(name, path)
        if not self._is_type(name, path):
            raise _Refused(f"type {name[1]} is not known to be safe")
        for made in found:
            self._judge_type_oid(made.oid, functions)

    def _judge_type_oid(self, oid: int, functions: set[str], depth: int = 0) -> None:
        if oid < 16384:
            return
        made = self._model.types.get(oid)
        if made is None or depth > 20:
            raise _Refused(f"type {oid} is not known to be safe")
        if made.kind not in "bcder":
            raise _Refused(f"type {made.name} is not of a kind that is known to be safe")
        for function in sorted(made.functions):
            self._judge_oid(function, functions, f"type {made.name}: ")
        for function in self._model.casts.get(oid, ()):
            self._judge_oid(function, functions, f"a cast to type {made.name}: ")
        for part in sorted(made.parts):
            self._judge_type_oid(part, functions, depth + 1)

    # ---- writes ------------------------------------------------------------------------------------------------------

    def reach(self, statement: Statement, search_path: tuple[str, ...] | None, user: str = "") -> frozenset[int] | None:
        """OIDs of the tables that `statement` may change or lock; None: that cannot be told, so any.

        A plain read reaches nothing: the empty set. Arguments as those of `reads`.
        """
        key = (statement, search_path, user)
        try:
            return self._reaches[key]
        except KeyError:
            if len(self._reaches) >= self.MAX_REMEMBERED:
                self._reaches.clear()
            try:
                reach = self._spread(statement, self._model.path(search_path, user))
            except _Unknown:
                reach = None
            self._reaches[key] = reach
            return reach

    def _spread(self, statement: Statement, path: Path) -> frozenset[int] | None:
        if statement.unknown_reach:
            return None
        self._follow_functions(statement, path)
        todo: list[tuple[int, Change]] = []
        for name, change in statement.writes:
            found = self._model.find_relations(name, path)
            if not found:
                return None
            todo += [(relation.oid, change) for relation in found]
        done: set[tuple[int, Change]] = set()
        while todo:
            step = todo.pop()
            if step not in done:
                done.add(step)
                todo += self._follow(*step)
        touched = {oid for oid, _ in done}
        return frozenset(oid for oid in touched | self._up(touched) if not self._is_view(oid))

    def _is_view(self, oid: int) -> bool:
        relation = self._model.relations.get(oid)
        return relation is not None and relation.kind == "v"

    def _follow(self, oid: int, change: Change) -> list[tuple[int, Change]]:
        """What a change of one relation leads to.

        Raises:
          _Unknown: to what does not show.
        """
        relation = self._model.relations.get(oid)
        if relation is None or relation.kind == "f" or relation.system:
            raise _Unknown
        if change is Change.REFRESH:
            self._require_harmless(self._model.views.get(oid))
            return []
        steps: list[tuple[int, Change]] = [(child, change) for child in self._model.children.get(oid, ())]
        if relation.kind == "p" and change is Change.UPDATE:  # a row that moves is deleted and inserted
            steps += [(child, moved) for child in self._model.children.get(oid, ()) for moved in _ROW_CHANGES]
        if change is Change.LOCK:
            return steps
        bit = _TRIGGER_BITS[change]
        for events, function in self._model.triggers.get(oid, ()):
            if events & bit and not self._is_harmless_trigger(function):
                raise _Unknown
        if change in (Change.INSERT, Change.UPDATE) and not all(
            map(self._is_harmless, self._model.used_by_writes.get(oid, ()))
        ):
            raise _Unknown
        for event, references in self._model.rules.get(oid, ()):
            if event == _RULE_EVENTS.get(change):
                steps += self._follow_references(references, oid, _ROW_CHANGES)
        if relation.kind == "v":
            steps += self._follow_references(self._model.views.get(oid), oid, (change,))
        for referrer, on_delete, on_update in self._model.foreign_keys.get(oid, ()):
            if change is Change.TRUNCATE_CASCADE:
                steps.append((referrer, change))
            elif change in (Change.DELETE, Change.UPDATE):
                action = on_delete if change is Change.DELETE else on_update
                if action in _CASCADES:
                    steps.append((referrer, _CASCADES[action] or change))
        return steps

    def _follow_references(
        self, references: References | None, oid: int, changes: tuple[Change, ...]
    ) -> list[tuple[int, Change]]:
        self._require_harmless(references)
        assert references is not None
        return [(other, change) for other in references.relations - {oid} for change in changes]

    def _require_harmless(self, references: References | None) -> None:
        """Raise `_Unknown` where running a view's or a rule's query may write more than it says."""
        if references is None:
            raise _Unknown
        functions = set(references.functions)
        for oid in references.relations:
            functions |= self._expand(oid).functions
        if not all(map(self._is_harmless, functions)):
            raise _Unknown

    def _follow_functions(self, statement: Statement, path: Path) -> None:
        """Raise `_Unknown` where the statement runs a function that may write.

        A relation that is not known is taken to be a plain table: what it was made by has been seen or is not there.
        """
        model = self._model
        oids: set[int] = set(model.implicit_casts)
        for name in statement.relations:
            for relation in model.find_relations(name, path):
                oids |= self._expand(relation.oid).functions
        for operator in statement.operators:
            oids.update(model.find_operators(operator, path))
        for column in statement.columns:
            oids.update(function.oid for function in model.find_row_functions(column))
        for type_name in statement.types:
            for made in model.find_types(type_name, path):
                oids |= made.functions
                oids.update(model.casts.get(made.oid, ()))
        if not all(map(self._is_harmless, oids)):
            raise _Unknown
        for call in statement.calls:
            found = model.find_functions(call, path)
            if not found and call.name not in _OTHER_NAMES and not self._is_type((call.schema, call.name), path):
                raise _Unknown
            if not all(self._is_harmless(function.oid) for function in found):
                raise _Unknown

    def _is_harmless(self, oid: int) -> bool:
        """Whether running a function writes no table: it is declared not to, or known not to."""
        function = self._model.functions.get(oid)
        if function is None:
            return False
        if function.volatility != "v":
            return True
        if function.built_in:
            return function.name in READ_ONLY
        return function.native and function.name in HARMLESS_EXTENSIONS

    def _is_harmless_trigger(self, oid: int) -> bool:
        function = self._model.functions.get(oid)
        if function is None:
            return False
        known = HARMLESS_TRIGGERS if function.built_in else HARMLESS_EXTENSIONS
        return function.native and function.name in known

    # ---- trees of tables ---------------------------------------------------------------------------------------------

    def _down(self, oids: Iterable[int]) -> set[int]:
        """`oids` and their partitions and inheriting tables."""
        return _closure(oids, self._model.children)

    def _up(self, oids: Iterable[int]) -> frozenset[int]:
        """The tables that `oids` are partitions of or inherit from, and themselves."""
        return frozenset(_closure(oids, self._model.parents))


_STABLE_OPERATORS = (
    "date_", "interval_pl_timestamptz", "timestamp_", "timestamptz_", "textanycat", "anytextcat", "ts_match_t",
)  # fmt: skip
"""Beginnings of the names of the stable built-ins behind operators."""


def _closure(start: Iterable[int], edges: dict[int, list[int]]) -> set[int]:
    todo, seen = list(start), set()
    while todo:
        oid = todo.pop()
        if oid not in seen:
            seen.add(oid)
            todo += edges.get(oid, ())
    return seen
