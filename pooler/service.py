"""The running pgnear: configuration in, listening sockets, pools, cache and sessions, until somebody stops it.

Lives here: what exists once per process, and the order in which it starts and ends. Not here: how any of it works.
"""

from __future__ import annotations

import gc
import resource
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable

import trio

from config import Config, User
from pooler.addresses import Addresses
from pooler.admin.console import Console
from pooler.admin.http import serve_http
from pooler.cache.catalog import CATALOG_QUERY, Catalog
from pooler.cache.flight import Flights
from pooler.cache.policy import Policies
from pooler.cache.store import Store
from pooler.ceremony.borrow import ask_origin, borrowed
from pooler.ceremony.cancel import end_abandoned
from pooler.ceremony.connect import text_rows
from pooler.ceremony.listen import accept_forever, address_of, close_listener, open_listener
from pooler.ceremony.origins import connect
from pooler.ceremony.passthrough import Relay
from pooler.ceremony.reset import reset
from pooler.ceremony.stream import Stream
from pooler.ceremony.tls import server_tls
from pooler.logs import get_logger
from pooler.origin import Origin
from pooler.pool import Pool
from pooler.reactor import Reactor
from pooler.session import Session
from pooler.settings import Reports
from pooler.sql.bodies import SESSION_FUNCTIONS_QUERY
from pooler.sql.classifier import Classifier
from pooler.statements import PreparedStatements
from pooler.stats import Stats
from pooler.transport import end_lingering
from protocol import errors
from protocol.auth import ScramVerifier
from protocol.errors import PgError

log = get_logger(__name__)

TICK_SECONDS = 0.1
CATALOG_SECONDS = 30.0
LEAVE_SECONDS = 5.0
"""How long what a client sent before its Terminate may take before it is cancelled."""

FAREWELL_SECONDS = 1.0
"""How long a shutdown waits for the end of frames that replication clients are being sent."""


class Service:
    """Everything that exists once. Made by `serve`."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        self.config = config
        self.nursery = nursery
        self.stats = Stats()
        self.addresses = Addresses()
        self.reactor = Reactor()
        self.tls = server_tls(config)
        self.verifiers = {name: _verifier(user) for name, user in config.client_users().items()}
        cache = config.cache
        self.cache = (
            Store(cache.max_bytes, cache.max_entry_bytes, stale_if_error=cache.stale_if_error)
            if cache.enabled
            else None
        )
        self.flights = Flights(self.cache, config.pool_wait_timeout) if self.cache is not None else None
        self.policies = Policies(cache, self.cache) if self.cache is not None else None
        self.classifier = Classifier(
            parse_always=cache.enabled, session_functions=frozenset(config.session_functions or ())
        )
        self.prepared = PreparedStatements()
        self.pools = {name: Pool(name, target, config, self.stats, self) for name, target in config.targets().items()}
        self.sessions: set[Session] = set()
        self.console = Console(self)
        self.relays: dict[int, Relay] = {}
        """Replication connections, by the process id that the client was given; those being made, too."""
        self.draining = False
        self.listen_addresses: list[str] = []
        self.http_address: str | None = None
        self._catalog_stale = {name: trio.Event() for name in self.pools}
        self._by_pid: dict[int, Session] = {}
        streamed = cache.enabled and cache.invalidation != "writes"
        self.streams = {name: self._stream(pool) for name, pool in self.pools.items()} if streamed else {}

    def _stream(self, pool: Pool) -> Stream:
        """Who tells of the writes to `pool`'s database that go past pgnear. While it is lost, TTLs are capped."""
        store, name = self.cache, pool.name
        assert store is not None
        cap = self.config.cache.ttl_without_stream
        if self.config.cache.invalidation == "stream":
            store.cap(name, cap)

        def invalidate(tables: Iterable[int] | None) -> None:
            if tables is None:
                store.invalidate_database(name)
            else:
                store.invalidate_tables(name, tables)

        async def ask(text: str) -> list[tuple[int, bytes]]:
            async with borrowed(pool) as origin:
                with trio.fail_after(self.config.origin_connect_timeout):
                    return await ask_origin(origin, text)

        return Stream(
            pool.target,
            self.reactor,
            on_invalidate=invalidate,
            on_lost=lambda reason: store.cap(name, cap),
            on_recovered=lambda: store.cap(name, None),
            on_schema=lambda: self.catalog_changed(pool),
            name=pool.name,
            publication=self.config.cache.publication,
            create=self.config.cache.invalidation == "stream",
            ask_elsewhere=ask,
            connect_timeout=self.config.origin_connect_timeout,
        )

    # ---- sessions ----------------------------------------------------------------------------------------------------

    def remember(self, session: Session) -> None:
        self.sessions.add(session)
        self._by_pid[session.key[0]] = session

    def forget(self, session: Session) -> None:
        self.sessions.discard(session)
        self._by_pid.pop(session.key[0], None)

    def session_by_key(self, pid: int, secret: bytes) -> Session | None:
        session = self._by_pid.get(pid)
        return session if session is not None and session.has_key(secret) else None

    def relay_by_key(self, pid: int, secret: bytes) -> Relay | None:
        relay = self.relays.get(pid)
        return relay if relay is not None and relay.has_key(secret) else None

    def client_pid(self, session: Session, origin_pid: int) -> int:
        """The process id that clients know the backend `origin_pid` of the session's database by: its last client's."""
        for origin in session.pool.origins:
            if origin.pid == origin_pid:
                return origin.client_pid or origin_pid
        return origin_pid

    def leave_databases(self, names: frozenset[str]) -> None:
        """One of these databases is about to be dropped, renamed or copied: idle connections must not be in the way."""
        for pool in self.pools.values():
            if pool.target.dbname in names:
                pool.step_aside()

    def leave_later(self, session: Session) -> None:
        """`session` said Terminate while answers are owed; it is cut off if they take too long."""
        self.nursery.start_soon(self._cut_off, session)

    async def _cut_off(self, session: Session) -> None:
        await trio.sleep(LEAVE_SECONDS)
        session.end(abrupt=True)

    def cancel_abandoned(self, origin: Origin, *, within_message: bool) -> None:
        """The client of `origin` vanished while the origin worked for it: stop that work, then close.

        `within_message`: the client was in the middle of a CopyData message.
        """
        origin.leave_reactor()
        self.nursery.start_soon(self._contained, origin, end_abandoned, self, origin, within_message)

    async def _contained(self, origin: Origin, ceremony: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a ceremony with `origin`: a bug in it costs that connection, not the process."""
        try:
            await ceremony(*arguments)
        except Exception as error:
            log.exception("internal_error", where=ceremony.__name__, error=str(error))
            origin.close()

    # ---- ceremonies that pools ask for -------------------------------------------------------------------------------

    def connect(self, pool: Pool) -> None:
        self.nursery.start_soon(self._connect, pool)

    def soon(self, function: Callable[[], None]) -> None:
        self.reactor.call_soon(function)

    async def _connect(self, pool: Pool) -> None:
        self.reactor.ceremonies += 1
        try:
            connected = await connect(pool.target, self.reactor, timeout=self.config.origin_connect_timeout)
        except trio.TooSlowError:
            seconds = self.config.origin_connect_timeout
            failure = errors.origin_unreachable(f"no answer within {seconds:g} s (origin_connect_timeout)")
            self._connect_failed(pool, failure, timed_out=True)
        except PgError as error:
            self._connect_failed(pool, error)
        except Exception as error:  # a bug here costs one connection, not the process
            log.exception("internal_error", where="connect", error=str(error))
            pool.connect_failed(errors.origin_unreachable("an internal error of pgnear; see its log"))
        except BaseException:
            pool.connecting_count -= 1
            raise
        else:
            origin = Origin(
                connected.transport, pool, connected.pid, connected.secret, Reports.of(connected.parameters),
                connected.target,
            )  # fmt: skip
            connected.transport.register(origin)
            log.debug(
                "origin_connected",
                pool=pool.name,
                origin_pid=origin.pid,
                tls=connected.transport.tls is not None,
            )
            pool.connected(origin)
        finally:
            self.reactor.ceremonies -= 1

    def _connect_failed(self, pool: Pool, error: PgError, *, timed_out: bool = False) -> None:
        log.error(
            "origin_connect_failed", pool=pool.name, sqlstate=error.sqlstate, reason=error.message, detail=error.detail
        )
        pool.connect_failed(error, timed_out=timed_out)

    def reset(self, pool: Pool, origin: Origin) -> None:
        self.nursery.start_soon(self._contained, origin, reset, pool, origin, self.config.origin_connect_timeout)

    # ---- time --------------------------------------------------------------------------------------------------------

    async def keep_house(self) -> None:
        """Ageing, wait deadlines and warm connections, for as long as the process lives."""
        retry_at: dict[str, float] = {}
        while True:
            now = time.monotonic()
            for name, pool in self.pools.items():
                pool.tick(now)
                if pool.missing and now >= retry_at.get(name, 0.0):
                    retry_at[name] = now + (1.0 if pool.last_failure else 0.0)
                    for _ in range(pool.missing):
                        pool.open_one()
            end_lingering(now)
            if self.cache is not None:
                self.cache.sweep(time.perf_counter(), 1000)
            if self.flights is not None:
                self.flights.expire(time.perf_counter())
            await trio.sleep(TICK_SECONDS)

    async def keep_catalog(self, pool: Pool) -> None:
        """What must be known of the database's functions, and for the cache of its tables, looked up from time to time.

        Until the first look-up succeeds nothing is cached, and a failed one empties the cache's knowledge.
        """
        while True:
            try:
                async with borrowed(pool) as origin:
                    with trio.fail_after(self.config.origin_connect_timeout):
                        default = text_rows(await ask_origin(origin, "SHOW default_transaction_isolation"))
                        pool.reads_committed = default == [("read committed",)]
                        found = await ask_origin(origin, SESSION_FUNCTIONS_QUERY)
                        frames = await ask_origin(origin, CATALOG_QUERY) if self.cache is not None else None
                self.classifier.found_functions(pool.name, frozenset(name for (name,) in text_rows(found)))
                if frames is not None:
                    safe = self.config.cache.safe_functions or ()
                    pool.catalog = await trio.to_thread.run_sync(Catalog.from_frames, frames, safe)
                wait = CATALOG_SECONDS
            except (PgError, trio.TooSlowError) as error:
                if pool.breaker.closed or not self.config.cache.stale_if_error:
                    pool.catalog = None
                wait = 1.0
                log.warning("catalog_unavailable", pool=pool.name, reason=str(error) or "timeout")
            except Exception as error:  # without a catalog nothing is cached, and that is all
                pool.catalog = None
                wait = CATALOG_SECONDS
                log.exception("internal_error", where="catalog", error=str(error))
            with trio.move_on_after(wait):
                await self._catalog_stale[pool.name].wait()
            self._catalog_stale[pool.name] = trio.Event()

    def catalog_changed(self, pool: Pool) -> None:
        """DDL passed: nothing of `pool` is cached until its catalog has been read anew."""
        pool.catalog = None
        self._catalog_stale[pool.name].set()

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let transactions finish for `drain_timeout`, then say goodbye to every client."""
        self.draining = True
        with trio.move_on_after(self.config.drain_timeout):
            while any(session.busy for session in self.sessions):  # noqa: ASYNC110 (sessions are not tasks)
                await trio.sleep(0.02)
        for session in list(self.sessions):
            session.shutdown()
        for relay in list(self.relays.values()):
            relay.shutdown()
        self.console.shutdown()
        with trio.move_on_after(FAREWELL_SECONDS):
            while self.relays or self.console.conversations:  # noqa: ASYNC110 (neither are these)
                await trio.sleep(0.02)
        for relay in list(self.relays.values()):
            relay.end("pgnear is shutting down")

    def close_pools(self) -> None:
        """Close the origin connections. No ceremony may still use one: its socket would vanish under it."""
        for pool in self.pools.values():
            pool.close()


def _verifier(user: User) -> ScramVerifier:
    if user.verifier is not None:
        return ScramVerifier.parse(user.verifier.get_secret_value())
    assert user.password is not None
    return ScramVerifier.from_password(user.password.get_secret_value())


def raise_file_limit() -> None:
    """Each client is a file descriptor: take as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            log.warning("file_limit", soft=soft, hard=hard)


async def serve(
    config: Config, *, started: Callable[[Service], None] | None = None, stop: trio.Event | None = None
) -> None:
    """Run pgnear until cancelled, or until `stop` is set: then it drains first.

    `started` is called once every address is bound and listened on.

    Raises:
      OSError: an address cannot be had; the message says which.
      ssl.SSLError, ValueError: the certificate or key cannot be used.
    """
    raise_file_limit()
    listeners: list[socket.socket] = []
    try:
        listeners += (open_listener(address) for address in config.listen)
        async with trio.open_nursery() as nursery:
            service = Service(config, nursery)
            service.listen_addresses = [address_of(listener) for listener in listeners]
            if config.http:
                service.http_address = await nursery.start(serve_http, service, config.http)
                log.info("http_listening", address=service.http_address)
            nursery.start_soon(service.reactor.run)
            nursery.start_soon(service.keep_house)
            for pool in service.pools.values():
                nursery.start_soon(service.keep_catalog, pool)
            for stream in service.streams.values():
                nursery.start_soon(stream.run)
            gc.collect()
            gc.freeze()
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(accept_forever, service, listener, nursery)
                for address in service.listen_addresses:
                    log.info(
                        "listening",
                        address=address,
                        databases=sorted(service.pools),
                        tls=config.tls,
                        auth=config.auth,
                    )
                if started is not None:
                    started(service)
                if stop is not None:
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                else:
                    await trio.sleep_forever()
            for listener in listeners:
                close_listener(listener)
            await service.drain()
            nursery.cancel_scope.cancel()
        service.close_pools()
    finally:
        for listener in listeners:
            close_listener(listener)


def run(config: Config) -> int:
    """Serve until SIGINT or SIGTERM; a second signal ends at once. The exit status."""

    async def until_signalled() -> None:
        stop = trio.Event()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    async for number in signals:
                        if stop.is_set():
                            nursery.cancel_scope.cancel()
                        log.info("stopping", signal=signal.Signals(number).name)
                        stop.set()

                nursery.start_soon(watch)
                await serve(config, stop=stop)
                nursery.cancel_scope.cancel()
        log.info("stopped")

    status = 0
    try:
        trio.run(until_signalled)
    except* (OSError, ssl.SSLError, ValueError) as group:
        log.error("cannot_start", reason=_first_reason(group))
        status = 1
    return status


def _first_reason(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return getattr(error, "strerror", None) or str(error)
