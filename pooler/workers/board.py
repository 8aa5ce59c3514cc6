"""Shared memory that all workers read at any time: what ends cached answers, and what they count together.

Lives here: the memory's layout, putting news up and reading them, counts. Not here: what news mean (`hearsay`), who
puts them up (`cache.store`, `Service`). Nothing here waits, locks, or knows a worker other than by its number.

**News.** Each writer (the workers, and the parent as the last) has a ring of its own and a head, which is how many
items it has ever put up. An item is one word, so it is there or not: the low bits of its number, what kind it is, a
database, a table. The item is stored first and the head behind it; both before a client is told of what they mean. Who
reads compares all heads with what it saw last, which is one comparison of a few bytes where there is nothing new. Where
it finds another number than that of the item that it expects (overrun, or a processor that shows it the head before the
item), or nothing that it understands, it takes it for everything: too much ends, never too little.

**Causes.** A client that has heard of a write heard it through a socket, after the write was put up, and asks through a
socket. The kernel's locks on the way order the stores before the look, on any processor.

**Databases and sources are numbers made of their names**, so workers agree on them whatever their configurations say.
Two names with the same number share their news, and the limit for one address: that ends too much, and is too strict.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple
from zlib import crc32

RING: Final = 8192
"""Items of one writer that a reader may be behind."""

MOST_TABLES: Final = 256
"""A write to more of them is put up as one to the whole database."""

SOURCES: Final = 65536
"""Slots for connections by source address."""

TABLE, DATABASE, CATALOG, SCHEMA, EVERYTHING = range(1, 6)
"""What an item says: a table was written; anything of a database was; names may mean something else; DDL, which is both
and concerns prepared statements, too; all of that for every database."""

CLIENTS, REPLICATION, LOAD, TAKEN = range(4)
GIVEN: Final = 64
"""What is counted beside sources. LOAD: clients and who logs in, and one; TAKEN: clients that others have passed on to
this worker; GIVEN and behind it, one for each worker: those that this one has passed on to it."""

BACKENDS: Final = 1024
"""Origin connections of a worker that are remembered beyond its death."""

_COUNTS: Final = 128 + SOURCES
_FIRST_SOURCE: Final = 128
_WORD: Final = 8
_TABLE_BITS: Final = 32
_DATABASE_BITS: Final = 12
_KIND_BITS: Final = 3
_KIND_AT: Final = _TABLE_BITS + _DATABASE_BITS
_NUMBER_AT: Final = _KIND_AT + _KIND_BITS
_MAX_TABLE: Final = (1 << _TABLE_BITS) - 1
_DATABASE_MASK: Final = (1 << _DATABASE_BITS) - 1
_NUMBER_MASK: Final = (1 << 64 - _NUMBER_AT) - 1
_LAPPED: Final = (_NUMBER_MASK + 1) // 2


class Item(NamedTuple):
    """One piece of news. `database` and `table` are numbers, and 0 where they mean nothing."""

    kind: int
    database: int
    table: int


ALL: Final = Item(EVERYTHING, 0, 0)


def number_of(database: str) -> int:
    """What stands for the database of this name."""
    return crc32(database.encode()) & _DATABASE_MASK


def size_for(count: int) -> int:
    """Bytes that `count` workers and their parent need."""
    return _counts_at(count) + count * _COUNTS * 4


def create(count: int) -> int:
    """A file descriptor of memory for `count` workers and their parent; it lives as long as somebody has it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pgnear-board")
    else:
        fd, path = tempfile.mkstemp(prefix="pgnear-board-")
        os.unlink(path)
    os.ftruncate(fd, size_for(count))
    return fd


class Board:
    """One process's view of the memory.

    Args:
      index: which writer this process is; the parent is `count`.

    Attributes:
      on_news: told by `hear` what others have put up. It must not raise: what it has not taken is told again.
    """

    def __init__(self, memory: mmap.mmap, index: int, count: int) -> None:
        self.index = index
        self.count = count
        self.on_news: Callable[[Sequence[Item]], None] = lambda news: None
        self._memory = memory
        self._heads_end = (count + 1) * _WORD
        view = memoryview(memory)
        self._words = view[: _counts_at(count)].cast("Q")
        self._counts = view[_counts_at(count) :].cast("i")
        self._first_ring = _rings_at(count) // _WORD
        self._first_backend = _backends_at(count) // _WORD
        self._backends: list[int] = []
        self._heard = memory[: self._heads_end]
        self._seen = [self._words[writer] for writer in range(count + 1)]
        self._head = self._seen[index]  # where who had this number before has ended
        self._own = self._first_ring + index * RING
        if index < count:
            self.forget(index)

    @classmethod
    def open(cls, fd: int, index: int, count: int) -> Board:
        """The memory behind `fd`, which `create` has made for as many."""
        return cls(mmap.mmap(fd, size_for(count)), index, count)

    # ---- putting up --------------------------------------------------------------------------------------------------

    def put_tables(self, database: str, tables: Iterable[object]) -> None:
        """These tables of a database, by their OIDs, were written."""
        number = number_of(database) << _TABLE_BITS
        items: list[int] = []
        for table in tables:
            if type(table) is not int or not 0 <= table <= _MAX_TABLE or len(items) == MOST_TABLES:
                self.put_database(database)
                return
            items.append(TABLE << _KIND_AT | number | table)
        self._put(items)

    def put_database(self, database: str) -> None:
        """Anything of `database` may have been written."""
        self._put([DATABASE << _KIND_AT | number_of(database) << _TABLE_BITS])

    def put_catalog(self, database: str) -> None:
        """What is known of names in `database` is out of date."""
        self._put([CATALOG << _KIND_AT | number_of(database) << _TABLE_BITS])

    def put_schema(self, database: str) -> None:
        """DDL: the same, anything may have been written, and statements are to be parsed anew."""
        self._put([SCHEMA << _KIND_AT | number_of(database) << _TABLE_BITS])

    def put_everything(self) -> None:
        """Anything may have happened to any database."""
        self._put([EVERYTHING << _KIND_AT])

    def _put(self, items: list[int]) -> None:
        words, own, head = self._words, self._own, self._head
        for item in items:
            words[own + head % RING] = item | (head & _NUMBER_MASK) << _NUMBER_AT
            head += 1
        words[self.index] = self._head = head

    # ---- reading -----------------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """Tell `on_news` what others have put up since the last time, if anything."""
        if self._memory[: self._heads_end] != self._heard:
            self._hear_news()

    def _hear_news(self) -> None:
        heard = self._memory[: self._heads_end]  # before the heads are read: what comes later is seen next time
        heads = [self._words[writer] for writer in range(self.count + 1)]
        news: list[Item] = []
        for writer, (seen, head) in enumerate(zip(self._seen, heads, strict=True)):
            if head != seen and writer != self.index:
                news += self._since(writer, seen, head)
        if news:
            self.on_news(news)
        self._seen, self._heard = heads, heard

    def _since(self, writer: int, seen: int, head: int) -> list[Item]:
        if not 0 < head - seen <= RING:
            return [ALL]
        words, ring = self._words, self._first_ring + writer * RING
        news = []
        for number in range(seen, head):
            word = words[ring + number % RING]
            item = Item(word >> _KIND_AT & 7, word >> _TABLE_BITS & _DATABASE_MASK, word & _MAX_TABLE)
            if word >> _NUMBER_AT != number & _NUMBER_MASK or not TABLE <= item.kind <= EVERYTHING:
                return [ALL]
            news.append(item)
        if words[writer] - seen > _LAPPED:  # it went round meanwhile, so often that numbers may look right again
            return [ALL]
        return news

    # ---- counts ------------------------------------------------------------------------------------------------------

    def set_count(self, what: int, number: int) -> None:
        """This worker has so many of `what` (`CLIENTS`, `REPLICATION`)."""
        self._counts[self.index * _COUNTS + what] = number

    def add(self, what: int) -> None:
        """One more of `what` here."""
        self._counts[self.index * _COUNTS + what] += 1

    def each(self, what: int) -> list[int]:
        """How many of `what` each worker has."""
        return [self._counts[worker * _COUNTS + what] for worker in range(self.count)]

    def others_have(self, what: int) -> int:
        """How many of `what` all other workers have."""
        return self._sum(what) - self._counts[self.index * _COUNTS + what]

    def enter(self, source: str) -> int:
        """Count one more connection of `source` here; how many all workers have then.

        Counted before it is looked: of several that come at once, through several doors, no more are let in than may.
        """
        slot = _slot_of(source)
        self._counts[self.index * _COUNTS + slot] += 1
        return self._sum(slot)

    def leave(self, source: str) -> None:
        """One of its connections here is gone, or was not let in."""
        self._counts[self.index * _COUNTS + _slot_of(source)] -= 1

    # ---- what a dead worker leaves behind ----------------------------------------------------------------------------

    def set_backends(self, backends: Iterable[tuple[str, int]]) -> None:
        """The origin's processes that work for this worker, each with its database: they may outlive it."""
        words = [number_of(database) << _TABLE_BITS | pid for database, pid in backends][:BACKENDS]
        if words == self._backends:
            return
        self._backends = words
        start = self._first_backend + self.index * BACKENDS
        for place, word in enumerate(words, start):
            self._words[place] = word
        if len(words) < BACKENDS:
            self._words[start + len(words)] = 0

    def _backends_of(self, index: int) -> list[tuple[int, int]]:
        start = self._first_backend + index * BACKENDS
        found = []
        for word in self._words[start : start + BACKENDS]:
            if not word:
                break
            found.append((word >> _TABLE_BITS, word & _MAX_TABLE))
        return found

    def forget(self, index: int) -> None:
        """The worker `index` is gone, and all that it has counted."""
        self._words[self._first_backend + index * BACKENDS] = 0
        start = index * _COUNTS
        self._counts[start : start + _COUNTS] = memoryview(bytes(_COUNTS * 4)).cast("i")
        for worker in range(self.count):
            self._counts[worker * _COUNTS + GIVEN + index] = 0

    def worker_lost(self, index: int) -> list[tuple[int, int]]:
        """For the parent: the worker `index` has died. What it had on its way to the board, nobody knows.

        Returns the origin's processes that may still work on what it has sent: (database's number, process id).
        """
        self.put_everything()
        backends = self._backends_of(index)
        self.forget(index)
        return backends

    def _sum(self, slot: int) -> int:
        counts = self._counts
        return sum([counts[worker * _COUNTS + slot] for worker in range(self.count)])


def _rings_at(count: int) -> int:
    return ((count + 1) * _WORD + 63) // 64 * 64


def _backends_at(count: int) -> int:
    return _rings_at(count) + (count + 1) * RING * _WORD


def _counts_at(count: int) -> int:
    return _backends_at(count) + count * BACKENDS * _WORD


def _slot_of(source: str) -> int:
    return _FIRST_SOURCE + crc32(source.encode()) % SOURCES
