"""What SHOW shows: each table's columns, where its rows come from, and how those of several workers are joined.

A worker's rows are taken at one moment, as traffic left it.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, SecretStr

from config import Config, url
from pooler import __version__
from pooler.admin import familiar
from pooler.admin.advice import COLUMNS as ADVICE_COLUMNS
from pooler.admin.advice import JoinedAdvice, advise
from pooler.admin.control import CONTROLS
from pooler.admin.everybody import ask_everybody
from pooler.admin.rows import Added, Column, Join, Listed, Row, columns
from pooler.ceremony.reload import RESTART
from pooler.histogram import Histogram
from pooler.workers.peers import answers
from protocol import errors

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.service import Service
    from pooler.session import Session

MASK = "********"


class Table(NamedTuple):
    """What SHOW can show.

    `own` are the columns of one worker's rows; `join` is None where all have the same to say, so that one may.
    """

    help: str
    own: tuple[Column, ...]
    rows: Callable[[Service], Iterator[Row]]
    join: Join | None

    def columns(self, service: Service) -> tuple[Column, ...]:
        return self.own if service.peers is None or self.join is None else self.join.columns(self.own)


async def show(service: Service, name: str) -> tuple[list[Row], list[int]]:
    """The rows of the table `name`, and the workers whose rows are missing, for they do not answer."""
    table = TABLES[name]
    if service.peers is None or table.join is None:
        return list(table.rows(service)), []
    replies = await ask_everybody(service, "show", {"table": name})
    parts = [(worker, [tuple(row) for row in rows]) for worker, rows in replies.answers.items()]
    return table.join.rows(table.own, parts), replies.silent


@answers("show")
async def _own_rows(service: Service, data: Any) -> list[Row]:
    return list(TABLES[data["table"]].rows(service))


def _help(service: Service) -> Iterator[Row]:
    for name, table in TABLES.items():
        yield f"SHOW {name}", table.help
    for word, control in CONTROLS.items():
        yield f"{word}{control.argument}", control.help
    yield "EXPLAIN CACHE [ON database] statement", "whether its answer may be cached, why, and what is"
    yield "PURGE ALL", "drop every cached answer"
    yield "PURGE TABLE [schema.]name", "drop the answers that were read from a table"
    yield "PURGE FINGERPRINT fingerprint", "drop the answers of statements of one shape, as EXPLAIN CACHE names it"
    yield "PURGE NAMESPACE name", "drop the answers of a policy; those without one are in default"


def _version(service: Service) -> Iterator[Row]:
    yield (f"pgnear {__version__}",)


def _pools(service: Service) -> Iterator[Row]:
    now = time.monotonic()
    clients = familiar.clients_of(service)
    for pool in service.every_pool:
        rotation = service.rotations.get(pool.name)  # a replica's pool has its primary's
        yield (
            pool.name, pool.size, pool.idle_count, pool.busy_count, pool.connecting_count, pool.waiting_count,
            round(pool.oldest_wait_seconds(now), 3), "yes" if pool.ready else "no",
            service.config.pooling_of(pool.name, ""), _place(pool),
            pool.last_failure.message if pool.last_failure is not None else None,
            "no" if pool.held_since is None else "yes", "no" if pool.disabled else "yes",
            pool.allowed, rotation.problem if rotation is not None else None,
            *familiar.pool(service, pool, clients[pool], now),
        )  # fmt: skip


def _place(pool: Pool) -> str:
    target = pool.target
    return f"{target.user}@{target.place}/{target.dbname}"


def _clients(service: Service) -> Iterator[Row]:
    now = time.monotonic()
    for session in service.sessions:
        pins = session.state.pins
        yield (
            session.user, session.database, session.transport.peer, session.key[0], _client_state(session),
            session.pinned or None, round(now - min(pins.values()), 3) if pins else None,
            session.reports.values.get("application_name", ""),
            session.origin.pid if session.origin is not None else None,
        )  # fmt: skip
    for conversation in service.console.conversations:
        asker = conversation.asker
        yield (
            asker.user,
            "pgnear",
            conversation.transport.peer,
            None,
            "console",
            None,
            None,
            asker.application_name,
            None,
        )


def _client_state(session: Session) -> str:
    if session.waiting:
        return "waiting"
    if session.deferred:
        return "deferred"
    return "unlinked" if session.origin is None else "linked"


def _origins(service: Service) -> Iterator[Row]:
    now = time.monotonic()
    for pool in service.every_pool:
        idle = {*pool.idle, *pool.reserve_idle}
        for origin in pool.origins:
            session = origin.session
            yield (
                pool.name, origin.pid, "idle" if origin in idle else _origin_state(origin),
                round(now - origin.created, 3), len(origin.settings.items), len(origin.prepared),
                session.user if session is not None else None,
                session.key[0] if session is not None else None, origin.target.place,
            )  # fmt: skip


def _origin_state(origin: Origin) -> str:
    if origin.session is not None:
        return "linked"
    return "draining" if origin.draining else "borrowed"


def _replicas(service: Service) -> Iterator[Row]:
    now = time.perf_counter()
    for pool in service.pools.values():
        for replica in pool.replicas.all if pool.replicas is not None else ():
            lag = replica.lag(now)
            yield (
                pool.name, replica.pool.target.place, "yes" if replica.usable(now) else "no",
                round(lag, 3) if lag is not None else None, replica.lag_bytes, round(replica.latency, 6),
                replica.reads, replica.blocks, replica.shortfall(now),
            )  # fmt: skip


def _breakers(service: Service) -> Iterator[Row]:
    now = time.monotonic()
    for pool in service.pools.values():
        breaker = pool.breaker
        yield (
            pool.name, breaker.state.value, breaker.failures_in_a_row, breaker.opened,
            None if breaker.closed else round(breaker.retry_in(now), 3),
            pool.last_failure.message if pool.last_failure is not None else None,
            "yes" if pool.pulse.frozen else "no",
        )  # fmt: skip


def _stats(service: Service) -> Iterator[Row]:
    stats = service.stats
    yield "clients", float(len(service.sessions) + len(service.console.conversations))
    yield "replication_connections", float(len(service.relays))
    for name in stats.__slots__:
        value = getattr(stats, name)
        if isinstance(value, Histogram):
            name = name.removesuffix("_latency")
            yield f"queries.{name}", float(value.count)
            yield f"query_seconds.{name}", round(value.total, 6)
        elif isinstance(value, dict):
            yield name, float(sum(value.values()))
            for key, count in value.items():
                yield f"{name}.{key}", float(count)
        else:
            yield name, float(value)


def _cache(service: Service) -> Iterator[Row]:
    store = service.cache
    if store is None:
        raise errors.cache_is_off()
    yield (
        None, store.entries, store.bytes, store.max_bytes, store.hits, store.stale_hits, store.misses, store.refreshes,
        store.stores, store.evictions, *(
            sum(getattr(namespace, name) for namespace in store.namespaces)
            for name in ("expired", "invalidated", "purged")
        ),
    )  # fmt: skip
    for each in store.namespaces:
        yield (
            each.name, each.entries, each.bytes, each.max_bytes, each.hits, each.stale_hits, each.misses,
            each.refreshes, each.stores, each.evictions, each.expired, each.invalidated, each.purged,
        )  # fmt: skip


def _workers(service: Service) -> Iterator[Row]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield (
        service.peers.index if service.peers is not None else 0, os.getpid(),
        len(service.sessions) + len(service.console.conversations),
        sum(len(pool.origins) for pool in service.every_pool), round(used.ru_utime + used.ru_stime, 3),
        _memory(used), service.cache.entries if service.cache is not None else 0,
        datetime.fromtimestamp(service.since, UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _memory(used: resource.struct_rusage) -> int:
    """Bytes that are resident now; where only the most so far is known, that."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _config(service: Service) -> Iterator[Row]:
    defaults = dict(_defaults())
    for name, value in _settings("", service.whole_config):
        fixed = any(name == each or name.startswith((f"{each}.", f"{each}[")) for each in RESTART)
        yield name, value, defaults.get(name), "no" if fixed else "yes"


def _defaults() -> Iterator[tuple[str, str | None]]:
    for key, field in Config.model_fields.items():
        if not field.is_required():
            yield from _settings(key, field.get_default(call_default_factory=True))


def _settings(name: str, value: object) -> Iterator[tuple[str, str | None]]:
    """A value of the configuration as (name, text), the secrets in it masked."""
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _settings(f"{name}.{key}" if name else key, getattr(value, key))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _settings(f"{name}.{key}", inner)
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for number, inner in enumerate(value):
            yield from _settings(f"{name}[{number}]", inner)
    elif isinstance(value, SecretStr):
        yield name, _masked(name, value)
    elif isinstance(value, bool):
        yield name, "true" if value else "false"
    elif isinstance(value, tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _masked(name: str, secret: SecretStr) -> str:
    """A secret; of a connection URL, where it leads."""
    if name.rpartition(".")[2] not in ("origin", "url"):
        return MASK
    target = url.parse(secret.get_secret_value())
    return f"postgresql://{target.user}:{MASK}@{target.place}/{target.dbname}?sslmode={target.sslmode}"


_ORIGIN = columns("pool pid# state age_seconds~ settings# prepared# client_user client_pid# host")

TABLES = {
    "HELP": Table("this list", columns("command description"), _help, None),
    "VERSION": Table("which pgnear this is", columns("version"), _version, None),
    "POOLS": Table(
        "origin connections and who waits for them, by database",
        columns(
            "pool size# idle# busy# connecting# waiting# oldest_wait_seconds~ ready mode origin last_failure "
            f"paused enabled allowed# credentials_problem {familiar.POOL_COLUMNS}"
        ),
        _pools,
        Added(
            "pool",
            largest=("oldest_wait_seconds", "maxwait maxwait_us", "paused"),
            smallest=("ready", "enabled"),
        ),
    ),
    "CLIENTS": Table(
        "clients, what pins them, and the origin connections that work for them",
        columns("user database address pid# state pinned pinned_seconds~ application_name origin_pid#"),
        _clients,
        Listed(),
    ),
    "ORIGINS": Table(
        "origin connections",
        _ORIGIN,
        _origins,
        Listed(),
    ),
    "SERVERS": Table(
        "the same: PgBouncer's name for it",
        _ORIGIN,
        _origins,
        Listed(),
    ),
    "BREAKERS": Table(
        "whether origins are tried, and when next",
        columns("pool state failures_in_a_row# opened# retry_in_seconds~ last_failure frozen"),
        _breakers,
        Listed(),
    ),
    "REPLICAS": Table(
        "replicas, and whether reads go to them",
        columns("pool host usable lag_seconds~ lag_bytes# latency_seconds~ reads# transactions# problem"),
        _replicas,
        Added("pool host", largest=("lag_seconds", "lag_bytes", "latency_seconds"), smallest=("usable",)),
    ),
    "STATS": Table("totals since the start", columns("name value~"), _stats, Added("name")),
    "DATABASES": Table(
        "databases and their limits, by PgBouncer's names",
        columns(familiar.DATABASE_COLUMNS),
        familiar.databases,
        Added("name", largest=("port", "paused", "disabled")),
    ),
    "USERS": Table(
        "users and their clients, by PgBouncer's names",
        columns("name pool_mode current_connections#"),
        familiar.users,
        Added("name"),
    ),
    "STATE": Table("whether all is paused, by PgBouncer's names", columns("key value"), familiar.state, None),
    "LISTS": Table(
        "how many there are of what, by PgBouncer's names",
        columns("list items#"),
        familiar.lists,
        Added("list", once=frozenset(("databases", "users", "pools"))),
    ),
    "STATS_TOTALS": Table(
        "what is counted by database, by PgBouncer's names",
        columns("database xact_count#"),
        familiar.totals,
        Added("database"),
    ),
    "CONFIG": Table(
        "every setting, without secrets, and whether RELOAD changes it",
        columns("name value default changeable"),
        _config,
        None,
    ),
    "WORKERS": Table(
        "the processes that are this pgnear, and what each has",
        columns("worker# pid# clients# origin_connections# cpu_seconds~ memory_bytes# cache_entries# since"),
        _workers,
        Listed(named=False),
    ),
    "CACHE": Table(
        "the cache's entries and what became of them: all, then by namespace",
        columns(
            "namespace entries# bytes# max_bytes# hits# stale_hits# misses# refreshes# stores# evictions# expired# "
            "invalidated# purged#"
        ),
        _cache,
        Added("namespace"),
    ),
    "CACHE ADVICE": Table(
        "what caching saves, would save or would cost, by statement shape; why not, where it cannot",
        columns(ADVICE_COLUMNS),
        advise,
        JoinedAdvice(),
    ),
}  # fmt: skip
"""By what is said behind SHOW."""
