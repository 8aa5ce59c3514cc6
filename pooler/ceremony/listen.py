"""Listening sockets: opened, closed, handed over. Who comes through them is for `doors`.

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

from pooler.logs import get_logger

log = get_logger(__name__)

BACKLOG = 4096

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


def adopted(number: int) -> socket.socket:
    """The socket behind a descriptor that another process has passed to this one, as if it had been made here."""
    sock = socket.socket(fileno=number)
    sock.setblocking(False)
    os.set_inheritable(number, False)
    return sock


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


def steer_away(listener: socket.socket, ours: int) -> None:
    """Have the kernel give connections from now on to the one who began to listen on the same address after us.

    `ours`: how many sockets pgnear listens with there. Without a successor nothing changes. A TCP connection is its
    listener's from the first packet on, and is reset when that closes before the last: so the listener goes on for a
    while, and gets no new ones. Linux only; elsewhere connections that are being made at that moment are lost.
    """
    if listener.family == socket.AF_UNIX or sys.platform != "linux":
        return
    # A program of one instruction, for all who listen there: choose the first that is not ours.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, ours))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        log.info("not_steered", reason=error.strerror)
