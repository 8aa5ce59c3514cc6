"""Who goes when the cache is full: S3-FIFO over bytes.

Lives here: three queues and the choice of a victim. Not here: looking entries up, what they are worth, when they are
too old (`store`). The store marks a use by itself (`entry.uses += 1`, up to `MAX_USES`): that is all a hit costs.

What is new enters a small queue, a tenth of the bytes. What was used again by the time it reaches the end moves to
the main queue; what was not leaves, and only its hash is remembered (`ghost`): if it comes back soon, it enters the
main queue at once. So a scan of cold keys passes through the small queue and never touches the main one. The main
queue is a FIFO with second chances.

Source: Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.

Chosen by measurement (`python -m bench.eviction theine moka`, CPython 3.11, one run; hit rates):

    trace, entries that fit                          this  theine 2.0  moka-py 0.5  LRU
    Zipf 0.9 over 100,000 keys, 5,000               0.592       0.603        0.555  0.514
    Zipf 1.1 over 100,000 keys, 5,000               0.829       0.834        0.811  0.793
    5,000 hot keys that move, 1,500                 0.767       0.772        0.752  0.733
    1,000 hot keys, a tenth of the look-ups, beside
    cold ones that are asked for twice; 3,000       0.922       0.652        0.208  0.264
    a hit, nanoseconds                                121        1136          245  168

theine has no weights, and moka-py no way to walk the entries or to say why one left.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final

MAX_USES: Final = 3
"""Uses are counted no further: so many second chances are enough."""

PROMOTED_AT = 2
"""Uses that move an entry from the small queue to the main one: one alone is often the same request, asking again."""

SMALL_PART = 10
"""The small queue is held to one part in so many of the bytes."""

MAX_CHANCES = 100
"""Second chances given in one search for a victim: a bound on what one `put` pays where everything was used."""


class Link:
    """A place in a doubly linked ring, the ring's own head included.

    Attributes:
      older, newer: the neighbours; None while it is in no ring.
    """

    __slots__ = ("newer", "older")

    newer: Link | None
    older: Link | None


class Evictable(Link):
    """What can be evicted.

    Attributes:
      size: its bytes. uses: since it was queued or last given a chance, at most `MAX_USES`.
      mark: a hash of its key. queue: where it is.
    """

    __slots__ = ("mark", "queue", "size", "uses")

    queue: Queue | None
    size: int
    uses: int
    mark: int


class Queue(Link):
    """A FIFO from which any member can be taken in constant time.

    Attributes:
      bytes: of its members.
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.newer = self.older = self  # the oldest member is `newer` than the head, the newest `older`
        self.bytes = 0

    def push(self, item: Evictable) -> None:
        last = self.older
        assert last is not None
        item.older, item.newer, item.queue = last, self, self
        last.newer = self.older = item
        self.bytes += item.size

    def remove(self, item: Evictable) -> None:
        older, newer = item.older, item.newer
        assert older is not None
        assert newer is not None
        older.newer, newer.older = newer, older
        item.older = item.newer = item.queue = None
        self.bytes -= item.size

    @property
    def oldest(self) -> Evictable | None:
        item = self.newer
        return item if isinstance(item, Evictable) else None

    def newest_first(self) -> Iterator[Evictable]:
        """Its members; may stop early, or go on in another queue, where some are moved meanwhile."""
        item = self.older
        while isinstance(item, Evictable) and item.queue is not None:
            before = item.older
            yield item
            item = before if item.queue is None else item.older


class Ghost:
    """Hashes of keys that left not long ago, in constant memory.

    A table in which a newer hash takes the place of an older one; like a FIFO that forgets, but of four bytes a key.
    """

    __slots__ = ("_mask", "_table")

    def __init__(self, places: int) -> None:
        size = 1 << max(4, places - 1).bit_length()
        self._mask = size - 1
        self._table = array("I", bytes(4 * size))

    @property
    def bytes(self) -> int:
        return 4 * len(self._table)

    def add(self, mark: int) -> None:
        self._table[(mark ^ mark >> 32) & self._mask] = mark >> 32 & 0xFFFFFFFF | 1

    def take(self, mark: int) -> bool:
        """Whether `mark` is there; it is not any more."""
        place = (mark ^ mark >> 32) & self._mask
        if self._table[place] != mark >> 32 & 0xFFFFFFFF | 1:
            return False
        self._table[place] = 0
        return True


class S3Fifo:
    """The queues of entries that share a bound.

    Args:
      places: how many entries are about to fit: so many that left are remembered.
      alive: whether an entry can still be served; one that cannot gets no second chance.
    """

    __slots__ = ("_alive", "ghost", "main", "small")

    def __init__(self, places: int, alive: Callable[[Evictable], bool] = lambda item: True) -> None:
        self.small = Queue()
        self.main = Queue()
        self.ghost = Ghost(places)
        self._alive = alive

    @property
    def bytes(self) -> int:
        return self.small.bytes + self.main.bytes

    def add(self, item: Evictable) -> None:
        item.uses = 0
        (self.main if self.ghost.take(item.mark) else self.small).push(item)

    def remove(self, item: Evictable) -> None:
        """Take out what left for another reason than room."""
        assert item.queue is not None
        item.queue.remove(item)

    def evict(self) -> Evictable | None:
        """Take out the entry that is least missed; None where there is none."""
        small, main = self.small, self.main
        chances = MAX_CHANCES
        while True:
            from_small = small.bytes * SMALL_PART > small.bytes + main.bytes or main.oldest is None
            queue = small if from_small else main
            item = queue.oldest
            if item is None:
                return None
            queue.remove(item)
            if item.uses < (PROMOTED_AT if from_small else 1) or not chances or not self._alive(item):
                if from_small:
                    self.ghost.add(item.mark)
                return item
            chances -= 1
            item.uses = 0 if from_small else item.uses - 1
            main.push(item)

    def __iter__(self) -> Iterator[Evictable]:
        """All entries, those of the small queue first; may be continued after others were added or removed."""
        yield from self.small.newest_first()
        yield from self.main.newest_first()
