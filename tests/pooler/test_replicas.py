"""Which replica may answer what, with no servers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pooler.breaker import Breaker
from pooler.cache.store import Store
from pooler.replicas import Blocks, Point, Replica, Replicas, begins_reading, harmless
from pooler.settings import DEFAULTS, Settings
from pooler.sql.statement import classify

NEAR, FAR = "near", "far"


class Pool:
    """A pool that has a connection, or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.free = True
        self.breaker = Breaker(1, 1.0, 1.0, 1.0)
        self.withdrawn = 0

    def acquire(self, session: object) -> str | None:
        return self.name if self.free else None

    def withdraw(self, session: object) -> None:
        self.withdrawn += 1


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("pooler.replicas.perf_counter", lambda: self.now)
        self.store = Store(1 << 20, 1 << 16)
        pools: list[Any] = [Pool(NEAR), Pool(FAR)]
        self.near, self.far = (Replica(pool, max_lag=5.0) for pool in pools)
        self.replicas = Replicas([self.far, self.near])
        self.session: Any = SimpleNamespace(mode="transaction", settings=DEFAULTS)

    def primary_at(self, lsn: int) -> None:
        self.replicas.primary_is(Point(self.now, self.store.begin(), lsn), ("system", "1"))

    def replayed(self, lsn: int) -> None:
        self.near.has_replayed(lsn, self.replicas.points, 0.001)
        self.far.has_replayed(lsn, self.replicas.points, 0.1)

    def take(self, *tables: int) -> Any:
        self.capture: Any = SimpleNamespace(database="shop", tables=tables or (1,), stamp=None, sent_at=None)
        return self.replicas.take(self.session, self.capture, self.store)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(monkeypatch)
    made.primary_at(10)
    made.replayed(10)
    return made


def test_the_nearest_replica_is_asked_and_the_next_where_it_has_no_connection(bench: Bench) -> None:
    assert bench.take() == NEAR
    bench.near.pool.free = False  # type: ignore[attr-defined]
    assert bench.take() == FAR
    assert bench.near.pool.withdrawn == 1  # type: ignore[attr-defined]


def test_a_table_that_was_written_is_read_there_once_the_replica_has_the_write(bench: Bench) -> None:
    bench.store.invalidate_tables("shop", {1})
    assert bench.take(1) is None
    assert bench.take(2) == NEAR
    bench.primary_at(20)
    bench.replayed(19)  # not yet
    assert bench.take(1) is None
    bench.replayed(20)
    assert bench.take(1) == NEAR


def test_an_answer_counts_as_old_as_its_replica(bench: Bench) -> None:
    bench.now += 3.0
    bench.take()
    assert (bench.capture.stamp, bench.capture.sent_at) == (bench.near.known.stamp, 100.0)  # type: ignore[union-attr]


def test_a_write_while_the_primary_is_being_asked_is_after_that_point(bench: Bench) -> None:
    stamp, at = bench.store.begin(), bench.now
    bench.store.invalidate_tables("shop", {1})
    bench.replicas.primary_is(Point(at, stamp, 30), ("system", "1"))
    bench.replayed(30)
    assert bench.take(1) is None


def test_a_replica_that_is_too_far_behind_or_unknown_is_not_asked(bench: Bench) -> None:
    bench.now += 5.1
    assert bench.take() is None
    bench.primary_at(50)
    bench.replayed(50)
    assert bench.take() == NEAR
    bench.near.lost("no answer")
    assert bench.take() == FAR


def test_behind_another_primary_nothing_is_known_of_a_replica(bench: Bench) -> None:
    bench.replicas.primary_is(Point(bench.now, bench.store.begin(), 5), ("system", "2"))
    assert bench.take() is None


@pytest.mark.parametrize(
    ("name", "fine"),
    [("timezone", True), ("app.tenant", True), ("default_transaction_isolation", False), ("plan_cache_mode", False)],
)
def test_only_with_settings_that_mean_the_same_there(bench: Bench, name: str, fine: bool) -> None:
    bench.session.settings = Settings.of({name: f"SET {name} TO x"})
    assert harmless(bench.session.settings) == fine
    assert (bench.take() == NEAR) == fine


def test_a_session_that_keeps_its_connection_keeps_to_the_primary(bench: Bench) -> None:
    bench.session.mode = "session"
    assert bench.take() is None


def test_a_replica_that_lacks_more_of_the_log_than_it_may_is_not_asked(bench: Bench) -> None:
    bench.near.max_lag_bytes = bench.far.max_lag_bytes = 100
    bench.primary_at(110)
    bench.replayed(10)
    assert bench.take() == NEAR
    bench.primary_at(111)
    bench.replayed(10)
    assert bench.near.lag_bytes == 101
    assert bench.take() is None


@pytest.mark.parametrize(("after", "others", "own"), [("never", None, None), ("own", NEAR, None), ("all", None, None)])
def test_a_read_only_block_goes_where_the_writes_are_that_it_must_see(
    bench: Bench, after: Blocks, others: str | None, own: str | None
) -> None:
    bench.near.blocks_after = after
    bench.session.namespace, bench.session.last_write = "shop", 0

    def taken() -> object:
        return bench.replicas.take_for_block(bench.session, bench.store)

    assert taken() == (None if after == "never" else NEAR)
    bench.store.invalidate_tables("shop", {1})
    assert taken() == others
    bench.session.last_write = bench.store.clock
    assert taken() == own
    bench.primary_at(20)
    bench.replayed(20)
    assert taken() == (None if after == "never" else NEAR)


@pytest.mark.parametrize(
    ("text", "default", "fine"),
    [
        ("begin read only", "off", True),
        ("start transaction isolation level repeatable read, read only", "off", True),
        ("begin isolation level serializable, read only", "off", False),
        ("begin", "off", False),
        ("begin", "on", True),
        ("begin read write", "on", False),
        ("begin; select 1", "on", False),
        ("select 1", "on", False),
    ],
)
def test_what_begins_a_block_that_a_replica_can_do(text: str, default: str, fine: bool) -> None:
    settings = Settings.of({"default_transaction_read_only": f"SET default_transaction_read_only = {default}"})
    session: Any = SimpleNamespace(
        pool=SimpleNamespace(replicas=object(), reads_committed=True),
        settings=settings,
        reports=SimpleNamespace(values={"default_transaction_read_only": default}),
    )
    assert begins_reading(session, classify(text.encode())) == fine
    session.pool.reads_committed = False  # its default may be SERIALIZABLE
    assert begins_reading(session, classify(text.encode())) == (fine and "repeatable" in text)
