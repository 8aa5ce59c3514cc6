"""Hit rates and times of ways to evict, on traces that are made here: `python -m bench.eviction [theine] [moka]`.

Lives here: the comparison that `pooler.cache.eviction` was chosen by. theine and moka-py take part where they are
named and installed (`pip install theine moka-py`). Every entry has the same size here.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import cycle
from random import Random
from time import perf_counter
from typing import Any

from pooler.cache.eviction import MAX_USES, Evictable, S3Fifo

Ask = Callable[[Hashable], bool]
"""Look a key up and store it where it is missing; whether it was there."""

COLD = 1_000_000
"""Keys from here on are asked for in one moment and never again."""


class Item(Evictable):
    __slots__ = ("key",)

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.size = 1
        self.mark = hash((key, 1))


def ours(room: int) -> Ask:
    queues, items = S3Fifo(room), {}

    def ask(key: Hashable) -> bool:
        item = items.get(key)
        if item is not None:
            if item.uses < MAX_USES:
                item.uses += 1
            return True
        item = items[key] = Item(key)
        queues.add(item)
        if len(items) > room:
            victim: Any = queues.evict()
            del items[victim.key]
        return False

    return ask


def lru(room: int) -> Ask:
    items: OrderedDict[Hashable, None] = OrderedDict()

    def ask(key: Hashable) -> bool:
        if key in items:
            items.move_to_end(key)
            return True
        items[key] = None
        if len(items) > room:
            items.popitem(last=False)
        return False

    return ask


def theine(room: int) -> Ask:
    import theine

    cache: Any = theine.Cache(room, nolock=True)

    def ask(key: Hashable) -> bool:
        if cache.get(key)[1]:
            return True
        cache.set(key, 1)
        return False

    return ask


def moka(room: int) -> Ask:
    import moka_py

    cache: Any = moka_py.Moka(room, weigher=lambda key, value: 1)

    def ask(key: Hashable) -> bool:
        if cache.get(key) is not None:
            return True
        cache.set(key, 1)
        return False

    return ask


def zipf(keys: int, exponent: float, length: int) -> list[int]:
    return Random(1).choices(range(keys), [1 / (rank + 1) ** exponent for rank in range(keys)], k=length)


def twice(length: int, hot: float) -> list[int]:
    """1,000 hot keys in a part of the look-ups; the others each ask for a new key two times."""
    random = Random(2)
    trace = []
    for number in range(length):
        trace += [random.randrange(1000)] if random.random() < hot else [COLD + number] * 2
    return trace


def main(names: list[str]) -> None:
    makers = {"ours": ours, "lru": lru, "theine": theine, "moka": moka}
    chosen = ["ours", *names, "lru"]
    moving = [1000 * (place // 200_000) + key for place, key in enumerate(zipf(5000, 0.9, 1_000_000))]
    traces: dict[str, tuple[list[int], int]] = {
        "Zipf 0.9 over 100,000 keys": (zipf(100_000, 0.9, 1_000_000), 5000),
        "Zipf 1.1 over 100,000 keys": (zipf(100_000, 1.1, 1_000_000), 5000),
        "5,000 hot keys that move": (moving, 1500),
        "1,000 hot keys beside cold ones asked for twice": (twice(500_000, 0.1), 3000),
    }
    for title, (trace, room) in traces.items():
        results = []
        for name in chosen:
            ask = makers[name](room)
            began = perf_counter()
            answers = [(key, ask(key)) for key in trace]
            spent = (perf_counter() - began) / len(trace)
            counted = [hit for key, hit in answers if key < COLD]
            results.append(f"{name} {sum(counted) / len(counted):.3f} {spent * 1e6:.2f} us")
        sys.stdout.write(f"{title}, {room:,} fit: {' | '.join(results)}\n")
    keys = [("user", b"select %d" % number, b"\0" * 6) for number in range(1000)]
    for name in chosen:
        ask = makers[name](5000)
        for key in keys:
            ask(key)
        following = cycle(keys).__next__
        began = perf_counter()
        for _ in range(300_000):
            ask(following())
        sys.stdout.write(f"a hit, {name}: {(perf_counter() - began) / 300_000 * 1e9:.0f} ns\n")


if __name__ == "__main__":
    main(sys.argv[1:])
