"""What reaches a function with effects on its session without calling it by name: the carriers of such effects.

A write reaches it by a trigger, a rule, a default, a check or a policy; a read by a view or a policy; an expression by
an operator, a cast or a domain. Lives here: the queries for what the origin's catalog says of that, and what follows
from their answers. Not here: which functions have effects (`bodies`), which statements name a carrier (`effects`), what
DDL adds before the catalog has been read again (`made`).

Functions are told apart by OID where the catalog has it, and by name where only a text says what is called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pooler.sql.functions import BUILT_IN_PINS
from pooler.sql.statement import (
    EVENTS,
    INSERT,
    READ,
    REFRESH,
    TRIGGER_EVENTS,
    UPDATE,
    Carrier,
    Change,
    Effects,
    PinKind,
)  # fmt: skip

Row = Sequence[str]

DELETE, TRUNCATE, TRUNCATE_CASCADE = Change.DELETE.value, Change.TRUNCATE.value, Change.TRUNCATE_CASCADE.value
OPERATOR, TYPE = "operator", "type"
_WRITES = tuple(event for event in EVENTS if event not in (READ, REFRESH))

_RULE_EVENTS = {"1": (READ,), "2": (UPDATE,), "3": (INSERT,), "4": (DELETE,)}
_POLICY_EVENTS = {"r": (READ,), "a": (INSERT,), "w": (UPDATE,), "d": (DELETE,), "*": (READ, INSERT, UPDATE, DELETE)}
_BODY_EVENTS = {
    "insert": (INSERT, UPDATE), "merge": (INSERT, UPDATE, DELETE), "update": (UPDATE,), "delete": (DELETE,),
    "truncate": (TRUNCATE, TRUNCATE_CASCADE), "copy": (INSERT,), "from": (READ,), "join": (READ,),
}  # fmt: skip
"""By the first word in front of a relation's name in a function's body."""

_BUILT_IN = {name: PinKind[kind] for name, kind in BUILT_IN_PINS.items() if kind != "SEQUENCE"} | {
    "set_config": PinKind.SETTING
}
_NAMES = ",".join(sorted(_BUILT_IN))
_LASTING = frozenset({PinKind.LASTING, PinKind.SEED, PinKind.REPLICATION})

_EQ = "OPERATOR(pg_catalog.=)"
_NE = "OPERATOR(pg_catalog.<>)"
_USERS = "OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid"
_IS_USERS = (
    f"c.relkind {_EQ} ANY ('{{r,p,v,m,f}}'::pg_catalog.\"char\"[]) AND c.oid {_USERS}"
    " AND c.relpersistence OPERATOR(pg_catalog.<>) 't'"
)

_OBJECTS = f"""
  SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass AS class, r.oid, 'rule' AS kind, r.ev_class AS owner,
         r.ev_type::pg_catalog.text AS code, r.ev_action::pg_catalog.text AS tree, r.ev_qual::pg_catalog.text AS more
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class {_USERS}
  UNION ALL
  SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid, 'write', a.adrelid, '', a.adbin::pg_catalog.text, ''
    FROM pg_catalog.pg_attrdef a
  UNION ALL
  SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid, CASE k.contypid WHEN 0 THEN 'write' ELSE 'type' END,
         CASE k.contypid WHEN 0 THEN k.conrelid ELSE k.contypid END, '', k.conbin::pg_catalog.text, ''
    FROM pg_catalog.pg_constraint k WHERE k.contype {_EQ} 'c'
  UNION ALL
  SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid, 'policy', p.polrelid, p.polcmd::pg_catalog.text,
         p.polqual::pg_catalog.text, p.polwithcheck::pg_catalog.text
    FROM pg_catalog.pg_policy p
  UNION ALL
  SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid, 'trigger', t.tgrelid, t.tgtype::pg_catalog.text,
         t.tgqual::pg_catalog.text, ''
    FROM pg_catalog.pg_trigger t WHERE t.tgfoid {_USERS} OR t.tgqual IS NOT NULL
  UNION ALL
  SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, 'type', t.oid, '', t.typdefaultbin::pg_catalog.text, ''
    FROM pg_catalog.pg_type t WHERE t.oid {_USERS} AND t.typtype {_EQ} 'd'
"""
"""Whatever holds an expression: its catalog and OID, what it is part of, and the expression's trees."""

_EVERY = "true"
_WATCHED = {
    "proc": _EVERY, "rewrite": _EVERY, "attrdef": _EVERY, "policy": _EVERY, "trigger": _EVERY, "operator": _EVERY,
    "cast": _EVERY, "inherits": _EVERY, "class": _IS_USERS, "index": "c.indexprs IS NOT NULL OR c.indpred IS NOT NULL",
    "constraint": f"c.contype {_EQ} ANY ('{{c,f}}'::pg_catalog.\"char\"[])",
    "type": f"c.typtype {_NE} 'c' AND c.typcategory {_NE} 'A'",
}  # fmt: skip
"""By catalog: the rows that matter. A temporary table should make as few of them as can be."""
STATE_QUERY = "SELECT pg_catalog.concat_ws(' ', {})".format(
    ", ".join(
        "(SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(c.xmin::pg_catalog.text::pg_catalog.int8))"
        f" FROM pg_catalog.pg_{name} c WHERE {rows})"
        for name, rows in _WATCHED.items()
    )
)
"""Another answer where any of this has changed: a new version of a row has a later transaction in it, so that as many
rows have a greater sum. What VACUUM and ANALYZE note in pg_class makes no new version."""

BUILT_IN_CALLS_QUERY = f"""
WITH built_in AS MATERIALIZED (
  SELECT p.oid, p.proname FROM pg_catalog.pg_proc p
   WHERE p.pronamespace {_EQ} 'pg_catalog'::pg_catalog.regnamespace
     AND p.proname {_EQ} ANY ('{{{_NAMES}}}'::pg_catalog.name[])
), pattern AS MATERIALIZED (
  SELECT ':funcid (' OPERATOR(pg_catalog.||) pg_catalog.string_agg(b.oid::pg_catalog.text, '|')
         OPERATOR(pg_catalog.||) ') ' AS searched FROM built_in b
)
SELECT 'is', b.oid, b.proname, '' FROM built_in b
UNION ALL
SELECT 'used', p.oid, p.proname, '' FROM pg_catalog.pg_proc p
 WHERE p.oid {_USERS} AND p.proname {_EQ} ANY ('{{{_NAMES}}}'::pg_catalog.name[])
   AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid {_EQ} 'pg_catalog.pg_proc'::pg_catalog.regclass
               AND d.refobjid {_EQ} p.oid AND d.deptype {_EQ} 'n')
UNION ALL
SELECT o.kind, o.owner, o.code, pg_catalog.concat(o.tree, ' ', o.more) FROM ({_OBJECTS}) o, pattern p
 WHERE o.tree OPERATOR(pg_catalog.~) p.searched OR o.more OPERATOR(pg_catalog.~) p.searched
"""
"""Expressions that call such built-in functions themselves, which pg_depend says nothing of ("is": these functions);
and the functions of extensions that are known by name ("used"), where something depends on them."""

EDGES_QUERY = rf"""
WITH functions AS MATERIALIZED (
  SELECT p.oid, p.proname,
         CASE WHEN l.lanname {_EQ} ANY (ARRAY['c', 'internal']::pg_catalog.name[]) THEN ''
              WHEN p.prosrc {_EQ} '' AND l.lanname {_EQ} 'sql' THEN pg_catalog.pg_get_functiondef(p.oid)
              ELSE p.prosrc END AS body
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid {_EQ} p.prolang
   WHERE p.oid {_USERS} AND p.prokind {_EQ} ANY (ARRAY['f', 'p']::pg_catalog."char"[])
), relations AS MATERIALIZED (
  SELECT c.oid, c.relname, c.relkind FROM pg_catalog.pg_class c WHERE {_IS_USERS}
), uses AS MATERIALIZED (
  SELECT DISTINCT d.classid, d.objid, d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
   WHERE d.refobjid {_USERS} AND d.deptype {_NE} 'e' AND d.refclassid {_EQ} ANY
         ('{{pg_catalog.pg_proc,pg_catalog.pg_class,pg_catalog.pg_operator,pg_catalog.pg_type}}'::pg_catalog.regclass[]
          ::pg_catalog.oid[])
), objects AS (
  SELECT o.class, o.oid, o.kind, o.owner, o.code FROM ({_OBJECTS}) o
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, 'write', i.indrelid, '' FROM pg_catalog.pg_index i
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, r.oid, 'write', r.oid, '' FROM relations r
   WHERE r.relkind {_NE} 'v' AND r.relkind {_NE} 'm'
  UNION ALL
  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, 'type', c.reltype, '' FROM pg_catalog.pg_class c
   WHERE c.relkind {_EQ} 'c'
  UNION ALL
  SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 'function', p.oid, '' FROM pg_catalog.pg_proc p
   WHERE p.oid {_USERS}
  UNION ALL
  SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, o.oid, 'operator', o.oid, '' FROM pg_catalog.pg_operator o
   WHERE o.oid {_USERS}
  UNION ALL
  SELECT 'pg_catalog.pg_cast'::pg_catalog.regclass, c.oid, 'type', t.oid, '' FROM pg_catalog.pg_cast c,
         LATERAL pg_catalog.unnest(ARRAY[c.castsource, c.casttarget]) AS t(oid) WHERE c.oid {_USERS}
)
SELECT 'uses', o.kind, o.owner::pg_catalog.text, o.code, r.relname, u.refobjid::pg_catalog.text
  FROM uses u JOIN objects o ON o.class {_EQ} u.classid AND o.oid {_EQ} u.objid
  JOIN pg_catalog.pg_class r ON r.oid {_EQ} u.refclassid
 WHERE NOT (u.refclassid {_EQ} 'pg_catalog.pg_class'::pg_catalog.regclass AND u.refobjid {_EQ} o.owner)
UNION ALL
SELECT 'inherits', i.inhparent::pg_catalog.text, i.inhrelid::pg_catalog.text, '', '', '' FROM pg_catalog.pg_inherits i
UNION ALL
SELECT 'refers', k.confrelid::pg_catalog.text, k.conrelid::pg_catalog.text, k.confdeltype::pg_catalog.text,
       k.confupdtype::pg_catalog.text, '' FROM pg_catalog.pg_constraint k WHERE k.contype {_EQ} 'f'
UNION ALL
SELECT DISTINCT 'calls', f.oid::pg_catalog.text, g.oid::pg_catalog.text, '', '', ''
  FROM functions f, LATERAL pg_catalog.regexp_matches(f.body, $p$(\w+)"?\s*\($p$, 'g') AS said
  JOIN functions g ON pg_catalog.lower(g.proname) {_EQ} pg_catalog.lower(said[1])
UNION ALL
SELECT DISTINCT 'names', f.oid::pg_catalog.text, r.oid::pg_catalog.text, pg_catalog.lower(said[1]), '', ''
  FROM functions f,
       LATERAL pg_catalog.regexp_matches(f.body, $p$\y(insert|merge|update|delete|truncate|copy|from|join)\s+$p$
           OPERATOR(pg_catalog.||) $p$(?:(?:into|from|table|only|lateral)\s+)*(?:"?\w+"?\s*\.\s*)?"?(\w+)$p$, 'gi') said
  JOIN relations r ON pg_catalog.lower(r.relname) {_EQ} pg_catalog.lower(said[2])
UNION ALL
SELECT 'function', p.oid::pg_catalog.text, p.proname, '', '', '' FROM pg_catalog.pg_proc p WHERE p.oid {_USERS}
UNION ALL
SELECT 'relation', r.oid::pg_catalog.text, r.relname, r.relkind::pg_catalog.text, '', '' FROM relations r
UNION ALL
SELECT 'operator', o.oid::pg_catalog.text, o.oprname, '', '', '' FROM pg_catalog.pg_operator o WHERE o.oid {_USERS}
UNION ALL
SELECT 'type', t.oid::pg_catalog.text, t.typname, '', '', '' FROM pg_catalog.pg_type t WHERE t.oid {_USERS}
"""
"""What leads to what: asked only where there is a function, or an expression, that has effects."""

_Node = tuple[str, str]
"""(what, OID): "function", "operator", "type", or what is done with a relation."""


def carriers_of(functions: Iterable[Row], expressions: Iterable[Row], edges: Iterable[Row], named: Effects) -> Effects:
    """Every function, and everything else, by which a statement reaches effects on its session.

    Args:
      functions, expressions, edges: the answers to `bodies.SESSION_FUNCTIONS_QUERY`, `BUILT_IN_CALLS_QUERY` and
        `EDGES_QUERY`. named: functions that an operator has named.
    """
    found: dict[_Node, bool] = {}
    todo: list[tuple[_Node, bool]] = []
    graph = _Graph(edges)
    effects: dict[str | Carrier, PinKind] = {}
    for oid, name, lasting in functions:
        effects[name] = _worse(effects.get(name), PinKind.LASTING if lasting == "t" else PinKind.HIDDEN)
        todo.append((("function", oid), lasting == "t"))
    for (what, oid), name in graph.names.items():
        if what == "function" and (kind := named.get(name, _BUILT_IN.get(name))) is not None:
            todo.append((("function", oid), kind in _LASTING))
    for part, is_lasting in _called_directly(expressions):
        todo += [(each, is_lasting) for each in graph.nodes(*part)]
    while todo:
        node, is_lasting = todo.pop()
        if node not in found or (is_lasting and not found[node]):
            found[node] = is_lasting
            todo += [(each, is_lasting) for each in graph.above(node)]
    for (what, oid), is_lasting in found.items():
        name = graph.name_of(what, oid)
        if name:
            key = name if what == "function" else Carrier(what, name)
            effects[key] = _worse(effects.get(key), PinKind.LASTING if is_lasting else PinKind.HIDDEN)
    return effects


def _worse(known: PinKind | None, kind: PinKind) -> PinKind:
    return PinKind.LASTING if known is PinKind.LASTING else kind


class _Graph:
    """What leads to what, by the rows of `EDGES_QUERY`."""

    def __init__(self, edges: Iterable[Row]) -> None:
        self.names: dict[_Node, str] = {}
        self._kinds: dict[str, str] = {}
        self._users: dict[_Node, list[_Node]] = defaultdict(list)
        self._inherits: dict[str, list[str]] = defaultdict(list)
        rows = list(edges)
        for kind, oid, name, relkind, *_ in rows:
            if kind in ("function", "relation", OPERATOR, TYPE):
                self.names[kind, oid] = name
                if kind == "relation":
                    self._kinds[oid] = relkind
        for kind, *row in rows:
            if kind == "uses":
                self._add_use(*row)
            elif kind == "calls":
                self._users["function", row[1]].append(("function", row[0]))
            elif kind == "names":
                for event in _BODY_EVENTS[row[2]]:
                    self._users[event, row[1]].append(("function", row[0]))
            elif kind == "inherits":
                self._inherits[row[1]].append(row[0])
            elif kind == "refers":
                self._add_foreign_key(*row)

    def _add_use(self, kind: str, owner: str, code: str, reference: str, oid: str) -> None:
        """An object refers to `oid`: what it is part of is reached with it, by what the object does."""
        above = self.nodes(kind, owner, code)
        if reference != "pg_class":
            self._users[reference.removeprefix("pg_").replace("proc", "function"), oid] += above
        elif kind in ("rule", "policy", "function"):
            self._users[READ, oid] += above
            for event in _WRITES if kind != "policy" else ():  # which only reads
                if kind == "rule" and code == "1":
                    self._users[event, oid].append((event, owner))  # what is written to a view goes to its tables
                else:
                    self._users[event, oid] += above

    def _add_foreign_key(self, parent: str, child: str, on_delete: str, on_update: str, _: str) -> None:
        for event, action in ((DELETE, on_delete), (UPDATE, on_update)):
            if action in ("c", "n", "d"):
                done = DELETE if action == "c" and event == DELETE else UPDATE
                self._users[done, child].append((event, parent))
        for event in (TRUNCATE, TRUNCATE_CASCADE):
            self._users[event, child].append((TRUNCATE_CASCADE, parent))

    def nodes(self, kind: str, owner: str, code: str = "") -> list[_Node]:
        """What is reached through an object of `kind` that is part of `owner`."""
        if kind in ("function", OPERATOR, TYPE):
            return [(kind, owner)]
        if kind == "write":
            events: Iterable[str] = (INSERT, UPDATE)
        elif kind == "rule":
            events = (REFRESH,) if code == "1" and self._kinds.get(owner) == "m" else _RULE_EVENTS[code]
        elif kind == "policy":
            events = _POLICY_EVENTS[code]
        else:
            events = [event for bit, each in TRIGGER_EVENTS.items() if int(code) & bit for event in each]
        return [(event, owner) for event in events]

    def above(self, node: _Node) -> list[_Node]:
        """What leads to `node`."""
        what, oid = node
        return self._users.get(node, []) + [(what, parent) for parent in self._inherits.get(oid, ()) if what in EVENTS]

    def name_of(self, what: str, oid: str) -> str:
        return self.names.get(("relation" if what in EVENTS else what, oid), "")


# ---- built-in functions in expressions -------------------------------------------------------------------------------

_CALL = re.compile(r"\{FUNCEXPR :funcid (\d+) ")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ENDS_TRUE = re.compile(r":consttype 16 [^{}]*:constvalue 1 \[ [0 ]*1[0 ]*\]\}\) :location -?\d+\}$")


def _called_directly(rows: Iterable[Row]) -> list[tuple[tuple[str, str, str], bool]]:
    """((kind, owner, code), lasting) of expressions that call a built-in function with effects."""
    rows = list(rows)
    names = {oid: name for kind, oid, name, _ in rows if kind == "is"}
    found = []
    for kind, owner, code, tree in rows:
        kinds = set() if kind in ("is", "used") else _effects_in(tree, names)
        if kinds:
            found.append(((kind, owner, code), not kinds.isdisjoint(_LASTING)))
    return found


def _effects_in(tree: str, names: Mapping[str, str]) -> set[PinKind]:
    """What the calls in an expression tree leave; set_config that is said to be local leaves nothing."""
    kinds = set()
    for call in _CALL.finditer(tree):
        name = names.get(call[1])
        if name is not None and not (name == "set_config" and _ENDS_TRUE.search(_node_at(tree, call.start()))):
            kinds.add(_BUILT_IN[name])
    return kinds


def _node_at(tree: str, start: int) -> str:
    """The node that begins at `start`, to its closing brace."""
    depth = 0
    for brace in _BRACE.finditer(tree, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return tree[start : brace.end()]
    return tree[start:]
