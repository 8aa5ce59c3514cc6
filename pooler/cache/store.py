"""The answers in memory: bounded in bytes, least recently used out first, gone at once when their namespace is
invalidated.

An answer is rows, not a message sequence, so that it serves any shape in which a driver asks. Epochs close the race
between a read in
flight and a write: whoever stores compares the epoch with the one its query was sent in.
"""

from __future__ import annotations

from collections import OrderedDict
from random import uniform
from typing import Any

ENTRY_OVERHEAD_BYTES = 900
"""What an entry costs beside its bytes: the object, its key's tuple and two dictionary slots."""

TTL_JITTER = 0.1
"""TTLs are shortened by up to this part, so that what was stored together does not expire together."""


class Entry:
    """One answer.

    Attributes:
      rows: DataRow frames, joined. row_description: the RowDescription frame, or None where nobody asked for it.
      tag: the CommandComplete frame. expires: seconds, on the clock of `Store.get`. size: bytes it is accounted with.
    """

    __slots__ = ("expires", "row_description", "rows", "size", "tag")

    def __init__(self, rows: bytes, row_description: bytes | None, tag: bytes, expires: float, size: int) -> None:
        self.rows = rows
        self.row_description = row_description
        self.tag = tag
        self.expires = expires
        self.size = size


class Store:
    """All entries of the process.

    Args:
      max_bytes: bound for all entries together. max_entry_bytes: for the rows of one. ttl: seconds.
    """

    def __init__(self, max_bytes: int, max_entry_bytes: int, *, ttl: float) -> None:
        self.max_bytes = max_bytes
        self.max_entry_bytes = max_entry_bytes
        self.ttl = ttl
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.stores = 0
        self.evictions = 0
        self.invalidations = 0
        self.expired = 0
        self._entries: OrderedDict[tuple[str, int, Any], Entry] = OrderedDict()
        self._epochs: dict[str, int] = {}
        self._stored_in: dict[str, int] = {}

    @property
    def entries(self) -> int:
        return len(self._entries)

    def epoch(self, namespace: str) -> int:
        """How often `namespace` was invalidated."""
        return self._epochs.get(namespace, 0)

    def get(self, namespace: str, key: Any, now: float) -> Entry | None:
        """The entry of `key` that may be served at `now` (seconds, any clock that only goes forward)."""
        place = (namespace, self._epochs.get(namespace, 0), key)
        entry = self._entries.get(place)
        if entry is None:
            self.misses += 1
            return None
        if entry.expires < now:
            self._drop(place)
            self.expired += 1
            self.misses += 1
            return None
        self._entries.move_to_end(place)
        self.hits += 1
        return entry

    def put(self, namespace: str, key: Any, rows: bytes, row_description: bytes | None, tag: bytes, now: float) -> None:
        """Keep an answer, and make room for it where that is needed."""
        size = len(rows) + len(row_description or b"") + len(tag) + _key_bytes(key) + ENTRY_OVERHEAD_BYTES
        if len(rows) > self.max_entry_bytes or size > self.max_bytes:
            return
        place = (namespace, self.epoch(namespace), key)
        if place in self._entries:
            self._drop(place)
        expires = now + self.ttl * uniform(1.0 - TTL_JITTER, 1.0)
        self._entries[place] = Entry(rows, row_description, tag, expires, size)
        self.bytes += size
        self.stores += 1
        self._stored_in[namespace] = self._stored_in.get(namespace, 0) + 1
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def invalidate(self, namespace: str) -> None:
        """Nothing stored in `namespace` so far, nor any read in flight, may be served from now on.

        Takes constant time: the epoch is part of every place, and `sweep` frees the memory.
        """
        self._epochs[namespace] = self._epochs.get(namespace, 0) + 1
        if self._stored_in.pop(namespace, 0):
            self.invalidations += 1

    def sweep(self, now: float, budget: int) -> None:
        """Free up to `budget` of the oldest entries that can never be served again."""
        for place in list(self._entries)[:budget] if len(self._entries) <= budget else self._oldest(budget):
            if place[1] != self.epoch(place[0]) or self._entries[place].expires < now:
                self._drop(place)
                self.expired += 1

    def _oldest(self, count: int) -> list[tuple[str, int, Any]]:
        iterator = iter(self._entries)
        return [next(iterator) for _ in range(count)]

    def _drop(self, place: tuple[str, int, Any]) -> None:
        self.bytes -= self._entries.pop(place).size


def _key_bytes(key: Any) -> int:
    """The bytes of the texts and values in a key, which the entry keeps alive."""
    return sum(len(part) for part in key if isinstance(part, bytes)) if isinstance(key, tuple) else 0
