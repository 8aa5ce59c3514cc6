"""Turns in the queue for a connection, and how long a wait is expected to be."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pooler.queue import LEAST_GRANTS, WaitQueue


@dataclass(frozen=True)
class Waiter:
    user: str
    number: int = 0
    patience: float = 10.0


def queue(*users: str, servers: int = 1) -> WaitQueue[Waiter]:
    made: WaitQueue[Waiter] = WaitQueue(servers)
    for number, user in enumerate(users):
        made.push(Waiter(user, number), float(number))
    return made


def pop(made: WaitQueue[Waiter], now: float) -> Waiter:
    waiter = made.head()
    assert waiter is not None
    made.serve(waiter, now)
    return waiter


def served(made: WaitQueue[Waiter]) -> list[tuple[str, int]]:
    return [(waiter.user, waiter.number) for waiter in (pop(made, 100.0) for _ in range(len(made)))]


def test_one_users_waiters_are_served_in_the_order_they_came() -> None:
    assert served(queue("a", "a", "a")) == [("a", 0), ("a", 1), ("a", 2)]


def test_one_users_flood_does_not_starve_another() -> None:
    made = queue("flood", "flood", "flood", "flood", "calm")
    assert served(made) == [("flood", 0), ("calm", 4), ("flood", 1), ("flood", 2), ("flood", 3)]


def test_users_take_turns_however_they_come_and_go() -> None:
    made = queue("a", "a", "b", "c", "b")
    assert pop(made, 9.0) == Waiter("a", 0)
    made.push(Waiter("d", 5), 9.0)
    assert [user for user, _ in served(made)] == ["b", "c", "a", "d", "b"]


def test_who_withdraws_is_never_served() -> None:
    made = queue("a", "b", "a")
    assert made.withdraw(Waiter("b", 1))
    assert not made.withdraw(Waiter("b", 1))
    assert not made.withdraw(Waiter("stranger"))
    assert (len(made), list(made.users)) == (2, ["a"])
    assert served(made) == [("a", 0), ("a", 2)]
    assert not made.users


def test_whose_turn_among_some_leaves_the_others_alone() -> None:
    made = queue("a", "admin", "a")
    found = made.head({"admin", "root"})
    assert found == Waiter("admin", 1)
    assert made.serve(found, 9.0) == 1.0
    assert made.head({"admin", "root"}) is None
    assert len(made) == 2


def test_everybody_who_waits_is_known_with_the_time() -> None:
    made = queue("a", "a", "b")
    assert sorted((since, waiter.user) for since, waiter in made) == [(0.0, "a"), (1.0, "a"), (2.0, "b")]
    assert made.oldest() == 0.0
    made.withdraw(Waiter("a", 0))
    assert (len(made), made.oldest()) == (2, 1.0)
    assert made.clear() == [Waiter("a", 1), Waiter("b", 2)]
    assert (len(made), made.oldest()) == (0, None)


# ---- the expected wait -----------------------------------------------------------------------------------------------


def at_pace(seconds_each: float, *, count: int = LEAST_GRANTS, left: int = 100, user: str = "a") -> WaitQueue[Waiter]:
    """A queue with `left` waiters from which `count` were served, one each `seconds_each` from 0 on."""
    made = queue(*[user] * (left + count))
    for number in range(count):
        pop(made, seconds_each * number)
    return made


def test_the_expected_wait_is_how_many_are_ahead_at_the_pace_so_far() -> None:
    made = at_pace(0.1)
    assert round(made.expected_wait("a", 0.1 * LEAST_GRANTS, 10.0), 3) == 10.1


def test_before_a_few_were_served_nothing_is_expected() -> None:
    assert at_pace(0.1, count=LEAST_GRANTS - 1).expected_wait("a", 2.4, 10.0) == 0.0
    assert WaitQueue[Waiter](10).expected_wait("a", 2.4, 10.0) == 0.0


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("servers", [1, 5, 20])
def test_who_would_be_served_in_time_is_never_thought_hopeless_where_queries_take_alike(
    seconds: float, servers: int
) -> None:
    """Each of `servers` connections is free every so many seconds. Who comes when the queue forms, and last, is right
    to wait for as long as that takes.
    """
    made = queue(servers=servers)
    count = 10 * servers
    patience = seconds * count / servers
    for number in range(count):
        made.push(Waiter("a", number, patience), 0.0)
    for turn in range(1, 11):
        assert not made.hopeless(seconds * turn - 1e-6)
        for _ in range(servers):
            pop(made, seconds * turn)
    assert not made.users


def test_an_origin_that_has_slowed_down_shows_long_before_its_pace_is_known() -> None:
    """20 connections and a second for each query: 1,000 waiters take 50 s, and 40 s of patience are not enough."""
    made = queue(servers=20)
    for number in range(1000):
        made.push(Waiter("a", number, 40.0), 0.0)
    for turn in range(1, 11):
        for _ in range(20 * (turn > 1)):
            pop(made, float(turn - 1))
        if turn == 10:
            assert made.expected_wait("a", 10.0, 40.0) > 40.0
    assert made.hopeless(10.0)


def test_a_standstill_that_is_short_beside_their_patience_makes_nobody_leave() -> None:
    made = queue(servers=20)
    for number in range(1000):
        made.push(Waiter("a", number, 10.0), 0.0)
    assert not made.hopeless(2.4)
    assert made.expected_wait("a", 2.4, 10.0) == 0.0
    leaving = made.hopeless(2.6)  # a second standstill like this one for each turn of 20, and luck
    assert 500 < len(leaving) < 950


def test_who_leaves_first_are_the_last_of_those_who_ask_for_much() -> None:
    made = queue(*["flood"] * 300, "calm", servers=2)
    assert made.withdraw(Waiter("calm", 300))
    made = queue(servers=2)
    for number in range(300):
        made.push(Waiter("flood", number), 0.0)
    made.push(Waiter("calm"), 0.0)
    leaving = [waiter for waiter, _, _ in made.hopeless(3.0)]
    assert leaving
    assert all(waiter.user == "flood" for waiter in leaving)
    assert [waiter.number for waiter in leaving] == list(range(299, 299 - len(leaving), -1))


def test_the_patient_may_be_served_once_the_impatient_have_left() -> None:
    made = queue(servers=1)
    for number in range(100):
        made.push(Waiter("hasty", number, 4.0), 0.0)
        made.push(Waiter("patient", number, 100.0), 0.0)
    leaving = {waiter.user for waiter, _, _ in made.hopeless(30.0)}
    assert leaving == {"hasty"}


def test_time_in_which_nobody_could_be_served_does_not_count() -> None:
    made = queue(servers=2)
    for number in range(300):
        made.push(Waiter("a", number), 0.0)
    made.start_over(60.0)
    assert not made.hopeless(62.0, free_since=60.0)
    assert made.hopeless(63.0, free_since=60.0)


def test_a_user_who_asks_little_waits_for_turns_not_for_the_flood() -> None:
    made = at_pace(0.1)
    assert round(made.expected_wait("b", 0.1 * LEAST_GRANTS, 10.0), 3) == 0.2


def test_a_standstill_lengthens_the_expected_wait() -> None:
    made = at_pace(0.01)
    assert made.expected_wait("a", 0.2, 10.0) < 2 < made.expected_wait("a", 5.0, 10.0)


def test_a_pace_from_before_the_queue_was_empty_counts_no_more() -> None:
    made = at_pace(10.0, left=0)
    made.push(Waiter("a"), 1e6)
    assert made.expected_wait("a", 1e6 + 2, 10.0) == 0.0


def test_the_pace_follows_a_server_that_got_faster() -> None:
    made = at_pace(1.0, left=1000)
    now = float(LEAST_GRANTS)
    for _ in range(300):
        now += 0.001
        pop(made, now)
    assert made.expected_wait("a", now, 10.0) < 5
