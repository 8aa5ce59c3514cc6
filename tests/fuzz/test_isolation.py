"""A client cannot tell a pooled connection from a private one: the part of the fuzz that every run of the tests does.

The long run is `make fuzz`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, reject, seed, settings

from tests.fuzz import known, referee
from tests.fuzz.actions import all_groups, scripts
from tests.fuzz.reduction import reduce
from tests.fuzz.referee import Difference, Unfit
from tests.fuzz.rig import Rig, rig
from tests.fuzz.script import Script

SCRIPTS_FOUND = Path(__file__).parent / "scripts"
SCRIPTS = 150
SECONDS = 22.0
"""On a machine that is busy the rest of the scripts is left out."""


@pytest.fixture(scope="module")
def both() -> Iterator[Rig]:
    with rig() as made:
        yield made


@seed(16)  # not derandomize, whose choice changes with the text of the function
@settings(
    max_examples=SCRIPTS,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to shrink what it finds takes longer than a test may: make fuzz does that
    suppress_health_check=list(HealthCheck),
)
@given(script=scripts(all_groups(without=list(known.OFF)), max_steps=20))
def test_a_client_cannot_tell_a_pooled_connection_from_a_private_one(both: Rig, script: Script) -> None:
    if time.monotonic() > both.started + SECONDS:
        return
    try:
        referee.run(both, script, tolerated=known.tolerated())
    except Unfit:
        reject()
    except Difference as difference:
        difference.add_note(f"python -m tests.fuzz --replay FILE, with this in FILE:\n{script.text()}")
        raise


@pytest.mark.parametrize("path", sorted(SCRIPTS_FOUND.glob("*.script")), ids=lambda path: path.stem)
def test_what_the_fuzz_found_once_stays_found(both: Rig, path: Path) -> None:
    """One script for one promise. A script that is listed as open and does not differ any more fails here too."""
    only_looks = [known_one for known_one in known.tolerated() if known_one[0].startswith("look:")]
    try:
        referee.run(both, Script.read(path.read_text()), tolerated=only_looks)
    except Difference:
        if path.stem not in known.OPEN:
            raise
    else:
        assert path.stem not in known.OPEN, "it is mended: strike it from known.OPEN"


def test_a_difference_is_found_made_small_and_said(both: Rig) -> None:
    """What the fuzz is for, made to happen: one of the two servers has a schema that the other has not."""
    ask = '["Query", "select nspname from pg_namespace where nspname = \'only_here\'"]'
    before, behind = '[0, "data:one", ["Query", "select 1"]]', '[2, "data:two", ["Query", "select 2"]]'
    text = f'{{"pool_size": 1}}\n{before}\n[1, "look:schema", {ask}]\n{behind}'

    def attempt(script: Script) -> Difference | None:
        try:
            referee.run(both, script)
        except Difference as difference:
            return difference
        return None

    assert attempt(Script.read(text)) is None
    both.private.execute("create schema only_here")
    try:
        difference = attempt(Script.read(text))
        assert difference is not None
        assert (difference.signature, difference.position) == ("look:schema: D -> C", 1)
        small, same = reduce(Script.read(text), difference, attempt, time.monotonic() + 20.0)
    finally:
        both.private.execute("drop schema only_here")
    assert [step.name for step in small.steps] == ["schema"]
    assert "private  (1 alike) | D only_here | C SELECT 1 | Z I" in str(same)


def test_a_script_reads_as_it_was_written() -> None:
    script = Script.read(
        '{"pool_size": 2, "cache": true, "watch": false}\n'
        '# a remark\n[0, "connection:connect", ["connect", {"options": "-c timezone=UTC"}]]\n'
        '[1, "statement:bind", ["Bind", "", "s1", ["1", null]], ["Execute", ""], ["Sync"]]\n'
    )
    assert Script.read(script.text()) == script
    assert [step.act for step in script.steps] == ["connect", None]
