"""Caches of several workers and the board between them, against the truth: whatever was told of a write, and to whom,
no worker serves what is from before it."""

from __future__ import annotations

import json
import os
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from config.cache import Cache
from pooler.cache import epochs
from pooler.cache.entry import Entry
from pooler.cache.policy import Policies
from pooler.cache.store import Store
from pooler.sql.classifier import Classifier
from pooler.sql.statement import Carrier, PinKind
from pooler.workers import board as boards
from pooler.workers import hearsay
from pooler.workers.board import Board

WORKERS = 2
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
            doubt_roles=lambda: None,
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


SETS: tuple[tuple[Place, ...], ...] = (
    (("shop", 1),), (("shop", 1), ("shop", 2)), (("blog", 2),),
)  # fmt: skip


class Truth:
    """Tables with versions: those committed, those that some client has been told of. `chance` says what happens."""

    def __init__(self, fd: int, chance: Random) -> None:
        self.fd = fd
        self.chance = chance
        self.workers = [Worker(fd, index) for index in range(WORKERS)]
        self.parent = Board.open(fd, WORKERS, WORKERS)
        every = {place for places in SETS for place in places}
        self.committed: dict[Place, int] = dict.fromkeys(every, 0)
        self.told: dict[Place, int] = dict.fromkeys(every, 0)
        self.writes: list[tuple[int, str, dict[Place, int]]] = []  # committed, and nobody told yet
        self.reads: list[tuple[int, tuple[Place, ...], tuple[str, int], bytes]] = []
        self.hits = 0

    def step(self) -> None:
        """Something happens."""
        self.chance.choice(
            [
                self.look_up, self.look_up, self.look_up, self.ask, self.answer, self.all_ask_and_are_answered_at_once,
                self.commit, self.tell, self.write_much, self.hear, self.die,
            ]
        )(self.chance.randrange(WORKERS))  # fmt: skip

    def seen(self, places: tuple[Place, ...]) -> bytes:
        return repr([self.committed[place] for place in places]).encode()

    # ---- reads: a query leaves and sees the tables, and its answer comes at any time ---------------------------------

    def ask(self, worker: int) -> None:
        places = self.chance.choice(SETS)
        self.reads.append((worker, places, self.workers[worker].ask(places), self.seen(places)))

    def answer(self, _: int) -> None:
        if self.reads:
            worker, places, asked, rows = self.reads.pop(self.chance.randrange(len(self.reads)))
            self.workers[worker].keep(places, asked, rows)

    def all_ask_and_are_answered_at_once(self, _: int) -> None:
        for here in self.workers:
            for places in SETS:
                here.keep(places, here.ask(places), self.seen(places))

    def look_up(self, worker: int) -> None:
        for places in SETS:
            entry = self.workers[worker].get(places)
            if entry is not None:
                versions = json.loads(entry.rows)
                self.hits += 1
                assert all(version >= self.told[place] for place, version in zip(places, versions, strict=True))

    # ---- writes: committed first, told later -------------------------------------------------------------------------

    def commit(self, worker: int) -> None:
        places = self.chance.choice(SETS)
        for place in places:
            self.committed[place] += 1
        self.writes.append((worker, places[0][0], {place: self.committed[place] for place in places}))

    def tell(self, _: int) -> None:
        if not self.writes:
            return
        worker, database, versions = self.writes.pop(self.chance.randrange(len(self.writes)))
        tables = [table for _, table in versions]
        self.workers[worker].store.invalidate(database, self.chance.choice([tables, tables, None]))
        for place, version in versions.items():
            self.told[place] = max(self.told[place], version)

    def write_much(self, worker: int) -> None:
        """More than a ring holds."""
        for _ in range(boards.RING + 1):
            self.committed["blog", 2] += 1
            self.workers[worker].store.invalidate_tables("blog", [2])
            self.told["blog", 2] = self.committed["blog", 2]

    def hear(self, worker: int) -> None:
        self.workers[worker].board.hear()

    def die(self, worker: int) -> None:
        """And its place is taken. Its clients may look whether a write was committed, so all have heard of it."""
        self.writes = [write for write in self.writes if write[0] != worker]
        self.reads = [read for read in self.reads if read[0] != worker]
        self.parent.worker_lost(worker)
        self.told = dict(self.committed)
        self.workers[worker] = Worker(self.fd, worker)


def test_no_worker_serves_what_is_from_before_a_write_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "RING", 8)
    monkeypatch.setattr(epochs, "MAX_TABLES", 3)
    hits = 0
    for seed in range(300):
        fd = boards.create(WORKERS)
        truth = Truth(fd, Random(seed))
        try:
            for _ in range(100):
                truth.step()
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}") from error
        finally:
            os.close(fd)
        hits += truth.hits
    assert hits > 5000


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


async def test_what_ddl_makes_with_effects_on_sessions_goes_by_line() -> None:
    """A trigger that one worker's client makes pins the others' clients, too."""
    told: list[tuple[str, str]] = []
    peers: Any = SimpleNamespace(tell_others=lambda what, data: told.append((what, json.dumps(data))))
    made: dict[str | Carrier, PinKind] = {
        Carrier("insert", "orders"): PinKind.HIDDEN,
        "remember": PinKind.LASTING,
    }
    hearsay.tell_of_effects(peers, "shop", frozenset(made.items()))
    [(what, data)] = told
    assert what == "effects_made"
    service: Any = SimpleNamespace(classifier=Classifier(parse_always=False))
    await hearsay._effects_made(service, json.loads(data))
    pins = [service.classifier(text).parts[0].pins for text in (b"insert into orders values (1)", b"select remember()")]
    assert pins == [{PinKind.REACHED}, {PinKind.LASTING}]
