"""A request that failed because of what its connection had prepared: it is asked again, as its client has sent it.

So it is where a kept statement stood in for a Parse or a Query (`Unit.again`), and its plan no longer fits its tables
or it is gone. Not here: keeping statements (`repeats`, `extended`), a request that a replica refused (`detour`).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from pooler.statements import ORIGIN_PREFIX
from pooler.unit import BIND, CLOSE, DESCRIBE, EXECUTE, PARSE, Step, Unit

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.statements import Prepared

_QUERY: Final = 0x51

PLAN_OUTDATED = b"\0C0A000\0Mcached plan must not change result type\0"
_STATEMENT_GONE = b"\0C26000\0"
_DESCRIBE_PORTAL = b"D\0\0\0\6P\0"


def is_due(origin: Origin, unit: Unit, frame: bytes) -> bool:
    """Whether `unit` failed because its statement's plan was outdated, in a request that parses it: to be repeated.

    Nothing was executed then; nor where a function has deallocated what the connection had prepared. Where more was
    sent behind it, it is too late for that.
    """
    outdated = PLAN_OUTDATED in frame or (_STATEMENT_GONE in frame and ORIGIN_PREFIX in frame)
    if not outdated or len(origin.units) != 1 or origin.session is None:
        return False
    unit.failed = unit.silent = True
    unit.drop_capture()
    return True


def ask(origin: Origin, prepared: Prepared, request: bytes) -> None:
    """Send `request` as its client has sent it; one that has a Parse has its ParseComplete already."""
    origin.prepared.pop(prepared, None)
    if request[0] == _QUERY:
        origin.unnamed = None
        unit = Unit(perf_counter(), None, simple=True)
        unit.script([(CLOSE, False, None, None)])
        origin.units.append(unit)
        origin.send_or_lose(prepared.close_frame() + request)
        return
    origin.unnamed = prepared
    unit = Unit(perf_counter(), None)
    steps: list[Step] = [(CLOSE, False, None, None), (PARSE, False, None, None), (BIND, True, b"", None)]
    if _DESCRIBE_PORTAL in request:
        steps.append((DESCRIBE, True, None, None))
    unit.script([*steps, (EXECUTE, True, None, None)])
    origin.units.append(unit)
    origin.send_or_lose(prepared.close_frame() + request)
