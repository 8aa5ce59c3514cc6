"""Messages that no client should send, where few think of them: in the queue, over replication, on the console."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.hostile import MESSAGES
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until
from tests.support.wire import SYNC, TERMINATE, WireClient, error_fields, frame, query

MEMORY_BYTES = 64 << 20


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=1, max_message_bytes="1MiB", pool_wait_timeout="2s") as server:
        with WireClient.logged_in(server.port) as client:
            client.one("select 1")
        memory = server.peak_memory()
        yield server
        assert server.peak_memory() - memory < MEMORY_BYTES
        said = json.dumps(server.log_lines)
        assert "Traceback" not in said
        assert PASSWORD not in said


def is_clean(client: WireClient, name: str) -> None:
    """What came back is whole frames, and each error has its SQLSTATE."""
    for fields in (error_fields(body) for kind, body in client.receive_all() if kind == "E"):
        assert len(fields["C"]) == 5, (name, fields)
        assert fields["C"] != "XX000", (name, fields)
    assert not client.buffer, (name, client.buffer[:100])


def push(client: WireClient, *messages: bytes) -> None:
    try:
        client.send(*messages)
        client.socket.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it was cut off while it sent


def others_are_served(near: Pgnear) -> None:
    until(lambda: near.metric("pool_waiting") == near.metric("pool_busy") == 0)
    with WireClient.logged_in(near.port) as other:
        assert other.one("select 42") == b"42"


def test_in_the_queue(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as holder:
        holder.query("begin")
        holder.query("lock table pg_class in access share mode")
        waiting = {name: WireClient.logged_in(near.port) for name in MESSAGES}
        for name, message in MESSAGES.items():
            waiting[name].send(query("select clock_timestamp()"))
            push(waiting[name], message, SYNC, query("select clock_timestamp()"), TERMINATE)
        for name, client in waiting.items():
            with client:
                is_clean(client, name)
        holder.query("commit")
    others_are_served(near)


@pytest.mark.parametrize("place", ["replication", "console"])
def test_beside_the_pool(near: Pgnear, place: str) -> None:
    for name, message in MESSAGES.items():
        with WireClient(near.port) as client:
            if place == "replication":
                client.log_in("postgres", PASSWORD, "postgres", replication="database")
            else:
                client.log_in("postgres", PASSWORD, "pgnear")
            push(client, message, SYNC, query("show all"), TERMINATE)
            is_clean(client, name)
    others_are_served(near)
    until(lambda: near.metric("clients") == 0)


@pytest.mark.parametrize("kind", "123AIKNRTVZnstvWGz")
def test_a_type_that_only_a_server_sends_ends_its_client(near: Pgnear, kind: str) -> None:
    with WireClient.logged_in(near.port) as client:
        push(client, frame(kind, b"\0" * 8), query("select 'not reached'"))
        assert client.fatal()["C"] == "08P01"
    others_are_served(near)
