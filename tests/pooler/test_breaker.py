"""The circuit breaker's promises, on a clock of the test's own."""

from __future__ import annotations

import pytest

from pooler.breaker import Breaker, State


def breaker(**changed: float) -> Breaker:
    values = {"failures": 3, "timeout_rate": 0.5, "retry_after": 1.0, "retry_at_most": 5.0, **changed}
    return Breaker(int(values.pop("failures")), **values)


def opened(at: float = 100.0, **changed: float) -> Breaker:
    made = breaker(**changed)
    assert [made.failed(at) for _ in range(3)] == [False, False, True]
    return made


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    made = breaker()
    for _ in range(10):
        assert not made.failed(0.0)
        assert not made.failed(0.0)
        assert not made.succeeded()
    assert made.may_try(0.0)
    assert made.opened == 0


def test_open_it_allows_nothing_until_the_time_it_names() -> None:
    made = opened(at=100.0)
    assert made.state is State.OPEN
    assert not made.may_try(100.99)
    assert made.retry_in(100.25) == 0.75
    assert made.may_try(101.0)


def test_half_open_it_allows_one_probe() -> None:
    made = opened(at=100.0)
    made.begin()
    assert made.state is State.HALF_OPEN
    assert not made.may_try(1e9)


def test_a_probe_that_succeeds_closes_it() -> None:
    made = opened()
    made.begin()
    assert made.succeeded()
    assert made.closed
    assert made.may_try(0.0)
    assert [made.failed(0.0) for _ in range(2)] == [False, False]  # it takes as many failures again


def test_each_probe_that_fails_doubles_the_wait_up_to_the_most() -> None:
    made = opened(at=0.0)
    waits = [made.retry_in(0.0)]
    for _ in range(4):
        made.begin()
        assert made.failed(0.0)
        waits.append(made.retry_in(0.0))
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    made.begin()
    made.succeeded()
    assert [made.failed(0.0) for _ in range(3)][-1]
    assert made.retry_in(0.0) == 1.0  # and the next time it opens begins with the first wait
    assert made.opened == 2


def test_an_origin_that_says_no_at_once_is_asked_again_as_soon() -> None:
    """A server that was away for ten seconds was found up to eight seconds after it was back."""
    made = opened(at=0.0)
    for _ in range(4):
        made.begin()
        assert made.failed(0.0, at_once=True)
        assert made.retry_in(0.0) == 1.0
    made.begin()
    assert made.failed(0.0)
    assert made.retry_in(0.0) == 2.0


def test_attempts_from_before_it_opened_neither_reopen_it_nor_prolong_it() -> None:
    made = opened(at=0.0)
    assert not made.failed(0.9)
    assert made.may_try(1.0)


def test_an_attempt_from_before_it_opened_that_succeeds_closes_it() -> None:
    made = opened()
    assert made.succeeded()
    assert made.closed


def test_timeouts_among_successes_open_it_by_their_rate() -> None:
    made = breaker(failures=100)
    made.succeeded()
    assert not made.failed(0.0, timed_out=True)
    assert not made.failed(0.0, timed_out=True)
    made.succeeded()  # one in two, so far
    assert made.failed(0.0, timed_out=True)
    made.begin()
    made.succeeded()
    assert not made.failed(0.0, timed_out=True)  # what was before it closed counts no more


@pytest.mark.parametrize("changed", [{"timeout_rate": 1.0, "failures": 1000}, {"failures": 0}])
def test_either_reason_can_be_turned_off(changed: dict[str, float]) -> None:
    made = breaker(**changed)
    for _ in range(100):
        assert not made.failed(0.0, timed_out=True)
    assert made.closed
