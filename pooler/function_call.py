"""FunctionCall: a function called by its OID, without SQL.

Lives here: which functions have effects on the session that calls them, and what becomes of the message. The OIDs of
built-in functions are the same in every PostgreSQL; of others nobody knows what they do, so a call of one pins.

Source: PostgreSQL documentation, "Message Flow", section "Function Call".
"""

from __future__ import annotations

from struct import Struct
from time import perf_counter
from typing import TYPE_CHECKING, Final

from pooler import simple
from pooler.consequences import DISCARD_SEQUENCES, draw, forget_others_sequences, go_home, must_forget
from pooler.link import link
from pooler.sql.statement import Part, PinKind, Statement
from pooler.sql.traces import UNKNOWN
from pooler.translation import run_unseen_first
from pooler.unit import FUNCTION_RESULT, Unit
from protocol.framing import query

if TYPE_CHECKING:
    from pooler.session import Session

_SET_CONFIG = 2078
_CURRVAL, _LASTVAL = 1575, 2559
_DRAWS = frozenset({1574, 1576, 1765})
"""nextval, setval."""

_DRAW, _RECALL = Statement(sequences=True), Statement(recalls_sequences=True)

FIRST_USER_OID: Final = 16384


def _part(*pins: PinKind, leaves: frozenset[str] = frozenset(), releases: frozenset[PinKind] = frozenset()) -> Part:
    kept = frozenset(pins)
    return Part(pins=kept, survives=kept - {PinKind.SETTING, PinKind.SEQUENCE}, leaves=leaves, releases=releases)


_ADVISORY = _part(PinKind.ADVISORY)
_SEQUENCE = _part(PinKind.SEQUENCE)
_UNKNOWN = _part(PinKind.HIDDEN, leaves=frozenset({UNKNOWN}))
_PARTS: Final = {
    **dict.fromkeys((2880, 2881, 2882, 2883, 2886, 2887, 2888, 2889), _ADVISORY),  # pg_(try_)advisory_lock(_shared)
    **dict.fromkeys((2884, 2885, 2890, 2891, 2892), _part(releases=frozenset({PinKind.ADVISORY}))),  # unlock
    1599: _part(PinKind.SEED),
    6006: _part(PinKind.REPLICATION),  # pg_replication_origin_session_setup
    # pg_create_ and pg_copy_(physical|logical)_replication_slot, which may be a temporary one
    **dict.fromkeys((3779, 3786, 4220, 4221, 4222, 4223, 4224), _part(PinKind.REPLICATION)),
    2172: _part(PinKind.LASTING),  # pg_backup_start
    # query_to_xml, query_to_xmlschema, query_to_xml_and_xmlschema, ts_rewrite, ts_stat: they run a text
    **dict.fromkeys((2924, 2927, 2930, 3684, 3685, 3689, 3690), _UNKNOWN),
    _CURRVAL: _SEQUENCE,
    _LASTVAL: _SEQUENCE,
}

_head: Final = Struct("!IH").unpack_from
_count: Final = Struct("!H").unpack_from
_size: Final = Struct("!i").unpack_from


def submit(session: Session, data: bytes, position: int, frame_end: int) -> bool:
    """Handle the FunctionCall at `position` in `data`; False where it must wait and be given again.

    Raises:
      ValueError: it ended before its last field.
    """
    body = data[position + 5 : frame_end]
    if len(body) < 6:
        raise ValueError
    oid, formats = _head(body)
    recalls = oid in (_CURRVAL, _LASTVAL)
    if recalls:
        go_home(session, position)
    if not link(session, position):
        return False
    origin = session.origin
    assert origin is not None
    forgets = False
    if recalls or oid in _DRAWS:
        concerned = _RECALL if recalls else _DRAW
        if origin.open_unit is None:
            forget_others_sequences(session, origin, concerned)
        else:
            forgets = must_forget(session, origin, concerned)
    if oid in _DRAWS:
        draw(session, origin)
    session.writes = True
    session.only_reads = False
    session.reach = None
    unit = simple.open_unit(session, perf_counter())
    if forgets and origin.executing:
        run_unseen_first(session, origin, unit, DISCARD_SEQUENCES)
    elif forgets:
        origin.units.insert(len(origin.units) - 1, Unit.own(lambda own: None))  # nothing of the batch is owed any more
        session.send_later(query(DISCARD_SEQUENCES.decode()))
    part = _setting(body, formats) if oid == _SET_CONFIG else _UNKNOWN if oid >= FIRST_USER_OID else _PARTS.get(oid)
    if part is not None:
        session.state.watching = True
        unit.follow([part])
        unit.notable |= {FUNCTION_RESULT}
    session.to_origin.append(data[position:frame_end])
    return True


def _setting(body: bytes, formats: int) -> Part:
    """set_config: pins, since its value may be in any form; its first argument is a name in every one."""
    at = 6 + 2 * formats
    arguments = _count(body, at)[0] if len(body) >= at + 6 else 0
    size = _size(body, at + 2)[0] if arguments else -1
    name = body[at + 6 : at + 6 + size].decode(errors="replace").lower() if size >= 0 else UNKNOWN
    return _part(PinKind.SETTING, leaves=frozenset({name} if "." in name or name == UNKNOWN else ()))
