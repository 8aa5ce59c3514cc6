"""S3-FIFO: what stays, what goes, and that its books are kept in constant time."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

import pytest
from hypothesis import given, strategies

from pooler.cache.eviction import MAX_CHANCES, MAX_USES, Evictable, Ghost, Queue, S3Fifo


class Item(Evictable):
    __slots__ = ("name",)

    def __init__(self, name: int, size: int = 1, uses: int = 0) -> None:
        self.name = name
        self.size = size
        self.uses = uses
        self.mark = hash((name, "mark"))
        self.queue = self.newer = self.older = None


class Cache:
    """The queues as a store drives them: so many bytes, and uses that are counted at a hit."""

    def __init__(self, room: int, places: int = 1000) -> None:
        self.room = room
        self.queues = S3Fifo(places)
        self.items: dict[int, Item] = {}

    def ask(self, name: int, size: int = 1) -> bool:
        item = self.items.get(name)
        if item is not None:
            item.uses = min(item.uses + 1, MAX_USES)
            return True
        item = self.items[name] = Item(name, size)
        self.queues.add(item)
        while self.queues.bytes > self.room:
            victim = self.queues.evict()
            assert isinstance(victim, Item)
            del self.items[victim.name]
        return False


@given(
    strategies.lists(
        strategies.tuples(strategies.integers(0, 30), strategies.integers(1, 9), strategies.booleans()), max_size=200
    )
)
def test_the_queues_hold_what_was_added_and_not_yet_taken_out(steps: list[tuple[int, int, bool]]) -> None:
    cache = Cache(40)
    for name, size, removes in steps:
        if removes and name in cache.items:
            cache.queues.remove(cache.items.pop(name))
        else:
            cache.ask(name, size)
        assert set(cache.queues) == set(cache.items.values())
        assert cache.queues.bytes == sum(item.size for item in cache.items.values()) <= 40


def test_what_was_used_twice_moves_to_the_main_queue_and_what_was_not_leaves() -> None:
    queues = S3Fifo(100)
    used, once = Item(1), Item(2)
    queues.add(used)
    queues.add(once)
    used.uses, once.uses = 2, 1
    assert queues.evict() is once
    assert used.queue is queues.main
    assert once.queue is None


def test_what_comes_back_soon_enters_the_main_queue() -> None:
    queues = S3Fifo(100)
    queues.add(Item(1))
    assert queues.evict()
    again, other = Item(1), Item(2)
    queues.add(again)
    queues.add(other)
    assert again.queue is queues.main
    assert other.queue is queues.small


def test_what_is_dead_gets_no_second_chance() -> None:
    dead = Item(1, uses=MAX_USES)
    queues = S3Fifo(100, alive=lambda item: item is not dead)
    queues.add(dead)
    queues.add(Item(2))
    dead.uses = MAX_USES
    assert queues.evict() is dead


def test_one_search_for_a_victim_is_short_even_where_everything_was_used() -> None:
    queues = S3Fifo(100)
    items = [Item(number) for number in range(10 * MAX_CHANCES)]
    for item in items:
        queues.main.push(item)
        item.uses = MAX_USES
    assert queues.evict()
    assert sum(MAX_USES - item.uses for item in items if item.queue) <= MAX_CHANCES


def test_nothing_can_be_evicted_from_nothing() -> None:
    assert S3Fifo(10).evict() is None


def test_walking_survives_removal_of_what_it_stands_on_and_of_what_comes_next() -> None:
    queue = Queue()
    items = [Item(number) for number in range(5)]
    for item in items:
        queue.push(item)
    walk = queue.newest_first()
    assert next(walk) is items[4]
    queue.remove(items[4])
    assert next(walk) is items[3]
    queue.remove(items[2])
    assert next(walk) is items[1]
    queue.remove(items[1])
    queue.remove(items[0])
    assert list(walk) == []


def test_the_ghost_remembers_what_left_lately_and_forgets_what_left_long_ago() -> None:
    ghost = Ghost(1000)
    marks = [hash((number, "some key")) for number in range(20_000)]
    for mark in marks:
        ghost.add(mark)
    assert sum(map(ghost.take, marks[-200:])) > 150
    assert sum(map(ghost.take, marks[:10_000])) < 10
    assert not ghost.take(marks[-1]), "taken once"


class LeastRecentlyUsed:
    def __init__(self, room: int) -> None:
        self.room = room
        self.items: OrderedDict[int, None] = OrderedDict()

    def ask(self, name: int) -> bool:
        if name in self.items:
            self.items.move_to_end(name)
            return True
        self.items[name] = None
        if len(self.items) > self.room:
            self.items.popitem(last=False)
        return False


@pytest.mark.parametrize(("exponent", "gain"), [(0.9, 0.05), (1.1, 0.02)])
def test_it_hits_more_often_than_least_recently_used(exponent: float, gain: float) -> None:
    weights = [1 / (rank + 1) ** exponent for rank in range(20_000)]
    trace = Random(1).choices(range(20_000), weights, k=100_000)
    cache, lru = Cache(1000), LeastRecentlyUsed(1000)
    assert sum(map(cache.ask, trace)) / len(trace) > sum(map(lru.ask, trace)) / len(trace) + gain


def test_keys_that_are_asked_for_twice_and_never_again_do_not_flush_the_hot_ones() -> None:
    """A page that runs the same statement twice: one repetition alone is no sign of being hot."""
    random = Random(1)
    cache, lru = Cache(3000, places=3000), LeastRecentlyUsed(3000)
    rates = []
    for ask in (cache.ask, lru.ask):
        hits = asked = 0
        for number in range(150_000):
            if random.random() < 0.1:
                asked += 1
                hits += ask(random.randrange(1000))
            else:
                ask(10_000 + number)
                ask(10_000 + number)
        rates.append(hits / asked)
    assert rates[0] > 0.6 > 0.4 > rates[1]
