"""What becomes of a pool though no client asks it for anything: in time, with new credentials, at an operator's word.

Not here: who gets a connection, and what is closed rather than handed on (`pool`), what is said to those who wait for
too long (`refusals`), what silence means (`outage`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from pooler import demotion, outage, refusals
from pooler.concurrency import adapt
from pooler.greetings import Greetings

if TYPE_CHECKING:
    from pooler.pool import Pool

ASIDE_SECONDS = 10.0
"""How long a database that is being dropped is left alone; PostgreSQL itself waits 5 s for others to leave."""


def tick(pool: Pool, now: float) -> None:
    """Housekeeping, several times a second: waits that took too long, connections that are too old or lacking."""
    if pool.held_since is not None:
        refusals.held(pool, now, pool.held_since)
    else:
        if pool.awaited_until and not outage.awaited(pool, now):
            pool.grow()
        if pool.oldest_wait_seconds(now) > pool.shortest_wait:
            refusals.overdue(pool, now, pool.let_go_at)
        if pool.waiting.users and pool.origins:
            refusals.hopeless(pool, now, pool.let_go_at)
        if not pool.breaker.closed and pool.breaker.may_try(now):
            if pool.ordinary < pool.allowed:
                pool.open_one()
            elif pool.pulse.frozen:
                outage.probe(pool, now)
        pool.grow()
        outage.listen(pool, now)
        adapt(pool, now)
    demotion.look(pool)
    idle_limit = pool.limits.origin_idle_timeout
    for origin in (*pool.idle, *pool.reserve_idle):
        aged = pool.too_old(origin, now)
        surplus = origin in pool.reserve or len(pool.origins) > pool.config.min_pool_size
        if aged or (surplus and 0 < idle_limit < now - origin.idle_since):
            origin.close()


def missing(pool: Pool) -> int:
    """How many connections are lacking to `min_pool_size`."""
    if pool.held_since is not None or not pool.breaker.closed or monotonic() < pool.aside_until:
        return 0
    return max(0, min(pool.config.min_pool_size, pool.allowed) - pool.ordinary)


def renew(pool: Pool) -> None:
    """New connections begin with something else (defaults, credentials, address): the old ones go, once idle."""
    pool.renewed_at = monotonic()
    pool.greetings = Greetings()
    _close_idle(pool)


def has_outdated(pool: Pool) -> bool:
    """Whether a connection from before the last `renew` is still there."""
    return any(origin.created < pool.renewed_at for origin in pool.origins)


# ---- held back by an operator ----------------------------------------------------------------------------------------


def hold(pool: Pool) -> None:
    """No connection is handed out or opened, and each is closed as it becomes idle; who wants one waits."""
    if pool.held_since is None:
        pool.held_since = monotonic()
    _close_idle(pool)


def let_go(pool: Pool) -> None:
    """The opposite of `hold`. Who waited meanwhile has its whole patience again."""
    pool.held_since = None
    pool.let_go_at = monotonic()
    pool.waiting.start_over(pool.let_go_at)
    outage.expect(pool, pool.let_go_at)
    pool.grow()


def step_aside(pool: Pool) -> None:
    """Somebody needs the database for himself: close what is idle, and open nothing unasked for a while."""
    pool.aside_until = monotonic() + ASIDE_SECONDS
    _close_idle(pool)


def _close_idle(pool: Pool) -> None:
    for origin in (*pool.idle, *pool.reserve_idle):
        origin.close()
