"""What a statement that is over means for its session: what it has left behind, and what keeps its connection now.

Not here: what follows from one on its way (`consequences`), from a ReadyForQuery (`Session.completed`), and what it has
done to settings (`state`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pooler import pins
from pooler.operations import stand_in
from pooler.sql.statement import Part, PinKind
from pooler.sql.traces import TEMPORARY_SCHEMA, is_full, with_traces

if TYPE_CHECKING:
    from pooler.session import Session

_IN_FAILED_TRANSACTION = b"\0C25P02\0"
_NOT_PARSED = re.compile(rb"\0C(?:42601|42P01|42703|42883|25P01|25001)\0")
"""SQLSTATEs of a statement that, as a rule, was not even begun."""


def complete(session: Session, part: Part, tag: bytes) -> None:
    """A statement with effects on the session is complete; `tag` is its command tag."""
    for kind in session.state.complete(part, tag):
        pins.tell(session, kind)
    origin = session.origin
    if part.leaves:
        _leave(session, part.leaves)
    if part.discards in ("all", "sequences"):
        _forget_sequences(session)
    if part.deallocates is not None or part.discards == "all":
        if part.deallocates:
            prepared = session.statements.pop(part.deallocates, None)
            if prepared is not None and origin is not None:
                origin.prepared.pop(stand_in(session, part.deallocates), None)
        else:
            unnamed = session.statements.get(b"")  # it is no part of DEALLOCATE ALL
            session.statements.clear()
            if unnamed is not None:
                session.statements[b""] = unnamed
            if origin is not None:
                origin.prepared.clear()


def _forget_sequences(session: Session) -> None:
    """DISCARD SEQUENCES, on whatever connection: what another one remembers of this session is nobody's."""
    home, session.sequence_home = session.sequence_home, None
    if home is not None and home.sequence_client == session.key[0]:
        home.sequence_client = -session.key[0]
    if session.origin is not None:
        session.origin.sequence_client = 0


def failed(session: Session, part: Part, frame: bytes) -> None:
    """A statement with effects on the session has failed, with the ErrorResponse `frame`."""
    if _IN_FAILED_TRANSACTION in frame:
        return
    begun = _NOT_PARSED.search(frame) is None
    if begun:
        _leave(session, part.leaves if PinKind.HIDDEN in part.survives else part.leaves - {TEMPORARY_SCHEMA})
    for kind in part.survives:
        if (begun or kind is not PinKind.UNPARSABLE) and session.state.pin(kind):
            pins.tell(session, kind)


def _leave(session: Session, traces: frozenset[str]) -> None:
    # A temporary schema may be rolled back: see `pins.probe`.
    session.traces = with_traces(session.traces, traces - {TEMPORARY_SCHEMA})
    origin = session.origin
    if origin is not None:
        origin.traces = with_traces(origin.traces, traces)
        origin.spoiled = origin.spoiled or is_full(origin.traces)
