"""A write whose end nobody saw: its client or its connection was lost while the origin worked on it.

The origin may still commit it, a moment or a minute later, and nobody will be told. So what it may reach is invalidated
again and again until its backend has gone: an answer from before the commit is served for no longer than a pause. So it
is when a worker has died, with all its backends: those that do nothing end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.connect import text_rows
from pooler.logs import get_logger
from pooler.pool import Pool
from protocol.responses import PgError

log = get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0
FOLLOW_SECONDS = 300.0
"""A backend that is still there is left alone then; entries live for their TTL."""

_THERE = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid IN (%s)"


async def follow(pool: Pool, pid: int, invalidate: Callable[[], None]) -> None:
    """Call `invalidate` until the backend `pid` of `pool`'s origin has gone, and once more."""
    log.warning("write_unsure", pool=pool.name, origin_pid=pid)
    await _follow(pool, {pid}, invalidate)


async def follow_orphans(pool: Pool, pids: Iterable[int], invalidate: Callable[[], None]) -> None:
    """The same for `pids`, whose worker has died."""
    left = set(pids)
    await trio.sleep(FIRST_PAUSE_SECONDS)
    if left := await _those_there(pool, left):
        log.warning("writes_unsure", pool=pool.name, origin_pids=sorted(left))
    await _follow(pool, left, invalidate)


async def _follow(pool: Pool, pids: set[int], invalidate: Callable[[], None]) -> None:
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
