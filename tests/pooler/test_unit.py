"""What an origin connection still owes, without one."""

from __future__ import annotations

from typing import Any, cast

from pooler.unit import (
    BIND,
    BIND_COMPLETE,
    COMMAND_COMPLETE,
    EXECUTE,
    FAIL,
    MADE_UP,
    NO_DATA,
    NOTICE,
    PARSE,
    PARSE_COMPLETE,
    ROW_DESCRIPTION,
    Unit,
)
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


def test_nothing_that_an_answer_begins_with_passes_before_what_pgnear_has_made_up() -> None:
    """What is not looked at passes in runs, and with it the moment to say first what the origin was not asked."""
    unit = Unit(0.0, None)
    unit.script([(MADE_UP, True, framing.CLOSE_COMPLETE, None), (EXECUTE, True, None, None)])
    assert unit.notable.issuperset(b"123nstTCIEVNAGHW")  # all that comes to a client first, but for DataRow


@needs_stand_ins
def test_a_notice_about_a_parse_that_the_client_has_not_asked_for_is_not_its() -> None:
    unit = Unit(0.0, None)
    unit.script([(PARSE, False, None, None), (PARSE, True, None, None), (BIND, True, None, None)])
    assert [unit.notice(NOBODY, kind, b"") for kind in (NOTICE, PARSE_COMPLETE, NOTICE)] == [False, False, True]


@needs_stand_ins
def test_what_is_wrong_with_a_text_whose_name_is_taken_is_said_all_the_same() -> None:
    unit = Unit(0.0, None)
    unit.script([(PARSE, False, None, None), (FAIL, False, b"E", None)])
    assert unit.notice(NOBODY, NOTICE, b"")
