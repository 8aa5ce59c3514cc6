"""What a session sees of itself in system views that show a connection: the queries that stand in their places.

`pg_prepared_statements` has the client's own statements under its own names, and nobody else's. `pg_settings` has the
startup packet's values as what a RESET goes back to. Not here: where a text refers to them (`sql.views`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pooler.sql.effects import quote_literal
from pooler.sql.views import Edit, Reference

if TYPE_CHECKING:
    from pooler.session import Session
    from pooler.sql.statement import Statement
    from pooler.statements import Prepared

_SETTINGS_COLUMNS = (
    "name setting unit category short_desc extra_desc context vartype source min_val max_val enumvals boot_val "
    "reset_val sourcefile sourceline pending_restart"
).split()
_SET_VALUE = re.compile(r"SELECT pg_catalog\.set_config\(E'(?:[^'\\]|''|\\.)*',(?P<value>E'.*'),false\)", re.DOTALL)


def edits(session: Session, references: tuple[Reference, ...]) -> list[Edit]:
    """The edits that make a text show what `session` has."""
    made = []
    for reference in references:
        query = _prepared_statements(session) if reference.view == "pg_prepared_statements" else _settings(session)
        if query:
            made.append(reference.by(query.encode()))
    return made


def showing(session: Session, text: bytes, types: bytes, statement: Statement) -> Prepared:
    """SQL that asks the system views what its session has: changed so that it sees what it has now."""
    made = edits(session, statement.shows)
    return session.service.prepared.intern_edited(text, made, types, statement, session.scope)


def _literal(session: Session, text: bytes) -> str:
    readable = text.decode(errors="replace")
    if session.reports.values.get("server_encoding") == "SQL_ASCII":
        readable = readable.encode("ascii", "replace").decode()
    return quote_literal(readable)


# ---- pg_prepared_statements ------------------------------------------------------------------------------------------


def _version(session: Session) -> int:
    found = re.match(r"\d+", session.reports.values.get("server_version", ""))
    return int(found[0]) if found else 0


def _prepared_statements(session: Session) -> str:
    """Statements of SQL's PREPARE as the connection has them; those of Parse as pgnear knows them.

    The connection adds when it prepared them and how often it planned them, where it has them.
    """
    version = _version(session)
    types = ["parameter_types", "result_types"] if version >= 16 else ["parameter_types"]
    plans = ["generic_plans", "custom_plans"] if version >= 14 else []
    columns = ", ".join(["name", "statement", "prepare_time", *types, "from_sql", *plans])
    own = f"SELECT {columns} FROM pg_catalog.pg_prepared_statements WHERE from_sql"
    rows = ",\n".join(_row(session, name, prepared) for name, prepared in session.statements.items() if name)
    if not rows:
        return own
    shown = ", ".join(
        [
            "m.name", "m.statement",
            f"greatest(p.prepare_time, pg_catalog.to_timestamp({session.began:.6f}))",
            *(f"coalesce(m.{column}, p.{column})" for column in types),
            "false",
            *(f"coalesce(p.{column}, 0)" for column in plans),
        ]
    )  # fmt: skip
    return (
        f"{own}\nUNION ALL SELECT {shown} FROM (VALUES {rows})"
        " AS m (known, name, statement, parameter_types, result_types)"
        " LEFT JOIN pg_catalog.pg_prepared_statements p ON p.name OPERATOR(pg_catalog.=) m.known"
    )


def _row(session: Session, name: bytes, prepared: Prepared) -> str:
    said = prepared.said if prepared.said is not None else prepared.text
    fields = [
        f"{_literal(session, prepared.name)}::pg_catalog.text",
        f"{_literal(session, name)}::pg_catalog.text",
        f"{_literal(session, said)}::pg_catalog.text",
        _types(_parameter_types(prepared.parameter_description)),
        _types(_result_types(prepared.row_description)),
    ]
    return f"({', '.join(fields)})"


def _types(oids: list[int] | None) -> str:
    listed = "NULL" if oids is None else "'{" + ",".join(map(str, oids)) + "}'"
    return f"{listed}::pg_catalog.oid[]::pg_catalog.regtype[]"


def _parameter_types(description: bytes | None) -> list[int] | None:
    """The OIDs in a ParameterDescription frame."""
    if description is None:
        return None
    return [int.from_bytes(description[at : at + 4], "big") for at in range(7, len(description), 4)]


def _result_types(description: bytes | None) -> list[int] | None:
    """The OIDs in a RowDescription frame; of NoData, None."""
    if description is None or description[:1] != b"T":
        return None
    oids = []
    position = 7
    while position < len(description):
        position = description.index(b"\0", position) + 7  # name, Int32 table, Int16 column
        oids.append(int.from_bytes(description[position : position + 4], "big"))
        position += 12  # type, Int16 length, Int32 modifier, Int16 format
    return oids


# ---- pg_settings -----------------------------------------------------------------------------------------------------


def _settings(session: Session) -> str:
    """pg_settings with the startup packet's values in `reset_val`, and "client" as the source of those that hold.

    A value that does not hold now is told as the startup packet has it, which may be in another unit.
    """
    state = session.state
    reset_values, sources = [], []
    for name, sql in state.startup.items:
        named = f"WHEN pg_catalog.lower(name) OPERATOR(pg_catalog.=) {quote_literal(name)} THEN"
        if state.has_startup_value(name):
            reset_values.append(f"{named} setting")
            sources.append(f"{named} 'client'")
        elif (value := _SET_VALUE.fullmatch(sql)) is not None:
            reset_values.append(f"{named} {value['value']}")
    if not reset_values:
        return ""
    replaced = {
        "reset_val": f"CASE {' '.join(reset_values)} ELSE reset_val END AS reset_val",
        "source": f"CASE {' '.join(sources)} ELSE source END AS source" if sources else "source",
    }
    listed = ", ".join(replaced.get(column, column) for column in _SETTINGS_COLUMNS)
    return f"SELECT {listed} FROM pg_catalog.pg_settings"
