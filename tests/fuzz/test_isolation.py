"""A client cannot tell a pooled connection from a private one: the part of the fuzz that every run of the tests does.

The long run is `make fuzz`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings

from tests.fuzz import known, referee
from tests.fuzz.actions import all_groups, scripts
from tests.fuzz.referee import Difference, Unfit
from tests.fuzz.rig import Rig, rig
from tests.fuzz.script import Script

SCRIPTS = 90


@pytest.fixture(scope="module")
def both() -> Iterator[Rig]:
    with rig() as made:
        yield made


@settings(
    max_examples=SCRIPTS,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to shrink what it finds takes longer than a test may: make fuzz does that
    suppress_health_check=list(HealthCheck),
)
@given(script=scripts(all_groups(without=list(known.OFF)), max_steps=20))
def test_a_client_cannot_tell_a_pooled_connection_from_a_private_one(both: Rig, script: Script) -> None:
    try:
        referee.run(both, script, tolerated=known.tolerated())
    except Unfit:
        reject()


def test_a_difference_is_found_and_said(both: Rig) -> None:
    """What the fuzz is for, seen once on purpose: the two sides are told different things."""
    script = Script.read('{"pool_size": 1}\n[0, "look:different", ["Query", "select 1"]]')
    direct = both.private.execute
    direct("alter role postgres set application_name to 'only here'")
    try:
        with pytest.raises(Difference, match="application_name=only here"):
            referee.Referee(both, script, referee.Counter(), ()).run_without_refresh()
    finally:
        direct("alter role postgres reset application_name")


def test_a_script_reads_as_it_was_written() -> None:
    script = Script.read(
        '{"pool_size": 2, "cache": true, "watch": false}\n'
        '# a remark\n[0, "connection:connect", ["connect", {"options": "-c timezone=UTC"}]]\n'
        '[1, "statement:bind", ["Bind", "", "s1", ["1", null]], ["Execute", ""], ["Sync"]]\n'
    )
    assert Script.read(script.text()) == script
    assert [step.act for step in script.steps] == ["connect", None]
