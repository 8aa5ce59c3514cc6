"""The answers in memory: which may be served now, and which go.

Lives here: looking up, storing, ending entries, and the accounting of bytes. Not here: what an entry is (`entry`), the
clocks of one database (`epochs`), who goes when it is full (`eviction`), what a TTL is and for whom (`policy`), who
asks the origin when several miss at once (`flight`), what a key is made of (`keys`). Nothing here waits or reads a
clock: `now` is seconds on any clock that only goes forward.

**The race between a read in flight and a write.** `clock` counts invalidations. Who sends a query takes a stamp first
(`begin`) and stores its answer with it; each table, and each database, remembers the clock of its last invalidation. An
answer is stored and served only if none of its tables was invalidated after its stamp. An invalidation thus costs what
it names, not what is stored; dead entries are freed by whoever meets them: `get`, eviction, `sweep`.

**What is shared is counted once.** Texts of statements and row descriptions are parts of many entries. A key is a tuple
whose last part is the entry's own; the other parts may be shared with others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from sys import getsizeof
from typing import Any

from pooler.cache.entry import Entry, Freshness, Namespace
from pooler.cache.epochs import NEVER, Epochs
from pooler.cache.eviction import MAX_USES, Evictable, S3Fifo
from pooler.cache.ready import Shelf

ENTRY_BYTES = 440
"""What an entry costs beside its bytes and its place in the dictionary: the object, its numbers, its key's tuple."""

CONSTANT_BYTES = 8
"""Bytes objects up to this length are the same few everywhere, and not counted."""

HEAP_PART = 0.01
"""What the heap loses between the objects, as a part of them."""

REFRESH_SECONDS = 30.0
"""So long nobody else is told to refresh a stale entry; then whoever was is taken for lost."""

ROOM_BYTES = 65536
"""So much more than it needs itself an entry makes room for, while the bound is passed."""

SHELF_PART = 16
"""Answers that are ready to be sent take at most one part in so many of the bytes."""

Frame = bytes  # in Store, `bytes` is how many it holds


class Store:
    """All entries of the process.

    Args:
      max_bytes: bound for all entries together. max_entry_bytes: for the rows of one.
      stale_if_error: seconds for which a stale entry is kept beyond its time, for `get_even_if_stale`.
      on_drop: told of every entry that was of use and goes.

    Attributes:
      on_invalidation: told of a database (None: all) and tables in it (None: all) that were invalidated, before whoever
        did that goes on.
      on_purge: told of what is purged by other names: (database or None, namespace or None, fingerprint or None).
    """

    def __init__(
        self,
        max_bytes: int,
        max_entry_bytes: int,
        *,
        stale_if_error: float = 0.0,
        on_drop: Callable[[Entry], None] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_entry_bytes = max_entry_bytes
        self.stale_if_error = stale_if_error
        self.on_drop = on_drop
        self.on_invalidation: Callable[[str | None, Iterable[Hashable] | None], None] | None = None
        self.on_purge: Callable[[str | None, str | None, Hashable | None], None] | None = None
        self.clock = 0
        self.table_invalidations = 0
        self.database_invalidations = 0
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._shared: dict[Frame, int] = {}  # part -> entries that have it
        self._descriptions: dict[Frame, Frame] = {}  # frame -> the one of its kind that entries keep
        self._held = 0  # bytes of entries and shared parts, without the dictionaries
        self._databases: dict[str, Epochs] = {}
        self._purged = NEVER
        self.shelf = Shelf(max_bytes // SHELF_PART)
        self._common = self._queues(max_bytes)
        self._all_queues = [self._common]
        self._ghosts = self._common.ghost.bytes
        self._namespaces: dict[str, Namespace] = {}
        self.default = self.namespace("default")
        self._tour: Iterator[Evictable] = iter(())

    # ---- what it holds -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What the store has grown the process by, within a tenth."""
        tables = getsizeof(self._entries) + getsizeof(self._shared) + self._ghosts
        return int(self._held * (1.0 + HEAP_PART)) + tables + self.shelf.bytes

    def namespace(self, name: str, max_bytes: int | None = None) -> Namespace:
        """The namespace `name`; made at the first call, and only then `max_bytes` matters."""
        known = self._namespaces.get(name)
        if known is None:
            queues = self._common
            if max_bytes is not None:
                queues = self._queues(max_bytes)
                self._all_queues.append(queues)
                self._ghosts += queues.ghost.bytes
            known = self._namespaces[name] = Namespace(name, max_bytes, queues)
        return known

    @property
    def namespaces(self) -> list[Namespace]:
        return list(self._namespaces.values())

    def find(
        self,
        *,
        namespace: str | None = None,
        database: str | None = None,
        table: Hashable | None = None,
        fingerprint: Hashable | None = None,
    ) -> Iterator[Entry]:
        """Entries that have all that is given, dead ones too. Looks at every entry: for a console, not for traffic."""
        for entry in list(self._entries.values()):
            if (
                (namespace is None or entry.namespace.name == namespace)
                and (database is None or entry.epochs.name == database)
                and (table is None or table in entry.tables)
                and (fingerprint is None or entry.fingerprint == fingerprint)
            ):
                yield entry

    def peek(self, key: tuple[Any, ...]) -> Entry | None:
        """The entry of `key`, dead or alive, uncounted."""
        return self._entries.get(key)

    def is_alive(self, entry: Entry, now: float) -> bool:
        """Whether `get` would serve it."""
        return now < entry.stale_until and now - entry.stored_at <= entry.epochs.cap and self._unchanged(entry)

    # ---- look up -----------------------------------------------------------------------------------------------------

    def get(self, key: tuple[Any, ...], now: float, namespace: Namespace) -> Entry | None:
        """The entry of `key` that may be served at `now`; hit or miss is counted in `namespace`.

        It may be stale: where `entry.expires <= now`, ask `claim_refresh`.
        """
        entry = self._entries.get(key)
        if entry is not None:
            if entry.expires <= now or entry.stamp < entry.epochs.barrier:
                entry = self._look_closer(entry, now, namespace)
                if entry is None:
                    return None
            if entry.uses < MAX_USES:
                entry.uses += 1
            entry.hits += 1
            namespace.hits += 1
            return entry
        namespace.misses += 1
        return None

    def _look_closer(self, entry: Entry, now: float, namespace: Namespace) -> Entry | None:
        """`entry` if it may still be served, stale or after a write to other tables; otherwise a miss is counted."""
        if not self._unchanged(entry):
            entry.namespace.invalidated += 1
            self._drop(entry)
        elif now - entry.stored_at > entry.epochs.cap or entry.stale_until <= now:
            if entry.stale_until + self.stale_if_error <= now:
                entry.namespace.expired += 1
                self._drop(entry)
        else:
            if entry.expires <= now:
                namespace.stale_hits += 1
            entry.stamp = self.clock  # nothing of its tables has changed up to now
            return entry
        namespace.misses += 1
        return None

    def get_even_if_stale(self, key: tuple[Any, ...], now: float, max_age: float) -> Entry | None:
        """An entry at most `max_age` seconds old, expired or not, that no write has ended: for when the origin fails.

        Expired entries are kept for `stale_if_error` seconds. A cap holds here too.
        """
        entry = self._entries.get(key)
        if entry is None or now - entry.stored_at > min(max_age, entry.epochs.cap) or not self._unchanged(entry):
            return None
        entry.hits += 1
        entry.namespace.hits += 1
        entry.namespace.stale_hits += 1
        return entry

    def claim_refresh(self, entry: Entry, now: float) -> bool:
        """Whether the caller is the one to ask the origin for a stale `entry` anew.

        Nobody else is until a new answer is stored, `abandon_refresh`, or `REFRESH_SECONDS` have passed.
        """
        if now < entry.refreshing:
            return False
        entry.refreshing = now + REFRESH_SECONDS
        entry.namespace.refreshes += 1
        return True

    def abandon_refresh(self, entry: Entry) -> None:
        """The refresh came to nothing; the next one to see the entry stale may try."""
        entry.refreshing = 0.0

    # ---- store -------------------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """The stamp of a query that is sent now, or whose transaction began to see the database now."""
        return self.clock

    def is_current(self, database: str, tables: tuple[Hashable, ...], stamp: int) -> bool:
        """Whether none of `tables` has been invalidated since `stamp`."""
        epochs = self._databases.get(database)
        return stamp >= self._purged and (epochs is None or epochs.unchanged_since(stamp, tables))

    def last_invalidation(self, database: str) -> int:
        """The clock when anything of `database` was invalidated last."""
        return self._epochs(database).latest

    def make(
        self,
        key: tuple[Any, ...],
        rows: Sequence[Frame],
        row_description: Frame | None,
        tag: Frame,
        *,
        database: str,
        stamp: int,
        sent_at: float,
        policy: Freshness,
        tables: tuple[Hashable, ...] = (),
        fingerprint: Hashable = None,
    ) -> Entry:
        """An entry, not stored yet. `tables` and `fingerprint` are those of the statement, shared by its entries.

        Args:
          key: its last part is the entry's own; it holds all that decides the answer, the database too.
          rows: DataRow frames. row_description, tag: RowDescription and CommandComplete frames.
          stamp: from `begin`. sent_at: seconds, when the query was sent: what was read may be as old as that.
          tables: any ids by which they are invalidated.
        """
        epochs = self._epochs(database)
        entry = Entry(
            rows, row_description, tag, key=key, epochs=epochs, stamp=stamp, stored_at=sent_at, tables=tables,
            policy=policy, fingerprint=fingerprint,
        )  # fmt: skip
        if not epochs.uncovered.isdisjoint(tables):
            entry.end_after(epochs.uncovered_cap)
        return entry

    def put(self, entry: Entry) -> bool:
        """Keep an entry and make room for it. False, and it is not kept, where it is too large or out of date.

        Out of date is one from before a write to its tables, or older than what is there.
        """
        namespace = entry.namespace
        if len(entry.answer) - entry.tag_size > self.max_entry_bytes:
            return False
        if entry.stamp < self._purged or not self._unchanged(entry):
            return False
        former = self._entries.get(entry.key)
        if former is not None:
            if former.stored_at > entry.stored_at and self._unchanged(former):
                return False  # a younger one was faster
            self._drop(former)
        size = entry.size = self._size(entry)
        limit = namespace.max_bytes
        if size > self.max_bytes or (limit is not None and size > limit):
            return False
        self._entries[entry.key] = entry
        self._share(entry)
        self._held += size
        namespace.bytes += size
        namespace.entries += 1
        namespace.stores += 1
        namespace.queues.add(entry)
        while limit is not None and namespace.bytes > limit and self._evict(namespace.queues):
            pass
        self._make_room(4 * size + ROOM_BYTES)
        return entry.queue is not None

    def _make_room(self, at_most: int) -> None:
        """Evict until the bound holds, or `at_most` bytes have gone: when the dictionary doubles, not all at once."""
        least = self._held - at_most
        while self._held > least and self.bytes > self.max_bytes and self._evict(self._largest()):
            pass

    def _evict(self, queues: S3Fifo) -> bool:
        victim = queues.evict()
        if victim is None:
            return False
        assert isinstance(victim, Entry)
        victim.namespace.evictions += 1
        self._drop(victim)
        return True

    def _largest(self) -> S3Fifo:
        """Which queues give room for all: those that hold the most."""
        return self._common if len(self._all_queues) == 1 else max(self._all_queues, key=lambda queues: queues.bytes)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        if entry.hits and self.on_drop is not None:
            self.on_drop(entry)
        namespace = entry.namespace
        if entry.queue is not None:  # a victim has left its queue already
            namespace.queues.remove(entry)
        self._held -= entry.size
        namespace.bytes -= entry.size
        namespace.entries -= 1
        self._unshare(entry)
        if entry.ready is not None:
            self.shelf.forget(entry)

    # ---- bytes -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _size(entry: Entry) -> int:
        own = (entry.answer, entry.key[-1], entry.parameter_description)
        return ENTRY_BYTES + 8 * len(entry.key) + sum(map(_heap_bytes, own))

    def _share(self, entry: Entry) -> None:
        if entry.row_description is not None:
            entry.row_description = self._descriptions.setdefault(entry.row_description, entry.row_description)
        shared = self._shared
        for part in self._shared_parts(entry):
            count = shared.get(part, 0)
            shared[part] = count + 1
            if not count:
                self._held += _heap_bytes(part)

    def _unshare(self, entry: Entry) -> None:
        shared = self._shared
        for part in self._shared_parts(entry):
            count = shared[part] - 1
            if count:
                shared[part] = count
            else:
                del shared[part]
                self._descriptions.pop(part, None)
                self._held -= _heap_bytes(part)

    @staticmethod
    def _shared_parts(entry: Entry) -> Iterator[Frame]:
        for part in entry.key[:-1]:
            if type(part) is Frame and len(part) > CONSTANT_BYTES:
                yield part
        if entry.row_description is not None:
            yield entry.row_description

    # ---- the end of entries ------------------------------------------------------------------------------------------

    def invalidate(self, database: str, tables: Iterable[Hashable] | None) -> None:
        """`invalidate_tables`; where `tables` is None, anything may have changed: `invalidate_database`."""
        if tables is None:
            self.invalidate_database(database)
        else:
            self.invalidate_tables(database, tables)

    def invalidate_tables(self, database: str, tables: Iterable[Hashable]) -> None:
        """Nothing that was read from `tables` so far, nor any read in flight, may be served from now on."""
        if self.on_invalidation is not None:
            tables = tuple(tables)
            self.on_invalidation(database, tables)
        self.clock += 1
        self.table_invalidations += self._epochs(database).invalidate_tables(tables, self.clock)

    def invalidate_database(self, database: str) -> None:
        """The same for everything in `database`."""
        if self.on_invalidation is not None:
            self.on_invalidation(database, None)
        self.clock += 1
        self.database_invalidations += 1
        self._epochs(database).invalidate_everything(self.clock)

    def invalidate_everything(self) -> None:
        """The same for every database."""
        if self.on_invalidation is not None:
            self.on_invalidation(None, None)
        self.clock += 1
        self._purged = self.clock  # and so for databases of which nothing is known yet
        for epochs in self._databases.values():
            self.database_invalidations += 1
            epochs.invalidate_everything(self.clock)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done meanwhile is told to nobody: it is others who have said so."""
        told = self.on_invalidation, self.on_purge
        self.on_invalidation = self.on_purge = None
        try:
            yield
        finally:
            self.on_invalidation, self.on_purge = told

    def cap(self, database: str, seconds: float | None) -> None:
        """Serve nothing of `database` that is older than `seconds`, whatever its TTL; None takes the cap off.

        Who takes it off because writes are seen again should invalidate the database: some were not seen.
        """
        self._epochs(database).limit(seconds)

    def cap_tables(self, database: str, tables: frozenset[Hashable], seconds: float) -> None:
        """From now on, store answers from any of `tables` for no longer than `seconds`, others as their policy says.

        Who adds a table should invalidate it: what is stored already is not touched.
        """
        epochs = self._epochs(database)
        epochs.uncovered, epochs.uncovered_cap = tables, seconds

    def uncovered(self, database: str) -> frozenset[Hashable]:
        """What `cap_tables` was given."""
        return self._epochs(database).uncovered

    def sweep(self, now: float, budget: int) -> int:
        """Look at up to `budget` entries, going on where the last sweep ended, and free those that are dead.

        Returns how many. A whole tour takes as many calls as the entries need.
        """
        self._make_room(budget * 1024)
        freed = 0
        for _ in range(min(budget, len(self._entries))):
            entry = next(self._tour, None)
            if entry is None:
                self._tour = chain.from_iterable(list(self._all_queues))
                continue
            assert isinstance(entry, Entry)
            if not self._unchanged(entry):
                entry.namespace.invalidated += 1
            elif entry.stale_until + self.stale_if_error <= now:
                entry.namespace.expired += 1
            else:
                continue
            self._drop(entry)
            freed += 1
        return freed

    def purge(
        self,
        *,
        namespace: str | None = None,
        database: str | None = None,
        table: Hashable | None = None,
        fingerprint: Hashable | None = None,
        everything: bool = False,
    ) -> int:
        """Drop the entries that have all that is given, or all there are; returns how many.

        Answers on their way are not stored. Looks at every entry: for a console, not for traffic.

        Raises:
          ValueError: nothing was named, and not everything meant.
        """
        if not everything and namespace is None and database is None and table is None and fingerprint is None:
            raise ValueError("name what to purge")
        self._tell_of_purge(database, table, namespace, fingerprint)
        self.clock += 1
        self._purged = self.clock
        count = 0
        for entry in self.find(namespace=namespace, database=database, table=table, fingerprint=fingerprint):
            entry.namespace.purged += 1
            self._drop(entry)
            count += 1
        return count

    def _tell_of_purge(
        self, database: str | None, table: Hashable | None, namespace: str | None, fingerprint: Hashable | None
    ) -> None:
        if namespace is None and fingerprint is None and (table is None or database is not None):
            if self.on_invalidation is not None:
                self.on_invalidation(database, None if table is None else (table,))
        elif self.on_purge is not None:
            self.on_purge(database, namespace, fingerprint)

    # ---- below -------------------------------------------------------------------------------------------------------

    def _queues(self, max_bytes: int) -> S3Fifo:
        return S3Fifo(max_bytes // 1024, lambda item: isinstance(item, Entry) and self._unchanged(item))

    def _epochs(self, database: str) -> Epochs:
        epochs = self._databases.get(database)
        if epochs is None:
            epochs = self._databases[database] = Epochs(database)
        return epochs

    @staticmethod
    def _unchanged(entry: Entry) -> bool:
        return entry.epochs.unchanged_since(entry.stamp, entry.tables)

    # ---- sums --------------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        return len(self._entries)

    @property
    def hits(self) -> int:
        return sum(namespace.hits for namespace in self._namespaces.values())

    @property
    def misses(self) -> int:
        return sum(namespace.misses for namespace in self._namespaces.values())

    @property
    def stale_hits(self) -> int:
        return sum(namespace.stale_hits for namespace in self._namespaces.values())

    @property
    def refreshes(self) -> int:
        return sum(namespace.refreshes for namespace in self._namespaces.values())

    @property
    def stores(self) -> int:
        return sum(namespace.stores for namespace in self._namespaces.values())

    @property
    def evictions(self) -> int:
        return sum(namespace.evictions for namespace in self._namespaces.values())

    @property
    def expired(self) -> int:
        """Entries that were dropped because of their age or a write."""
        return sum(namespace.expired + namespace.invalidated for namespace in self._namespaces.values())

    @property
    def invalidations(self) -> int:
        """Tables and databases whose entries a write has ended, each time."""
        return self.table_invalidations + self.database_invalidations


def _heap_bytes(value: object) -> int:
    """What a bytes object takes on the heap; nothing for short ones, which are constants of a protocol."""
    return len(value) + 48 & ~15 if type(value) is bytes and len(value) > CONSTANT_BYTES else 0
