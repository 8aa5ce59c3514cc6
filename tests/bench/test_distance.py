"""A distance costs the time that it says, counts who waited how often, and takes no bandwidth away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.distance import Distance

TRIP = 0.05


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 18):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_connection_and_each_question_cost_a_round_trip(echo: int) -> None:
    with Distance(echo, TRIP) as far, socket.create_connection(("127.0.0.1", far.port)) as client:
        began = time.monotonic()
        for waited in (2, 3, 4):
            client.sendall(b"?")
            assert client.recv(10) == b"?"
            assert far.round_trips == waited
            assert time.monotonic() - began >= waited * TRIP - 0.002


def test_questions_that_travel_together_cost_one(echo: int) -> None:
    with Distance(echo, TRIP) as far, socket.create_connection(("127.0.0.1", far.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(5):
            client.sendall(b"?")
        received = b""
        while len(received) < 5:
            received += client.recv(10)
        assert far.round_trips == 2


def test_a_distance_takes_no_bandwidth_away(echo: int) -> None:
    """64 MB there and back take what loopback takes; with a window of 64 KB they would take a minute."""
    size = 64 << 20
    with Distance(echo, TRIP) as far, socket.create_connection(("127.0.0.1", far.port)) as client:
        sender = threading.Thread(target=client.sendall, args=(bytes(size),))
        began = time.monotonic()
        sender.start()
        received = 0
        while received < size:
            received += len(client.recv(1 << 18))
        assert time.monotonic() - began < 5
        sender.join()


def test_an_end_travels_too(echo: int) -> None:
    with Distance(echo, TRIP) as far, socket.create_connection(("127.0.0.1", far.port)) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"last words"
        assert client.recv(100) == b""
