"""A write whose end nobody saw: its client or its connection was lost while the origin worked on it.

The origin may still commit it, a moment or a minute later, and nobody will be told. So what it may reach is invalidated
again and again until its backend has gone: an answer from before the commit is served for no longer than a pause.
"""

from __future__ import annotations

from collections.abc import Callable

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


async def follow(pool: Pool, pid: int, invalidate: Callable[[], None]) -> None:
    """Call `invalidate` until the backend `pid` of `pool`'s origin has gone, and once more."""
    log.warning("write_unsure", pool=pool.name, origin_pid=pid)
    pause = FIRST_PAUSE_SECONDS
    with trio.move_on_after(FOLLOW_SECONDS) as limit:
        while True:
            gone = await _is_gone(pool, pid)
            invalidate()
            if gone:
                break
            await trio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
    if limit.cancelled_caught:
        log.warning("write_unsure_given_up", pool=pool.name, origin_pid=pid, seconds=FOLLOW_SECONDS)


async def _is_gone(pool: Pool, pid: int) -> bool:
    """False where the origin cannot be asked, too."""
    try:
        async with borrowed(pool) as origin:
            with trio.fail_after(pool.config.origin_connect_timeout):
                found = await ask_origin(origin, f"SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = {pid}")
        return not text_rows(found, 1)
    except (PgError, trio.TooSlowError):
        return False
