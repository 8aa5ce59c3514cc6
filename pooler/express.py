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

from pooler.cache.keys import ALL_TEXT, normal_tail
from pooler.caching import has_told, study
from pooler.consequences import draw, mind
from pooler.transport import TransportClosed
from pooler.unit import PLAIN, Unit
from protocol.framing import PARSE_COMPLETE, length_at

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


def submit(session: Session, data: bytes) -> bool:
    """Handle all that a client has sent, at a moment when nothing else of it is under way; False: not for this lane."""
    size = len(data)
    if not 6 < size <= session.pool.express_bytes:
        return False
    kind = data[0]
    first_end: int = length_at(data, 1)[0] + 1
    if kind == _QUERY:
        return first_end == size and _query(session, data)
    if session.origin is not None or data[5]:
        return False  # in a transaction, or a name
    if kind == _PARSE:
        return 6 < first_end < size - 15 and _parse(session, data, first_end)
    if kind == _BIND:
        return 6 < first_end <= size - 15 and _bind(session, data, first_end)
    return False


def _query(session: Session, data: bytes) -> bool:
    origin = session.origin
    if origin is None and (view := session.view) is not None and has_told(session, view, data):
        session.statements.pop(b"", None)
        return True
    service = session.service
    statement = service.classifier.remembered.get(data[5:-1])
    if statement is None or not statement.plain or (statement.cacheable and service.cache is not None):
        return False
    if statement.sequences and service.recallers:
        return False  # what others have drawn may have to be forgotten first
    if origin is None:
        origin = session.pool.at_hand(session.state.settings, session.traces)
        if origin is None or session.insists or session.mode == "session":
            return False
        unit = _link(session, origin, statement)
    else:
        if origin.units:
            return False
        unit = _unit(session, origin)
        mind(session, statement, unit)
    unit.simple = True
    if session.pool.advice is not None:
        study(session, unit, statement, data[5:-1], ALL_TEXT)
    session.statements.pop(b"", None)  # a simple Query destroys the unnamed statement
    origin.unnamed = None
    _send(session, origin, data, data)
    return True


def _bind(session: Session, data: bytes, bind_end: int) -> bool:
    """Bind of a named statement, and the rest."""
    name_end = data.find(b"\0", 6)
    if not 6 < name_end < bind_end or data[bind_end:] not in _RESTS:
        return False
    name = data[6:name_end]
    prepared = session.statements.get(name)
    if prepared is None:
        return False
    view = session.view
    if view is not None and has_told(session, view, prepared.name + data[name_end:]):
        return True
    origin = _for_statement(session, prepared)
    if origin is None:
        return False
    session.bound = name
    unit = _link(session, origin, prepared.statement)
    if session.pool.advice is not None:
        study(session, unit, prepared.statement, prepared.text, normal_tail(data[name_end + 1 : bind_end]))
    _send(session, origin, data, _renamed(prepared, data, bind_end - name_end, name_end))
    return True


def _parse(session: Session, data: bytes, parse_end: int) -> bool:
    """Parse and Bind without names, and the rest."""
    if data[parse_end] != _BIND or data[parse_end + 5 : parse_end + 7] != b"\0\0":
        return False
    view = session.view
    if view is not None and has_told(session, view, data):
        return True
    prepared = session.scope.parses.get(data[:parse_end])
    if prepared is None:
        return False
    bind_end: int = parse_end + 1 + length_at(data, parse_end + 1)[0]
    if bind_end <= parse_end + 6 or data[bind_end:] not in _RESTS or b"" not in session.statements:
        return False
    origin = _for_statement(session, prepared)
    if origin is None:
        return False
    unit = _link(session, origin, prepared.statement)
    unit.prefix = PARSE_COMPLETE
    unit.again = (prepared, data)
    if session.pool.advice is not None:
        study(session, unit, prepared.statement, prepared.text, normal_tail(data[parse_end + 7 : bind_end]))
    session.statements[b""] = prepared
    _send(session, origin, data, _renamed(prepared, data, bind_end - parse_end - 6, parse_end + 6))
    return True


def _renamed(prepared: Prepared, data: bytes, size: int, name_end: int) -> bytes:
    """`data` from its Bind on, of which `size` bytes follow its statement's name, with that which the origin knows."""
    name = prepared.name
    return b"".join((_header(b"B", size + len(name) + 5), b"\0", name, data[name_end:]))


def _for_statement(session: Session, prepared: Prepared) -> Origin | None:
    """An idle connection that has `prepared`, where that may be executed as it is."""
    statement = prepared.statement
    pool = session.pool
    if (
        not statement.plain
        or (statement.cacheable and session.service.cache is not None)
        or (statement.sequences and session.service.recallers)
        or prepared.needs is not None
        or session.portals
        or session.insists
        or session.mode == "session"
    ):
        return None
    origin = pool.at_hand(session.state.settings, session.traces)
    if origin is None or prepared not in origin.prepared or origin.verified:
        return None
    origin.prepared.move_to_end(prepared)
    return origin


def _link(session: Session, origin: Origin, statement: Statement) -> Unit:
    """What `link` and `mind` do, where there is little to do; the unit that is owed."""
    session.pool.idle.pop()
    session.origin = origin
    origin.session = session
    origin.client_pid = session.key[0]
    session.walk_from = 0
    unit = _unit(session, origin)
    service = session.service
    if (not statement.reads_only and service.observes) or (statement.sequences and service.recallers):
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
        session.send_failed(origin, data, str(error))
        return
    session.walk_from = -1
    if pending > session.pool.high_water:
        session.transport.pause()
