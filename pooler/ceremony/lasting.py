"""Tasks that last as long as the process: a bug in one stops what it does for a moment, and nobody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from pooler.logs import get_logger

log = get_logger(__name__)

AGAIN_SECONDS = 1.0


async def lasting(task: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run `task` with `arguments`, and again after an error that it should have known."""
    while True:
        try:
            await task(*arguments)
            return
        except Exception as error:
            log.exception("internal_error", where=task.__qualname__, error=str(error))
        await trio.sleep(AGAIN_SECONDS)
