"""Who will ask for its sequences' values again: `currval` and `lastval` remember them per connection.

A client that asks goes back to the connection on which it drew, if nobody has that. So pgnear learns: once anybody has
asked, what clients draw from stays free for them as long as others can be served. They are not pinned: one that asks
would cost all that draw a connection each. Not here: what a statement draws from (`pooler.sql`), the order in which
connections are taken (`pool`).
"""

from __future__ import annotations

from pooler.sql.statement import Change, Statement

Kind = tuple[str, str, str]
"""(pool, user, application_name) of clients that are taken to behave alike."""

MAX_KINDS = 1000

PROBATION = 1000
"""So many times connections forget others' values before a draw though nobody has asked yet: the first that asks, and
one is among the first clients where such applications are served, finds its value, too. After that nobody is expected
to ask, and what nobody asks for costs nothing."""

SEQUENCE_TABLES_QUERY = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
 WHERE a.attidentity OPERATOR(pg_catalog.<>) ''
UNION SELECT c.relname FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_attrdef d ON d.adrelid OPERATOR(pg_catalog.=) c.oid
 WHERE pg_catalog.pg_get_expr(d.adbin, d.adrelid) OPERATOR(pg_catalog.~~) '%nextval(%'
"""
"""Names of tables whose rows get values of sequences by themselves."""


class Recallers:
    """Kinds of clients of which one has asked for a sequence's value.

    Attributes:
      kinds: those; empty until anybody has asked.
      early: it is too early to say that a kind which has not asked does not.
    """

    def __init__(self) -> None:
        self.kinds: dict[Kind, None] = {}
        self.early = True
        self._probation = PROBATION

    def __contains__(self, kind: Kind) -> bool:
        return self.early or kind in self.kinds

    def forgotten(self) -> None:
        """A connection forgets others' values because somebody draws, and might ask."""
        self._probation -= 1
        self.early = self._probation > 0

    def add(self, kind: Kind) -> bool:
        """A client of `kind` asks; whether that is new."""
        if kind in self.kinds:
            return False
        if len(self.kinds) >= MAX_KINDS:
            del self.kinds[next(iter(self.kinds))]
        self.kinds[kind] = None
        return True


def draws(statement: Statement, tables: frozenset[str] | None) -> bool:
    """Whether `statement` draws values, as far as shows.

    Args:
      tables: whose rows get values by themselves; None: it is not known, since tables may just have been made.
    """
    if statement.draws or not statement.may_draw:
        return statement.draws
    if tables is None or statement.changes_schema:
        return True
    return any(name in tables for (_, name), change in statement.writes if change is Change.INSERT)
