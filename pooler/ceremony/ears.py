"""Who tells the cache of writes that go past pgnear, and what holds for a database while it is not told.

Lives here: what a stream's and a listener's news mean for the cache, how long answers may live while one of both is
lost, and, of several workers, who hears for all. Not here: keeping the connections (`stream`, `notify`), what the words
of a NOTIFY mean (`admin.purge`).

Of several workers the first has the streams and listeners: each costs the origin a slot or a connection. What they say
goes over the board; whether there are any, and for which tables, by line: `said` is what the first says of that, `told`
what the others make of it. They take everything for lost until they are told otherwise, and again when it dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pooler.cache.store import Store
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.lasting import lasting
from pooler.ceremony.notify import Listener
from pooler.ceremony.stream import Stream
from pooler.pool import Pool

if TYPE_CHECKING:
    from pooler.service import Service

LEADER = 0
"""Which of several workers has the streams and listeners."""

ASK_AGAIN_SECONDS = 1.0

Told = Callable[[Store, Pool, str], None]
"""The origin of a pool said this: end what it names. Raises PgError where it is not understood."""


class Ears:
    """What is heard of writes to the origins' databases.

    Attributes:
      lost: by database, who should tell of writes to it and does not: "stream", "notify".
      leads: whether it is this process that has the streams and listeners.
      streams, listeners: by pool, as far as the configuration wants them.
    """

    def __init__(self, service: Service, store: Store, told: Told) -> None:
        self._service = service
        self._store = store
        self.lost: dict[str, set[str]] = {name: set() for name in service.pools}
        self.leads = service.peers is None or service.peers.index == LEADER
        self._told_at = -1  # of what was told last: by the system's clock, which all workers have
        self._sure = False  # that it is so now
        self.streams: dict[str, Stream] = {}
        self.listeners: dict[str, Listener] = {}
        cache = service.config.cache
        if not self.leads:
            self._lose_all()
            return
        if cache.invalidation != "writes":
            self.streams = {name: self._stream(pool) for name, pool in service.pools.items()}
        if channel := cache.notify_channel:
            self.listeners = {name: self._listener(pool, channel, told) for name, pool in service.pools.items()}

    async def run(self) -> None:
        """Hear, for as long as the process lives."""
        async with trio.open_nursery() as nursery:
            for stream in self.streams.values():
                nursery.start_soon(lasting, stream.run)
            for listener in self.listeners.values():
                nursery.start_soon(lasting, listener.run)
            nursery.start_soon(lasting, self._agree)

    def target_changed(self, pool: Pool) -> None:
        """`pool` leads to another place now, or has other credentials."""
        if (stream := self.streams.get(pool.name)) is not None:
            stream.retarget(pool.target)

    def _stream(self, pool: Pool) -> Stream:
        """Who tells of the writes to `pool`'s database that go past pgnear. While it is lost, TTLs are capped."""
        store, name = self._store, pool.name
        cap = self._service.config.cache.ttl_without_stream
        if self._service.config.cache.invalidation == "stream":
            self._deaf(name, "stream")

        def changed(tables: frozenset[int] | None) -> None:
            if pool.advice is not None:
                pool.advice.updates.note(tables, time.perf_counter())

        async def ask(text: str) -> list[tuple[int, bytes]]:
            async with borrowed(pool) as origin:
                with trio.fail_after(pool.limits.origin_connect_timeout):
                    return await ask_origin(origin, text)

        return Stream(
            pool.target,
            self._service.reactor,
            on_invalidate=partial(store.invalidate, name),
            on_change=changed,
            on_lost=lambda reason: self._deaf(name, "stream"),
            on_recovered=lambda: self._hears(name, "stream"),
            on_uncovered=partial(self._uncovered, name, cap),
            on_schema=lambda: self._service.catalog_changed(pool),
            name=pool.name,
            publication=self._service.config.cache.publication,
            create=self._service.config.cache.invalidation == "stream",
            ask_elsewhere=ask,
            connect_timeout=pool.limits.origin_connect_timeout,
        )

    def _listener(self, pool: Pool, channel: str, told: Told) -> Listener:
        """Who hears what `pool`'s origin says is to be purged. While it is lost, TTLs are capped."""
        store, name = self._store, pool.name
        self._deaf(name, "notify")

        def recovered() -> None:
            self._hears(name, "notify")
            store.invalidate_database(name)  # what was said meanwhile is not known

        return Listener(
            lambda: pool.target,
            self._service.reactor,
            channel,
            on_payload=partial(told, store, pool),
            on_lost=lambda: self._deaf(name, "notify"),
            on_recovered=recovered,
            connect_timeout=self._service.config.origin_connect_timeout,
        )

    def _deaf(self, database: str, ear: str) -> None:
        """Who should tell of writes to `database` does not: nothing may be old for long."""
        self.lost[database].add(ear)
        self._limit(database)
        self._tell()

    def _hears(self, database: str, ear: str) -> None:
        self.lost[database].discard(ear)
        self._limit(database)
        self._tell()

    def _uncovered(self, database: str, cap: float, tables: frozenset[int]) -> None:
        self._store.cap_tables(database, tables, cap)
        self._tell()

    def _limit(self, database: str) -> None:
        self._store.cap(database, self._service.config.cache.ttl_without_stream if self.lost[database] else None)

    # ---- several workers ---------------------------------------------------------------------------------------------

    async def _agree(self) -> None:
        """Tell the others what this process hears; or ask the first until it has said that."""
        peers = self._service.peers
        if peers is None:
            return
        if self.leads:
            self._tell()  # who was there before has taken all for lost since another one led
            return
        while True:
            if not self._sure:
                self.told(await peers.ask_one(LEADER, "ears"))
            await trio.sleep(ASK_AGAIN_SECONDS)

    def said(self) -> dict[str, Any]:
        """What is lost and what is not covered, by database; and when that was so."""
        now = {
            name: {"lost": sorted(lost), "uncovered": sorted(self._store.uncovered(name), key=str)}
            for name, lost in self.lost.items()
        }
        return {"at": time.monotonic_ns(), "databases": now}

    def _tell(self) -> None:
        if self.leads and self._service.peers is not None:
            self._service.peers.tell_others("ears_changed", self.said())

    def told(self, said: dict[str, Any] | None) -> None:
        """The first worker has said so, in whatever order it arrives."""
        if said is None or self.leads or said["at"] <= self._told_at:
            return
        self._told_at, self._sure = said["at"], True
        for name, now in said["databases"].items():
            if name in self.lost:
                self._take(name, set(now["lost"]), frozenset(now["uncovered"]))

    def _take(self, database: str, lost: set[str], uncovered: frozenset[int]) -> None:
        store = self._store
        recovered = self.lost[database] and not lost
        more = uncovered - store.uncovered(database)
        self.lost[database] = lost
        self._limit(database)
        store.cap_tables(database, uncovered, self._service.config.cache.ttl_without_stream)
        with store.quiet():
            if recovered:  # some writes were not seen
                store.invalidate_database(database)
            elif more:  # what was stored until now would live longer
                store.invalidate_tables(database, more)

    def worker_lost(self, index: int) -> None:
        """A worker has died. If it was the first, nobody hears anything until who takes its place says so."""
        if index == LEADER and not self.leads:
            self._told_at, self._sure = time.monotonic_ns(), False
            self._lose_all()

    def _lose_all(self) -> None:
        cache = self._service.config.cache
        for database, lost in self.lost.items():
            if cache.invalidation != "writes":
                lost.add("stream")
            if cache.notify_channel:
                lost.add("notify")
            self._limit(database)
