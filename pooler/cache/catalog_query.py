"""What is asked of the origin's catalog: one text of several queries, each giving one row (section, JSON array).

Lives here: the SQL, and the reading of its answer into plain lists. Not here: what the lists mean (`catalog_model`).

The text runs under any search_path, on PostgreSQL 13 and later, as any role, and locks no table of the user's: it
reads the rows of the system catalogs and opens nothing that they describe. Objects of other sessions' temporary schemas
are left out.
"""

from __future__ import annotations

import json
from typing import Any

from protocol.framing import data_row

_C = "pg_catalog"
_EQ = "OPERATOR(pg_catalog.=)"
_NE = "OPERATOR(pg_catalog.<>)"
_FIRST_USER_OID = "16384::pg_catalog.oid"

# Without backslashes, which standard_conforming_strings gives a meaning.
_REFERENCES = (
    "[:](?:relid|funcid|opno|eqop|sortop|aggfnoid|winfnoid) [0-9]+"
    "|[{]SQLVALUEFUNCTION :op [0-9]+|[{]COERCEVIAIO :arg [{]CONST"
    "|[{](?:ROWMARKCLAUSE|TABLESAMPLECLAUSE|ROWCOMPARE|NEXTVALUEEXPR)"
)
"""What of a stored expression tree matters: what it refers to by OID, and the nodes that are not harmless."""

_NAMED_SETTINGS = "[{]FUNCEXPR :funcid (?:2077|3294) [^{}]*:args [(][{]CONST [^{}]*:constvalue [0-9]+ [[][-0-9 ]*]"
"""Calls of current_setting (either overload) whose first argument is a constant."""


def _found(tree: str, pattern: str) -> str:
    """SQL: the distinct matches of `pattern` in an expression tree, as a JSON array or NULL."""
    return f"""(SELECT {_C}.json_agg(DISTINCT m.m[1])
        FROM {_C}.regexp_matches({tree}::{_C}.text, '({pattern})', 'g') AS m(m))"""


def _count(tree: str, pattern: str) -> str:
    return f"(SELECT {_C}.count(*) FROM {_C}.regexp_matches({tree}::{_C}.text, '({pattern})', 'g'))"


def _int(expression: str) -> str:
    return f"{expression}::{_C}.int8"


def _section(name: str, columns: list[str], source: str) -> str:
    row = f"{_C}.json_build_array({', '.join(columns)})"
    return f"SELECT '{name}', {_C}.json_agg({row})::{_C}.text FROM {source}"


def _depends_on_function(dependent: str, owner: str, columns: list[str], join: str, where: str) -> str:
    """(owner, function) of the user's functions that objects of the catalog `dependent` use."""
    return f"""SELECT {", ".join(columns)} FROM {_C}.pg_depend d JOIN {dependent} ON {join}
        WHERE d.classid {_EQ} '{owner}'::{_C}.regclass
          AND d.refclassid {_EQ} '{_C}.pg_proc'::{_C}.regclass AND {where}"""


_USED_BY_DOMAINS = f"""({
    _depends_on_function(
        f"{_C}.pg_constraint k", f"{_C}.pg_constraint", ["k.contypid", "d.refobjid"], f"k.oid {_EQ} d.objid",
        f"k.contypid {_NE} 0::{_C}.oid",
    )
} UNION {
    _depends_on_function(
        f"{_C}.pg_type t", f"{_C}.pg_type", ["t.oid", "d.refobjid"], f"t.oid {_EQ} d.objid",
        f"t.typtype {_EQ} 'd'",
    )
}) AS used(domain, function)"""  # fmt: skip

_USED_BY_WRITES = f"""({
    _depends_on_function(
        f"{_C}.pg_attrdef a", f"{_C}.pg_attrdef", ["a.adrelid", "d.refobjid"], f"a.oid {_EQ} d.objid", "true"
    )
} UNION {
    _depends_on_function(
        f"{_C}.pg_constraint k", f"{_C}.pg_constraint", ["k.conrelid", "d.refobjid"], f"k.oid {_EQ} d.objid",
        f"k.conrelid {_NE} 0::{_C}.oid",
    )
} UNION {
    _depends_on_function(
        f"{_C}.pg_policy p", f"{_C}.pg_policy", ["p.polrelid", "d.refobjid"], f"p.oid {_EQ} d.objid", "true"
    )
} UNION {
    _depends_on_function(
        f"{_C}.pg_index i", f"{_C}.pg_class", ["i.indrelid", "d.refobjid"], f"i.indexrelid {_EQ} d.objid", "true"
    )
} UNION (
    WITH RECURSIVE users(class, object, function) AS (
        SELECT '{_C}.pg_type'::{_C}.regclass::{_C}.oid, used.domain, used.function FROM {_USED_BY_DOMAINS}
        UNION
        SELECT x.class, x.object, u.function FROM users u CROSS JOIN LATERAL (
            SELECT d.classid, d.objid FROM {_C}.pg_depend d
             WHERE d.refclassid {_EQ} u.class AND d.refobjid {_EQ} u.object
               AND d.classid {_EQ} ANY ('{{{_C}.pg_type,{_C}.pg_class}}'::{_C}.regclass[]::{_C}.oid[])
            UNION ALL
            SELECT '{_C}.pg_type'::{_C}.regclass, c.reltype FROM {_C}.pg_class c
             WHERE c.oid {_EQ} u.object AND u.class {_EQ} '{_C}.pg_class'::{_C}.regclass) AS x(class, object))
    SELECT u.object, u.function FROM users u WHERE u.class {_EQ} '{_C}.pg_class'::{_C}.regclass
)) AS used(relation, function)"""  # fmt: skip
"""Functions that a change of a table may run: by a default, a CHECK, a policy, an index, or a column's domain."""

CATALOG_QUERY = "\nUNION ALL ".join(
    [
        _section(
            "schemas",
            [_int("n.oid"), "n.nspname", f"{_C}.has_schema_privilege('public', n.oid, 'USAGE')"],
            f"{_C}.pg_namespace n WHERE n.nspname OPERATOR({_C}.!~) '^pg_(temp|toast)'",
        ),
        _section(
            "relations",
            [
                _int("c.oid"), _int("c.relnamespace"), "c.relname", "c.relkind", "c.relpersistence",
                "c.relrowsecurity",
            ],
            f"""{_C}.pg_class c WHERE c.relkind {_EQ} ANY ('{{r,p,m,v,f,S}}'::{_C}."char"[])
            AND c.relpersistence {_NE} 't'""",
        ),
        _section("inherits", [_int("i.inhrelid"), _int("i.inhparent")], f"{_C}.pg_inherits i"),
        _section(
            "foreign_keys",
            [_int("k.conrelid"), _int("k.confrelid"), "k.confdeltype", "k.confupdtype"],
            f"{_C}.pg_constraint k WHERE k.contype {_EQ} 'f'",
        ),
        _section(
            "triggers",
            [_int("t.tgrelid"), "t.tgtype", _int("t.tgfoid")],
            f"""{_C}.pg_trigger t JOIN {_C}.pg_proc p ON p.oid {_EQ} t.tgfoid
            WHERE NOT (p.oid OPERATOR({_C}.<) {_FIRST_USER_OID} AND p.proname OPERATOR({_C}.~) '^RI_FKey')""",
        ),
        _section(
            "rules",
            [_int("r.ev_class"), "r.ev_type", _found("r.ev_action", _REFERENCES), _found("r.ev_qual", _REFERENCES)],
            f"{_C}.pg_rewrite r WHERE r.ev_class OPERATOR({_C}.>=) {_FIRST_USER_OID}",
        ),
        _section(
            "policies",
            [
                _int("p.polrelid"), _found("p.polqual", _REFERENCES), _count("p.polqual", ":funcid (?:2077|3294) "),
                f"""(SELECT {_C}.json_agg(m.m[1])
                FROM {_C}.regexp_matches(p.polqual::{_C}.text, '({_NAMED_SETTINGS})', 'g') AS m(m))""",
            ],
            f"{_C}.pg_policy p WHERE p.polcmd {_EQ} ANY ('{{r,*}}'::{_C}.\"char\"[])",
        ),
        _section(
            "functions",
            [
                _int("p.oid"), _int("p.pronamespace"), "p.proname", "p.pronargs", "p.pronargdefaults",
                f"CASE WHEN p.provariadic {_EQ} 0::{_C}.oid THEN 0 ELSE 1 END", "p.provolatile",
                f"""CASE WHEN p.prolang {_EQ} ANY (ARRAY[12, 13]::{_C}.oid[]) THEN 1 ELSE 0 END""",
                f"""CASE WHEN p.pronargs {_EQ} 0 OR p.oid OPERATOR({_C}.<) {_FIRST_USER_OID} THEN 0 ELSE (
                SELECT CASE WHEN t.typtype {_EQ} ANY ('{{c,p,d}}'::{_C}."char"[]) THEN 1 ELSE 0 END
                  FROM {_C}.pg_type t WHERE t.oid {_EQ} p.proargtypes[0]) END""",
            ],
            f"{_C}.pg_proc p",
        ),
        _section(
            "aggregates",
            [
                _int("a.aggfnoid"), _int("a.aggtransfn"), _int("a.aggfinalfn"), _int("a.aggmtransfn"),
                _int("a.aggminvtransfn"), _int("a.aggmfinalfn"), _int("a.aggcombinefn"),
            ],
            f"{_C}.pg_aggregate a WHERE a.aggfnoid::{_C}.oid OPERATOR({_C}.>=) {_FIRST_USER_OID}",
        ),
        _section(
            "operators",
            [_int("o.oid"), _int("o.oprnamespace"), "o.oprname", _int("o.oprcode")],
            f"{_C}.pg_operator o WHERE o.oid OPERATOR({_C}.>=) {_FIRST_USER_OID}",
        ),
        _section(
            "casts",
            [_int("c.casttarget"), _int("c.castfunc"), "c.castcontext"],
            f"""{_C}.pg_cast c WHERE c.oid OPERATOR({_C}.>=) {_FIRST_USER_OID} AND c.castfunc {_NE} 0::{_C}.oid""",
        ),
        _section(
            "types",
            [
                _int("t.oid"), _int("t.typnamespace"), "t.typname", "t.typtype", _int("t.typinput"),
                _int("t.typoutput"), _int("t.typbasetype"),
                f"""(SELECT {_C}.json_agg({_int("a.atttypid")}) FROM {_C}.pg_attribute a
                WHERE a.attrelid {_EQ} t.typrelid AND a.attnum OPERATOR({_C}.>) 0 AND NOT a.attisdropped
                  AND t.typrelid {_NE} 0::{_C}.oid)""",
                f"(SELECT {_int('r.rngsubtype')} FROM {_C}.pg_range r WHERE r.rngtypid {_EQ} t.oid)",
                f"(SELECT {_int('r.rngcanonical')} FROM {_C}.pg_range r WHERE r.rngtypid {_EQ} t.oid)",
            ],
            f"""{_C}.pg_type t LEFT JOIN {_C}.pg_class c ON c.oid {_EQ} t.typrelid
            WHERE t.oid OPERATOR({_C}.>=) {_FIRST_USER_OID} AND t.typcategory {_NE} 'A'
              AND (t.typrelid {_EQ} 0::{_C}.oid OR c.relkind {_EQ} 'c')""",
        ),
        _section("used_by_writes", [_int("used.relation"), _int("used.function")], _USED_BY_WRITES),
        _section("used_by_domains", [_int("used.domain"), _int("used.function")], _USED_BY_DOMAINS),
    ]
)  # fmt: skip
"""Rows of two columns: the name of a section, and a JSON array of its rows, or NULL where there are none."""


def sections(frames: list[tuple[int, bytes]]) -> dict[str, list[list[Any]]]:
    """The answer to `CATALOG_QUERY`, given as (type, body) frames, by section."""
    found: dict[str, list[list[Any]]] = {}
    for kind, body in frames:
        if kind == ord("D"):
            name, rows = (value or b"" for value in data_row(body))
            found[name.decode()] = json.loads(rows.decode(errors="surrogateescape")) if rows else []
    return found
