"""What pgnear must know of an origin database, read from it again and again.

Lives here: when it is read, and where each part goes. Not here: the queries, and what follows from their answers
(`cache.catalog`, `defaults`, `sequences`, `sql.bodies`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import trio

from pooler.cache.catalog import CATALOG_QUERY, Catalog
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.connect import text_row, text_rows
from pooler.defaults import CONFIGURED_QUERY, DEFAULTS_QUERY
from pooler.logs import get_logger
from pooler.sequences import SEQUENCE_TABLES_QUERY
from pooler.sql.bodies import SESSION_FUNCTIONS_QUERY
from pooler.sql.carriers import BUILT_IN_CALLS_QUERY, EDGES_QUERY, STATE_QUERY, carriers_of
from pooler.sql.statement import NO_EFFECTS, Carrier, Effects
from protocol.errors import malformed_message
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

_Rows = list[tuple[str, ...]]
_Answers = tuple[str, _Rows, _Rows, list[tuple[int, bytes]]]

CATALOG_SECONDS = 30.0
"""How old the knowledge may become where nothing tells of a change."""

IDLE_CATALOG_SECONDS = 600.0
"""The same for the tables where the cache is off, and they only serve SHOW CACHE ADVICE."""

RETRY_SECONDS = 1.0

REST = 4
"""Behind a reading comes a rest of so many times its length, so that a migration's DDL does not make it read at each
step: it takes a fifth of the time at most."""


async def keep_catalog(service: Service, pool: Pool) -> None:
    """Read at the start, behind DDL, and from time to time, for as long as the process lives.

    Until the first reading succeeds nothing is cached, and a failed one empties the cache's knowledge.
    """
    read_at = 0.0
    known = False
    told = ""  # the problem that was logged last
    effects = _EffectsReader(service, pool)
    while True:
        begun = monotonic()
        wait = CATALOG_SECONDS
        try:
            due = service.cache is not None or (
                service.observes and (pool.catalog is None or begun >= read_at + IDLE_CATALOG_SECONDS)
            )
            await _read(service, pool, effects, tables=due)
            if due:
                read_at = monotonic()
            if not known:
                log.info("catalog_read", pool=pool.name)
            known, told = True, ""
        except (PgError, trio.TooSlowError) as error:
            if pool.breaker.closed or not service.config.cache.stale_if_error:
                pool.catalog = None
            reason = (str(error) or "timeout").partition("; the next attempt is in ")[0]  # a countdown is no news
            if known or reason != told:
                log.warning("catalog_unavailable", pool=pool.name, reason=reason)
            known, told = False, reason
            wait = RETRY_SECONDS
        except Exception as error:  # without a catalog nothing is cached, and that is all
            pool.catalog = None
            log.exception("internal_error", where="catalog", error=str(error))
        await trio.sleep(min(REST * (monotonic() - begun), RETRY_SECONDS))
        with trio.move_on_after(wait):
            await service.catalog_stale[pool.name].wait()
        service.catalog_stale[pool.name] = trio.Event()


async def _read(service: Service, pool: Pool, effects: _EffectsReader, *, tables: bool) -> None:
    """One reading, with the catalog of `tables` or without.

    Raises:
      PgError: the origin's, or the pool's. trio.TooSlowError: it did not answer in time.
    """
    async with borrowed(pool) as origin:
        with trio.fail_after(pool.limits.origin_connect_timeout):
            isolation = text_rows(await ask_origin(origin, "SHOW default_transaction_isolation"), 1)
            changes = pool.defaults.changes
            configured = text_rows(await ask_origin(origin, CONFIGURED_QUERY), 3)
            defaults = text_rows(await ask_origin(origin, DEFAULTS_QUERY), 3)
            sequenced = text_rows(await ask_origin(origin, SEQUENCE_TABLES_QUERY), 1)
            await effects.ask(origin)
            frames = await ask_origin(origin, CATALOG_QUERY) if tables else None
    await effects.tell()
    pool.reads_committed = isolation == [("read committed",)]
    if changes == pool.defaults.changes:  # with more of them, made by clients meanwhile, it is read again anyway
        kept = pool.defaults.changed_elsewhere(configured)
        if kept is None:
            pool.defaults.read(defaults, configured)
        else:
            service.keep_defaults(pool, kept)  # what was read is from before
    if not service.catalog_stale[pool.name].is_set():  # otherwise DDL has passed since, and it is read again
        pool.sequence_tables = frozenset(name for (name,) in sequenced)
    if frames is not None:
        safe = service.config.cache.safe_functions or ()
        catalog = await trio.to_thread.run_sync(Catalog.from_frames, frames, safe)
        if not service.catalog_stale[pool.name].is_set():  # as above
            pool.catalog = catalog


class _EffectsReader:
    """Reads what has effects on sessions, where anything has changed since it did so last."""

    MOST_TOLD = 20

    def __init__(self, service: Service, pool: Pool) -> None:
        self._service = service
        self._pool = pool
        self._state = ""
        self._told: frozenset[str] = frozenset()
        self._found: Effects = NO_EFFECTS
        self._answers: _Answers | None = None
        self._additions = 0
        self._settled = False

    async def ask(self, origin: Origin) -> None:
        """Raises: as `_read` does."""
        service, classifier = self._service, self._service.classifier
        self._additions = classifier.additions
        self._settled = not any(each.schema_changes for each in service.sessions if each.pool is self._pool)
        self._answers = None
        (state,) = text_row(await ask_origin(origin, STATE_QUERY), 1)
        if state != self._state:
            functions = text_rows(await ask_origin(origin, SESSION_FUNCTIONS_QUERY), 3)
            calls = text_rows(await ask_origin(origin, BUILT_IN_CALLS_QUERY), 4)
            edges: list[tuple[int, bytes]] = []
            if functions or classifier.configured or any(kind != "is" for kind, *_ in calls):
                edges = await ask_origin(origin, EDGES_QUERY)
            self._answers = state, functions, calls, edges

    async def tell(self) -> None:
        """Tell the classifier what the answers come to.

        Raises:
          MalformedMessage: they are none.
        """
        classifier = self._service.classifier
        if self._answers is not None:
            state, functions, calls, edges = self._answers
            self._found = await trio.to_thread.run_sync(_follow, functions, calls, edges, classifier.configured)
            self._state = state
        # What was made meanwhile, or is not committed, has not been read.
        complete = self._settled and classifier.additions == self._additions
        if classifier.found_effects(self._pool.name, self._found, complete=complete):
            known = self._told
            self._told = frozenset(f"{each.what} {each.name}" for each in self._found if isinstance(each, Carrier))
            log.info(
                "session_effects_found", pool=self._pool.name, carriers=len(self._told),
                new=sorted(self._told - known)[: self.MOST_TOLD],
                functions=sum(isinstance(each, str) for each in self._found),
            )  # fmt: skip


def _follow(functions: _Rows, calls: _Rows, edges: list[tuple[int, bytes]], configured: Effects) -> Effects:
    try:
        return carriers_of(functions, calls, text_rows(edges, 6) if edges else [], configured)
    except (ValueError, LookupError) as error:
        raise malformed_message("answer", f"it describes no catalog ({type(error).__name__}: {error})") from error
