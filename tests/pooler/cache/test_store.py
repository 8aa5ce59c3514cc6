"""What the store serves, for how long, to whose account, and in how many bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from config.cache import Cache
from pooler.cache import epochs
from pooler.cache.entry import TTL_JITTER, Entry
from pooler.cache.policy import Policies, Policy
from pooler.cache.store import REFRESH_SECONDS, Store

DESCRIPTION = b"T\0\0\0\x1a\0\1id\0" + bytes(18)


class Bench:
    """A store and how a session uses it."""

    def __init__(self, max_bytes: int = 1 << 22, **options: Any) -> None:
        self.store = Store(max_bytes, 1 << 16, **options)
        self.policy = Policies(Cache(ttl=60.0, stale_while_revalidate=15.0, negative_ttl=5.0), self.store).default

    @staticmethod
    def key(name: object) -> tuple[Any, ...]:
        return ("shop", "ann", b"select * from things where id = $1", b"%r" % (str(name),))

    def make(self, name: object, **changes: Any) -> Entry:
        given: dict[str, Any] = {
            "rows": [b"D\0\0\0\7\0\1"], "database": "shop", "stamp": self.store.begin(), "sent_at": 0.0,
            "policy": self.policy, "tables": (1,),
        } | changes  # fmt: skip
        rows = given.pop("rows")
        return self.store.make(self.key(name), rows, DESCRIPTION, b"C\0\0\0\rSELECT 1\0", **given)

    def put(self, name: object, **changes: Any) -> bool:
        return self.store.put(self.make(name, **changes))

    def get(self, name: object, now: float = 0.0) -> Entry | None:
        return self.store.get(self.key(name), now, self.store.default)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- writes ----------------------------------------------------------------------------------------------------------


def test_a_write_ends_what_was_read_from_its_table_and_nothing_else(bench: Bench) -> None:
    bench.put("orders", tables=(1,))
    bench.put("orders and items", tables=(2, 1))
    bench.put("items", tables=(2,))
    bench.put("nothing", tables=())
    bench.put("elsewhere", tables=(1,), database="crm")
    bench.store.invalidate_tables("shop", [1])
    assert bench.get("orders") is None
    assert bench.get("orders and items") is None
    assert bench.get("items")
    assert bench.get("nothing")
    assert bench.get("elsewhere")


def test_a_database_can_be_ended_as_a_whole(bench: Bench) -> None:
    bench.put("items", tables=(2,))
    bench.put("nothing", tables=())
    bench.put("elsewhere", tables=(2,), database="crm")
    bench.store.invalidate_database("shop")
    assert bench.get("items") is None
    assert bench.get("nothing") is None
    assert bench.get("elsewhere")


def test_having_survived_one_write_is_no_excuse_at_the_next(bench: Bench) -> None:
    """A look-up notes how far an entry is known to be true; not a moment further."""
    bench.put("one", tables=(1,))
    bench.store.invalidate_tables("shop", [2])
    assert bench.get("one")
    bench.store.invalidate_tables("shop", [1])
    assert bench.get("one") is None


def test_an_answer_read_before_a_write_is_not_stored_after_it(bench: Bench) -> None:
    """The race that a TTL cannot see: read, write elsewhere, and then the slow answer to the read arrives."""
    stamp = bench.store.begin()
    bench.store.invalidate_tables("shop", [1])
    assert not bench.put("late", stamp=stamp, tables=(1,))
    assert bench.put("unrelated", stamp=stamp, tables=(2,))
    assert bench.put("again", tables=(1,))
    assert bench.get("late") is None


def test_an_entry_made_before_a_write_is_not_stored_after_it(bench: Bench) -> None:
    entry = bench.make("late")
    bench.store.invalidate_tables("shop", [1])
    assert not bench.store.put(entry)


def test_tables_beyond_the_bound_are_ended_too_often_and_never_too_rarely(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "MAX_TABLES", 10)
    bench.put("first", tables=(0,))
    bench.put("untouched", tables=(99,))
    for table in range(11):
        bench.store.invalidate_tables("shop", [table])
    assert bench.get("first") is None
    assert bench.get("untouched") is None, "the price of the bound"
    bench.put("untouched", tables=(99,))
    assert bench.get("untouched")


def test_an_older_answer_does_not_take_the_place_of_a_younger_one(bench: Bench) -> None:
    assert bench.put("one", rows=[b"young"], sent_at=2.0)
    assert not bench.put("one", rows=[b"old"], sent_at=1.0)
    entry = bench.get("one", 3.0)
    assert entry is not None
    assert entry.rows == b"young"


class AgainstTheTruth(RuleBasedStateMachine):
    """Tables with versions, reads that take time, and a cache that must never tell of an older version."""

    TABLES = (1, 2, 3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(max_bytes=60_000)
        self.former, epochs.MAX_TABLES = epochs.MAX_TABLES, 3
        self.versions = dict.fromkeys(self.TABLES, 0)
        self.now = 0.0
        self.flying: list[tuple[tuple[int, ...], Entry]] = []

    def teardown(self) -> None:
        epochs.MAX_TABLES = self.former

    def seen(self, tables: tuple[int, ...]) -> bytes:
        return repr([self.versions[table] for table in tables]).encode()

    sets = strategies.sampled_from([(), (1,), (2,), (1, 2), (3, 4, 5)])

    @rule(tables=sets, size=strategies.integers(0, 9000))
    def ask(self, tables: tuple[int, ...], size: int) -> None:
        entry = self.bench.make(
            tables, rows=[self.seen(tables), bytes(size)], tables=tables, sent_at=self.now, fingerprint=len(tables)
        )
        self.flying.append((tables, entry))

    @rule(tables=sets)
    def ask_and_answer_at_once(self, tables: tuple[int, ...]) -> None:
        entry = self.bench.make(tables, rows=[self.seen(tables)], tables=tables, sent_at=self.now)
        assert self.bench.store.put(entry)
        assert self.bench.get(tables, self.now) is entry

    @precondition(lambda self: self.flying)
    @rule(data=strategies.data())
    def answer(self, data: strategies.DataObject) -> None:
        index = data.draw(strategies.integers(0, len(self.flying) - 1))
        tables, entry = self.flying.pop(index)
        is_true = entry.rows.startswith(self.seen(tables))
        assert not self.bench.store.put(entry) or is_true

    @rule(tables=sets)
    def write(self, tables: tuple[int, ...]) -> None:
        for table in tables:
            self.versions[table] += 1
        self.bench.store.invalidate_tables("shop", tables)

    @rule()
    def write_who_knows_where(self) -> None:
        for table in self.TABLES:
            self.versions[table] += 1
        self.bench.store.invalidate_database("shop")

    @rule(seconds=strategies.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(tables=sets)
    def look_up(self, tables: tuple[int, ...]) -> None:
        entry = self.bench.get(tables, self.now)
        if entry is not None:
            assert entry.rows.startswith(self.seen(tables))
            assert self.now - entry.stored_at <= 75.0
        entry = self.bench.store.get_even_if_stale(self.bench.key(tables), self.now, 1000.0)
        assert entry is None or entry.rows.startswith(self.seen(tables))

    @rule(seconds=strategies.one_of(strategies.none(), strategies.floats(1, 50)))
    def cap(self, seconds: float | None) -> None:
        self.bench.store.cap("shop", seconds)

    @rule(budget=strategies.integers(0, 5))
    def sweep(self, budget: int) -> None:
        self.bench.store.sweep(self.now, budget)

    @rule(size=strategies.integers(0, 3))
    def purge(self, size: int) -> None:
        self.bench.store.purge(fingerprint=size)
        assert not list(self.bench.store.find(fingerprint=size))

    @invariant()
    def the_books_balance(self) -> None:
        store = self.bench.store
        entries = list(store.find())
        shared = {part for entry in entries for part in store._shared_parts(entry)}
        assert set(store._shared) == shared
        assert (store._held > 0) == bool(entries)
        assert store.default.entries == len(store) == len(entries)
        assert store.default.bytes == sum(entry.size for entry in entries) == store.default.queues.bytes
        assert set(store.default.queues) == set(entries)
        assert store.bytes <= store.max_bytes


AgainstTheTruth.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestAgainstTheTruth = AgainstTheTruth.TestCase


# ---- age -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_fresh_for_its_ttl_then_stale_then_gone(bench: Bench) -> None:
    bench.put("one")
    assert (entry := bench.get("one", 53.9))
    assert 60.0 * (1 - TTL_JITTER) <= entry.expires <= 60.0
    assert bench.get("one", 60.1) is entry
    assert bench.store.default.stale_hits == 1
    assert bench.get("one", 75.1) is None
    assert len(bench.store) == 0
    assert bench.store.default.expired == 1


def test_age_counts_from_when_the_query_was_sent(bench: Bench) -> None:
    bench.put("slow", sent_at=-80.0)
    assert bench.get("slow", 0.0) is None


def test_what_was_stored_together_does_not_expire_together(bench: Bench) -> None:
    for number in range(100):
        bench.put(number)
    ends = [entry.expires for entry in bench.store.find()]
    assert max(ends) - min(ends) > 3.0


def test_of_all_who_see_a_stale_answer_one_is_told_to_refresh_it(bench: Bench) -> None:
    bench.put("one")
    entry = bench.get("one", 61.0)
    assert entry is not None
    assert entry.expires <= 61.0
    assert [bench.store.claim_refresh(entry, 61.0) for _ in range(3)] == [True, False, False]
    assert bench.store.default.refreshes == 1
    bench.put("one", sent_at=61.0)
    assert (fresh := bench.get("one", 62.0))
    assert fresh.expires > 62.0


def test_a_refresh_that_is_given_up_or_never_ends_is_another_ones_turn(bench: Bench) -> None:
    bench.put("one")
    entry = bench.get("one", 61.0)
    assert entry is not None
    assert bench.store.claim_refresh(entry, 61.0)
    bench.store.abandon_refresh(entry)
    assert bench.store.claim_refresh(entry, 61.0)
    assert not bench.store.claim_refresh(entry, 60.9 + REFRESH_SECONDS)
    assert bench.store.claim_refresh(entry, 61.0 + REFRESH_SECONDS)


def test_a_stale_answer_from_before_a_write_is_not_served_either(bench: Bench) -> None:
    bench.put("one")
    bench.store.invalidate_tables("shop", [1])
    assert bench.get("one", 61.0) is None


def test_an_answer_without_rows_has_its_own_shorter_ttl(bench: Bench) -> None:
    bench.put("none", rows=[])
    assert (entry := bench.get("none", 4.0))
    assert entry.row_count == 0
    assert entry.expires <= 5.0
    assert bench.get("none", 10.1) is None, "nor is it stale for longer than that"


def test_a_cap_holds_for_entries_old_and_new_until_it_is_taken_off(bench: Bench) -> None:
    bench.put("old")
    bench.store.cap("shop", 3.0)
    bench.put("new", sent_at=8.0)
    bench.put("elsewhere", database="crm")
    assert bench.get("old", 3.0)
    assert bench.get("old", 3.1) is None
    assert bench.get("new", 11.0)
    assert bench.get("new", 11.1) is None
    assert bench.get("elsewhere", 11.1)
    bench.store.cap("shop", None)
    assert bench.get("new", 11.1)


def test_when_the_origin_fails_an_expired_answer_can_be_had_but_none_from_before_a_write() -> None:
    bench = Bench(stale_if_error=100.0)
    key = bench.key("one")
    bench.put("one")
    assert bench.get("one", 80.0) is None
    assert bench.store.get_even_if_stale(key, 80.0, 90.0)
    assert bench.store.get_even_if_stale(key, 91.0, 90.0) is None
    bench.store.invalidate_tables("shop", [1])
    assert bench.store.get_even_if_stale(key, 80.0, 90.0) is None


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_an_answer_over_the_limit_is_not_kept(bench: Bench) -> None:
    assert bench.put("fits", rows=[bytes(1 << 16)])
    assert not bench.put("does not", rows=[bytes(1 << 16), b"x"])


def test_a_full_store_makes_room_and_stays_within_its_bytes() -> None:
    bench = Bench(max_bytes=1 << 20)
    for number in range(5000):
        bench.put(number, rows=[bytes(number % 700)])
        assert bench.store.bytes <= 1 << 20
    assert len(bench.store) > 500
    assert bench.store.evictions == 5000 - len(bench.store)


def test_room_is_made_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the bound is passed by much (the dictionary has grown), no single client pays for all of it."""
    bench = Bench(max_bytes=1 << 22)
    for number in range(4000):
        bench.put(number)
    bench.store.max_bytes = 1 << 20
    before = len(bench.store)
    bench.put("one more")
    assert 0 < before - len(bench.store) < 200
    for _ in range(100):
        bench.store.sweep(0.0, 1000)
    assert bench.store.bytes <= 1 << 20


def test_a_policy_keeps_to_its_own_budget_and_leaves_the_others_alone(bench: Bench) -> None:
    small = bench.store.namespace("small", 100_000)
    policy = Policy(small, ttl=60.0)
    for number in range(50):
        bench.put(("default", number))
    for number in range(1000):
        bench.put(("small", number), policy=policy)
    assert small.bytes <= 100_000
    assert small.entries > 50
    assert small.evictions == 1000 - small.entries
    assert bench.store.default.entries == 50
    assert bench.store.default.evictions == 0


def test_sweeping_frees_what_is_dead_and_leaves_what_is_not(bench: Bench) -> None:
    for number in range(300):
        bench.put(number, tables=(number % 3,), sent_at=-100.0 if number % 3 == 2 else 0.0)
    bench.store.invalidate_tables("shop", [1])
    freed = sum(bench.store.sweep(0.0, 50) for _ in range(20))
    assert freed == 200
    assert {entry.tables for entry in bench.store.find()} == {(0,)}
    assert (bench.store.default.expired, bench.store.default.invalidated) == (100, 100)


GROWTH = """
import sys, gc, psutil
from config.cache import Cache
from pooler.cache.policy import Policies
from pooler.cache.store import Store

shape, count = sys.argv[1], int(sys.argv[2])
Policies(Cache(), Store(1 << 20, 1 << 20))
label, text, tag = (("a", "b"),), b"select * from things where id = $1", b"C\\0\\0\\0\\rSELECT 1\\0"

def answer(n):
    value = b"%08d" % n
    bind = b"\\0\\0\\0\\1\\0\\0\\0\\x08" + value + b"\\0\\0"
    if shape == "prepared":
        return ("shop", "ann", label, text, b"\\0\\0", bind), [b"D\\0\\0\\0\\x20\\0\\2" + value * 3]
    if shape == "literals":
        return ("shop", "ann", label, text + value, b"\\0\\0", b"\\0" * 6), [b"D\\0\\0\\0\\x40\\0\\2" + value * 7]
    if shape == "empty":
        return ("shop", "ann", label, text, b"\\0\\0", bind), []
    if shape == "hundred rows":
        return ("shop", "ann", label, text, b"\\0\\0", bind), [b"D\\0\\0\\0\\x40\\0\\2" + value * 7] * 100
    return ("shop", "ann", label, text, b"\\0\\0", bind), [bytes(n * 7919 % 60000)]

gc.collect()
before = psutil.Process().memory_info().rss
store = Store(1 << 29, 1 << 20)
policy = Policies(Cache(), store).default
for n in range(count):
    key, rows = answer(n)
    description = b"T\\0\\0\\0\\x40" + b"x" * 60
    store.put(store.make(key, rows, description + b"", tag, database="shop", stamp=0, sent_at=n * 1.0, policy=policy))
del key, rows, description
gc.collect()
print(store.bytes / (psutil.Process().memory_info().rss - before))
"""


@pytest.mark.parametrize(
    ("shape", "count"),
    [("prepared", 60_000), ("literals", 60_000), ("empty", 90_000), ("hundred rows", 6_000), ("blobs", 3_000)],
)
def test_what_is_accounted_is_what_the_process_grows_by_within_a_tenth(shape: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, shape, str(count)], capture_output=True, text=True, check=True, timeout=120
    )
    assert 0.9 < float(done.stdout) < 1.1


# ---- the scan --------------------------------------------------------------------------------------------------------


def hit_rate(bench: Bench, hot: range) -> float:
    return sum(bench.get(("hot", number)) is not None for number in hot) / len(hot)


def scan(cold: int, hot: range, every: int) -> Iterator[float]:
    """The hot set's hit rate before a scan of `cold` keys, and after; one look-up in `every` is a hot one meanwhile."""
    bench = Bench(max_bytes=4 << 20)

    def ask(name: object) -> None:
        if bench.get(name) is None:
            bench.put(name)

    for _ in range(4):
        for number in hot:
            ask(("hot", number))
    for number in range(20_000):  # fill it
        ask(("warm", number))
        ask(("hot", number % len(hot)))
    yield hit_rate(bench, hot)
    for number in range(cold):
        ask(("cold", number))
        if every and number % every == 0:
            ask(("hot", number // every % len(hot)))
    assert bench.store.evictions > cold * 0.9, "the scan went through the store"
    yield hit_rate(bench, hot)


@pytest.mark.parametrize("every", [0, 10])
def test_a_scan_of_cold_keys_does_not_flush_the_hot_set(every: int) -> None:
    before, after = scan(60_000, range(1000), every)
    assert before == 1.0
    assert after > 0.99


@pytest.mark.slow
def test_a_scan_of_very_many_cold_keys_does_not_flush_a_hot_set_of_a_thousand() -> None:
    before, after = scan(300_000, range(1000), 10)
    assert before == 1.0
    assert after > 0.99


# ---- the console -----------------------------------------------------------------------------------------------------


def test_entries_are_found_and_purged_by_namespace_table_and_fingerprint(bench: Bench) -> None:
    other = bench.store.namespace("other")
    bench.put("a", tables=(1,), fingerprint="f1")
    bench.put("b", tables=(1, 2), fingerprint="f2")
    bench.put("c", tables=(3,), fingerprint="f2", policy=Policy(other))
    assert [entry.fingerprint for entry in bench.store.find(database="shop", table=1)] == ["f1", "f2"]
    assert bench.store.purge(table=2) == 1
    assert bench.store.purge(fingerprint="f2") == 1
    assert other.purged == 1
    assert other.entries == other.bytes == 0
    assert bench.store.purge(namespace="default") == 1
    bench.put("d")
    assert bench.store.purge(everything=True) == 1
    assert bench.store._held == 0
    with pytest.raises(ValueError, match="name what"):
        bench.store.purge()


def test_after_a_purge_an_answer_that_was_on_its_way_is_not_stored(bench: Bench) -> None:
    stamp = bench.store.begin()
    bench.store.purge(fingerprint="f1")
    assert not bench.put("late", stamp=stamp, fingerprint="f1")


def test_each_namespace_counts_for_itself_and_the_store_for_all(bench: Bench) -> None:
    store, other = bench.store, bench.store.namespace("other")
    bench.put("one")
    bench.put("two", policy=Policy(other))
    bench.get("one")
    bench.get("three")
    store.get(bench.key("two"), 0.0, other)
    store.get(bench.key("two"), 0.0, other)
    assert (store.default.hits, store.default.misses, store.default.stores) == (1, 1, 1)
    assert (other.hits, other.misses, other.stores, other.entries) == (2, 0, 1, 1)
    assert (store.hits, store.misses, store.stores, store.entries) == (3, 1, 2, 2)
    store.invalidate_tables("shop", [1, 7])
    store.invalidate_database("shop")
    assert (store.table_invalidations, store.database_invalidations, store.invalidations) == (2, 1, 3)
