"""Writes `docs/errors.md` from the functions of `protocol.errors`: `python -m protocol.reference`.

A function's docstring says when, its examples are called for what a client sees. A test holds the file to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from protocol import errors  # noqa: F401 - enters the examples
from protocol.examples import EXAMPLES
from protocol.responses import PgError

PATH = Path(__file__).parent.parent / "docs" / "errors.md"

CONDITIONS = {
    "08001": "sqlclient_unable_to_establish_sqlconnection",
    "08006": "connection_failure",
    "08P01": "protocol_violation",
    "0A000": "feature_not_supported",
    "22021": "character_not_in_repertoire",
    "22023": "invalid_parameter_value",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "26000": "invalid_sql_statement_name",
    "28000": "invalid_authorization_specification",
    "28P01": "invalid_password",
    "34000": "invalid_cursor_name",
    "3D000": "invalid_catalog_name",
    "42501": "insufficient_privilege",
    "42601": "syntax_error",
    "42704": "undefined_object",
    "42P01": "undefined_table",
    "42P05": "duplicate_prepared_statement",
    "53300": "too_many_connections",
    "53400": "configuration_limit_exceeded",
    "54000": "program_limit_exceeded",
    "55000": "object_not_in_prerequisite_state",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "57P03": "cannot_connect_now",
    "57P05": "idle_session_timeout",
    "58000": "system_error",
    "F0000": "config_file_error",
    "XX000": "internal_error",
}
"""PostgreSQL's names for the SQLSTATEs (appendix "PostgreSQL Error Codes")."""

_INTRODUCTION = """\
# Errors

<!-- Written by `python -m protocol.reference` from protocol/errors.py; do not edit. -->

Every error that pgnear itself raises, by SQLSTATE, with examples of what a client sees. Whatever is not here was said
by the origin and reaches the client as it came. An error during login and one that ends the client's connection have
the severity FATAL, others ERROR. `pgnear_clients_rejected_total` counts those of logins by SQLSTATE.
"""


def render() -> str:
    """The whole file."""
    by_state: list[tuple[str, Callable[..., PgError], list[dict[str, Any]]]] = [
        (function(**examples[0]).sqlstate, function, examples) for function, examples in EXAMPLES.items()
    ]
    by_state.sort(key=lambda entry: entry[0])  # stable: within a SQLSTATE in the order of errors.py
    parts = [_INTRODUCTION]
    for sqlstate, entries in groupby(by_state, key=lambda entry: entry[0]):
        parts.append(f"## {sqlstate} {CONDITIONS[sqlstate]}\n")
        parts += [_entry(function, examples) for _, function, examples in entries]
    return "\n".join(parts)


def _entry(function: Callable[..., PgError], examples: list[dict[str, Any]]) -> str:
    when = " ".join((inspect.getdoc(function) or "").split())
    seen = [_client_sees(function(**arguments)) for arguments in examples]
    shown = ("\n\n" if any("\n" in each for each in seen) else "\n").join(seen)
    return f"**{function.__name__}**: {when}\n\n```text\n{shown}\n```\n"


def _client_sees(error: PgError) -> str:
    lines = [("", error.message), ("DETAIL:  ", error.detail), ("HINT:  ", error.hint)]
    return "\n".join(f"{label}{text}" for label, text in lines if text)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render())
