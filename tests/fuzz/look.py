"""All that a client can see of its own session: asked by plain queries, so that asking changes nothing."""

from __future__ import annotations

from tests.fuzz.script import Message

SETTINGS = """
TimeZone DateStyle IntervalStyle application_name search_path bytea_output extra_float_digits work_mem lock_timeout
statement_timeout client_encoding standard_conforming_strings client_min_messages default_transaction_isolation
default_transaction_read_only default_transaction_deferrable transaction_isolation transaction_read_only
transaction_deferrable row_security enable_seqscan plan_cache_mode session_replication_role xmloption role
session_authorization is_superuser geqo temp_buffers
""".split()
"""What is looked at; the settings that actions change are among them."""

CUSTOM_SETTINGS = ["app.tenant", "app.note"]

STATEMENT_NAMES = ("s1", "s2", "s3")


def _current(names: list[str]) -> str:
    listed = ",".join(f"'{name}'" for name in names)
    return f"select n || '=' || coalesce(current_setting(n, true), 'NULL') from unnest(array[{listed}]) n"


_SESSION = "\nunion all ".join(
    [
        _current(SETTINGS),
        _current(CUSTOM_SETTINGS),
        "select format('users=%s %s', current_user, session_user)",
        "select 'schemas=' || current_schemas(false)::text",
        "select 'implicit schemas=' || current_schemas(true)::text",
        "(select format('cursor=%s %s %s', name, is_holdable, statement) from pg_cursors where name <> '' order by 1)",
        "(select 'temporary=' || relname from pg_class where relnamespace = pg_my_temp_schema() order by 1)",
        "(select 'channel=' || c from pg_listening_channels() c order by 1)",
        "(select format('lock=%s %s %s %s %s', classid, objid, objsubid, mode, granted) from pg_locks"
        " where locktype = 'advisory' and pid = pg_backend_pid() order by 1)",
    ]
)


def session() -> list[tuple[str, tuple[Message, ...]]]:
    """(what is seen, the messages that ask): allowed in a transaction that has not failed."""
    rows = "select tenant, v from public.tenant_row order by 1, 2"
    return [("session", (("Query", _SESSION),)), ("rows", (("Query", rows),))]


def statements() -> tuple[str, tuple[Message, ...]]:
    """Which statements are prepared, and what they are. Fails a transaction where one is not."""
    messages: list[Message] = []
    for name in STATEMENT_NAMES:
        messages += [("Describe", "S", name), ("Sync",)]
    return "statements", tuple(messages)


UNNAMED = "unnamed statement", (("Describe", "S", ""), ("Sync",))
"""Asked before anything else, because a simple Query ends it."""
