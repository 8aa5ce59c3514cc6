"""What the store holds: an answer with all that decides whether it may be served, and whose it is.

Lives here: `Entry`, `Namespace`, and what an entry wants to know of its policy (`Freshness`). Not here: judging entries
and keeping the bytes (`store`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from random import random
from typing import Any, Protocol

from pooler.cache.epochs import Epochs
from pooler.cache.eviction import Evictable, S3Fifo
from pooler.cache.ready import View

TTL_JITTER = 0.1
"""TTLs are shortened by up to this part, so that what was stored together does not expire together."""


class Freshness(Protocol):
    """How long answers may be served, in seconds, and whose they are. `policy.Policy` is one."""

    @property
    def ttl(self) -> float: ...
    @property
    def stale_while_revalidate(self) -> float: ...
    @property
    def negative_ttl(self) -> float: ...
    @property
    def namespace(self) -> Namespace: ...


class Namespace:
    """The entries of one policy and what became of them.

    Attributes:
      max_bytes: a bound of its own; None shares the store's. The bytes counted are those of its entries alone.
      stale_hits: hits that were stale, counted in `hits` too. refreshes: of them, those that led to a new query.
      expired: dropped because of age. invalidated: because of a write. purged: by hand. evictions: for room.
    """

    __slots__ = (
        "bytes", "entries", "evictions", "expired", "hits", "invalidated", "max_bytes", "misses", "name", "purged",
        "queues", "refreshes", "stale_hits", "stores",
    )  # fmt: skip

    def __init__(self, name: str, max_bytes: int | None, queues: S3Fifo) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self.queues = queues
        self.bytes = self.entries = 0
        self.hits = self.misses = self.stale_hits = self.refreshes = 0
        self.stores = self.evictions = self.expired = self.invalidated = self.purged = 0

    def __repr__(self) -> str:
        return f"<Namespace {self.name}: {self.entries} entries, {self.bytes} bytes>"


class Entry(Evictable):
    """One answer: rows, not a message sequence, so that it serves any shape in which a driver asks.

    Attributes:
      answer: DataRow frames and the CommandComplete frame. row_description: that frame, or None where nobody asked.
      parameter_description: that frame of its statement, or None where nobody asked.
      row_count: DataRow frames in it.
      stored_at: seconds, when its query was sent. expires: it is fresh until then. stale_until: served until then.
      stamp: the clock up to which its tables are known not to have changed.
      tables: ids of what it was read from. database: their database.
      fingerprint: of its statement, whatever the caller knows it by.
      size: bytes it is accounted with. hits: how often it was served.
      ready: where the shelf has it, if it does.
    """

    __slots__ = (
        "answer", "epochs", "expires", "fingerprint", "hits", "key", "namespace", "parameter_description", "ready",
        "refreshing", "row_count", "row_description", "stale_until", "stamp", "stored_at", "tables", "tag_size",
    )  # fmt: skip

    def __init__(
        self,
        rows: Sequence[bytes],
        row_description: bytes | None,
        tag: bytes,
        *,
        key: tuple[Any, ...],
        epochs: Epochs,
        stamp: int,
        stored_at: float,
        tables: tuple[Hashable, ...],
        policy: Freshness,
        fingerprint: Hashable,
    ) -> None:
        self.answer = b"".join((*rows, tag))
        self.tag_size = len(tag)
        self.row_count = len(rows)
        self.row_description = row_description
        self.parameter_description: bytes | None = None
        self.key = key
        self.epochs = epochs
        self.stamp = stamp
        self.tables = tables
        self.namespace = policy.namespace
        self.fingerprint = fingerprint
        ttl, stale = policy.ttl, policy.stale_while_revalidate
        if not rows:
            ttl, stale = min(ttl, policy.negative_ttl), min(stale, policy.negative_ttl)
        self.stored_at = stored_at
        self.expires = stored_at + ttl * (1.0 - TTL_JITTER * random())
        self.stale_until = self.expires + stale if stale else self.expires
        self.refreshing = 0.0
        self.hits = 0
        self.ready: list[tuple[View, bytes]] | None = None
        self.uses = 0
        self.mark = hash(key)
        self.queue = self.newer = self.older = None
        self.size = 0

    def end_after(self, seconds: float) -> None:
        """Serve it no longer than `seconds` after its query was sent, not even stale."""
        end = self.stored_at + seconds
        self.expires, self.stale_until = min(self.expires, end), min(self.stale_until, end)

    @property
    def rows(self) -> bytes:
        return self.answer[: -self.tag_size]

    @property
    def tag(self) -> bytes:
        return self.answer[-self.tag_size :]

    @property
    def database(self) -> str:
        return self.epochs.name

    def __repr__(self) -> str:
        return f"<Entry of {self.row_count} rows, {self.size} bytes, {self.hits} hits, in {self.namespace.name}>"
