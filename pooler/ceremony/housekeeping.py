"""What is due several times a second, though nobody asks for it.

Not here: how it is done (`upkeep`, `Store.sweep` and their kind), and whose client takes too long (`deadlines`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from pooler import upkeep
from pooler.lingering import end_lingering

if TYPE_CHECKING:
    from pooler.service import Service

TICK_SECONDS = 0.1


async def keep_house(service: Service) -> None:
    """Ageing, wait deadlines and warm connections, for as long as the process lives."""
    retry_at: dict[str, float] = {}
    while True:
        now = time.monotonic()
        for pool in service.every_pool:
            name = pool.name
            upkeep.tick(pool, now)
            missing = upkeep.missing(pool)
            if missing and now >= retry_at.get(name, 0.0):
                retry_at[name] = now + (1.0 if pool.last_failure else 0.0)
                for _ in range(missing):
                    pool.open_one()
            if pool.advice is not None:
                pool.advice.tick(time.perf_counter())
        end_lingering(now)
        if service.board is not None:
            service.board.hear()  # so that who does nothing does not fall behind
            service.note_backends()
        if service.cache is not None:
            service.cache.sweep(time.perf_counter(), 1000)
        if service.flights is not None:
            service.flights.expire(time.perf_counter())
        await trio.sleep(TICK_SECONDS)
