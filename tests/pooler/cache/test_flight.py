"""Single flight: one asks, everybody is served; nobody waits for ever, and nobody is told what was before a write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from config.cache import Cache
from pooler.cache.entry import Entry
from pooler.cache.flight import MAX_FAILURES, Flight, Flights
from pooler.cache.policy import Policies
from pooler.cache.store import Store

TABLES = (1, 2)


class Client:
    """A waiter that writes down what it is told, and may act on it."""

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.told: list[Any] = []
        self.then: Callable[[], None] = lambda: None

    def land(self, entry: Entry) -> None:
        self.told.append(entry.rows)
        self.then()

    def lead(self, flight: Flight | None) -> None:
        self.told.append(flight)
        self.then()

    def ask(self, now: float = 0.0) -> Flight:
        return self.tower.flights.join("key", self, now, "shop", TABLES)


class Tower:
    def __init__(self) -> None:
        self.store = Store(1 << 20, 1 << 16)
        self.policy = Policies(Cache(), self.store).default
        self.flights = Flights(self.store, wait=5.0)

    def client(self) -> Client:
        return Client(self)

    def clients(self, count: int) -> list[Client]:
        return [Client(self) for _ in range(count)]

    def entry(self, flight: Flight, rows: bytes = b"rows") -> Entry:
        return self.store.make(
            ("key", b""), [rows], None, b"tag", database="shop", stamp=flight.stamp, sent_at=0.0, policy=self.policy,
            tables=TABLES,
        )  # fmt: skip


@pytest.fixture
def tower() -> Tower:
    return Tower()


def test_of_a_thousand_who_miss_one_asks_and_all_are_served(tower: Tower) -> None:
    clients = tower.clients(1000)
    flights = [client.ask() for client in clients]
    assert [flight.leader is client for flight, client in zip(flights, clients, strict=True)] == [True] + [False] * 999
    tower.flights.landed(flights[0], tower.entry(flights[0]))
    assert clients[0].told == []
    assert all(client.told == [b"rows"] for client in clients[1:])
    assert (tower.flights.led, tower.flights.joined, tower.flights.served) == (1, 999, 999)
    assert (len(tower.flights), tower.flights.waiting) == (0, 0)


def test_after_the_landing_the_next_asker_leads_again(tower: Tower) -> None:
    first, second = tower.clients(2)
    flight = first.ask()
    tower.flights.landed(flight, tower.entry(flight))
    assert second.ask().leader is second


def test_if_the_leader_fails_the_first_who_waits_leads_and_the_rest_wait_on(tower: Tower) -> None:
    leader, heir, last = tower.clients(3)
    flight = leader.ask()
    heir.ask()
    last.ask()
    tower.flights.failed(flight)
    assert heir.told == [flight]
    assert flight.leader is heir
    assert last.told == []
    tower.flights.landed(flight, tower.entry(flight))
    assert heir.told == [flight]
    assert last.told == [b"rows"]


def test_a_statement_that_always_fails_does_not_fail_one_client_after_the_other(tower: Tower) -> None:
    clients = tower.clients(100)
    flight = clients[0].ask()
    for client in clients[1:]:
        client.ask()
    for _ in range(MAX_FAILURES - 1):
        tower.flights.failed(flight)
    assert [client.told for client in clients[1:]] == [[flight]] * (MAX_FAILURES - 1) + [[]] * (100 - MAX_FAILURES)
    tower.flights.failed(flight)
    assert [client.told for client in clients[MAX_FAILURES:]] == [[None]] * (100 - MAX_FAILURES)
    assert len(tower.flights) == 0


def test_an_answer_that_nobody_can_share_sends_everybody_to_the_origin(tower: Tower) -> None:
    leader, second, third = tower.clients(3)
    flight = leader.ask()
    second.ask()
    third.ask()
    tower.flights.disperse(flight)
    assert second.told == third.told == [None]
    assert len(tower.flights) == 0


def test_who_asks_after_a_write_is_not_given_an_answer_from_before_it(tower: Tower) -> None:
    early, waiting, late, later = tower.clients(4)
    flight = early.ask()
    waiting.ask()
    tower.store.invalidate_tables("shop", [2])
    second = late.ask()
    assert second.leader is late
    assert later.ask() is second
    entry = tower.entry(flight, b"old")
    assert not tower.store.put(entry)
    tower.flights.landed(flight, entry)
    assert waiting.told == [b"old"], "it asked before the write"
    assert late.told == later.told == []
    tower.flights.landed(second, tower.entry(second, b"new"))
    assert later.told == [b"new"]


def test_a_write_to_another_table_does_not_part_the_flight(tower: Tower) -> None:
    early, late = tower.clients(2)
    flight = early.ask()
    tower.store.invalidate_tables("shop", [3])
    assert late.ask() is flight


def test_a_write_while_the_leader_waits_for_a_connection_does_not_part_the_flight(tower: Tower) -> None:
    early, late = tower.clients(2)
    flight = early.ask()
    tower.store.invalidate_tables("shop", [2])
    tower.flights.departed(flight)
    assert late.ask() is flight
    assert tower.store.put(tower.entry(flight))


def test_a_waiter_may_leave_and_is_not_called_then(tower: Tower) -> None:
    leader, gone, stays = tower.clients(3)
    flight = leader.ask()
    gone.ask()
    stays.ask()
    tower.flights.leave(flight, gone)
    tower.flights.leave(flight, gone)
    tower.flights.landed(flight, tower.entry(flight))
    assert gone.told == []
    assert stays.told == [b"rows"]


def test_a_leader_that_leaves_is_followed_by_the_next(tower: Tower) -> None:
    leader, heir = tower.clients(2)
    flight = leader.ask()
    heir.ask()
    tower.flights.leave(flight, leader)
    assert heir.told == [flight]
    tower.flights.leave(flight, heir)
    assert len(tower.flights) == 0


def test_a_leader_that_leaves_after_the_landing_changes_nothing(tower: Tower) -> None:
    leader, waiter = tower.clients(2)
    flight = leader.ask()
    waiter.ask()
    waiter.then = lambda: tower.flights.leave(flight, leader)
    other = tower.client()
    other.ask()
    tower.flights.landed(flight, tower.entry(flight))
    assert waiter.told == other.told == [b"rows"]


def test_who_has_waited_too_long_asks_for_itself(tower: Tower) -> None:
    leader, early, late = tower.clients(3)
    flight = leader.ask(0.0)
    early.ask(1.0)
    late.ask(3.0)
    tower.flights.expire(5.9)
    assert early.told == []
    tower.flights.expire(6.0)
    assert early.told == [None]
    assert late.told == []
    tower.flights.landed(flight, tower.entry(flight))
    assert early.told == [None]
    assert late.told == [b"rows"]
    assert tower.flights.expired == 1


def test_who_left_and_came_back_has_the_whole_time_again(tower: Tower) -> None:
    leader, waiter = tower.clients(2)
    flight = leader.ask(0.0)
    waiter.ask(1.0)
    tower.flights.leave(flight, waiter)
    waiter.ask(4.0)
    tower.flights.expire(6.0)
    assert waiter.told == []
    tower.flights.expire(9.0)
    assert waiter.told == [None]


def test_a_waiter_that_is_served_may_ask_again_at_once_and_make_others_leave(tower: Tower) -> None:
    leader, eager, gone = tower.clients(3)
    flight = leader.ask()
    eager.ask()
    gone.ask()
    again: list[Flight] = []

    def then() -> None:
        again.append(eager.ask())
        tower.flights.leave(flight, gone)

    eager.then = then
    tower.flights.landed(flight, tower.entry(flight))
    assert again[0] is not flight
    assert again[0].leader is eager
    assert gone.told == []


def test_a_waiter_that_raises_does_not_leave_the_others_waiting_for_ever(tower: Tower) -> None:
    leader, bad, good = tower.clients(3)
    flight = leader.ask()
    bad.ask()
    good.ask()

    def fail() -> None:
        raise RuntimeError

    bad.then = fail
    with pytest.raises(RuntimeError):
        tower.flights.landed(flight, tower.entry(flight))
    tower.flights.expire(5.0)
    assert good.told == [None]


class AgainstTheTruth(RuleBasedStateMachine):
    """Whoever asks is served with what was true when it asked or later, or leads, or is sent to ask for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()
        self.version = 0
        self.now = 0.0
        self.asked: dict[Client, int] = {}
        self.flying: dict[Client, tuple[Flight, int]] = {}
        self.waits: dict[Client, Flight] = {}

    @rule()
    def ask(self) -> None:
        client = Client(self.tower)
        client.then = lambda: self.told(client)
        self.asked[client] = self.version
        flight = client.ask(self.now)
        if flight.leader is client:
            self.flying[client] = flight, self.version
        else:
            self.waits[client] = flight

    def told(self, client: Client) -> None:
        del self.waits[client]
        word = client.told[-1]
        if isinstance(word, bytes):
            assert int(word) >= self.asked[client]
        elif word is not None:
            assert word.leader is client
            self.flying[client] = word, self.version

    @rule()
    def write(self) -> None:
        self.version += 1
        self.tower.store.invalidate_tables("shop", [TABLES[0]])

    @precondition(lambda self: self.flying)
    @rule(data=strategies.data(), how=strategies.sampled_from(["landed", "failed", "leave", "disperse"]))
    def end(self, data: strategies.DataObject, how: str) -> None:
        clients = list(self.flying)
        client = clients[data.draw(strategies.integers(0, len(clients) - 1))]
        flight, version = self.flying.pop(client)
        if how == "landed":
            self.tower.flights.landed(flight, self.tower.entry(flight, b"%d" % version))
        elif how == "leave":
            self.tower.flights.leave(flight, client)
        else:
            getattr(self.tower.flights, how)(flight)

    @precondition(lambda self: self.waits)
    @rule(data=strategies.data())
    def leave(self, data: strategies.DataObject) -> None:
        clients = list(self.waits)
        client = clients[data.draw(strategies.integers(0, len(clients) - 1))]
        self.tower.flights.leave(self.waits.pop(client), client)

    @rule(seconds=strategies.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tower.flights.expire(self.now)

    @invariant()
    def whoever_waits_has_a_leader_that_asks(self) -> None:
        for client, flight in self.waits.items():
            assert client in flight.waiting
            assert flight.leader in self.flying


AgainstTheTruth.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAgainstTheTruth = AgainstTheTruth.TestCase
