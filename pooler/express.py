"""The express lane: whole requests in the shapes that nearly all have, on the shortest way there is.

Lives here: a Query, and Parse/Bind/Describe/Execute/Sync with or without the Parse, each alone in what its client has
sent. What is in the slightest unusual is left to `walk`, which can do everything: a False from here has
changed nothing that matters.

What makes it fast: a text's meaning and a Parse message's statement are found by the message's own bytes; a cached
answer is found by the whole request's bytes, put together already (`cache.ready`); a statement's name is exchanged by
one join; the unit that is owed is used again; what follows the parameters is compared, not read. An unnamed Parse of
what the connection has prepared already is not sent at all: neither parsed nor planned again.
"""

from __future__ import annotations

from struct import Struct
from time import perf_counter
from typing import TYPE_CHECKING, Final

from pooler import ending, unsent
from pooler.cache.keys import ALL_TEXT, normal_tail
from pooler.caching import has_told, study
from pooler.consequences import draw, mind, must_keep, wants_home
from pooler.deferral import answered, open_with_query
from pooler.origin import FAILED_TRANSACTION
from pooler.repeats import learning, repeated
from pooler.transport import TransportClosed
from pooler.unit import PLAIN, Unit
from protocol.framing import BIND_COMPLETE, PARSE_COMPLETE, TERMINATE_FRAME, length_at

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session
    from pooler.sql.statement import Statement
    from pooler.statements import Prepared

_QUERY: Final = 0x51
_PARSE: Final = 0x50
_BIND: Final = 0x42
"""The type bytes Q, P and B, as numbers: compiled, a literal costs nothing and a module's name a look-up."""

_EXECUTE_SYNC: Final = b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\4"
_RESTS: Final = frozenset({b"D\0\0\0\6P\0" + _EXECUTE_SYNC, _EXECUTE_SYNC})
"""What follows a Bind: Describe of the unnamed portal or not, Execute of it without a limit, Sync; 15 bytes or more."""

_header: Final = Struct("!ci").pack


def submit(session: Session, data: bytes, granted: Origin | None = None) -> bool:
    """Handle all that a client has sent, at a moment when nothing else of it is under way; False: not for this lane.

    `granted`: the connection that it has waited for with that, as `Pool.at_hand` would give it.
    """
    size = len(data)
    if not 6 < size <= session.pool.express_bytes:
        if data == TERMINATE_FRAME and session.origin is None:
            ending.end(session, abrupt=False)
            return True
        return False
    kind = data[0]
    first_end: int = length_at(data, 1)[0] + 1
    if kind == _QUERY:
        return first_end == size and _query(session, data, granted)
    if data[5]:
        return False  # a name
    if kind == _PARSE:
        return 6 < first_end < size - 15 and _parse(session, data, first_end, granted)
    if kind == _BIND:
        return 6 < first_end <= size - 15 and _bind(session, data, first_end, granted)
    return False


def resume(session: Session, origin: Origin) -> bool:
    """Go on with the input that `session` has kept, now that it is granted `origin`; False: not for this lane."""
    data = session.inbox
    if (
        session.pending is not None
        or origin.settings is not session.state.settings
        or origin.traces != session.traces
        or session.missing
        or session.direct
        or session.insists
        or session.mode == "session"
        or not session.transport.reading
    ):
        return False
    session.inbox = b""
    if submit(session, data, origin):
        return True
    session.inbox = data
    return False


def _waits(session: Session, data: bytes) -> bool:
    """No connection is at hand: an ordinary request waits for one here, as with `link`, where none is idle."""
    pool = session.pool
    if pool.idle or pool.reserve_idle or session.insists or session.mode == "session":
        return False
    session.inbox = data
    session.waiting = True
    pool.acquire(session)
    return True


def _query(session: Session, data: bytes, granted: Origin | None) -> bool:
    origin = session.origin
    if origin is None and granted is None and (view := session.view) is not None and has_told(session, view, data):
        session.statements.pop(b"", None)
        return True
    service, text = session.service, data[5:-1]
    known = service.classifier.remembered.get(text)
    statement = service.classifier(text) if known is None else known
    if not (statement.plain or _only_controls(session, statement)):
        return False
    defers = not statement.plain and session.pool.defers_begin
    if defers and origin is None and granted is None and answered(session, text):
        if service.draining and not session.busy:
            ending.depart(session)
        return True
    if statement.cacheable and service.cache is not None and (origin is None or session.only_reads):
        return False
    message = data
    if origin is None:
        origin = granted or session.pool.at_hand(session.state.settings, session.traces)
        if origin is None:
            return _waits(session, data)
        if session.insists or session.mode == "session":
            return False
        if statement.may_draw and _others_drew(session, origin, statement):
            return False
        unit = _link(session, origin, statement)
        if session.deferred:
            message = open_with_query(session, origin, unit) + data
        elif known is not None and session.pool.reuses_statements and statement.plain:
            message = _kept(session, origin, unit, data)
    else:
        if origin.units or (statement.may_draw and _others_drew(session, origin, statement)):
            return False
        unit = _unit(session, origin)
        mind(session, statement, unit)
    if message is data:
        origin.unnamed = None
    unit.simple = True
    if statement.selects and session.pool.advice is not None:
        study(session, unit, statement, text, ALL_TEXT)
    session.statements.pop(b"", None)  # a simple Query destroys the unnamed statement
    _send(session, origin, data, message)
    return True


def _only_controls(session: Session, statement: Statement) -> bool:
    """Whether `statement` begins or ends a transaction, and nothing needs to be followed through that."""
    return (
        statement.passes
        and not session.state.watching
        and session.mode == "transaction"
        and session.pool.replicas is None  # which may be to read a whole transaction
        and not (statement.begins and session.origin is None and wants_home(session))
    )


def _kept(session: Session, origin: Origin, unit: Unit, data: bytes) -> bytes:
    """What is sent for a Query outside a transaction: itself, or what stands for it where `origin` has it prepared."""
    known = repeated(session, data)
    if known is None:
        return data
    prepared, request = known
    if prepared in origin.prepared:
        origin.prepared.move_to_end(prepared)
        unit.prefix = BIND_COMPLETE
        unit.again = (prepared, data)
        return request
    origin.unnamed = None
    return data + learning(origin, prepared)


def _bind(session: Session, data: bytes, bind_end: int, granted: Origin | None) -> bool:
    """Bind of a named statement, and the rest."""
    name_end = data.find(b"\0", 6)
    if not 6 < name_end < bind_end or data[bind_end:] not in _RESTS:
        return False
    name = data[6:name_end]
    prepared = session.statements.get(name)
    if prepared is None:
        return False
    view = session.view
    if (
        view is not None
        and session.origin is granted is None
        and has_told(session, view, prepared.name + data[name_end:])
    ):
        return True
    if session.deferred:
        return False
    origin = _for_statement(session, data, prepared, granted)
    if origin is None:
        return session.waiting
    session.bound = name
    unit = _linked_unit(session, origin, prepared.statement)
    if prepared.statement.selects and session.pool.advice is not None:
        study(session, unit, prepared.statement, prepared.text, normal_tail(data[name_end + 1 : bind_end]))
    _send(session, origin, data, _renamed(prepared, data, bind_end - name_end, name_end))
    return True


def _parse(session: Session, data: bytes, parse_end: int, granted: Origin | None) -> bool:
    """Parse and Bind without names, and the rest."""
    if data[parse_end] != _BIND or data[parse_end + 5 : parse_end + 7] != b"\0\0":
        return False
    view = session.view
    if view is not None and session.origin is granted is None and has_told(session, view, data):
        return True
    prepared = session.scope.parses.get(data[:parse_end])
    if prepared is None or session.deferred:
        return False
    bind_end: int = parse_end + 1 + length_at(data, parse_end + 1)[0]
    if bind_end <= parse_end + 6 or data[bind_end:] not in _RESTS or b"" not in session.statements:
        return False
    if session.origin is not None:
        return _parse_in_block(session, session.origin, data, prepared, data[parse_end + 7 : bind_end])
    origin = _for_statement(session, data, prepared, granted)
    if origin is None:
        return session.waiting
    unit = _link(session, origin, prepared.statement)
    unit.prefix = PARSE_COMPLETE
    unit.again = (prepared, data)
    if prepared.statement.selects and session.pool.advice is not None:
        study(session, unit, prepared.statement, prepared.text, normal_tail(data[parse_end + 7 : bind_end]))
    session.statements[b""] = prepared
    _send(session, origin, data, _renamed(prepared, data, bind_end - parse_end - 6, parse_end + 6))
    return True


def _renamed(prepared: Prepared, data: bytes, size: int, name_end: int) -> bytes:
    """`data` from its Bind on, of which `size` bytes follow its statement's name, with that which the origin knows."""
    name = prepared.name
    return b"".join((_header(b"B", size + len(name) + 5), b"\0", name, data[name_end:]))


def _parse_in_block(session: Session, origin: Origin, data: bytes, prepared: Prepared, tail: bytes) -> bool:
    """The same on the connection that a transaction, or a pin, keeps: it goes as it is, and leaves nothing behind."""
    if not _is_ordinary(session, prepared) or origin.units or origin.status == FAILED_TRANSACTION:
        return False
    if prepared.statement.may_draw and _others_drew(session, origin, prepared.statement):
        return False
    unit = _linked_unit(session, origin, prepared.statement)
    if prepared.statement.selects and session.pool.advice is not None:
        study(session, unit, prepared.statement, prepared.text, normal_tail(tail))
    session.statements[b""] = origin.unnamed = prepared
    unit.begin_with(prepared)
    _send(session, origin, data, data)
    return True


def _others_drew(session: Session, origin: Origin, statement: Statement) -> bool:
    """Whether what others have drawn on the connection may have to be forgotten before this session draws."""
    known = origin.sequence_client
    if not known or (known == session.key[0] and session.sequence_home is origin):
        return False
    return must_keep(session, statement)


def _is_ordinary(session: Session, prepared: Prepared) -> bool:
    """Whether `prepared` concerns neither its session nor the cache."""
    statement = prepared.statement
    return (
        statement.plain
        and prepared.needs is None
        and not session.portals
        and not (
            statement.cacheable and session.service.cache is not None and (session.origin is None or session.only_reads)
        )
    )


def _for_statement(session: Session, data: bytes, prepared: Prepared, granted: Origin | None) -> Origin | None:
    """The session's connection, or else an idle one, that has `prepared`, where that may be executed as it is.

    None: it waits for one now, or this is not for this lane.
    """
    if not _is_ordinary(session, prepared):
        return None
    origin = session.origin
    if origin is None:
        origin = granted or session.pool.at_hand(session.state.settings, session.traces)
        if origin is None:
            _waits(session, data)
            return None
        if session.insists or session.mode == "session":
            return None
    elif origin.units or origin.status == FAILED_TRANSACTION:
        return None
    if prepared not in origin.prepared or origin.verified:
        return None
    if prepared.statement.may_draw and _others_drew(session, origin, prepared.statement):
        return None
    origin.prepared.move_to_end(prepared)
    return origin


def _linked_unit(session: Session, origin: Origin, statement: Statement) -> Unit:
    """What is owed for `statement`, on the session's connection or on the one that is to be that."""
    if session.origin is None:
        return _link(session, origin, statement)
    unit = _unit(session, origin)
    mind(session, statement, unit)
    return unit


def _link(session: Session, origin: Origin, statement: Statement) -> Unit:
    """What `link` and `mind` do, where there is little to do; the unit that is owed."""
    idle = session.pool.idle
    if idle and idle[-1] is origin:  # not one that was granted
        idle.pop()
    session.origin = origin
    origin.session = session
    origin.client_pid = session.key[0]
    session.walk_from = 0
    unit = _unit(session, origin)
    service = session.service
    if (
        (not statement.reads_only and service.observes)
        or (statement.sequences and service.recallers.kinds)
        or statement.isolation
    ):
        mind(session, statement, unit)
    elif statement.sequences:
        draw(session, origin)
        origin.asked_again = False
    return unit


def _unit(session: Session, origin: Origin) -> Unit:
    unit = origin.spare
    if unit is None:
        unit = Unit(perf_counter(), session.service.stats.bypass_latency)
    else:
        origin.spare = None
        unit.started = perf_counter()
        unit.simple = False
        unit.notable = PLAIN
    origin.units.append(unit)
    return unit


def _send(session: Session, origin: Origin, data: bytes, message: bytes) -> None:
    try:
        pending = origin.transport.send(message)
    except TransportClosed as error:
        unsent.send_again(session, origin, data, str(error))
        return
    session.walk_from = -1
    if pending > session.pool.high_water:
        session.transport.pause(heed_end=True)
