"""An origin that cannot be reached, or does not answer: what a pool makes of its breaker and its pulse.

Lives here: what attempts, probes and silence do to both, what is logged of it, and whether it is worth waiting. Not
here: when a breaker opens (`breaker`), when silence is doubtful (`pulse`), connecting (`ceremony.opening`), who is
refused (`refusals`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from pooler.logs import get_logger
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.pool import Pool

log = get_logger(__name__)


def paused(pool: Pool, now: float) -> bool:
    """Whether no connection can become free for anybody, and the breaker lets none be opened now, nor soon enough."""
    breaker = pool.breaker
    return (
        not breaker.closed
        and (pool.pulse.frozen or not usable(pool))
        and not breaker.may_try(now)
        and now >= pool.awaited_until
    )


def usable(pool: Pool) -> bool:
    """Whether there is a connection that may become free for somebody."""
    return any(not origin.retired for origin in pool.origins)


# ---- an origin that is to be back ------------------------------------------------------------------------------------


def expect(pool: Pool, now: float) -> None:
    """An operator says that the origin is there, or will be any moment: who waits does so for as long as ever."""
    pool.awaited_until = now + max([waiter.patience for _, waiter in pool.waiting] or [pool.limits.pool_wait_timeout])
    pool.breaker.hurry(now)


def awaited(pool: Pool, now: float) -> bool:
    """Whether the origin is to be waited for though it cannot be reached. Once that is over, who waits hears so."""
    if not pool.awaited_until:
        return False
    if now < pool.awaited_until:
        return True
    pool.awaited_until = 0.0
    reason = why_not(pool)
    if reason is not None:
        log.warning("origin_not_back", pool=pool.name, waiting=len(pool.waiting), reason=reason)
    return False


def why_not(pool: Pool) -> str | None:
    """Why there is no connection at all, where that is known."""
    return pool.last_failure.message if pool.last_failure is not None and not usable(pool) else None


# ---- attempts to connect ---------------------------------------------------------------------------------------------


def reached(pool: Pool, now: float) -> None:
    """The origin let a connection in, or said something on one that it has."""
    pool.ready = True
    pool.last_failure = None
    pool.awaited_until = 0.0
    pool.pulse.alive(now)
    if pool.breaker.succeeded():
        log.warning("origin_breaker_closed", pool=pool.name)


def not_reached(
    pool: Pool, error: PgError, now: float, *, timed_out: bool = False, at_once: bool = False, again: bool = False
) -> None:
    """A connection could not be made, for a reason that is the origin's.

    Args:
      timed_out, at_once: as `Breaker.failed` has them. again: it is the reason of the attempt before.
    """
    was_closed = pool.breaker.closed
    if pool.breaker.failed(now, timed_out=timed_out, at_once=at_once):
        quiet = again and at_once and not was_closed
        _opened(pool, error, now, level=logging.DEBUG if quiet else logging.ERROR if was_closed else logging.WARNING)


def _opened(pool: Pool, error: PgError, now: float, *, level: int) -> None:
    pool.ready = False
    log.log(
        level,
        "origin_breaker_open",
        pool=pool.name,
        failures=pool.breaker.failures_in_a_row,
        retry_in_seconds=round(pool.breaker.retry_in(now), 3),
        frozen=pool.pulse.frozen,
        reason=error.message,
    )


# ---- silence ---------------------------------------------------------------------------------------------------------


def listen(pool: Pool, now: float) -> None:
    """Several times a second: has the origin of a pool without a free connection said anything?"""
    pulse, breaker, patience = pool.pulse, pool.breaker, pool.config.breaker.silence
    if pulse.listen(_marks(pool), now):
        if pulse.frozen:
            reached(pool, now)
    elif not patience or not breaker.opens or not pool.waiting.users:
        return
    elif not breaker.closed and not pulse.frozen and pulse.silent(now) >= patience:
        pulse.frozen = True  # those attempts that have opened it were as good as probes
        pool.grow()
    elif breaker.closed and not pool.connecting_count and pulse.doubtful(now, patience):
        log.warning(
            "origin_silent",
            pool=pool.name,
            seconds=round(pulse.silent(now), 3),
            connections=len(pool.origins),
            waiting=len(pool.waiting),
        )
        probe(pool, now)


def _marks(pool: Pool) -> dict[object, object]:
    """What changes when a connection says something; none where one is free, or none owes an answer."""
    if pool.idle or not any(origin.units for origin in pool.origins):
        return {}
    return {origin: (origin.received, origin.ready_at) for origin in pool.origins}


def probe(pool: Pool, now: float) -> None:
    """See whether the origin lets anybody in, with a connection beside those of the pool."""
    pool.breaker.begin()
    pool.pulse.probe(now)
    pool.ceremonies.probe(pool)


def probe_got_through(pool: Pool, now: float, gone: Collection[tuple[str, int]] = ()) -> None:
    """It answered. Servers that are `gone` did not, though connections lead there: the origin is at another one now.

    Their connections are lost, and so their places in the pool are free: the origin that is there now has none of them.
    """
    pulse = pool.pulse
    lost = [each for each in pool.origins if each.target.server in gone and each.session is not None]
    if pulse.has_been_silent:
        for origin in lost:
            origin.lost("its server does not answer, and the origin is at another address now")
    pulse.got_through(now)
    if not pool.breaker.closed:
        reached(pool, now)


def probe_failed(pool: Pool, error: PgError, now: float) -> None:
    """It did not answer: those who wait do so in vain. What it works on is left to its own deadlines."""
    was_closed = pool.breaker.closed
    pool.stats.origin_connect_failures += 1
    pool.last_failure = error
    if pool.pulse.did_not() and pool.breaker.trip(now):
        _opened(pool, error, now, level=logging.ERROR if was_closed else logging.WARNING)
    pool.grow()
