"""Doors that are shut for want of descriptors, and the options of those who come through them."""

from __future__ import annotations

import errno
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pooler.ceremony.doors import Doors
from pooler.ceremony.listen import open_listener
from pooler.reactor import Reactor
from pooler.stats import Stats
from pooler.transport import KEEPALIVE


class _Exhausted:
    """A listening socket of a process that has no descriptors left."""

    family = socket.AF_UNIX

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno
        self.asked = 0

    def accept(self) -> None:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


def _service() -> Any:
    config = SimpleNamespace(max_unauthenticated_connections=10, client_login_timeout=60.0)
    return SimpleNamespace(reactor=Reactor(), config=config, stats=Stats(), sessions=set(), handover=None)


def test_without_descriptors_the_door_is_shut_until_the_next_look() -> None:
    """Who waits there is told of again and again: to try each time would take the whole processor."""
    service = _service()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        doors, exhausted = Doors(service), _Exhausted(listener)
        doors.open([exhausted])  # type: ignore[list-item]
        with socket.create_connection(listener.getsockname()):
            poll, dispatch = service.reactor._poller.poll, service.reactor._dispatch
            dispatch(poll(5))
            assert exhausted.asked == 1
            assert poll(0) == []
            doors.look()
            dispatch(poll(5))
            assert exhausted.asked == 2
        doors.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' sockets are given their options one by one")
def test_who_comes_through_a_door_has_the_options_of_its_socket() -> None:
    """They are not set for each: six system calls for every login."""
    listener = open_listener("127.0.0.1:0")
    with listener:
        doors = Doors(_service())
        doors.open([listener])
        with socket.create_connection(listener.getsockname()):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                for name, value in KEEPALIVE.items():
                    assert accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
        doors.close()
