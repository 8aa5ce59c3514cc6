"""Making an origin connection clean again after a client left something on it: ROLLBACK, then DISCARD ALL where state
is left.

When in doubt the connection is closed, not reused.
"""

from __future__ import annotations

import trio

from pooler.ceremony.borrow import ask_origin, give_back
from pooler.logs import get_logger
from pooler.origin import IDLE, Origin
from pooler.pool import Pool
from pooler.settings import DEFAULTS
from pooler.transport import TransportClosed
from protocol.responses import PgError

log = get_logger(__name__)


async def reset(pool: Pool, origin: Origin, deadline_seconds: float) -> None:
    """Roll back and discard, then give the connection back to `pool`; or close it."""
    try:
        with trio.fail_after(deadline_seconds):
            if origin.status != IDLE:
                await ask_origin(origin, "ROLLBACK")
                origin.status = IDLE
                origin.block_since = 0.0
            await ask_origin(origin, "DISCARD ALL")
            origin.settings = DEFAULTS
            origin.prepared.clear()
            origin.unnamed = None
            origin.outdated = False
            origin.sequence_client = 0
    except (PgError, TransportClosed, trio.TooSlowError) as error:
        log.info(
            "origin_reset_failed",
            pool=pool.name,
            origin_pid=origin.pid,
            reason=str(error) or type(error).__name__,
        )
        origin.close()
    except BaseException:
        origin.close()
        raise
    else:
        give_back(pool, origin)
