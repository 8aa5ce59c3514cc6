"""What those ask for who come from PgBouncer, and the exporters that were written for it, by the names that it has.

Lives here: SHOW DATABASES, USERS, STATE, LISTS and STATS_TOTALS, and the columns of SHOW POOLS that exporters look for.
What pgnear has no counterpart of is left out, not made up. Source: PgBouncer's documentation, "Admin console";
pgbouncer_exporter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

Row = tuple[str | int | float | None, ...]

POOL_COLUMNS = (
    "database user cl_active# cl_waiting# sv_active# sv_idle# sv_tested# sv_login# maxwait# maxwait_us# pool_mode"
)
DATABASE_COLUMNS = (
    "name host port# database force_user pool_size# min_pool_size# reserve_pool_size# pool_mode max_connections# "
    "current_connections# paused# disabled#"
)


def clients_of(service: Service) -> Counter[Pool]:
    """How many clients each pool has that do not wait for a connection."""
    return Counter(session.pool for session in service.sessions if not session.waiting)


def pool(service: Service, pool: Pool, clients: int, now: float) -> Row:
    """The columns of `POOL_COLUMNS`."""
    seconds = pool.oldest_wait_seconds(now)
    linked = sum(origin.session is not None for origin in pool.origins)
    return (
        pool.name, pool.target.user, clients, pool.waiting_count, linked, pool.idle_count,
        len(pool.origins) - linked - pool.idle_count, pool.connecting_count, int(seconds), int(seconds % 1 * 1e6),
        service.config.pooling_of(pool.name, ""),
    )  # fmt: skip


def databases(service: Service) -> Iterator[Row]:
    """One for each, and for each replica."""
    for pool in service.every_pool:
        target = pool.target
        yield (
            pool.name, target.host, target.port, target.dbname, target.user, pool.size,
            min(service.config.min_pool_size, pool.size), service.config.reserve_pool_size,
            service.config.pooling_of(pool.name, ""), pool.size, len(pool.origins), int(pool.held_since is not None),
            int(pool.disabled),
        )  # fmt: skip


def lists(service: Service) -> Iterator[Row]:
    """How many there are of what."""
    pools = service.every_pool
    idle = sum(pool.idle_count for pool in pools)
    yield "databases", len(service.pools)
    yield "users", len(service.config.users) or 1
    yield "pools", len(pools)
    yield "free_clients", 0
    yield "used_clients", len(service.sessions) + len(service.console.conversations)
    yield "login_clients", service.stats.unauthenticated
    yield "free_servers", idle
    yield "used_servers", sum(len(pool.origins) for pool in pools) - idle


def users(service: Service) -> Iterator[Row]:
    """Who may log in, with a pooling mode of his own where he has one, and how many clients each has."""
    config = service.config
    clients = Counter(session.user for session in service.sessions)
    for name in sorted(
        {*config.users, *clients, *(() if config.users else (pool.target.user for pool in service.every_pool))}
    ):
        own = config.users.get(name)
        yield name, own.pooling if own is not None else None, clients[name]


def state(service: Service) -> Iterator[Row]:
    """SUSPEND is a PAUSE that is not waited for."""
    paused = all(pool.held_since is not None for pool in service.pools.values())
    yield "active", "no" if paused else "yes"
    yield "paused", "yes" if paused else "no"
    yield "suspended", "no"


def totals(service: Service) -> Iterator[Row]:
    """What is counted by database."""
    for pool in service.every_pool:
        yield pool.name, pool.finished
