"""The simple query protocol: what a client's Query becomes on a shared origin connection.

`submit` takes one through: what its statements mean; DEALLOCATE of what only pgnear knows is answered here, and what
concerns another client's process in `signals`; a cacheable
read may be answered from the cache; otherwise it is linked and sent. A text whose statements have effects on the
session is followed statement by statement, and rewritten where it speaks of names or defaults that are pgnear's.

Source: PostgreSQL documentation, "Message Flow", section "Simple Query".
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from pooler import detour, signals, views
from pooler.boarding import WAIT, copy_answer, take_pending
from pooler.cache.entry import Entry
from pooler.cache.keys import ALL_TEXT
from pooler.caching import NO_PARAMETERS, ask, make_ready, may_be_asked, study
from pooler.consequences import (
    DISCARD_SEQUENCES,
    begin_at_home,
    bring_schema,
    forget_others_sequences,
    go_home,
    look,
    mind,
    must_forget,
    restore_startup,
)
from pooler.link import link
from pooler.operations import spoken_of
from pooler.replicas import begins_reading
from pooler.settings import DEFAULTS
from pooler.sql.names import renaming
from pooler.sql.statement import Part, Statement
from pooler.sql.views import Edit, edited
from pooler.statements import Prepared
from pooler.translation import run_unseen_first
from pooler.unit import HIDDEN, Unit
from protocol import errors
from protocol.framing import READY_IDLE, SYNC_FRAME, command_complete, query

if TYPE_CHECKING:
    from pooler.session import Session


def submit(session: Session, data: bytes, position: int, frame_end: int) -> bool:
    """Handle the Query at `position` in `data`; False where it must wait and be given again."""
    service = session.service
    text = data[position + 5 : max(frame_end - 1, position + 5)]  # mypyc takes no slice that ends before it begins
    statement = service.classifier(text)
    session.statements.pop(b"", None)  # a simple Query destroys the unnamed statement
    started = perf_counter()
    capture: Any = None
    if statement.deallocates is not None and _deallocate(session, statement.deallocates):
        return True
    if statement.signal is not None and (answered := signals.answer_query(session, statement, position)) is not None:
        return answered
    if statement.begins and session.mode == "statement":
        session.answer(errors.no_transaction_blocks().response() + READY_IDLE)
        return True
    if statement.cacheable and service.cache is not None and may_be_asked(session):
        prepared = service.prepared.intern(text, NO_PARAMETERS, statement, session.scope)
        found = ask(session, prepared, ALL_TEXT, started, described=True)
        if isinstance(found, Entry):
            assert found.row_description is not None
            response = found.row_description + found.answer + session.ready_now
            session.answer(response)
            if session.origin is None:
                make_ready(session, data[position:frame_end], response, found, prepared)
            service.stats.hit_latency.observe(perf_counter() - started)
            return True
        if found is WAIT:
            return False
        capture = found
    if statement.recalls_sequences:
        go_home(session, position)
    elif statement.begins and session.origin is None:
        begin_at_home(session, position)
    if session.origin is None and (statement.looks or session.insists):
        look(session, text)
    if session.origin is None and not link(
        session, position, capture, reads_block=statement.begins and begins_reading(session, statement)
    ):
        return False
    assert session.origin is not None
    capture = take_pending(session) or capture
    if statement.looks:
        bring_schema(session, session.origin)
    forgets = False
    if statement.recalls_sequences or statement.sequences:
        if session.origin.open_unit is None:
            forget_others_sequences(session, session.origin, statement)
        else:
            forgets = must_forget(session, session.origin, statement)
    session.origin.unnamed = None
    unit = open_unit(session, started)
    if capture is not None:
        copy_answer(session, unit, capture)
    if session.away and (capture is not None or statement.begins):
        detour.begin(session, data[position:frame_end])
    mind(session, statement, unit)
    study(session, unit, statement, text, ALL_TEXT)
    if forgets and session.origin.executing:
        run_unseen_first(session, session.origin, unit, DISCARD_SEQUENCES)
        forgets = False
    if statement.has_effects or (session.state.watching and statement.parts) or statement.shows or forgets:
        session.send_later(_followed(session, unit, statement, text, forgets=forgets))
    else:
        session.send_later(data if frame_end == len(data) and not position else data[position:frame_end])
    return True


def open_unit(session: Session, started: float) -> Unit:
    """The unit of a Query or FunctionCall: a new one, or the one that waits for a Sync; either ends it."""
    assert session.origin is not None
    unit = session.origin.open_unit
    if unit is None:
        unit = Unit(started, session.service.stats.bypass_latency, simple=True)
        session.push(unit)
    else:
        unit.simple = unit.synced = True
    return unit


def _followed(session: Session, unit: Unit, statement: Statement, text: bytes, *, forgets: bool) -> bytes:
    """The Query frame of a text with effects on the session, whose completions `unit` follows.

    A RESET goes back to what the session began with, not the connection: what the startup packet asked for is
    set again behind it, unseen by the client.
    """
    state = session.state
    followed: list[Part] = []
    edits = views.edits(session, statement.shows) if statement.shows else []
    if forgets:
        followed.append(HIDDEN)  # in an unfinished batch, where no Query of pgnear's own can come first
        edits.append((0, 0, DISCARD_SEQUENCES + b";"))
    for part in statement.parts:
        followed.append(part)
        if part.named in session.statements:
            edits += _renaming(session, part, text)
        elif part.resets and state.startup is not DEFAULTS:
            again = state.startup.restore([change.name for change in part.changes if change.apply_sql is None])
            followed += [HIDDEN] * len(again)
            edits.append((part.end, part.end, b"".join(b";" + sql.encode() for sql in again)))
    if followed:
        state.watching = True
        unit.follow(followed)
    if edits:
        edits.sort()
        session.rewritten = (unit, text, edits)
    frame = query(edited(text, edits))
    if any(part.discards == "all" for part in statement.parts) and state.startup is not DEFAULTS:
        frame += restore_startup(session, unit)
    return frame


def _renaming(session: Session, part: Part, text: bytes) -> list[Edit]:
    """The edit of a statement that names one made by Parse; the linked connection has that then by pgnear's name."""
    assert part.named is not None
    prepared = spoken_of(session, part)
    _have(session, prepared)
    return renaming(text, part.start, part.end, {part.named: prepared.name})


def _have(session: Session, prepared: Prepared) -> None:
    """Have `prepared` on the linked connection, in a unit of pgnear's own."""
    origin = session.origin
    assert origin is not None
    if prepared in origin.prepared:
        return

    def done(own: Unit) -> None:
        if own.error is not None:
            origin.prepared.pop(prepared, None)

    frames = b"".join(victim.close_frame() for victim in origin.make_room())
    origin.prepared[prepared] = None
    session.send_later(frames + prepared.parse_frame(prepared.name) + SYNC_FRAME)
    origin.units.insert(len(origin.units) - 1, Unit.own(done))  # before the unit of the message at hand


def _deallocate(session: Session, name: bytes) -> bool:
    """DEALLOCATE of statements made by Parse: outside a transaction there is nothing to ask an origin."""
    if session.origin is not None or (name and name not in session.statements):
        return False
    if name:
        del session.statements[name]
    else:
        session.statements.clear()
    session.answer(command_complete(b"DEALLOCATE" if name else b"DEALLOCATE ALL") + session.ready_now)
    return True
