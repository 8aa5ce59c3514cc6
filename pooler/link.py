"""The link between a session and an origin connection: how it comes to be, and what goes in front of its first message.

Not here: which connection (`pool`, `replicas`), when it ends (`Session.settled`), the express way (`express`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pooler import deferral, pins
from pooler.logs import get_logger
from pooler.sql.effects import quote_literal, set_config_sql
from pooler.sql.statement import PinKind
from pooler.sql.traces import TEMPORARY_SCHEMA
from pooler.unit import Capture, Unit
from protocol.framing import query

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session


log = get_logger(__name__)

_MAKE_SCHEMA = query("SELECT pg_catalog.set_config('search_path','pg_temp',true),pg_catalog.current_schema()")
"""Has the temporary schema made, if there is none, and nothing in it: no DDL, so that no event trigger fires."""


def link(session: Session, position: int, capture: Capture | None = None, *, reads_block: bool = False) -> bool:
    """Have an origin connection, settings included. False: in the queue now; handle the message again when granted.

    `capture` waits with the message. It, or that the message begins a READ ONLY block (`reads_block`), lets a replica
    have it.

    `position` is where the message begins in the data that is being walked; if the connection turns out
    to be dead before anything was sent, the walk starts there again on another one.
    """
    if session.origin is not None:
        return True
    origin = _replica(session, capture) if capture is not None or reads_block else None
    if origin is None:
        origin = session.pool.acquire(session)
    else:
        session.away = True
    if origin is None:
        session.waiting = True
        session.pending = capture
        return False
    attach(session, origin)
    session.walk_from = position
    return True


def _replica(session: Session, capture: Capture | None) -> Origin | None:
    """A replica's connection for a read that may be cached, or for a READ ONLY block, where one will do and is free."""
    replicas, cache = session.pool.replicas, session.service.cache
    if replicas is None or cache is None or session.direct:
        return None
    return replicas.take(session, capture, cache) if capture is not None else replicas.take_for_block(session, cache)


def attach(session: Session, origin: Origin) -> None:
    """Link `session` to `origin`, which is nobody's: what it must have set goes in front of the next message."""
    session.origin = origin
    origin.session = session
    origin.client_pid = session.key[0]
    if origin.settings is not session.settings:
        session.to_origin.append(origin.settings.difference_to(session.settings))
        origin.units.append(Unit.own())
        origin.unnamed = None
        origin.settings = session.settings
        origin.traces |= session.settings.customs
        session.service.stats.settings_replayed += 1
    if session.insists and not session.traces <= origin.traces:
        _leave_traces(session, origin)
    if session.deferred:
        deferral.open_block(session, origin)
    if session.mode == "session":
        pins.pin(session, PinKind.SESSION)


def _leave_traces(session: Session, origin: Origin) -> None:
    """Custom settings that this client has once set are known, as '', wherever it is; so is its temporary schema."""
    for name in sorted(name for name in session.traces - origin.traces if "." in name):
        literal = quote_literal(name)
        is_unknown = f"pg_catalog.current_setting({literal},true) IS NULL"
        session.send_later(query(f"{set_config_sql(name, '')} WHERE {is_unknown}"))
        origin.units.append(Unit.own(lambda own: None))  # a name that cannot be set was refused its client, too
        origin.unnamed = None
        origin.traces |= {name}
    if TEMPORARY_SCHEMA in session.traces - origin.traces:
        leave_schema(session, origin)


def leave_schema(session: Session, origin: Origin) -> None:
    """Have a temporary schema on `origin`, which is in no transaction, in front of the next message."""
    session.send_later(_MAKE_SCHEMA)
    origin.units.append(Unit.own(lambda own: None))  # who may not make one may not have one
    origin.unnamed = None
    origin.traces |= {TEMPORARY_SCHEMA}
    log.debug("temporary_schema_made", user=session.user, database=session.database, origin_pid=origin.pid)
