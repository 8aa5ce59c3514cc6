"""What the origin needs for a stream of its changes: looked at, made, taken away.

Lives here: the SQL about publications, slots and replica identities, and what is said to an operator where something
is missing. Used by `ceremony.stream` on its own connection, and by `pgnear cache` (`admin.publication`).

A publication is not harmless: while it publishes updates, PostgreSQL refuses UPDATE and DELETE on every published
table that has neither a primary key nor another replica identity. So pgnear makes none while there is such a table.

Source: PostgreSQL documentation, "CREATE PUBLICATION", "Logical Replication", section "Publication", and the catalogs
pg_publication, pg_class (relreplident) and pg_replication_slots.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pooler.ceremony.connect import number, rows_of, text_row
from protocol.responses import PgError

Ask = Callable[[str], Awaitable[list[tuple[int, bytes]]]]
"""Sends one SQL text and gives the frames of its answer (`ceremony.connect.ask`)."""

PARAMETERS = {"application_name": "pgnear cache", "client_encoding": "SQL_ASCII"}
"""Of a connection that asks these questions: no text is converted, which could fail."""

SLOT_NAME = re.compile(r"pgnear_[0-9a-f]{12}")
"""Of slots that are pgnear's."""

SETUP = "pgnear cache setup"
"""What gives an origin its publication."""

_DYNAMIC_WAL_LEVEL = 190_000
"""From this version on the origin raises the level of its WAL itself when a slot is made."""

_USER_TABLES = """pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"""

_ORIGIN = """
SELECT current_setting('server_version_num'), current_setting('wal_level'), current_setting('max_wal_senders'),
       current_setting('synchronous_standby_names') <> '', r.rolname,
       r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(g.oid, 'member'))
  FROM pg_roles r WHERE r.rolname = current_user
"""

_PUBLICATION = """
SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND coalesce((to_jsonb(p) ->> 'pubtruncate')::bool, true),
       coalesce((to_jsonb(p) ->> 'pubviaroot')::bool, false)
  FROM pg_publication p WHERE pubname = {name}
"""

_UNCOVERED = f"""
SELECT c.oid FROM {_USER_TABLES} AND c.relkind IN ('r', 'm', 'f') AND NOT (
       c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid IN (
           SELECT t.relid FROM pg_get_publication_tables({{name}}) t WHERE to_jsonb(t) ->> 'qual' IS NULL))
"""

_WITHOUT_IDENTITY = f"""
SELECT format('%I.%I', n.nspname, c.relname) FROM {_USER_TABLES} AND c.relkind = 'r' AND c.relpersistence = 'p'
   AND NOT CASE c.relreplident
       WHEN 'f' THEN true
       WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
       WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
       ELSE false END
 ORDER BY 1
"""

_SLOTS = """
SELECT slot_name, active, active_pid, temporary, pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::int8
  FROM pg_replication_slots
 WHERE database = current_database() AND plugin = 'pgoutput' AND slot_name ~ '^pgnear_[0-9a-f]{12}$' ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Publication:
    """One row of pg_publication.

    Attributes:
      all_tables: FOR ALL TABLES. whole: it publishes all four kinds of change. via_root: a partition's changes come as
      those of its topmost table.
    """

    all_tables: bool
    whole: bool
    via_root: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What an origin has of what a stream needs.

    Attributes:
      synchronous: whether commits wait for standbys. may_replicate: whether the role `role` may.
    """

    version: int
    wal_level: str
    max_wal_senders: int
    synchronous: bool
    role: str
    may_replicate: bool
    publication: Publication | None

    @property
    def logical(self) -> bool:
        return self.wal_level == "logical" or self.version >= _DYNAMIC_WAL_LEVEL


@dataclass(frozen=True, slots=True)
class Slot:
    """One of pgnear's replication slots; `kept_bytes` of WAL are kept for it, where that is known."""

    name: str
    pid: int | None
    temporary: bool
    kept_bytes: int | None


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing without which there is no stream: what it is, and the SQL or command that gives it."""

    reason: str
    remedy: str


async def look(ask: Ask, publication: str) -> Standing:
    """What the origin has.

    Raises:
      PgError, TransportClosed: as `ask` does.
    """
    version, wal_level, senders, synchronous, role, may_replicate = text_row(await _ask(ask, _ORIGIN), 6)
    found = await _rows(ask, _PUBLICATION.format(name=_literal(publication)), 3)
    return Standing(
        number(version),
        wal_level,
        number(senders),
        synchronous == "t",
        role,
        may_replicate == "t",
        Publication(*(value == "t" for value in found[0])) if found else None,
    )


def missing(standing: Standing, publication: str) -> list[Missing]:
    """What a stream lacks; nothing where the list is empty."""
    lacks = []
    name = identifier(publication)
    if not standing.logical:
        lacks.append(
            Missing(
                f"wal_level is {standing.wal_level}",
                "ALTER SYSTEM SET wal_level = logical; and restart PostgreSQL",
            )
        )
    if standing.max_wal_senders == 0:
        lacks.append(Missing("max_wal_senders is 0", "ALTER SYSTEM SET max_wal_senders = 10; and restart PostgreSQL"))
    if not standing.may_replicate:
        lacks.append(cannot_replicate(standing.role))
    found = standing.publication
    if found is None:
        lacks.append(Missing(f"there is no publication {name}", SETUP))
        return lacks
    if not found.whole:
        lacks.append(
            Missing(
                f"publication {name} leaves out some kinds of change",
                f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');",
            )
        )
    if found.via_root:
        lacks.append(
            Missing(
                f"publication {name} publishes partitions as their topmost table",
                f"ALTER PUBLICATION {name} SET (publish_via_partition_root = false);",
            )
        )
    return lacks


def cannot_replicate(role: str) -> Missing:
    """The role lacks the attribute."""
    return Missing(f"role {role} may not replicate", f"ALTER ROLE {identifier(role)} REPLICATION;")


async def uncovered(ask: Ask, publication: str) -> frozenset[int]:
    """OIDs of what can be read and whose changes the stream does not tell: tables that are not (or by a row filter
    only partly) published, unlogged ones, materialized views, foreign tables."""
    rows = await _rows(ask, _UNCOVERED.format(name=_literal(publication)), 1)
    return frozenset(number(oid) for (oid,) in rows)


async def without_identity(ask: Ask) -> list[str]:
    """Tables, quoted, on which PostgreSQL would refuse UPDATE and DELETE once they are published."""
    return [name for (name,) in await _rows(ask, _WITHOUT_IDENTITY, 1)]


async def create(ask: Ask, publication: str) -> list[Missing]:
    """Make the publication; what is in the way, if something is.

    Raises:
      PgError, TransportClosed: as `ask` does.
    """
    tables = await without_identity(ask)
    if tables:
        return [
            Missing(
                f"{table} has no replica identity: PostgreSQL would refuse UPDATE and DELETE on it",
                f"ALTER TABLE {table} ADD PRIMARY KEY (...); or ALTER TABLE {table} REPLICA IDENTITY FULL;",
            )
            for table in tables
        ]
    statement = f"CREATE PUBLICATION {identifier(publication)} FOR ALL TABLES"
    try:
        await ask(statement)
    except PgError as error:
        if error.sqlstate == "42710":  # another pgnear was faster
            return []
        if error.sqlstate not in ("42501", "25006"):
            raise
        return [Missing(f"publication not made: {error.message}", f"{statement}; as a superuser, on the primary")]
    return []


async def slots(ask: Ask) -> list[Slot]:
    """pgnear's slots in this database."""
    return [
        Slot(name, number(pid) if pid else None, temporary == "t", number(kept) if kept else None)
        for name, _active, pid, temporary, kept in await _rows(ask, _SLOTS, 5)
    ]


async def drop_slot(ask: Ask, slot: Slot) -> None:
    """Drop a slot that nobody uses."""
    await ask(f"SELECT pg_catalog.pg_drop_replication_slot({_literal(slot.name)})")


async def drop(ask: Ask, publication: str) -> None:
    """Drop the publication, and tell the streams that read it: from version 18 on they go on without a word."""
    await ask(f"DROP PUBLICATION {identifier(publication)}")
    await ask("SELECT pg_catalog.pg_logical_emit_message(true, 'pgnear', 'teardown')")


def identifier(name: str) -> str:
    """A name as SQL has it, quoted where that is needed."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f" E'{escaped}'"  # whatever standard_conforming_strings says


async def _ask(ask: Ask, text: str) -> list[tuple[int, bytes]]:
    return await ask("SET LOCAL search_path = pg_catalog;" + text)  # no name of a user's is in the way


async def _rows(ask: Ask, text: str, columns: int) -> list[tuple[str, ...]]:
    """As text, in which what is no UTF-8 is replaced; NULL is the empty text."""
    rows = rows_of(await _ask(ask, text), columns)
    return [tuple((value or b"").decode(errors="replace") for value in row) for row in rows]
