"""Listening sockets and the tasks that accept on them.

An address is HOST:PORT, [IPv6]:PORT or a unix socket's path (`unix:/path` or `/path`). Port 0 takes any free one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from typing import TYPE_CHECKING

import trio

from pooler.addresses import source_of
from pooler.ceremony.login import log_in
from pooler.logs import get_logger
from pooler.transport import Transport
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

BACKLOG = 4096
PATIENCE_SECONDS = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


_unix_files: dict[int, tuple[str, int]] = {}
"""By a unix socket's file descriptor: its path, and the number of the file that it made there."""


def open_listener(address: str, *, reuse_port: bool = False) -> socket.socket:
    """A listening, non-blocking socket.

    With `reuse_port` others may listen on the same TCP address too, if they say so as well, and a unix socket's path is
    taken over from whoever listens there.

    Raises:
      OSError: the address is taken or cannot be had; the message names it.
    """
    try:
        if address.startswith(("unix:", "/")):
            return _listen_unix(address.removeprefix("unix:"), take_over=reuse_port)
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family, kind, protocol, _, where = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise OSError(error.errno or 0, f"cannot listen on {address}: {reason}") from None


def _listen_unix(path: str, *, take_over: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made = f"{path}.{os.getpid()}" if take_over else path
    try:
        try:
            sock.bind(made)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(made):
                raise
            os.unlink(made)
            sock.bind(made)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        _unix_files[sock.fileno()] = path, os.stat(made).st_ino
        if take_over:
            os.rename(made, path)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_stale(path: str) -> bool:
    """Whether `path` is a socket that nobody listens on any more."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def address_of(sock: socket.socket) -> str:
    """Where a listening socket listens, as a person would write it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return _unix_files.get(sock.fileno(), (str(name), 0))[0]
    host, port = name[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def close_listener(listener: socket.socket) -> None:
    """Close it, and remove the file that a unix socket of ours made; safe to call twice.

    The file goes first: once the socket is closed, a successor may take the path.
    """
    path, number = _unix_files.pop(listener.fileno(), ("", 0))
    if path:
        try:
            if os.stat(path).st_ino == number:  # else a successor has taken it over
                os.unlink(path)
        except OSError:
            pass
    listener.close()


_SO_ATTACH_REUSEPORT_CBPF = 51
_BPF_RETURN = 0x06


def steer_away(listener: socket.socket) -> None:
    """Have the kernel give connections from now on to the one who began to listen on the same address after us.

    Without such a one nothing changes. A TCP connection is its listener's from the first packet on, and is reset when
    that closes before the last: so the listener goes on for a while, and gets no new ones. Linux only; elsewhere
    connections that are being made at that moment are lost.
    """
    if listener.family == socket.AF_UNIX or sys.platform != "linux":
        return
    # A program of one instruction, for all who listen there: choose the second of them.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 1))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        log.info("not_steered", reason=error.strerror)


def accept_rest(service: Service, listener: socket.socket, nursery: trio.Nursery) -> None:
    """Take in who has connected already: they would be reset when the listener closes."""
    while True:
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        _welcome(service, sock, peer, nursery)


async def accept_forever(service: Service, listener: socket.socket, nursery: trio.Nursery) -> None:
    """Start a login for each connection that comes, until cancelled.

    With as many logins under way as there may be, those who come wait in the kernel's queue: a crowd that arrives at
    once gets in, a few at a time. If no login ends within `PATIENCE_SECONDS` somebody holds them, and they are refused.
    """
    service.reactor.watch(listener.fileno())  # who comes is not to wait while the reactor waits for its next batch
    try:
        await _accept_on(service, listener, nursery)
    finally:
        service.reactor.unwatch(listener.fileno())


async def _accept_on(service: Service, listener: socket.socket, nursery: trio.Nursery) -> None:
    patient = True
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(64):  # then the others get their turn
            if not _full(service):
                patient = True
            elif patient:
                patient = await _room(service)
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.error("accept_failed", reason=error.strerror, open_clients=len(service.sessions))
                    await trio.sleep(0.1)
                break
            _welcome(service, sock, peer, nursery)


def _full(service: Service) -> bool:
    return service.stats.unauthenticated >= service.config.max_unauthenticated_connections


async def _room(service: Service) -> bool:
    """Wait until another login may begin; False if that does not come in time."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while _full(service):  # noqa: ASYNC110 (it is the rare case, and several listeners wait for the same thing)
            await trio.sleep(0.005)
    return not _full(service)


def _welcome(service: Service, sock: socket.socket, peer: object, nursery: trio.Nursery) -> None:
    where = "unix" if sock.family == socket.AF_UNIX else str(peer[0])  # type: ignore[index]
    stats = service.stats
    stats.clients_accepted += 1
    try:
        transport = Transport(sock, service.reactor, where)
    except OSError:  # gone already: some systems then refuse to set options
        sock.close()
        return
    if not transport.local and not _admit(service, transport):
        limit = service.config.max_connections_per_address
        _turn_away(service, transport, errors.too_many_from_address(limit))
        return
    if _full(service):
        _turn_away(service, transport, errors.too_many_logins(service.config.max_unauthenticated_connections))
        return
    stats.unauthenticated += 1
    nursery.start_soon(_log_in, service, transport)


def _turn_away(service: Service, transport: Transport, error: PgError) -> None:
    rejected = service.stats.clients_rejected
    rejected[error.sqlstate] = rejected.get(error.sqlstate, 0) + 1
    try:
        transport.sock.send(error.fatal().response())
    except OSError:
        pass
    transport.linger()


def _admit(service: Service, transport: Transport) -> bool:
    """Whether the transport's source may have one more connection; it counts until the transport is closed."""
    addresses, source = service.addresses, source_of(transport.peer)
    if not addresses.admit(source, service.config.max_connections_per_address):
        return False
    transport.on_close = lambda: addresses.leave(source)
    return True


async def _log_in(service: Service, transport: Transport) -> None:
    service.reactor.ceremonies += 1
    try:
        await log_in(service, transport)
    except Exception as error:  # a bug here costs one client its login, not everybody their connection
        log.exception("internal_error", where="login", error=str(error))
    finally:
        service.reactor.ceremonies -= 1
        service.stats.unauthenticated -= 1
