"""How a process serves, from its start to its end: sockets opened, tasks begun, signals heeded, clients let go.

Not here: what exists meanwhile (`service`), how sessions are drained (`ceremony.drain`), a worker's orders (`workers`).
"""

from __future__ import annotations

import gc
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from config import Config
from config.passwords import read_all
from pooler.admin.control import join_in
from pooler.admin.http import application_of, serve_http
from pooler.ceremony import drain, supervisor
from pooler.ceremony.deadlines import watch_deadlines
from pooler.ceremony.housekeeping import keep_house
from pooler.ceremony.knowledge import keep_catalog
from pooler.ceremony.lasting import lasting
from pooler.ceremony.listen import address_of, close_listener, open_listener
from pooler.ceremony.pulse import keep_pulse
from pooler.ceremony.reload import reload
from pooler.ceremony.standing import follow_replicas
from pooler.logs import get_logger
from pooler.service import Service
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.workers.board import Board
    from pooler.workers.handover import Handover
    from pooler.workers.peers import Peers

log = get_logger(__name__)


async def serve(
    config: Config,
    *,
    started: Callable[[Service], None] | None = None,
    stop: trio.Event | None = None,
    load: Callable[[], Config] | None = None,
    listeners: Iterable[socket.socket] = (),
    outlived: bool = False,
    peers: Peers | None = None,
    board: Board | None = None,
    handover: Handover | None = None,
) -> None:
    """Run pgnear until cancelled, or until `stop` is set: then it drains first.

    Args:
      started: called once every address is bound and listened on. load: reads the configuration again.
      listeners: the sockets to accept from, in place of those to open; `outlived`: others accept there after us.
      peers, board, handover: where this is one worker of several.

    Raises:
      OSError: an address cannot be had; the message says which.
      ssl.SSLError, ValueError: the certificate or key cannot be used.
    """
    raise_file_limit()
    passwords = await trio.to_thread.run_sync(read_all, config.password_sources())
    listeners = list(listeners)
    try:
        inherited = supervisor.inherited_sockets()
        http_socket = next(iter(inherited.pop("http", [])), None)
        listeners += (each for sockets in inherited.values() for each in sockets)
        if not listeners:
            listeners += (open_listener(address, reuse_port=config.reuse_port) for address in config.listen)
        async with trio.open_nursery() as nursery:
            service = Service(config, nursery, passwords, load, peers=peers, board=board, handover=handover)
            await join_in(service)
            service.listens_for_others = outlived or bool(inherited)
            service.listen_addresses = [address_of(listener) for listener in listeners]
            if http_socket is not None or config.http:
                service.http_address = await nursery.start(
                    serve_http, application_of(service), http_socket or config.http, config.reuse_port
                )
                log.info("http_listening", address=service.http_address)
            _begin(service)
            gc.collect()
            gc.freeze()
            service.doors.open(listeners)
            if peers is None:
                say_where(config, service.listen_addresses)
            if started is not None:
                started(service)
            supervisor.ready()
            if stop is not None:
                await stop.wait()
                if peers is not None:
                    peers.line.tell("leaving")
                await drain.begin(service, listeners)
            else:
                await trio.sleep_forever()
            drain.stop_listening(service, listeners)
            await drain.drain(service)
            service.doors.end()
            nursery.cancel_scope.cancel()
        service.close_pools()
    finally:
        for listener in listeners:
            close_listener(listener)


def say_where(config: Config, addresses: Iterable[str], **more: int) -> None:
    """Log where clients can connect now, and to what."""
    for address in addresses:
        log.info(
            "listening", address=address, databases=sorted(config.targets()), tls=config.tls, auth=config.auth, **more
        )


def _begin(service: Service) -> None:
    """Start what goes on for as long as the process lives."""
    nursery = service.nursery
    nursery.start_soon(service.reactor.run)
    nursery.start_soon(lasting, keep_house, service)
    nursery.start_soon(lasting, watch_deadlines, service)
    nursery.start_soon(lasting, service.certificate.keep)
    nursery.start_soon(lasting, keep_pulse, service)
    for pool in service.pools.values():
        nursery.start_soon(lasting, keep_catalog, service, pool)
    nursery.start_soon(lasting, follow_replicas, service)
    for rotation in service.rotations.values():
        nursery.start_soon(lasting, rotation.run)
    if service.ears is not None:
        nursery.start_soon(service.ears.run)


async def serve_until_stopped(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    started: Callable[[Service], None] | None = None,
    stopped_by: trio.Event | None = None,
    **how: Any,
) -> None:
    """`serve` until SIGINT or SIGTERM, or `stopped_by` is set; a second signal ends at once. SIGHUP reloads."""
    stop = trio.Event()
    running: list[Service] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def reload_all() -> None:
                for service in running:
                    try:
                        await reload(service)
                    except PgError:
                        pass  # it is in the log

            async def watch() -> None:
                async for number in signals:
                    if number == signal.SIGHUP:
                        nursery.start_soon(reload_all)
                        continue
                    if stop.is_set():
                        for service in running:
                            drain.send_away(service)
                        nursery.cancel_scope.cancel()
                    log.info("stopping", signal=signal.Signals(number).name)
                    stop.set()

            async def follow(other: trio.Event) -> None:
                await other.wait()
                stop.set()

            def begun(service: Service) -> None:
                running.append(service)
                if started is not None:
                    started(service)

            nursery.start_soon(watch)
            if stopped_by is not None:
                nursery.start_soon(follow, stopped_by)
            await serve(config, started=begun, stop=stop, load=load, **how)
            nursery.cancel_scope.cancel()
    log.info("stopped")


def run(config: Config, load: Callable[[], Config] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; a second one ends at once. SIGHUP reloads what `load` reads. The exit status."""
    status = 0
    try:
        trio.run(partial(serve_until_stopped, config, load=load))
    except* (OSError, ssl.SSLError, ValueError) as group:
        log.error("cannot_start", reason=first_reason(group))
        status = 1
    return status


def first_reason(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return getattr(error, "strerror", None) or str(error)


def raise_file_limit() -> None:
    """Each client is a file descriptor: take as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            log.warning("file_limit", soft=soft, hard=hard)
