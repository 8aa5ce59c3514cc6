"""Using a pool's connection from a task: for greetings, resets and catalog look-ups.

While it is borrowed the connection is out of the reactor's hands; it goes back registered, idle and clean, or closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from pooler.ceremony.connect import ask
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.settings import DEFAULTS, Settings
from pooler.transport import TransportClosed
from protocol import errors
from protocol.framing import parameter_status
from protocol.responses import PgError


class _Borrower:
    """A task in the pool's queue."""

    user = ""  # all of them take turns as one user would

    def __init__(self, settings: Settings, patience: float) -> None:
        self.settings = settings
        self.patience = patience
        self.traces = settings.customs
        self.insists = False
        self.origin: Origin | None = None
        self.error: PgError | None = None
        self.decided = trio.Event()

    def granted(self, origin: Origin) -> None:
        origin.leave_reactor()
        self.origin = origin
        self.decided.set()

    def refused(self, error: PgError) -> None:
        self.error = error
        self.decided.set()


@asynccontextmanager
async def borrowed(pool: Pool, settings: Settings | None = None) -> AsyncIterator[Origin]:
    """A connection of `pool`, for the length of the block.

    Args:
      settings: what a client that logs in has set; without, it is for work of pgnear's own, which takes the connection
        that no client is likely to get next.

    Raises:
      PgError: none was to be had in time, the settings cannot be made, or the origin does not answer.
    """
    own_work = settings is None
    settings = settings if settings is not None else DEFAULTS
    borrower = _Borrower(settings, pool.limits.pool_wait_timeout)
    origin = (pool.acquire_coldest() if own_work else None) or pool.acquire(borrower)
    if origin is None:
        try:
            await borrower.decided.wait()
        except trio.Cancelled:
            pool.withdraw(borrower)
            if borrower.origin is not None:
                give_back(pool, borrower.origin, own_work=own_work)
            raise
        if borrower.error is not None:
            raise borrower.error
        assert borrower.origin is not None
        origin = borrower.origin
    else:
        origin.leave_reactor()
    try:
        if origin.settings is not settings:
            with trio.fail_after(pool.limits.origin_connect_timeout):
                await apply(origin, settings)
        yield origin
    except PgError:
        give_back(pool, origin, own_work=own_work)
        raise
    except TransportClosed as error:
        origin.close()
        raise errors.origin_lost(str(error)) from None
    except trio.TooSlowError:
        origin.close()
        seconds = pool.limits.origin_connect_timeout
        raise errors.origin_lost(f"it did not answer within {seconds:g} s (origin_connect_timeout)") from None
    except BaseException:
        origin.close()
        raise
    else:
        give_back(pool, origin, own_work=own_work)


def give_back(pool: Pool, origin: Origin, *, own_work: bool = False) -> None:
    """Into the reactor's hands again, and free; behind `own_work` of pgnear's, the last that a client gets."""
    if origin.closed:  # the pool was closed meanwhile
        return
    origin.draining = False
    origin.transport.register(origin)
    if own_work:
        pool.release_coldest(origin)
    else:
        pool.release(origin)


async def apply(origin: Origin, settings: Settings) -> None:
    """Make `origin` have `settings`.

    Raises:
      PgError: the origin refuses one of them; none of them is made then.
      TransportClosed: the connection broke.
    """
    await ask_origin(origin, origin.settings.difference_to(settings)[5:-1].decode())
    origin.settings = settings
    origin.traces |= settings.customs


async def ask_origin(origin: Origin, text: str) -> list[tuple[int, bytes]]:
    """`ask` on a borrowed connection, noting what it reports of itself.

    Raises:
      PgError, TransportClosed: as `ask` does.
    """
    origin.unnamed = None
    frames = await ask(origin.transport, text)
    for kind, body in frames:
        if kind == ord("S"):
            origin.reports = origin.reports.with_value(*parameter_status(body))
    return frames
