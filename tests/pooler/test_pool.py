"""The pool's decisions, with no sockets: who gets a connection, who is refused at once, who has some in reserve."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import config
from pooler import demotion, outage, upkeep
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.settings import DEFAULTS, Reports
from pooler.stats import Stats
from pooler.unit import Unit
from protocol import errors
from protocol.responses import PgError
from tests.support.compiled import needs_stand_ins

pytestmark = needs_stand_ins

UNREACHABLE = errors.origin_unreachable("Connection refused")


class Client:
    """Somebody who asks a pool for connections."""

    settings = DEFAULTS
    traces: frozenset[str] = frozenset()
    insists = False
    patience = 10.0

    def __init__(self, user: str = "app") -> None:
        self.user = user
        self.origin: Origin | None = None
        self.error: PgError | None = None

    def granted(self, origin: Origin) -> None:
        self.origin = origin

    def refused(self, error: PgError) -> None:
        self.error = error


class Bench:
    """A pool whose ceremonies come to an end when the test says so."""

    def __init__(self, **settings: Any) -> None:
        flags = {"origin": "postgresql://app:x@127.0.0.1/shop", "pool_size": 2, "min_pool_size": 0, **settings}
        made = config.load(flags=flags, environ={})
        (target,) = made.targets().values()
        self.attempts = 0
        self.probes = 0
        self.began: list[float] = []  # of the attempts that are under way
        self.later: list[Callable[[], None]] = []
        self.pool = Pool("shop", target, made, Stats(), self)

    def connect(self, pool: Pool) -> None:
        self.attempts += 1
        self.began.append(Bench.now)

    def probe(self, pool: Pool) -> None:
        self.probes += 1

    def reset(self, pool: Pool, origin: Origin) -> None:
        raise AssertionError("nothing is dirty here")

    def soon(self, function: Callable[[], None]) -> None:
        self.later.append(function)

    def settle(self) -> None:
        while self.later:
            self.later.pop(0)()

    def succeed(self) -> Origin:
        """A connection is made; the one that was asked for first, if any was."""
        del self.began[:1]
        transport: Any = SimpleNamespace(has_news=lambda: False, close=lambda: None)
        origin = Origin(transport, self.pool, 1, b"", Reports.of({}))
        self.pool.connected(origin)
        return origin

    def fail(self, times: int = 1, *, absent: bool = True) -> None:
        for _ in range(times):
            self.pool.connect_failed(UNREACHABLE, begun=self.began.pop(0), absent=absent)
        self.settle()

    def ask(self, user: str = "app") -> Client:
        client = Client(user)
        client.origin = self.pool.acquire(client)
        self.settle()
        return client

    def tick(self) -> None:
        upkeep.tick(self.pool, Bench.now)
        self.settle()

    now = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "now", 1000.0)
    for module in ("pool", "upkeep"):
        monkeypatch.setattr(f"pooler.{module}.monotonic", lambda: Bench.now)


# ---- the breaker -----------------------------------------------------------------------------------------------------


def test_behind_an_open_breaker_a_query_fails_at_once_and_is_told_when_to_come_again() -> None:
    bench = Bench(**{"breaker.failures": 3})
    for _ in range(3):
        assert bench.ask().error is None
        bench.fail()
    attempts = bench.attempts
    client = bench.ask()
    assert client.error is not None
    assert client.error.sqlstate == "57P03"
    assert client.error.message.endswith("Connection refused; the next attempt is in 1.0 s")
    assert bench.attempts == attempts
    assert bench.pool.waiting_count == 0


def test_a_query_is_never_refused_while_it_still_asks() -> None:
    """The session keeps what the client sent only after `acquire` has said no."""
    bench = Bench(**{"breaker.failures": 1})
    bench.ask()
    bench.fail()
    client = Client()
    assert bench.pool.acquire(client) is None
    assert client.error is None
    bench.pool.withdraw(client)  # it leaves before it heard
    bench.settle()
    assert client.error is None


def test_the_probe_is_one_and_nobody_has_to_ask_for_it() -> None:
    bench = Bench(**{"breaker.failures": 1})
    bench.ask()
    bench.fail()
    attempts = bench.attempts
    Bench.now += 0.9
    bench.tick()
    assert bench.attempts == attempts
    Bench.now += 0.2
    bench.tick()
    bench.tick()
    assert bench.attempts == attempts + 1
    assert bench.ask().error is not None  # half-open: still at once
    bench.succeed()
    assert bench.ask().origin is not None
    assert bench.pool.breaker.closed


def test_after_a_failed_connection_another_is_tried_though_one_exists() -> None:
    """Who waited for a second connection waited until the first became free: a failure was never followed by a try."""
    bench = Bench()
    holder = bench.ask()
    bench.succeed()
    assert holder.origin is not None
    waiter = bench.ask()
    bench.fail()
    assert waiter.error is None
    attempts = bench.attempts
    bench.tick()
    assert bench.attempts == attempts + 1
    second = bench.succeed()
    assert waiter.origin is second


def test_who_came_behind_a_failing_attempts_beginning_has_one_of_its_own() -> None:
    """It was refused together with those for whom the attempt was made, ten seconds before it asked perhaps."""
    bench = Bench(pool_size=1)
    early = bench.ask()
    Bench.now += 9.9
    late = bench.ask()
    assert bench.attempts == 1  # there is room for one
    bench.fail()
    assert early.error is not None
    assert late.error is None
    assert bench.attempts == 2
    made = bench.succeed()
    assert late.origin is made


def test_an_attempt_that_nobody_had_asked_for_is_no_attempt_for_who_comes_later() -> None:
    bench = Bench(min_pool_size=1)
    bench.pool.open_one()
    Bench.now += 1
    waiter = bench.ask()
    bench.fail()
    assert waiter.error is None
    made = bench.succeed()
    assert waiter.origin is made


def test_who_came_late_hears_it_all_the_same_where_the_failure_opens_the_breaker() -> None:
    bench = Bench(pool_size=1, **{"breaker.failures": 1})
    bench.ask()
    Bench.now += 1
    late = bench.ask()
    bench.fail()
    assert late.error is not None
    assert late.error.sqlstate == "57P03"


def test_who_waits_while_the_last_connection_goes_is_not_left_waiting() -> None:
    bench = Bench(**{"breaker.failures": 2})
    holder = bench.ask()
    origin = bench.succeed()
    waiter = bench.ask()
    bench.fail()
    bench.tick()
    bench.fail()
    assert holder.origin is origin
    assert waiter.error is None  # the connection that works may still become free
    origin.close()
    bench.settle()
    assert waiter.error is not None
    assert waiter.error.sqlstate == "57P03"


def test_open_it_keeps_no_connection_that_works_from_working() -> None:
    bench = Bench(**{"breaker.failures": 1})
    holder = bench.ask()
    origin = bench.succeed()
    waiter = bench.ask()
    bench.fail()
    assert not bench.pool.breaker.closed
    assert holder.origin is origin
    bench.pool.release(origin)
    assert waiter.origin is origin


# ---- an origin that is not back yet when its pause is over -----------------------------------------------------------


def resumed_too_early() -> tuple[Bench, Client]:
    """The origin went, the breaker opened, and somebody has asked during the pause and waits."""
    bench = Bench(pool_size=1, **{"breaker.failures": 1})
    bench.ask()
    bench.fail()
    upkeep.hold(bench.pool)
    waiter = bench.ask()
    Bench.now += 30
    bench.tick()
    upkeep.let_go(bench.pool)
    bench.settle()
    assert bench.began  # tried at once, whenever the breaker had meant to
    bench.fail()
    assert not bench.pool.breaker.closed
    return bench, waiter


def test_who_waited_through_a_pause_waits_until_the_origin_is_back_and_so_does_who_comes_then() -> None:
    bench, waiter = resumed_too_early()
    late = bench.ask()
    attempts = bench.attempts
    Bench.now += 0.5
    bench.tick()
    assert bench.attempts == attempts  # no sooner than the breaker says
    Bench.now += 5
    bench.tick()
    assert bench.attempts == attempts + 1
    assert (waiter.error, late.error) == (None, None)
    made = bench.succeed()
    assert waiter.origin is made
    bench.pool.release(made)
    assert late.origin is made
    made.close()
    bench.tick()
    assert bench.ask().error is None
    bench.fail()
    assert bench.ask().error is not None  # the origin was back; what happens from then on is an outage like any other


def test_an_origin_that_stays_away_is_waited_for_no_longer_than_pool_wait_timeout() -> None:
    bench, waiter = resumed_too_early()
    Bench.now += 9
    late = bench.ask()
    bench.tick()
    bench.fail()
    assert (waiter.error, late.error) == (None, None)
    Bench.now += 1.1
    bench.tick()
    for client in (waiter, late, bench.ask()):
        assert client.error is not None
        assert (client.error.sqlstate, "Connection refused" in client.error.message) == ("57P03", True)


def test_an_origin_that_is_there_and_says_no_is_not_waited_for() -> None:
    bench = Bench(pool_size=1)
    upkeep.hold(bench.pool)
    waiter = bench.ask()
    upkeep.let_go(bench.pool)
    bench.fail(absent=False)
    assert waiter.error is not None


# ---- an origin that says nothing -------------------------------------------------------------------------------------

TIMED_OUT = errors.origin_unreachable("no answer within 10 s (origin_connect_timeout)")


def silent() -> tuple[Bench, list[Origin], Client]:
    """Every connection owes an answer, and somebody waits."""
    bench, origins = busy()
    for origin in origins:
        origin.units.append(Unit(1.0, None))
    waiter = bench.ask()
    bench.tick()
    Bench.now += 5.1
    bench.tick()
    return bench, origins, waiter


def frozen() -> tuple[Bench, list[Origin], Client]:
    bench, origins, waiter = silent()
    outage.probe_failed(bench.pool, TIMED_OUT, Bench.now)
    bench.settle()
    return bench, origins, waiter


def test_while_all_connections_are_silent_one_more_is_tried() -> None:
    bench, _, waiter = silent()
    assert bench.probes == 1
    assert waiter.error is None
    bench.tick()
    assert bench.probes == 1


def test_an_origin_that_lets_the_probe_in_is_not_taken_for_frozen() -> None:
    bench, _, waiter = silent()
    outage.probe_got_through(bench.pool, Bench.now)
    bench.tick()
    assert waiter.error is None
    assert bench.pool.breaker.closed


def test_who_waits_for_a_frozen_origin_hears_so_at_once_and_whoever_comes_then() -> None:
    bench, origins, waiter = frozen()
    for client in (waiter, bench.ask()):
        assert client.error is not None
        assert client.error.sqlstate == "57P03"
        assert "; the next attempt is in 1.0 s" in client.error.message
        assert "breaker.silence" in str(client.error.detail)
    assert not any(origin.closed for origin in origins)  # what it works on is left to its own deadlines
    assert not bench.pool.ready


def test_a_frozen_origin_is_probed_though_the_pool_is_full() -> None:
    bench, _, _ = frozen()
    Bench.now += 1.1
    bench.tick()
    bench.tick()
    assert bench.probes == 2
    assert bench.ask().error is not None
    outage.probe_got_through(bench.pool, Bench.now)
    assert bench.pool.breaker.closed
    assert bench.pool.ready
    assert bench.ask().error is None


def test_each_probe_of_a_frozen_origin_that_fails_doubles_the_time_to_the_next() -> None:
    bench, _, _ = frozen()
    Bench.now += 1.1
    bench.tick()
    outage.probe_failed(bench.pool, TIMED_OUT, Bench.now)
    Bench.now += 1.9
    bench.tick()
    assert bench.probes == 2
    Bench.now += 0.2
    bench.tick()
    assert bench.probes == 3


def test_the_first_thing_that_a_frozen_origin_says_closes_the_breaker() -> None:
    bench, origins, _ = frozen()
    origins[1].received += 10
    bench.tick()
    assert bench.pool.breaker.closed
    assert bench.ask().error is None


def test_a_connection_that_ends_is_no_sign_of_life() -> None:
    bench, origins, _ = frozen()
    origins[1].close()
    bench.tick()
    assert not bench.pool.breaker.closed
    assert bench.ask().error is not None


def test_attempts_that_have_opened_the_breaker_are_probes_enough() -> None:
    """A host that vanished with some of the pool's connections: nobody is left waiting for those."""
    bench = Bench(pool_size=4, **{"breaker.failures": 2})
    bench.ask()
    origin = bench.succeed()
    origin.units.append(Unit(1.0, None))
    waiter = bench.ask()
    bench.tick()
    Bench.now += 5.1
    bench.fail()
    bench.tick()
    assert waiter.error is None
    bench.fail()
    bench.tick()
    bench.settle()
    assert waiter.error is not None
    assert waiter.error.sqlstate == "57P03"
    assert bench.probes == 0


def test_clients_who_are_silent_inside_their_transactions_are_no_reason_to_probe() -> None:
    bench, _ = busy()
    bench.ask()
    bench.tick()
    Bench.now += 60
    bench.tick()
    assert bench.probes == 0


@pytest.mark.parametrize("off", [{"breaker.silence": 0}, {"breaker.failures": 0}])
def test_silence_is_no_reason_where_it_or_the_breaker_is_turned_off(off: dict[str, int]) -> None:
    bench, origins = busy(**off, pool_wait_timeout=1000)
    for origin in origins:
        origin.units.append(Unit(1.0, None))
    bench.ask()
    bench.tick()
    Bench.now += 60
    bench.tick()
    assert bench.probes == 0


# ---- the queue -------------------------------------------------------------------------------------------------------


def busy(**settings: Any) -> tuple[Bench, list[Origin]]:
    """A pool whose every connection is at work."""
    bench = Bench(**settings)
    clients = [bench.ask("first") for _ in range(bench.pool.size)]
    origins = [bench.succeed() for _ in clients]
    assert all(client.origin for client in clients)
    return bench, origins


def test_more_waiters_than_max_waiting_are_refused_at_once() -> None:
    bench, _ = busy(max_waiting=3)
    waiting = [bench.ask() for _ in range(3)]
    late = bench.ask()
    assert [client.error for client in waiting] == [None] * 3
    assert late.error is not None
    assert (late.error.sqlstate, bench.pool.waiting_count) == ("53300", 3)
    assert "max_waiting" in str(late.error.hint)


def test_whose_wait_would_take_too_long_is_refused_at_once() -> None:
    bench, origins = busy(pool_wait_timeout="10s")
    flood = [bench.ask("flood") for _ in range(60)]
    for _ in range(30):  # five a second
        Bench.now += 0.2
        bench.pool.release(origins[0])
    assert sum(client.origin is not None for client in flood) == 30
    more = [bench.ask("flood") for _ in range(40)]
    refused = [client for client in more if client.error is not None]
    assert 10 < len(refused) < 30
    assert all(client.error and client.error.sqlstate == "53300" for client in refused)
    assert bench.ask("calm").error is None  # it waits for its turn, not for the flood


def test_a_waiter_whose_time_is_over_hears_53300() -> None:
    bench, _ = busy(pool_wait_timeout="10s")
    client = bench.ask()
    Bench.now += 10.1
    bench.tick()
    assert client.error is not None
    assert client.error.sqlstate == "53300"


def test_a_flood_does_not_take_the_others_turns() -> None:
    bench, origins = busy()
    flood = [bench.ask("flood") for _ in range(50)]
    calm = bench.ask("calm")
    bench.pool.release(origins[0])
    bench.pool.release(origins[1])
    assert flood[0].origin is not None
    assert calm.origin is not None


# ---- fewer at once ---------------------------------------------------------------------------------------------------


def test_a_lowered_limit_is_reached_as_connections_become_free_and_left_as_it_rises() -> None:
    bench, origins = busy(pool_size=4, **{"concurrency.adaptive": True})
    waiters = [bench.ask() for _ in range(4)]
    bench.pool.limit.value = bench.pool.allowed = 2
    for origin in origins:
        bench.pool.release(origin)
    assert [origin.closed for origin in origins] == [True, True, False, False]
    assert [waiter.origin is not None for waiter in waiters] == [True, True, False, False]
    attempts = bench.attempts
    bench.tick()
    assert bench.attempts == attempts
    bench.pool.limit.value = 4
    bench.tick()
    assert bench.attempts == attempts + 2


def test_without_adaptive_concurrency_the_limit_is_the_pools_size_and_a_reload_without_it_lifts_it() -> None:
    bench, _ = busy(pool_size=4, **{"concurrency.adaptive": True})
    assert (bench.pool.limit.least, bench.pool.allowed) == (2, 4)
    bench.pool.limit.value = bench.pool.allowed = 2
    off = config.load(flags={"origin": "postgresql://app:x@127.0.0.1/shop", "pool_size": 4}, environ={})
    bench.pool.adopt(off, 4)
    assert (bench.pool.limit.least, bench.pool.allowed) == (4, 4)
    bench.pool.finished += 10_000
    Bench.now += 100
    bench.tick()
    assert (bench.pool.limit.usual, bench.pool.allowed) == (0.0, 4)


# ---- the reserve -----------------------------------------------------------------------------------------------------


def reserved() -> tuple[Bench, list[Origin]]:
    return busy(reserve_pool_size=1, admin_users="app")


def test_an_administrator_gets_a_connection_when_all_are_busy_and_others_wait() -> None:
    bench, _ = reserved()
    others = [bench.ask("other") for _ in range(10)]
    admin = bench.ask("app")
    origin = bench.succeed()
    assert admin.origin is origin
    assert not any(client.origin for client in others)


def test_what_is_in_reserve_goes_to_administrators_alone() -> None:
    bench, origins = reserved()
    admin = bench.ask("app")
    reserve = bench.succeed()
    assert admin.origin is reserve
    other = bench.ask("other")
    bench.pool.release(reserve)
    assert other.origin is None
    assert (bench.pool.idle_count, bench.pool.busy_count) == (1, 2)
    assert bench.ask("app").origin is reserve
    bench.pool.release(origins[0])
    assert other.origin is origins[0]


def test_the_reserve_has_a_limit_too() -> None:
    bench, _ = reserved()
    assert bench.ask("app").error is None
    bench.succeed()
    attempts = bench.attempts
    bench.ask("app")
    assert bench.attempts == attempts


def test_a_reserve_that_was_lost_can_be_opened_again() -> None:
    bench, _ = reserved()
    bench.ask("app")
    bench.succeed().close()
    admin = bench.ask("app")
    again = bench.succeed()
    assert admin.origin is again


# ---- servers that change their role ----------------------------------------------------------------------------------

TWO_HOSTS = "postgresql://app:x@127.0.0.1,localhost/shop?target_session_attrs=primary"


def test_connections_to_a_server_that_is_no_longer_wanted_drain_and_others_stay() -> None:
    bench = Bench(origin=TWO_HOSTS, pool_size=3)
    first, second = bench.pool.target.each()
    clients = [bench.ask() for _ in range(3)]
    demoted, gone, other = (bench.succeed() for _ in clients)
    demoted.target = gone.target = first
    other.target = second
    bench.pool.release(gone)
    demoted.reports = Reports.of({"in_hot_standby": "on", "default_transaction_read_only": "off"})
    demotion.reported(bench.pool, demoted, "in_hot_standby")
    assert gone.closed
    assert not demoted.closed  # it works for somebody
    bench.pool.release(demoted)
    assert demoted.closed
    bench.pool.release(other)
    assert not other.closed


def test_who_waits_for_a_connection_that_drains_hears_that_there_is_no_other() -> None:
    bench = Bench(origin=TWO_HOSTS)
    bench.ask()
    origin = bench.succeed()
    origin.retired = True
    waiter = bench.ask()
    bench.fail()
    assert waiter.error is not None


# ---- pgnear's own work -----------------------------------------------------------------------------------------------


def test_pgnears_own_work_leaves_a_client_the_connection_that_it_had() -> None:
    """A look into the catalog took the connection that was used last, so that a client which made a table found
    another one behind it: without its backend's statistics, and without what an extension keeps in memory."""
    bench = Bench(pool_size=3)
    cold, own, other = (bench.succeed() for _ in range(3))
    client = bench.ask()
    assert client.origin is other
    bench.pool.release(other)

    assert bench.pool.acquire_coldest() is cold
    bench.pool.release_coldest(cold)
    assert bench.pool.idle == [cold, own, other]
    assert bench.pool.acquire_coldest() is cold
    assert bench.ask().origin is other


def test_pgnears_own_work_does_not_jump_the_queue() -> None:
    bench = Bench(pool_size=1)
    origin = bench.succeed()
    assert bench.pool.acquire_coldest() is origin
    client = bench.ask()
    assert client.origin is None
    assert bench.pool.acquire_coldest() is None
    bench.pool.release_coldest(origin)
    assert client.origin is origin
    assert not bench.pool.idle
