"""Who tells the cache of writes that go past pgnear, and what holds for a database while it is not told.

Lives here: what a stream's and a listener's news mean for the cache, and how long answers may live while one of both is
lost. Not here: keeping the connections (`stream`, `notify`), what a NOTIFY's words mean (`admin.purge`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import trio

from pooler.cache.store import Store
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.notify import Listener
from pooler.ceremony.stream import Stream
from pooler.pool import Pool

if TYPE_CHECKING:
    from pooler.service import Service

Told = Callable[[Store, Pool, str], None]
"""The origin of a pool said this: end what it names. Raises PgError where it is not understood."""


class Ears:
    """What is heard of writes to the origins' databases.

    Attributes:
      lost: by database, who should tell of writes to it and does not: "stream", "notify".
    """

    def __init__(self, service: Service, store: Store, databases: Iterable[str]) -> None:
        self._service = service
        self._store = store
        self.lost: dict[str, set[str]] = {name: set() for name in databases}

    def stream(self, pool: Pool) -> Stream:
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
            on_uncovered=lambda tables: store.cap_tables(name, tables, cap),
            on_schema=lambda: self._service.catalog_changed(pool),
            name=pool.name,
            publication=self._service.config.cache.publication,
            create=self._service.config.cache.invalidation == "stream",
            ask_elsewhere=ask,
            connect_timeout=pool.limits.origin_connect_timeout,
        )

    def listener(self, pool: Pool, channel: str, told: Told) -> Listener:
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
        self._store.cap(database, self._service.config.cache.ttl_without_stream)

    def _hears(self, database: str, ear: str) -> None:
        self.lost[database].discard(ear)
        if not self.lost[database]:
            self._store.cap(database, None)
