"""The origin's catalog as plain objects, by OID and by name: what there is, not what it means for the cache.

Lives here: the objects, and finding them by a name as it is written, under a search_path. Not here: how they are read
from the origin (`catalog_query`), and what follows for a statement (`catalog`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pooler.sql.statement import Call, Name

SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema", "pg_toast"})

Path = tuple[int, ...] | None
"""A search_path as OIDs of schemas; None: unknown, every schema is possible."""

_REFERENCE = re.compile(r":(\w+) (\d+)|\{(\w+)(?: :op (\d+))?(.*)")
_RELATIONS = frozenset({"relid"})
_OPERATORS = frozenset({"opno", "eqop", "sortop"})
_WHO_ASKS = range(9, 14)  # CURRENT_ROLE to CURRENT_CATALOG in SQLValueFunctionOp: part of the cache key
_NODE_PROBLEMS = {
    "ROWMARKCLAUSE": "locks rows",
    "TABLESAMPLECLAUSE": "takes a sample",
    "ROWCOMPARE": "compares rows by operators that are not followed",
    "NEXTVALUEEXPR": "takes values of a sequence",
    "COERCEVIAIO": "reads a constant anew each time",
    "SQLVALUEFUNCTION": "depends on the current time or search_path",
}


class Relation(NamedTuple):
    """A table, partitioned table, view, materialized view, foreign table or sequence.

    Attributes:
      kind: pg_class.relkind. persistence: pg_class.relpersistence; "u": its changes are not in the replication stream.
      row_security: whether what a role sees of it is decided by policies.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    row_security: bool

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"

    @property
    def system(self) -> bool:
        return self.schema in SYSTEM_SCHEMAS


class Function(NamedTuple):
    """One overload. `volatility` is "i", "s" or "v"; an aggregate's is the worst of those that it is made of."""

    oid: int
    schema: str
    name: str
    fewest: int
    most: int | None
    volatility: str
    native: bool
    takes_row: bool

    def __str__(self) -> str:
        return self.name if self.schema == "pg_catalog" else f"{self.schema}.{self.name}"

    @property
    def built_in(self) -> bool:
        return self.schema == "pg_catalog" and self.oid < 16384

    def accepts(self, arguments: int) -> bool:
        return self.fewest <= arguments and (self.most is None or arguments <= self.most)


@dataclass(frozen=True, slots=True)
class Type:
    """A type of the user's. `parts`: types that it is made of; `functions`: what reading or checking a value runs."""

    oid: int
    schema: str
    name: str
    kind: str
    parts: frozenset[int]
    functions: frozenset[int]


@dataclass(frozen=True, slots=True)
class References:
    """What a stored query or expression (of a view, rule, policy) refers to; `problem`: what else it does, in words."""

    relations: frozenset[int] = frozenset()
    functions: frozenset[int] = frozenset()
    problem: str = ""

    def __or__(self, other: References) -> References:
        return References(
            self.relations | other.relations, self.functions | other.functions, self.problem or other.problem
        )


class Model:
    """Everything that `catalog_query.sections` gives, indexed."""

    def __init__(self, sections: dict[str, list[list[Any]]]) -> None:
        get = sections.get
        self._schemas: dict[int, str] = {oid: name for oid, name, _ in get("schemas", [])}
        self._schema_oids = {name: oid for oid, name in self._schemas.items()}
        self._open_schemas = frozenset(oid for oid, _, is_open in get("schemas", []) if is_open)
        self.functions: dict[int, Function] = {}
        self._functions_by_name: dict[str, list[tuple[int, Function]]] = defaultdict(list)
        self._read_functions(get("functions", []), get("aggregates", []))
        self.relations: dict[int, Relation] = {}
        self._relations_by_name: dict[str, dict[int, Relation]] = defaultdict(dict)
        for oid, schema, name, kind, persistence, row_security in get("relations", []):
            if (schema_name := self._schemas.get(schema)) is not None:
                relation = Relation(oid, schema_name, name, kind, persistence, row_security)
                self.relations[oid] = self._relations_by_name[name][schema] = relation
        self._operators_by_name: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._operator_functions: dict[int, int] = {}
        for oid, schema, name, function in get("operators", []):
            self._operators_by_name[name].append((schema, function))
            self._operator_functions[oid] = function
        self.children: dict[int, list[int]] = defaultdict(list)
        self.parents: dict[int, list[int]] = defaultdict(list)
        for child, parent in get("inherits", []):
            self.children[parent].append(child)
            self.parents[child].append(parent)
        self.foreign_keys: dict[int, list[tuple[int, str, str]]] = defaultdict(list)
        for referrer, referred, on_delete, on_update in get("foreign_keys", []):
            self.foreign_keys[referred].append((referrer, on_delete, on_update))
        self.triggers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for relation_oid, events, function in get("triggers", []):
            self.triggers[relation_oid].append((events, function))
        self.used_by_writes: dict[int, list[int]] = defaultdict(list)
        for relation_oid, function in get("used_by_writes", []):
            self.used_by_writes[relation_oid].append(function)
        self._read_expressions(get("rules", []), get("policies", []))
        self._read_types(get("types", []), get("used_by_domains", []), get("casts", []))

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _read_functions(self, rows: list[list[Any]], aggregates: list[list[Any]]) -> None:
        volatilities = {row[0]: row[6] for row in rows}
        for oid, *parts in aggregates:  # pg_proc calls every aggregate immutable
            volatilities[oid] = max((volatilities.get(part, "v") for part in parts if part), key="isv".index)
        for oid, schema, name, arguments, defaults, variadic, _, native, takes_row in rows:
            schema_name = self._schemas.get(schema)
            if schema_name is None:
                continue
            fewest = arguments - defaults - variadic
            most = None if variadic else arguments
            function = Function(oid, schema_name, name, fewest, most, volatilities[oid], bool(native), bool(takes_row))
            self.functions[oid] = function
            self._functions_by_name[name].append((schema, function))

    def _read_expressions(self, rules: list[list[Any]], policies: list[list[Any]]) -> None:
        self.views: dict[int, References] = {}
        self.rules: dict[int, list[tuple[str, References]]] = defaultdict(list)
        for relation, event, action, condition in rules:
            references = self._references(action) | self._references(condition)
            if event == "1":
                self.views[relation] = References(
                    references.relations - {relation}, references.functions, references.problem
                )
            else:
                self.rules[relation].append((event, references))
        self.policies: dict[int, References] = {}
        for relation, condition, calls, named in policies:
            references = self._references(condition)
            if calls and calls == sum(map(_names_custom_setting, named or ())):
                references = References(
                    references.relations, references.functions - CURRENT_SETTING, references.problem
                )
            self.policies[relation] = self.policies.get(relation, References()) | references

    def _references(self, tokens: list[str] | None) -> References:
        relations, functions, problem = set(), set(), ""
        for token in tokens or ():
            found = _REFERENCE.match(token)
            assert found is not None
            field, oid, node, op, _ = found.groups()
            if node is not None:
                if not (node == "SQLVALUEFUNCTION" and int(op) in _WHO_ASKS):
                    problem = _NODE_PROBLEMS[node]
            elif field in _RELATIONS:
                relations.add(int(oid))
            elif field not in _OPERATORS:
                functions.add(int(oid))
            elif (function := self._operator_functions.get(int(oid))) is not None:
                functions.add(function)
        relations.discard(0)
        functions.discard(0)
        return References(frozenset(relations), frozenset(functions), problem)

    def _read_types(self, rows: list[list[Any]], checks: list[list[Any]], casts: list[list[Any]]) -> None:
        checked: dict[int, set[int]] = defaultdict(set)
        for domain, function in checks:
            checked[domain].add(function)
        self.types: dict[int, Type] = {}
        self._types_by_name: dict[str, list[tuple[int, Type]]] = defaultdict(list)
        for oid, schema, name, kind, reader, writer, base, attributes, subtype, canonical in rows:
            functions = {reader, writer} if kind == "b" else {canonical or 0} if kind == "r" else checked[oid]
            parts = {base, subtype or 0, *(attributes or ())} - {0}
            made = Type(oid, self._schemas.get(schema, ""), name, kind, frozenset(parts), frozenset(functions - {0}))
            self.types[oid] = made
            self._types_by_name[name].append((schema, made))
        self.casts: dict[int, list[int]] = defaultdict(list)
        self.implicit_casts: list[int] = []
        for target, function, context in casts:
            self.casts[target].append(function)
            if context == "i":
                self.implicit_casts.append(function)

    # ---- finding -----------------------------------------------------------------------------------------------------

    def path(self, search_path: tuple[str, ...] | None, user: str) -> Path:
        """The schemas that a search_path leads to, pg_catalog first where it does not stand elsewhere."""
        if search_path is None:
            return None
        names = [user if name == "$user" else name for name in search_path]
        oids = [self._schema_oids[name] for name in dict.fromkeys(names) if name in self._schema_oids]
        system = self._schema_oids.get("pg_catalog", 0)
        return tuple(oids) if system in oids else (system, *oids)

    def find_relations(self, name: Name, path: Path) -> list[Relation]:
        """The relations that `name` may mean: more than one where the role may be kept out of a schema."""
        found = self._relations_by_name.get(name[1], {})
        if name[0] is not None:
            relation = found.get(self._schema_oids.get(name[0], 0))
            return [relation] if relation is not None else []
        if path is None:
            return list(found.values())
        possible = []
        for schema in path:
            if schema in found:
                possible.append(found[schema])
                if schema in self._open_schemas:
                    break
        return possible

    def _visible(self, schema: int, wanted: str | None, path: Path) -> bool:
        if wanted is not None:
            return self._schemas.get(schema) == wanted
        return path is None or schema in path

    def find_functions(self, call: Call, path: Path) -> list[Function]:
        """Every overload that the call may mean, by its number of arguments."""
        return [
            function
            for schema, function in self._functions_by_name.get(call.name, ())
            if function.accepts(call.arguments) and self._visible(schema, call.schema, path)
        ]

    def find_row_functions(self, column: str) -> Iterator[Function]:
        """The user's functions that `x.column` may call if x is a row."""
        for _, function in self._functions_by_name.get(column, ()):
            if function.takes_row and function.accepts(1):
                yield function

    def find_operators(self, name: Name, path: Path) -> list[int]:
        """The functions of the user's operators that `name` may mean."""
        found = self._operators_by_name.get(name[1], ())
        return [function for schema, function in found if self._visible(schema, name[0], path)]

    def find_types(self, name: Name, path: Path) -> list[Type]:
        """The user's types that `name` may mean."""
        return [made for schema, made in self._types_by_name.get(name[1], ()) if self._visible(schema, name[0], path)]


CURRENT_SETTING = frozenset({2077, 3294})
"""OIDs of current_setting(text) and current_setting(text, bool)."""


def _names_custom_setting(call: str) -> bool:
    """Whether a call of current_setting in an expression tree names a setting like app.tenant."""
    value = [int(byte) for byte in call[call.rindex("[") + 1 :].rstrip("] ").split()]
    return ord(".") in value[4:]  # after the length


def parse_search_path(setting: str) -> tuple[str, ...] | None:
    """The names in a value of search_path; None if it cannot be read."""
    names = []
    rest = setting.strip()
    while rest:
        found = _PATH_ELEMENT.match(rest)
        if found is None:
            return None
        quoted, plain = found.groups()
        name = quoted.replace('""', '"') if quoted is not None else plain.lower()
        if name:
            names.append(name)
        rest = rest[found.end() :]
    return tuple(names)


_PATH_ELEMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s,"]+))\s*(?:,|$)')
