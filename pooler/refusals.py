"""Who asks a pool for a connection in vain, and hears so: at once, while it waits, or when its time is over.

Lives here: the reasons to say no, and the moment at which it is said. Not here: the order of those who wait and how
long they may expect to (`queue`), who gets a connection (`pool`), the errors' words (`protocol.errors`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pooler import outage
from pooler.logs import get_logger
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.pool import Pool, Waiter

log = get_logger(__name__)


class Refusals:
    """Those who are to hear no, when they are ready to: not while they are still asking.

    Args:
      soon: runs a function when whoever called the pool is done.
    """

    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        self._soon = soon
        self._pending: dict[Waiter, PgError] = {}

    def add(self, waiter: Waiter, error: PgError) -> None:
        if not self._pending:
            self._soon(self._tell)
        self._pending[waiter] = error

    def _tell(self) -> None:
        while self._pending:  # one at a time: what one is told may make another leave
            waiter = next(iter(self._pending))
            waiter.refused(self._pending.pop(waiter))

    def withdraw(self, waiter: Waiter) -> None:
        """`waiter` has left: it hears nothing."""
        self._pending.pop(waiter, None)


# ---- at once ---------------------------------------------------------------------------------------------------------


def why_not_wait(pool: Pool, waiter: Waiter, now: float) -> PgError | None:
    """Why `waiter` would wait in vain; None if it would not, or nobody knows."""
    if pool.held_since is not None:
        return None
    if not pool.breaker.closed and outage.paused(pool, now):
        return origin_paused(pool, now)
    if waiter.user in pool.administrators:
        return None
    limit = pool.config.max_waiting
    if limit and len(pool.waiting) >= limit:
        pool.stats.pool_refusals += 1
        return errors.queue_full(pool.name, limit)
    if pool.waiting.is_short(now, pool.shortest_wait):
        return None
    patience = waiter.patience
    expected = pool.waiting.expected_wait(waiter.user, now, patience) if pool.origins else 0.0
    if expected > patience:
        pool.stats.pool_refusals += 1
        return _too_slow(pool, expected, patience)
    return None


def _too_slow(pool: Pool, expected: float, patience: float) -> PgError:
    lowered_to = pool.allowed if pool.allowed < pool.size else None
    return errors.queue_too_slow(pool.name, expected, patience, lowered_to)


def origin_paused(pool: Pool, now: float) -> PgError:
    """The breaker lets no connection be opened, and there is none that could serve anybody."""
    pool.stats.breaker_refusals += 1
    reason = pool.last_failure.message if pool.last_failure is not None else "it was lost"
    silence = pool.pulse.silent(now) if pool.pulse.frozen else 0.0
    return errors.origin_paused(reason, pool.breaker.failures_in_a_row, pool.breaker.retry_in(now), silence)


# ---- while they wait -------------------------------------------------------------------------------------------------


def everybody(pool: Pool, error: PgError) -> None:
    """All who wait are refused."""
    for waiter in pool.waiting.clear():
        pool.refusals.add(waiter, error)


def those_from_before(pool: Pool, moment: float, error: PgError) -> None:
    """Who waits since `moment` (monotonic seconds) or longer is refused."""
    for waiter in [waiter for since, waiter in pool.waiting if since <= moment]:
        pool.waiting.withdraw(waiter)
        pool.refusals.add(waiter, error)


def hopeless(pool: Pool, now: float, free_since: float) -> None:
    """Refuse who will not be served in time, rather than when that time is over; administrators wait it out.

    The time before `free_since` does not count.
    """
    found = [each for each in pool.waiting.hopeless(now, free_since) if each[0].user not in pool.administrators]
    for waiter, since, to_come in found:
        _end_wait(pool, waiter, now - since)
        pool.stats.pool_refusals += 1
        waiter.refused(_too_slow(pool, now - since + to_come, waiter.patience))
    if found:
        log.warning("queue_too_slow", pool=pool.name, size=pool.size, refused=len(found), waiting=len(pool.waiting))


# ---- when their time is over -----------------------------------------------------------------------------------------


def overdue(pool: Pool, now: float, free_since: float) -> None:
    """Refuse who has waited for too long, the time before `free_since` not counted."""
    late = [each for each in pool.waiting if now - max(each[0], free_since) > each[1].patience]
    for since, waiter in late:
        _end_wait(pool, waiter, now - since)
        pool.stats.pool_timeouts += 1
        pool.stats.expired("pool_wait_timeout")
        log.warning("pool_wait_timeout", pool=pool.name, size=pool.size, waiting=len(pool.waiting) + 1)
        waiter.refused(errors.pool_timeout(pool.name, waiter.patience, pool.size, outage.why_not(pool)))


def held(pool: Pool, now: float, held_since: float) -> None:
    """Refuse who has waited for too long for an operator to let the pool go on."""
    limit = pool.limits.pause_timeout
    if not 0 < limit < now - held_since:
        return
    for since, waiter in [each for each in pool.waiting if now - max(each[0], held_since) > limit]:
        _end_wait(pool, waiter, now - since)
        pool.stats.expired("pause_timeout")
        waiter.refused(errors.paused(pool.name, limit))


def _end_wait(pool: Pool, waiter: Waiter, waited: float) -> None:
    pool.withdraw(waiter)
    pool.wait_histogram.observe(waited)
