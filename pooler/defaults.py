"""What a connection begins with: the defaults that ALTER ROLE and ALTER DATABASE give its settings.

PostgreSQL reads them at login and never again: who connects later has the new ones, who was there before keeps the old
ones. Behind pgnear origin connections from before are retired, and clients from before are given what they began with
as if their startup packet had asked for it. Lives here: what the defaults are, as far as is known, and what follows
from a change. Not here: retiring connections (`pool`), reading the rows (`service`).
"""

from __future__ import annotations

from collections.abc import Iterable

from pooler.sql.effects import set_config_sql
from pooler.sql.statement import DefaultChange

DEFAULTS_QUERY = """
SELECT pg_catalog.lower(name), reset_val, source OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'database', 'database user',
 'global']) FROM pg_catalog.pg_settings WHERE context OPERATOR(pg_catalog.=) 'user'
"""
"""(name, value in the setting's own unit, "t" where a role's or database's own) of all that any role may set."""

CONFIGURED_QUERY = """
SELECT setdatabase, setrole, pg_catalog.unnest(setconfig) FROM pg_catalog.pg_db_role_setting
 WHERE setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, (SELECT oid FROM pg_catalog.pg_database
 WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())])
 AND setrole OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, session_user::pg_catalog.regrole::pg_catalog.oid])
"""
"""What was configured by ALTER ROLE and ALTER DATABASE, one row a setting: (database, role, name=value)."""


Level = tuple[bool, bool]
"""Whether a default is one role's, and whether it is one database's."""

_BY_RANK: tuple[Level, ...] = ((True, True), (True, False), (False, True), (False, False))
"""Which of several defaults of one setting holds: the first."""


class Defaults:
    """Of one pool's connections.

    Attributes:
      values: what new connections begin with, by name in lower case, of what is known.
      changes: how often clients have changed them; what was read before the latest change is out of date.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changes = 0
        self._unconfigured: dict[str, str] = {}  # what the server's own configuration says
        self._levels: dict[Level, dict[str, str]] = {level: {} for level in _BY_RANK}
        self._seen: frozenset[tuple[str, ...]] | None = None  # the rows of CONFIGURED_QUERY; None: they will differ

    def changed_elsewhere(self, configured: Iterable[tuple[str, ...]]) -> dict[str, str] | None:
        """What clients from before must be given where somebody has changed something past pgnear; None: nobody has.

        `configured`: the rows of `CONFIGURED_QUERY`.
        """
        rows = frozenset(configured)
        before, self._seen = self._seen, rows
        names = {row[2].partition("=")[0].lower() for row in before ^ rows} if before is not None else set()
        if not names:
            return None
        return {name: self.values[name] for name in names if name in self.values}

    def read(self, rows: Iterable[tuple[str, ...]], configured: Iterable[tuple[str, ...]]) -> None:
        """Take over what a new connection was seen to have: the rows of `DEFAULTS_QUERY` and `CONFIGURED_QUERY`."""
        self.values.clear()
        for name, value, is_configured in rows:
            self.values[name] = value
            if is_configured != "t":
                self._unconfigured[name] = value
        for level in _BY_RANK:
            self._levels[level].clear()
        for database, role, setting in configured:
            name, _, value = setting.partition("=")
            self._levels[role != "0", database != "0"][name.lower()] = value

    def change(self, changes: Iterable[DefaultChange], user: str, database: str) -> dict[str, str] | None:
        """What clients from before must be given after `changes` that a client has made; None: they concern others.

        Args:
          user, database: whose connections these are.
        """
        mine = [change for change in changes if change.concerns(user, database)]
        if not mine:
            return None
        self._seen = None
        self.changes += 1
        kept: dict[str, str] = {}
        for change in mine:
            level = bool(change.role), bool(change.database)
            above = _BY_RANK[: _BY_RANK.index(level)]
            for name in [change.name] if change.name else sorted(self._levels[level]):
                if change.value is None:
                    self._levels[level].pop(name, None)
                else:
                    self._levels[level][name] = change.value
                if any(name in self._levels[higher] for higher in above):
                    continue  # that one holds, as before
                if name in self.values:
                    kept.setdefault(name, self.values.pop(name))
                value = self._begun_with(name)
                if value is not None:
                    self.values[name] = value
        return kept

    def _begun_with(self, name: str) -> str | None:
        """What new connections have for `name`, where that is known."""
        for level in _BY_RANK:
            if name in self._levels[level]:
                return self._levels[level][name]
        return self._unconfigured.get(name)


def as_settings(values: dict[str, str]) -> dict[str, str]:
    """`values` as the statements that a session's settings are made of."""
    return {name: set_config_sql(name, value) for name, value in values.items()}
