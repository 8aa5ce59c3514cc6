"""What one worker learns from the others, and what they are told of what happens here.

Lives here: what news on the board mean for this process, and what goes by line because it does not fit there. Not here:
the board, the line, what follows from news (`Service`, `cache.store`, `ceremony.ears`).

On the board is what no client may be answered before: it is put there before the client that caused it hears of its
success. By line goes what may come a moment later than at a single process: what new connections begin with, databases
to step aside from, who asks for sequence values, functions that change their session, purges by namespace or
fingerprint that an origin has asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pooler.logs import get_logger
from pooler.sql.statement import Carrier, DefaultChange, PinKind
from pooler.workers.board import CATALOG, DATABASE, EVERYTHING, SCHEMA, TABLE, Board, Item, number_of
from pooler.workers.peers import Peers, answers

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)


# ---- by the board ----------------------------------------------------------------------------------------------------


def listen(service: Service, board: Board) -> None:
    """From now on the others hear what ends answers here, and this process hears them when it looks at the board."""
    by_number: dict[int, list[Pool]] = {}
    for pool in service.pools.values():
        by_number.setdefault(number_of(pool.name), []).append(pool)

    def heard(news: Sequence[Item]) -> None:
        with service.cache.quiet() if service.cache is not None else nullcontext():
            _take(service, by_number, news)

    def invalidated(database: str | None, tables: Iterable[Hashable] | None) -> None:
        if database is None:
            for name in service.pools:
                board.put_database(name)
        elif tables is None:
            board.put_database(database)
        else:
            board.put_tables(database, tables)

    board.on_news = heard
    if service.cache is not None:
        service.cache.on_invalidation = invalidated
        if service.peers is not None:
            service.cache.on_purge = _purge_told(service.peers)


def _take(service: Service, by_number: dict[int, list[Pool]], news: Sequence[Item]) -> None:
    """Do here what others have done there."""
    told: dict[int, set[int]] = {}  # the tables written, by database
    kinds: dict[int, set[int]] = {}
    for kind, database, table in news:
        if kind == EVERYTHING:
            log.info("worker_news_missed")
            for pools in by_number.values():
                for pool in pools:
                    _schema_changed(service, pool)
            return
        kinds.setdefault(database, set()).add(kind)
        if kind == TABLE:
            told.setdefault(database, set()).add(table)
    for database, those in kinds.items():
        for pool in by_number.get(database, ()):  # none: a worker with another configuration serves it
            if SCHEMA in those:
                _schema_changed(service, pool)
                continue
            if DATABASE in those:
                _written(service, pool, None)
            elif database in told:
                _written(service, pool, told[database])
            if CATALOG in those:
                service.forget_catalog(pool)


def _written(service: Service, pool: Pool, tables: set[int] | None) -> None:
    if service.cache is not None:
        service.cache.invalidate(pool.name, tables)
    if pool.advice is not None:
        pool.advice.updates.note(None if tables is None else frozenset(tables), perf_counter())


def _schema_changed(service: Service, pool: Pool) -> None:
    pool.schema_epoch += 1
    _written(service, pool, None)
    service.forget_catalog(pool)
    service.doubt_roles()


# ---- by line ---------------------------------------------------------------------------------------------------------


def _purge_told(peers: Peers) -> Callable[[str | None, str | None, Hashable | None], None]:
    def purged(database: str | None, namespace: str | None, fingerprint: Hashable | None) -> None:
        what = {"database": database, "namespace": namespace, "fingerprint": fingerprint}
        peers.tell_others("purge_named", what)

    return purged


@answers("purge_named")
async def _purge_named(service: Service, data: Any) -> None:
    if service.cache is not None:
        with service.cache.quiet():
            service.cache.purge(**data)


def tell_defaults(peers: Peers, changes: Iterable[DefaultChange]) -> None:
    """A client of this worker has changed what new connections begin with."""
    peers.tell_others("defaults_changed", [list(change) for change in changes])


@answers("defaults_changed")
async def _defaults_changed(service: Service, data: Any) -> None:
    service.follow_defaults([DefaultChange(*each) for each in data])


def tell_leave(peers: Peers, databases: frozenset[str]) -> None:
    """One of these databases is about to be dropped, renamed or copied."""
    peers.tell_others("leave_databases", sorted(databases))


@answers("leave_databases")
async def _leave_databases(service: Service, data: Any) -> None:
    service.step_aside(frozenset(data))


def tell_of_effects(peers: Peers, pool: str, made: frozenset[tuple[str | Carrier, PinKind]]) -> None:
    """A client of this worker makes functions that change their session, or what reaches such functions."""
    peers.tell_others("effects_made", [pool, [[key, kind.value] for key, kind in made]])


@answers("effects_made")
async def _effects_made(service: Service, data: Any) -> None:
    pool, made = data
    service.classifier.add_effects(
        pool, [(key if isinstance(key, str) else Carrier(*key), PinKind(kind)) for key, kind in made]
    )


def tell_of_recaller(peers: Peers, kind: Sequence[str]) -> None:
    """A client of this worker, of this kind, has asked for a sequence's value."""
    peers.tell_others("recalls", list(kind))


@answers("recalls")
async def _recalls(service: Service, data: Any) -> None:
    pool, user, application = data
    service.recallers.add((pool, user, application))


# ---- who hears the origins -------------------------------------------------------------------------------------------


@answers("ears")
async def _ears(service: Service, data: Any) -> Any:
    """What this worker hears of writes past pgnear, and does not."""
    return service.ears.said() if service.ears is not None else None


@answers("ears_changed")
async def _ears_changed(service: Service, data: Any) -> None:
    if service.ears is not None:
        service.ears.told(data)


@answers("worker_lost")
async def _worker_lost(service: Service, data: Any) -> None:
    if service.ears is not None:
        service.ears.worker_lost(data["index"])
    for pool in service.pools.values():
        if pids := [pid for database, pid in data["backends"] if database == number_of(pool.name)]:
            service.unsure.follow_orphans(pool, pids)
