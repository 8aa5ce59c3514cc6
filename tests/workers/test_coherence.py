"""Caches of several workers and the board between them, against the truth: whatever was told of a write, and to whom,
no worker serves what is from before it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from config.cache import Cache
from pooler.cache import epochs
from pooler.cache.entry import Entry
from pooler.cache.policy import Policies
from pooler.cache.store import Store
from pooler.workers import board as boards
from pooler.workers import hearsay
from pooler.workers.board import Board

WORKERS = 3
DATABASES = ("shop", "blog")
Place = tuple[str, int]


class Worker:
    """A store and a board as a service has them, and a client's way to an answer."""

    def __init__(self, fd: int, index: int) -> None:
        self.board = Board.open(fd, index, WORKERS)
        self.store = Store(1 << 22, 1 << 16)
        self.policy = Policies(Cache(ttl=60.0), self.store).default
        self.pools = {name: SimpleNamespace(name=name, advice=None, schema_epoch=0) for name in DATABASES}
        self.forgotten: list[str] = []
        service: Any = SimpleNamespace(
            cache=self.store,
            pools=self.pools,
            peers=None,
            forget_catalog=lambda pool: self.forgotten.append(pool.name),
        )
        hearsay.listen(service, self.board)

    @staticmethod
    def key(places: tuple[Place, ...]) -> tuple[Any, ...]:
        return (*places[0][:1], b"select", repr(places).encode())

    def ask(self, places: tuple[Place, ...]) -> tuple[str, int]:
        """A query leaves: its database and stamp."""
        return places[0][0], self.store.begin()

    def keep(self, places: tuple[Place, ...], asked: tuple[str, int], rows: bytes) -> None:
        database, stamp = asked
        self.store.put(
            self.store.make(
                self.key(places), [rows], None, b"C\0\0\0\rSELECT 1\0", database=database, stamp=stamp, sent_at=0.0,
                policy=self.policy, tables=tuple(table for _, table in places),
            )
        )  # fmt: skip

    def get(self, places: tuple[Place, ...]) -> Entry | None:
        """What a client gets that asks now."""
        self.board.hear()
        return self.store.get(self.key(places), 0.0, self.store.default)


sets = strategies.sampled_from([(("shop", 1),), (("shop", 2),), (("shop", 1), ("shop", 2)), (("blog", 1),)])
workers = strategies.integers(0, WORKERS - 1)


class AgainstTheTruth(RuleBasedStateMachine):
    """Tables with versions: those committed, and those that some client has been told of."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(boards, "RING", 8)
        self.patch.setattr(epochs, "MAX_TABLES", 3)
        self.fd = boards.create(WORKERS)
        self.workers = [Worker(self.fd, index) for index in range(WORKERS)]
        self.parent = Board.open(self.fd, WORKERS, WORKERS)
        every = [(name, table) for name in DATABASES for table in (1, 2)]
        self.committed: dict[Place, int] = dict.fromkeys(every, 0)
        self.told: dict[Place, int] = dict.fromkeys(every, 0)
        self.writes: list[tuple[int, str, dict[Place, int], bool]] = []  # committed, and nobody told yet
        self.reads: list[tuple[int, tuple[Place, ...], tuple[str, int], bytes | None]] = []

    def teardown(self) -> None:
        self.patch.undo()
        os.close(self.fd)

    def seen(self, places: tuple[Place, ...]) -> bytes:
        return repr([self.committed[place] for place in places]).encode()

    # ---- reads: a query leaves, sees the tables, and its answer comes, at any time -----------------------------------

    @rule(worker=workers, places=sets)
    def ask(self, worker: int, places: tuple[Place, ...]) -> None:
        self.reads.append((worker, places, self.workers[worker].ask(places), None))

    @precondition(lambda self: self.reads)
    @rule(data=strategies.data())
    def go_on(self, data: strategies.DataObject) -> None:
        index = data.draw(strategies.integers(0, len(self.reads) - 1))
        worker, places, asked, rows = self.reads.pop(index)
        if rows is None:
            self.reads.append((worker, places, asked, self.seen(places)))
        else:
            self.workers[worker].keep(places, asked, rows)

    @rule(worker=workers, places=sets)
    def ask_and_answer_at_once(self, worker: int, places: tuple[Place, ...]) -> None:
        here = self.workers[worker]
        here.keep(places, here.ask(places), self.seen(places))

    @rule(worker=workers, places=sets)
    def look_up(self, worker: int, places: tuple[Place, ...]) -> None:
        entry = self.workers[worker].get(places)
        if entry is not None:
            versions = eval(entry.rows)
            assert all(version >= self.told[place] for place, version in zip(places, versions, strict=True))

    # ---- writes: committed first, told later -------------------------------------------------------------------------

    @rule(worker=workers, places=sets, unknown=strategies.booleans())
    def commit(self, worker: int, places: tuple[Place, ...], unknown: bool) -> None:
        for place in places:
            self.committed[place] += 1
        self.writes.append((worker, places[0][0], {place: self.committed[place] for place in places}, unknown))

    @precondition(lambda self: self.writes)
    @rule(data=strategies.data())
    def tell(self, data: strategies.DataObject) -> None:
        index = data.draw(strategies.integers(0, len(self.writes) - 1))
        worker, database, versions, unknown = self.writes.pop(index)
        store = self.workers[worker].store
        store.invalidate(database, None if unknown else [table for _, table in versions])
        for place, version in versions.items():
            self.told[place] = max(self.told[place], version)

    @rule(worker=workers, count=strategies.integers(1, 12))
    def write_much(self, worker: int, count: int) -> None:
        """More than a ring holds, perhaps."""
        for _ in range(count):
            self.committed["blog", 2] += 1
            self.workers[worker].store.invalidate_tables("blog", [2])
            self.told["blog", 2] = self.committed["blog", 2]

    @rule(worker=workers)
    def tick(self, worker: int) -> None:
        self.workers[worker].board.hear()

    @rule(worker=workers)
    def die(self, worker: int) -> None:
        """What it has not told, nobody has heard of; and then its place is taken."""
        self.writes = [write for write in self.writes if write[0] != worker]
        self.reads = [read for read in self.reads if read[0] != worker]
        self.parent.worker_lost(worker)
        for place, version in self.committed.items():  # who has lost its connection may look whether it was committed
            if all(place not in versions for _, _, versions, _ in self.writes):
                self.told[place] = version
        self.workers[worker] = Worker(self.fd, worker)


TestAgainstTheTruth = AgainstTheTruth.TestCase
TestAgainstTheTruth.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ---- what news mean --------------------------------------------------------------------------------------------------


@pytest.fixture
def two() -> Any:
    fd = boards.create(WORKERS)
    yield Worker(fd, 0), Worker(fd, 1)
    os.close(fd)


SHOP = (("shop", 1),)
BLOG = (("blog", 1),)


def both_keep(worker: Worker) -> None:
    for places in (SHOP, BLOG):
        worker.keep(places, worker.ask(places), b"[0]")


def test_news_are_not_put_up_again(two: tuple[Worker, Worker]) -> None:
    one, other = two
    one.store.invalidate_tables("shop", [1])
    one.store.invalidate_database("shop")
    other.board.hear()
    heads = other.board._memory[: other.board._heads_end]
    one.board.hear()
    assert other.board._memory[: other.board._heads_end] == heads


def test_what_concerns_another_database_ends_nothing(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    one.store.invalidate_database("shop")
    assert other.get(SHOP) is None
    assert other.get(BLOG) is not None


def test_ddl_through_one_worker_is_ddl_for_all(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    one.board.put_schema("shop")
    assert other.get(SHOP) is None
    assert other.pools["shop"].schema_epoch == 1
    assert other.forgotten == ["shop"]
    assert other.get(BLOG) is not None
    assert other.pools["blog"].schema_epoch == 0


def test_who_has_missed_news_takes_it_that_there_was_ddl_everywhere(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    one.board.put_everything()
    assert (other.get(SHOP), other.get(BLOG)) == (None, None)
    assert [pool.schema_epoch for pool in other.pools.values()] == [1, 1]
    assert sorted(other.forgotten) == ["blog", "shop"]


def test_a_purge_of_everything_reaches_all_and_costs_no_catalog(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    one.store.purge(everything=True)
    assert (other.get(SHOP), other.get(BLOG)) == (None, None)
    assert other.forgotten == []


def test_a_purge_of_a_table_reaches_all(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    one.store.purge(database="shop", table=1)
    assert other.get(SHOP) is None
    assert other.get(BLOG) is not None


def test_a_purge_by_name_goes_by_line(two: tuple[Worker, Worker]) -> None:
    one, other = two
    both_keep(other)
    told: list[Any] = []
    one.store.on_purge = lambda *what: told.append(what)
    one.store.purge(namespace="default", database="shop")
    assert told == [("shop", "default", None)]
    with one.store.quiet():
        one.store.purge(namespace="default")
    assert len(told) == 1
    assert other.get(SHOP) is not None
