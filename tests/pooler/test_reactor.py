"""The reactor's wait for its next batch, which nobody outside of it may have to sit through."""

from __future__ import annotations

import socket
import threading

import pytest
import trio

from pooler import reactor
from pooler.reactor import Reactor


class Visitor:
    """Once its socket is readable, has somebody connect to `port`, past trio."""

    def __init__(self, sock: socket.socket, port: int) -> None:
        self._sock = sock
        self._port = port

    def readable(self) -> None:
        self._sock.recv(10)
        threading.Thread(target=lambda: socket.create_connection(("127.0.0.1", self._port)).close()).start()

    def writable(self) -> None:
        raise AssertionError

    def crashed(self, error: Exception) -> None:
        raise error


class Doorkeeper(Visitor):
    """A listening socket's handler, which opens a gate when somebody comes."""

    def __init__(self, listener: socket.socket, gate: trio.Event) -> None:
        self._listener = listener
        self._gate = gate

    def readable(self) -> None:
        self._listener.accept()[0].close()
        self._gate.set()


async def test_who_connects_does_not_wait_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between batches the reactor keeps the thread, where trio sees nobody: a storm of connections lost 1 ms each."""
    monkeypatch.setattr(reactor, "LINGER_SECONDS", 20.0)
    monkeypatch.setattr(reactor, "TURN_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near, far = socket.socketpair()
        with near, far, trio.fail_after(10):
            loop, gate = Reactor(), trio.Event()
            loop.add(listener.fileno(), Doorkeeper(listener, gate))
            loop.add(near.fileno(), Visitor(near, listener.getsockname()[1]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(loop.run)
                far.send(b"!")
                await gate.wait()
                nursery.cancel_scope.cancel()
