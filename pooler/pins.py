"""What pins a session to its connection: operators are told; whether it still does, the origin is asked.

Not here: which pins there are, and when one may be gone (`state`); what a statement pins (`sql.effects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pooler.logs import get_logger
from pooler.sql.statement import PinKind
from pooler.sql.traces import TEMPORARY_SCHEMA
from pooler.state import probe_query
from pooler.transport import TransportClosed
from pooler.unit import Unit

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session

log = get_logger(__name__)


def pin(session: Session, kind: PinKind) -> None:
    """Keep the connection because of `kind`."""
    if session.state.pin(kind):
        tell(session, kind)


def tell(session: Session, kind: PinKind) -> None:
    """Operators hear that the session is pinned now."""
    stats = session.service.stats
    stats.pins[kind.value] = stats.pins.get(kind.value, 0) + 1
    log.info(
        "client_pinned", user=session.user, database=session.database, reason=kind.value, client=session.transport.peer
    )


def probe(session: Session, origin: Origin) -> None:
    """Ask the origin whether the state that pins is still there."""
    kinds = session.state.probed_kinds()
    if not kinds:
        return

    def done(own: Unit) -> None:
        if own.error is None and len(own.rows) == 2 and len(own.rows[1]) == 7 + 5 * len(kinds):
            answers = own.rows[1]
            found = {kind: answers[11 + 5 * place] for place, kind in enumerate(kinds)}
            if PinKind.TEMPORARY in found:
                _note_schema(session, origin, exists=found[PinKind.TEMPORARY] != ord("0"))
            present = {kind: digit == ord("1") for kind, digit in found.items()}
            for kind in session.state.probe_answered(present):
                log.info("client_unpinned", user=session.user, database=session.database, reason=kind.value)

    origin.unnamed = None
    session.push(Unit.own(done))
    try:
        origin.send(probe_query(kinds))
    except TransportClosed as error:
        origin.lost(f"while sending: {error}")


def _note_schema(session: Session, origin: Origin, *, exists: bool) -> None:
    """Whether the origin has a temporary schema is known, and so whether the client has left one."""
    if exists:
        session.traces |= {TEMPORARY_SCHEMA}
        origin.traces |= {TEMPORARY_SCHEMA}
    else:
        origin.traces -= {TEMPORARY_SCHEMA}
