"""What the origin's own catalog says about the names in a statement: whether a read through them is surely pure.

One query reads it all; `Catalog.allows` then decides without I/O. Names are judged whatever schema the search_path
would lead to: a name is only trusted if every relation that bears it is.
"""

from __future__ import annotations

from pooler.sql.statement import Statement

CATALOG_QUERY = """
SELECT 'table', n.nspname, c.relname,
       c.relkind IN ('r', 'p', 'm') AND NOT c.relrowsecurity AND NOT c.relhasrules AND c.relpersistence <> 't'
       AND NOT EXISTS (
           WITH RECURSIVE below(oid) AS (
               SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid
               UNION
               SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) b.oid)
           SELECT 1 FROM below b JOIN pg_catalog.pg_class k ON k.oid OPERATOR(pg_catalog.=) b.oid
            WHERE k.relkind NOT IN ('r', 'p'))
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL
SELECT DISTINCT 'function', NULL, p.proname, false
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
UNION ALL
SELECT DISTINCT 'operator', NULL, o.oprname, false
  FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
  JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) o.oprcode
 WHERE n.nspname <> 'pg_catalog' AND p.provolatile <> 'i'
UNION ALL
SELECT DISTINCT 'cast', NULL, 'cast', false
  FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) c.castfunc
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
 WHERE n.nspname <> 'pg_catalog' AND p.provolatile <> 'i'
"""
"""Four columns: kind, schema, name, safe ('t' or 'f')."""


class Catalog:
    """One database's names.

    Args:
      tables: (schema, name) -> whether reading it is pure. functions, operators: names outside pg_catalog.
      unsafe_casts: whether a user's cast runs a function that is not immutable.
    """

    MAX_VERDICTS = 50000

    def __init__(
        self,
        tables: dict[tuple[str, str], bool],
        functions: frozenset[str] = frozenset(),
        operators: frozenset[str] = frozenset(),
        unsafe_casts: bool = False,
    ) -> None:
        self._tables = tables
        self._by_name: dict[str, bool] = {}
        for (_, name), safe in tables.items():
            self._by_name[name] = safe and self._by_name.get(name, True)
        self._functions = functions
        self._operators = operators
        self._unsafe_casts = unsafe_casts
        self._verdicts: dict[Statement, str | None] = {}

    @classmethod
    def from_frames(cls, frames: list[tuple[int, bytes]]) -> Catalog:
        """From the answer to `CATALOG_QUERY`, as (type, body) frames."""
        tables: dict[tuple[str, str], bool] = {}
        names: dict[str, set[str]] = {"function": set(), "operator": set(), "cast": set()}
        for kind, body in frames:
            if kind != ord("D"):
                continue
            what, schema, name, safe = _columns(body)
            if what == "table":
                tables[(schema, name)] = safe == "t"
            else:
                names[what].add(name)
        return cls(tables, frozenset(names["function"]), frozenset(names["operator"]), bool(names["cast"]))

    def allows(self, statement: Statement) -> str | None:
        """None where the statement's names are surely those of a pure read; otherwise the reason."""
        try:
            return self._verdicts[statement]
        except KeyError:
            if len(self._verdicts) >= self.MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[statement] = self._judge(statement)
            return verdict

    def _judge(self, statement: Statement) -> str | None:
        for schema, name in sorted(statement.relations, key=str):
            safe = self._by_name.get(name) if schema is None else self._tables.get((schema, name))
            if safe is None:
                return f"relation {name} is not known"
            if not safe:
                return f"relation {name} is a view, a foreign table, or has rules or row-level security"
        if shadowed := statement.functions & self._functions:
            return f"function {min(shadowed)} exists outside pg_catalog too"
        if called := statement.columns & self._functions:
            return f"column {min(called)} may be a function of its row"
        if unsafe := statement.operators & self._operators:
            return f"operator {min(unsafe)} may run a function that is not immutable"
        if self._unsafe_casts:
            return "a user-defined cast runs a function that is not immutable"
        return None


def _columns(body: bytes) -> list[str]:
    """The text columns of a DataRow; NULL is the empty text."""
    values = []
    position = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        length = int.from_bytes(body[position : position + 4], "big", signed=True)
        position += 4
        values.append(body[position : position + max(length, 0)].decode())
        position += max(length, 0)
    return values
