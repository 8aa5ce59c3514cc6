"""What an origin connection still owes, without one."""

from __future__ import annotations

from typing import Any, cast

from pooler.unit import BIND_COMPLETE, COMMAND_COMPLETE, NO_DATA, ROW_DESCRIPTION, Unit
from protocol import framing
from tests.support.compiled import needs_stand_ins

NOBODY = cast(Any, None)


def test_the_bind_complete_of_a_kept_query_is_not_the_clients() -> None:
    unit = Unit(0.0, None, simple=True)
    unit.prefix = framing.BIND_COMPLETE
    assert unit.begin(framing.BIND_COMPLETE + b"T...") == 5
    assert unit.steps is None
    assert not unit.prefix


@needs_stand_ins
def test_it_is_found_behind_what_the_origin_says_first() -> None:
    """A ParameterStatus or a notice may come between a request and its answer, and the first frame in pieces."""
    for first in (b"S\0\0\0\x09a\0b\0" + framing.BIND_COMPLETE, framing.BIND_COMPLETE[:3], b"E"):
        unit = Unit(0.0, None, simple=True)
        unit.prefix = framing.BIND_COMPLETE
        assert unit.begin(first) == 0
        kinds = (BIND_COMPLETE, ROW_DESCRIPTION, COMMAND_COMPLETE)
        assert unit.notable.issuperset((*kinds, NO_DATA))
        assert [unit.notice(NOBODY, kind, b"") for kind in kinds] == [False, True, True]
