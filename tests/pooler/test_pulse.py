"""When silence is a reason to probe an origin, and what a probe tells, on a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise

from pooler.pulse import LONGEST_SILENCE, Pulse

PATIENCE = 5.0


def silent_since(at: float) -> Pulse:
    """Two connections were at work then, and nothing has come since."""
    made = Pulse()
    made.listen({"a": 1, "b": 2}, at)
    return made


def listens(pulse: Pulse, now: float, **marks: int) -> bool:
    return pulse.listen({"a": 1, "b": 2, **marks}, now)


def test_silence_for_long_enough_is_a_reason_to_probe_and_less_is_not() -> None:
    pulse = silent_since(100.0)
    assert not listens(pulse, 104.9)
    assert not pulse.doubtful(104.9, PATIENCE)
    assert pulse.doubtful(105.0, PATIENCE)


def test_one_connection_that_says_something_speaks_for_all() -> None:
    pulse = silent_since(100.0)
    assert listens(pulse, 104.0, b=3)
    assert not pulse.doubtful(108.9, PATIENCE)
    assert pulse.doubtful(109.0, PATIENCE)


def test_a_connection_that_is_closed_or_new_has_said_nothing() -> None:
    pulse = silent_since(100.0)
    assert not pulse.listen({"b": 2}, 103.0)
    assert not pulse.listen({"b": 2, "c": 1}, 104.0)
    assert pulse.doubtful(105.0, PATIENCE)


def test_while_a_connection_is_free_there_is_no_silence() -> None:
    pulse = silent_since(100.0)
    assert not pulse.listen({}, 104.0)
    assert not listens(pulse, 104.1)
    assert not pulse.doubtful(109.0, PATIENCE)


def test_one_probe_at_a_time() -> None:
    pulse = silent_since(100.0)
    pulse.probe(105.0)
    assert not pulse.doubtful(1000.0, PATIENCE)


def test_a_probe_that_fails_means_frozen_until_something_is_heard() -> None:
    pulse = silent_since(100.0)
    pulse.probe(105.0)
    assert pulse.did_not()
    assert pulse.frozen
    assert not pulse.doubtful(1000.0, PATIENCE)
    pulse.alive(120.0)
    assert not pulse.frozen


def test_a_probe_that_fails_though_something_was_heard_meanwhile_means_nothing() -> None:
    pulse = silent_since(100.0)
    pulse.probe(105.0)
    assert listens(pulse, 106.0, a=2)
    assert not pulse.did_not()
    assert not pulse.frozen


def test_a_living_origin_with_long_queries_is_probed_less_and_less_often() -> None:
    pulse = silent_since(0.0)
    probed = []
    for second in range(400):
        if pulse.doubtful(float(second), PATIENCE):
            pulse.probe(float(second))
            pulse.got_through(float(second))
            probed.append(second)
        listens(pulse, float(second))
    assert probed[:4] == [5, 15, 35, 75]
    assert {later - earlier for earlier, later in pairwise(probed[4:])} == {LONGEST_SILENCE}
    assert listens(pulse, 400.0, a=5)
    assert pulse.doubtful(405.0, PATIENCE)  # something was heard: it begins anew
