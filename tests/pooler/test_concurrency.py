"""How many connections work at once, with origins that are arithmetic: so many transactions a second at each limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooler.concurrency import STEP, Limit

SIZE, LEAST = 20, 5
LOOK = 0.1

Curve = Callable[[float], float]
"""Transactions a second that an origin finishes, by the connections that take turns."""


@dataclass
class Simulation:
    """A pool in front of an origin. Chance moves what is finished by about a tenth."""

    limit: Limit = field(default_factory=Limit)
    now: float = 0.0
    finished: float = 0.0
    random: Random = field(default_factory=lambda: Random(1))

    def __post_init__(self) -> None:
        self.limit.adopt(SIZE, LEAST, 2.0)
        self.allowed = SIZE

    def run(
        self, seconds: float, capacity: Curve, *, demand: float = 1e9, lasting: int = 0, noise: float = 0.1
    ) -> list[int]:
        """How many connections were allowed, at each look."""
        seen = []
        end = self.now + seconds
        while self.now < end:
            rate = capacity(max(0, self.allowed - lasting))
            pace = min(rate, demand) * max(0.0, self.random.gauss(1.0, noise))
            self.now += LOOK
            self.finished += pace * LOOK
            self.allowed = self.limit.look(
                self.now, int(self.finished), waiting=demand > rate, whole=True, lasting=lasting
            )
            seen.append(self.allowed)
        return seen


def healthy(busy: float) -> float:
    """Four processors: more than four connections at work do not make it faster, and not slower."""
    return 1000.0 * min(busy, 4) / 4


def contended(busy: float) -> float:
    """Each connection more makes all of them slower."""
    return 300.0 * (1.0 - 0.03 * (busy - 5))


def far_away(busy: float) -> float:
    """Each connection finishes as much as it does alone: only the way has become longer."""
    return 15.0 * busy


@given(st.lists(st.tuples(st.floats(1, 30), st.floats(10, 3000)), min_size=1, max_size=20), st.integers(0, 100))
def test_with_a_healthy_origin_the_limit_is_the_pools_size_whatever_is_asked_of_it(
    phases: list[tuple[float, float]], seed: int
) -> None:
    simulation = Simulation(random=Random(seed))
    for seconds, demand in phases:
        assert set(simulation.run(seconds, healthy, demand=demand)) == {SIZE}


def test_an_origin_that_has_slowed_down_by_contention_has_less_to_do_at_once_and_all_again_when_it_is_well() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    seen = simulation.run(60, contended)
    assert seen[-1] < SIZE * STEP
    assert min(seen) >= LEAST
    seen = simulation.run(15, healthy)
    assert seen[-1] == SIZE


def test_an_origin_that_has_become_slow_by_its_distance_loses_next_to_nothing() -> None:
    """Fewer connections would make it slower still: that is tried now and then, and taken back."""
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    before = simulation.finished
    seen = simulation.run(600, far_away)
    assert simulation.finished - before > 0.93 * 600 * far_away(SIZE)
    assert seen.count(SIZE) > 0.75 * len(seen)


def test_a_limit_does_not_outlive_its_reason_though_the_origin_stays_slow() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    assert simulation.run(60, contended)[-1] < SIZE
    assert SIZE in simulation.run(200, far_away)


def test_reports_that_hold_most_connections_leave_the_others_their_turns() -> None:
    """15 of 20 connections work on reports: the pace is a quarter, no step down may hit the five that take turns."""
    simulation = Simulation()
    simulation.run(60, lambda busy: 50.0 * busy, demand=900)
    assert set(simulation.run(300, lambda busy: 50.0 * busy, lasting=15)) == {SIZE}


def test_a_few_reports_do_not_count() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    seen = simulation.run(100, contended, lasting=4)
    assert min(seen) >= LEAST + 4


@pytest.mark.parametrize("pace", [0.0, 0.5, 3.0])
def test_with_few_transactions_nothing_is_changed(pace: float) -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    assert set(simulation.run(600, lambda busy: pace)) == {SIZE}


def test_a_step_down_after_which_nothing_moves_is_taken_back_within_little_more_than_a_second() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    seen = simulation.run(120, lambda busy: 200.0 if busy >= SIZE else 1.0)
    lowered = [index for index, allowed in enumerate(seen) if allowed < SIZE]
    assert lowered
    longest = run = 0
    for allowed in seen:
        run = run + 1 if allowed < SIZE else 0
        longest = max(longest, run)
    assert longest * LOOK < 1.5


def test_when_nobody_waits_the_limit_is_lifted() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    assert simulation.run(60, contended)[-1] < SIZE
    assert simulation.run(15, contended, demand=1)[-1] == SIZE


def test_where_it_is_slow_for_long_that_becomes_the_usual() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    usual = simulation.limit.usual
    simulation.run(3600, lambda busy: 100.0)
    assert simulation.limit.usual < usual / 5
    assert simulation.allowed == SIZE


def test_other_bounds_hold_at_once() -> None:
    simulation = Simulation()
    simulation.run(60, healthy, demand=900)
    assert simulation.run(60, contended)[-1] < SIZE
    simulation.limit.adopt(30, 30, 2.0)
    assert set(simulation.run(60, contended)) == {30}
