"""What a statement means for its session, and for the connection that it goes to.

Lives here: what must be so on a connection before a statement comes that would notice (traces, sequences), and what is
noted when one is on its way (`mind`). Not here: what a text means (`sql`), settings and pins, which take effect when
the origin completes a statement (`Session.complete`, `state`), what a write reaches (`writes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pooler import ending, pins
from pooler.caching import note_block
from pooler.link import attach, leave_schema
from pooler.logs import get_logger
from pooler.origin import FAILED_TRANSACTION, IDLE
from pooler.sequences import Kind, draws
from pooler.settings import DEFAULTS
from pooler.sql.statement import PinKind, Statement
from pooler.sql.traces import TEMPORARY_SCHEMA, looks_closely
from pooler.unit import WATCHFUL, Unit
from pooler.writes import note_write, reach_of
from protocol.framing import query

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

log = get_logger(__name__)

DISCARD_SEQUENCES = b"DISCARD SEQUENCES"


def mind(session: Session, statement: Statement, unit: Unit) -> None:
    """Note what `statement`, now on its way, may do to the cache, to its connection and to others."""
    if session.only_reads or statement.isolation:
        note_block(session, statement)
    if not statement.reads_only and session.service.observes and not session.away:  # a replica writes nothing
        reach = reach_of(session, statement)
        if reach is None or reach:
            note_write(session, reach)
    if statement.sequences and session.origin is not None:
        draw(session, session.origin)
        recallers = session.service.recallers
        session.origin.asked_again = bool(recallers.kinds) and draws(statement, _sequenced(session))
    if statement.changes_schema:
        session.schema_changes = True
    if (statement.changes_schema or statement.looks) and _is_temporary_first(session):
        pins.pin(session, PinKind.TEMPORARY)  # what it makes is temporary without saying so; current_schema(), too
    if statement.changes_defaults:
        session.defaults_change += statement.changes_defaults
    if statement.makes:
        session.service.add_effects(session.pool, statement.makes)
    if statement.databases:
        session.service.leave_databases(statement.databases)
    if (session.writes or session.schema_changes) and unit.capture is None:
        unit.notable |= WATCHFUL


def _is_temporary_first(session: Session) -> bool:
    """Whether what a statement makes may be temporary by search_path."""
    return TEMPORARY_SCHEMA in (session.state.current.get("search_path") or "").lower()


def go_home(session: Session, position: int) -> None:
    """Before currval or lastval, at `position` in the data that is walked: link to the connection that remembers this
    session's values, if it is idle.
    """
    kind = kind_of(session)
    if session.service.recalls(kind):
        log.info("sequence_values_asked_for", user=session.user, database=session.database, application=kind[2])
    if session.origin is None:
        _return_home(session, position)


def begin_at_home(session: Session, position: int) -> None:
    """Before a transaction in which this session may ask for values that it has drawn before: the same."""
    if wants_home(session):
        _return_home(session, position)


def wants_home(session: Session) -> bool:
    """Whether `begin_at_home` would have another connection than the one at hand."""
    home, idle = session.sequence_home, session.pool.idle
    if home is None or home.sequence_client != session.key[0] or not idle or idle[-1] is home:
        return False
    if session.pool.replicas is not None:
        return False  # one of which may be to read the whole transaction
    return may_ask(session)


def _return_home(session: Session, position: int) -> None:
    home = session.sequence_home
    if home is not None and home.sequence_client == session.key[0] and session.pool.take(home):
        attach(session, home)
        session.walk_from = position


def must_forget(session: Session, origin: Origin, statement: Statement) -> bool:
    """Whether the origin remembers another client's sequence values and must forget them before `statement`.

    Before currval or lastval, since those values are not this client's; and, once anybody has asked for one, or where
    it is too early to tell, before more are drawn, since a DISCARD that came later would end these, too. After it this
    client's are all it remembers. A statement that may draw only by triggers and functions waits for nobody.
    """
    me, known = session.key[0], origin.sequence_client
    if (known == me and session.sequence_home is origin) or origin.status == FAILED_TRANSACTION:
        return False  # else even its own values are old: it has drawn elsewhere since, or forgotten them
    if statement.recalls_sequences:
        if known == -me and origin.status != IDLE:
            return False  # drawn in this transaction, when nobody of its kind had ever asked yet
        if session.sequence_home is not None:
            log.warning(
                "sequence_state_lost", user=session.user, database=session.database, client=session.transport.peer
            )
    elif statement.sequences and known and must_keep(session, statement):
        session.service.recallers.forgotten()
    else:
        return False
    origin.sequence_client = me
    return True


def forget_others_sequences(session: Session, origin: Origin, statement: Statement) -> None:
    """Have the origin forget what it must, in front of the message at hand, where no unfinished batch is in the way."""
    before = origin.sequence_client
    if not must_forget(session, origin, statement):
        return

    def done(own: Unit) -> None:
        if own.error is not None:  # in a failed transaction, as what comes behind
            origin.sequence_client = before

    origin.unnamed = None
    session.push(Unit.own(done))
    session.send_later(query(DISCARD_SEQUENCES.decode()))


def draw(session: Session, origin: Origin) -> None:
    """The origin may remember sequence values of the session from now on."""
    me = session.key[0]
    session.sequence_home = origin
    origin.sequence_client = me if origin.sequence_client in (0, me) else -me


def look(session: Session, text: bytes) -> None:
    """Before linking for a text that may look at traces: see to it that those are this client's own."""
    session.insists = session.service.config.strict_custom_settings or looks_closely(text) is not None


def bring_schema(session: Session, origin: Origin) -> None:
    """Before a statement that may look: a client that has made a temporary schema has one on this connection, too."""
    lacks = TEMPORARY_SCHEMA in session.traces and TEMPORARY_SCHEMA not in origin.traces
    if lacks and origin.outside_block and all(unit.swallow for unit in origin.units):
        leave_schema(session, origin)


def restore_startup(session: Session, unit: Unit) -> bytes:
    """The frame that, behind `unit` with its DISCARD ALL, sets again what the startup packet asked for."""
    unit.silent = True
    if session.origin is not None:
        session.origin.unnamed = None  # it ends with this Query

    def done(own: Unit) -> None:
        if own.error is not None and not unit.failed:
            ending.fatal(session, own.error)

    own = Unit.own(done)
    own.announces = True
    session.push(own)
    return DEFAULTS.difference_to(session.state.startup)


def must_keep(session: Session, statement: Statement) -> bool:
    """Whether `statement` draws values that somebody, once anybody has done so, may ask for."""
    recallers = session.service.recallers
    return (recallers.early or bool(recallers.kinds)) and draws(statement, _sequenced(session))


def _sequenced(session: Session) -> frozenset[str] | None:
    """The tables whose rows get values of sequences by themselves, if that is known."""
    return None if session.schema_changes else session.pool.sequence_tables


def may_ask(session: Session) -> bool:
    """Whether a client of this kind has ever asked for a sequence's value, or is expected to."""
    return kind_of(session) in session.service.recallers


def kind_of(session: Session) -> Kind:
    """Clients that are taken to behave as this one does."""
    return session.pool.name, session.user, session.reports.values.get("application_name", "")
