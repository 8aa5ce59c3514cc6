"""What a session's writes mean for cached answers: which tables they reach, and when that is told to the store.

A write's way: `reach_of` and `note_write` when it is sent; `Session` invalidates at each completion and at the end of
its transaction, before its client hears of it; `end_unsure` where nobody will. Not here: what a statement writes
(`sql`), what follows from that by triggers and foreign keys (`cache.catalog`), reads (`caching`).
"""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

from pooler.cache.catalog import parse_search_path
from pooler.sql.statement import PinKind, Statement

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

NOTHING: frozenset[int] = frozenset()
_search_path = lru_cache(maxsize=1000)(parse_search_path)


def reach_of(session: Session, statement: Statement) -> frozenset[int] | None:
    """The tables that a statement may change, as their OIDs; None where that is not known: the whole database."""
    catalog = session.pool.catalog
    pins = session.state.pins
    if catalog is None or (pins and PinKind.TEMPORARY in pins):
        return None  # a temporary table may stand before a real one, with triggers of its own
    path, user = names_by(session)
    if session.state.current is not session.state.settings:
        path = None  # it may have changed in this transaction
    return catalog.reach(statement, path, user)


def note_write(session: Session, reach: frozenset[int] | None) -> None:
    """A statement that may change the tables of `reach` is on its way."""
    if session.pool.advice is not None:
        session.wrote = reach
        session.pool.advice.updates.note(reach, perf_counter())
    if session.service.cache is not None:
        session.writes = True
        if reach is None or session.reach is None:
            session.reach = None
        else:
            session.reach = session.reach | reach


def names_by(session: Session) -> tuple[tuple[str, ...] | None, str]:
    """(search_path, user) that names are resolved by; the path is None where the origin does not report it (before 18).

    Of a session with a role of its own the user is not known, and "$user" stands for no schema; with None every
    schema counts.
    """
    reported = session.reports.values.get("search_path")
    if reported is None or not session.settings.plain_user:
        return None, ""
    return _search_path(reported), session.pool.target.user


def schema_changed(session: Session) -> None:
    """Names may mean something else now: statements are parsed and the catalog is read anew."""
    session.pool.schema_epoch += 1
    if session.service.board is not None:
        session.service.board.put_schema(session.namespace)
    if session.service.cache is not None:
        session.service.cache.invalidate_database(session.namespace)
    session.service.catalog_changed(session.pool)
    session.service.doubt_roles(session.origin)


def invalidate(session: Session) -> None:
    """Cached answers from the tables that the session may have written to are over, before it hears of its write."""
    if session.service.cache is not None:
        session.service.cache.invalidate(session.namespace, session.reach)
        session.last_write = session.service.cache.clock


def end_unsure(session: Session, origin: Origin) -> None:
    """Whether the write that `origin` works on takes effect is not known, and nobody will be told."""
    invalidate(session)
    session.service.unsure.follow_write(origin, session.namespace, session.reach)
