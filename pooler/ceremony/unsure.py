"""A write whose end nobody saw: its client or its connection was lost while the origin worked on it.

The origin may still commit it, a moment or a minute later, and nobody will be told. So what it may reach is invalidated
again and again until its backend has gone: an answer from before the commit is served for no longer than a pause. So it
is when a worker has died, with all its backends: those that do nothing end at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from pooler.cache.store import Store
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.connect import text_rows
from pooler.logs import get_logger
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.stats import Stats
from protocol.responses import PgError

log = get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0
FOLLOW_SECONDS = 300.0
"""A backend that is still there is left alone then; entries live for their TTL."""

_THERE = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid IN (%s)"


class Unsure:
    """Who is followed, in the background; nobody where nothing is cached.

    Attributes:
      followed: database and process id of those whose client or connection this process lost.
    """

    def __init__(self, nursery: trio.Nursery, store: Store | None, stats: Stats) -> None:
        self.followed: set[tuple[str, int]] = set()
        self._nursery = nursery
        self._store = store
        self._stats = stats

    def follow_write(self, origin: Origin, database: str, reach: frozenset[int] | None) -> None:
        """What `origin` worked on may still be committed, and nobody will see it."""
        if self._store is not None:
            self._stats.writes_unsure += 1
            self._nursery.start_soon(self._follow_write, self._store, origin, database, reach)

    async def _follow_write(self, store: Store, origin: Origin, database: str, reach: frozenset[int] | None) -> None:
        log.warning("write_unsure", pool=origin.pool.name, origin_pid=origin.pid)
        followed = database, origin.pid
        self.followed.add(followed)
        await _follow(origin.pool, {origin.pid}, partial(store.invalidate, database, reach))
        self.followed.discard(followed)

    def follow_orphans(self, pool: Pool, pids: list[int]) -> None:
        """A worker has died; what it has sent to these of the origin's processes may still be committed."""
        if self._store is not None:
            self._nursery.start_soon(self._follow_orphans, self._store, pool, set(pids))

    async def _follow_orphans(self, store: Store, pool: Pool, pids: set[int]) -> None:
        await trio.sleep(FIRST_PAUSE_SECONDS)
        if left := await _those_there(pool, pids):
            log.warning("writes_unsure", pool=pool.name, origin_pids=sorted(left))
        await _follow(pool, left, partial(store.invalidate_database, pool.name))


async def _follow(pool: Pool, pids: set[int], invalidate: Callable[[], None]) -> None:
    """Call `invalidate` until the backends `pids` of `pool`'s origin have gone, and once more."""
    pause = FIRST_PAUSE_SECONDS
    with trio.move_on_after(FOLLOW_SECONDS) as limit:
        while True:
            pids = await _those_there(pool, pids)
            invalidate()
            if not pids:
                break
            await trio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
    if limit.cancelled_caught:
        for pid in pids:
            log.warning("write_unsure_given_up", pool=pool.name, origin_pid=pid, seconds=FOLLOW_SECONDS)


async def _those_there(pool: Pool, pids: set[int]) -> set[int]:
    """Which of `pids` have not gone; all of them where the origin cannot be asked, too."""
    if not pids:
        return pids
    try:
        async with borrowed(pool) as origin:
            with trio.fail_after(pool.config.origin_connect_timeout):
                found = await ask_origin(origin, _THERE % ", ".join(map(str, pids)))
        return {int(pid) for (pid,) in text_rows(found, 1)}
    except (PgError, trio.TooSlowError):
        return pids
