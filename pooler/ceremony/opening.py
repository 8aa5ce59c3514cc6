"""A new connection of a pool: opened with the credentials that hold, and then the reactor's and the pool's.

Lives here: what the pool is told of it, and what the log and the metrics are. Not here: which host it goes to
(`origins`), what is said until it is logged in (`connect`), when the pool wants one (`pool`).
"""

from __future__ import annotations

import errno
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from config import Target
from pooler import outage
from pooler.ceremony.connect import Connected, LoginRefused, connect_to
from pooler.ceremony.origins import connect
from pooler.logs import get_logger
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.settings import Reports
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

UNREACHABLE = "08001"
"""The SQLSTATE of `errors.origin_unreachable`."""


NO_WAY = tuple(os.strerror(number) for number in (errno.EHOSTUNREACH, errno.ENETUNREACH))
"""What a router says, or the kernel, of a machine that is not there."""


STARTING = "57P03"
"""cannot_connect_now: the origin is starting up, shutting down or recovering."""

AT_ONCE = 0.5
"""An attempt that fails within this part of `breaker.retry_after` has cost next to nothing."""


class NoAnswer(PgError):
    """The origin did not answer in time."""


async def open_for(service: Service, pool: Pool) -> None:
    """Open one connection, as `Pool` asks for it; the pool hears how it went."""
    begun = time.monotonic()
    try:
        connected = await _attempt(service, pool)
    except PgError as error:
        _log_failure(pool, error)
        absent = error.sqlstate in (UNREACHABLE, STARTING) and not isinstance(error, LoginRefused)
        at_once = absent and time.monotonic() - begun < AT_ONCE * pool.config.breaker.retry_after
        timed_out = isinstance(error, NoAnswer)
        pool.connect_failed(error, begun=begun, absent=absent, timed_out=timed_out, at_once=at_once)
    except BaseException:
        pool.connecting_count -= 1
        raise
    else:
        take_in(pool, connected, begun)
        service.note_backends()


async def probe_for(service: Service, pool: Pool) -> None:
    """Open one connection and close it again: the pool hears whether the origin is alive.

    Who is told to go away by the origin itself has been answered. Where the connection leads to another server than
    those that the pool has, they are tried, too.
    """
    try:
        connected = await _attempt(service, pool)
    except PgError as error:
        if _answered(error):
            outage.probe_got_through(pool, time.monotonic())
        else:
            _log_failure(pool, error)
            outage.probe_failed(pool, error, time.monotonic())
        return
    connected.transport.close()
    others = {origin.target.server: origin.target for origin in pool.origins}
    others.pop(connected.target.server, None)
    gone = {server for server, target in others.items() if not await _is_alive(service, pool, target)}
    outage.probe_got_through(pool, time.monotonic(), gone)


async def _is_alive(service: Service, pool: Pool, target: Target) -> bool:
    """Whether anything answers at the address of `target`. Where nobody listens, its machine has said so, and would
    have ended the connections of processes that are gone.
    """
    try:
        with trio.fail_after(pool.limits.origin_connect_timeout):
            (await connect_to(target, service.reactor)).transport.close()
    except trio.TooSlowError:
        return False
    except PgError as error:
        return not error.message.endswith(NO_WAY)
    return True


def _answered(error: PgError) -> bool:
    """Whether it is the origin that said so."""
    return error.sqlstate != UNREACHABLE or isinstance(error, LoginRefused)


async def _attempt(service: Service, pool: Pool) -> Connected:
    """A connection, which the origin is given `origin_connect_timeout` for.

    Raises:
      PgError: it could not be made; NoAnswer: for lack of an answer.
    """
    service.reactor.ceremonies += 1
    try:
        return await _open(service, pool)
    except trio.TooSlowError:
        service.stats.expired("origin_connect_timeout")
        seconds = pool.limits.origin_connect_timeout
        failure = errors.origin_unreachable(f"no answer within {seconds:g} s (origin_connect_timeout)")
        raise NoAnswer(failure.sqlstate, failure.message) from None
    except PgError:
        raise
    except Exception as error:  # a bug here costs one connection, not the process
        log.exception("internal_error", where="connect", error=str(error))
        raise errors.origin_unreachable("an internal error of pgnear; see its log") from None
    finally:
        service.reactor.ceremonies -= 1


async def _open(service: Service, pool: Pool) -> Connected:
    if pool.home is pool:
        return await service.rotations[pool.name].connect()
    connected = await connect(replica_target(pool), service.reactor, timeout=pool.limits.origin_connect_timeout)
    if "in_hot_standby" in connected.parameters:
        connected.parameters["in_hot_standby"] = "off"  # as the client's session is on the primary
    return connected


def replica_target(pool: Pool) -> Target:
    """Where a replica's pool leads, with the password of its primary's where it has none of its own."""
    return pool.target if pool.target.password else replace(pool.target, password=pool.home.target.password)


def take_in(pool: Pool, connected: Connected, begun: float) -> None:
    """A connection of `pool`, `begun` at that time, is authenticated: it is the reactor's and the pool's now."""
    reports = Reports.of(connected.parameters)
    origin = Origin(connected.transport, pool, connected.pid, connected.secret, reports, connected.target)
    origin.created = begun  # what it begins with may be from then
    connected.transport.register(origin)
    log.debug(
        "origin_connected",
        pool=pool.name,
        origin_pid=origin.pid,
        tls=connected.transport.tls is not None,
    )
    if connected.rest:  # came in the same read as the end of the login
        origin.take(connected.rest)
    if origin.closed:
        pool.connect_failed(errors.origin_unreachable("what it said behind its login made no sense"), begun=begun)
    else:
        pool.connected(origin)


def _log_failure(pool: Pool, error: PgError) -> None:
    known = not pool.breaker.closed and pool.last_failure is not None and pool.last_failure.message == error.message
    log.log(
        logging.DEBUG if known else logging.ERROR,
        "origin_connect_failed",
        pool=pool.name,
        sqlstate=error.sqlstate,
        reason=error.message,
        detail=error.detail,
    )
