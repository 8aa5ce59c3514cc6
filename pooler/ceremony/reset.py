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
from pooler.sql.traces import TEMPORARY_SCHEMA, UNKNOWN
from pooler.transport import TransportClosed
from pooler.unit import DATA_ROW
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
            if not origin.traces.isdisjoint({TEMPORARY_SCHEMA, UNKNOWN}):
                await _look_for_schema(origin)
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


async def _look_for_schema(origin: Origin) -> None:
    """Whether a temporary schema is left on `origin`: what may have made one may have been rolled back."""
    frames = await ask_origin(origin, "SELECT WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0")
    exists = any(kind == DATA_ROW for kind, _ in frames)
    origin.traces = origin.traces | {TEMPORARY_SCHEMA} if exists else origin.traces - {TEMPORARY_SCHEMA}
