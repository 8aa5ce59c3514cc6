"""Stopping and replacing a pgnear: transactions finish, clients hear of it between two of them, nobody is refused."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooler.ceremony import drain
from pooler.embedded import free_port
from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import command, environment
from tests.support.waiting import Background, until


class Load:
    """Clients that run transactions all the time, and connect again when they are told to go between two of them."""

    def __init__(self, dsn: str, clients: int = 4) -> None:
        self.over = threading.Event()
        self.done = [0] * clients
        self.told_to_go = 0
        self._dsn = dsn
        self._workers = [Background(lambda number=number: self._work(number)) for number in range(clients)]  # type: ignore[misc]
        self._workers += [Background(self._come_and_go) for _ in range(2)]

    def _work(self, number: int) -> None:
        while not self.over.is_set():
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self.over.is_set():
                    try:
                        connection.execute("begin")
                    except psycopg.errors.AdminShutdown:
                        self.told_to_go += 1
                        break
                    connection.execute("select pg_sleep(0.002)")
                    connection.execute("commit")
                    self.done[number] += 1

    def _come_and_go(self) -> None:
        while not self.over.is_set():
            psycopg.connect(self._dsn).close()

    def goes_on(self) -> None:
        before = list(self.done)
        until(lambda: self._failed() or all(now > then + 5 for now, then in zip(self.done, before, strict=True)))

    def _failed(self) -> bool:
        return not all(worker.running for worker in self._workers)

    def end(self) -> None:
        self.over.set()
        for worker in self._workers:
            worker.result()


@contextmanager
def load(dsn: str) -> Iterator[Load]:
    running = Load(dsn)
    try:
        running.goes_on()
        yield running
        running.goes_on()
    finally:
        running.end()


@pytest.mark.parametrize(("kind", "workers"), [("tcp", 1), ("unix", 1), ("tcp", 2)])
def test_a_successor_takes_over_the_address_and_nobody_is_refused(
    pgnear: Start, tmp_path: Path, kind: str, workers: int
) -> None:
    path = tmp_path / ".s.PGSQL.6432"
    port = free_port()
    listen = f"127.0.0.1:{port}" if kind == "tcp" else f"unix:{path}"
    settings: dict[str, Any] = {"reuse_port": True, "workers": workers, "listen": listen}
    dsn = f"port={port if kind == 'tcp' else 6432} host={'127.0.0.1' if kind == 'tcp' else tmp_path}"
    first = pgnear(**settings)
    with load(f"{dsn} user=postgres password='{PASSWORD}' dbname=postgres sslmode=disable") as running:
        for _ in range(2 if kind == "tcp" else 1):
            second = pgnear(**settings)
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(20) == 0
            running.goes_on()
            first = second
    assert running.told_to_go >= 4
    if kind == "unix":
        assert path.is_socket()
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(20) == 0
        assert not path.exists()
        assert not list(tmp_path.iterdir())


def test_idle_clients_go_at_once_and_a_transaction_may_finish(pgnear: Start) -> None:
    near = pgnear()
    idle, busy, pinned = near.connect(), near.connect(), near.connect()
    pinned.execute("listen news")
    pinned.execute("begin")
    busy.execute("begin")
    near.process.send_signal(signal.SIGTERM)
    near.wait_for_log("stopping")

    def still_served() -> None:
        while True:
            idle.execute("select 1")

    with pytest.raises(psycopg.OperationalError) as caught:
        still_served()
    assert caught.value.sqlstate == "57P01"
    for client in (busy, pinned):
        assert client.execute("select 1").fetchone() == (1,)
        client.execute("commit")
        with pytest.raises(psycopg.OperationalError) as caught:
            client.execute("select 2")
        assert caught.value.sqlstate == "57P01"
    assert near.process.wait(20) == 0
    assert not [line for line in near.log_lines if line.get("event") == "drain_timeout"]


def test_a_client_that_has_just_logged_in_is_served_before_it_is_sent_away(pgnear: Start) -> None:
    """pgbench -C lost a connection in some restarts: its first query came behind SIGTERM, and was refused."""
    for _ in range(5):
        near = pgnear()
        at_work = near.connect()
        at_work.execute("begin")
        began = time.monotonic()
        new = near.connect()
        near.process.send_signal(signal.SIGTERM)
        near.wait_for_log("stopping")
        at_work.execute("commit")
        assert select.select([at_work], [], [], 20)[0], "who is idle is not told to go"
        if time.monotonic() - began < drain.LATE_SECONDS / 2:
            break
    else:
        pytest.skip("the machine is too busy for anything to happen just after a login")
    assert new.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError) as caught:
        new.execute("select 2")
    assert caught.value.sqlstate == "57P01"
    assert near.process.wait(20) == 0


def test_who_waits_in_its_login_while_the_origin_is_paused_is_told_of_the_end(pgnear: Start) -> None:
    """It saw its connection close without a word."""
    near = pgnear()
    near.wait_for_log("catalog_read")  # which would wait, too
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        console.execute("pause")
        waits = Background(lambda: near.connect(dsn={"options": "-c work_mem=1234kB"}))
        until(lambda: near.metric("pool_waiting") >= 1)
    near.process.send_signal(signal.SIGTERM)
    with pytest.raises(psycopg.OperationalError, match="terminating connection due to administrator command"):
        waits.result()
    assert near.process.wait(20) == 0


def test_who_is_cut_off_by_a_second_signal_is_told_of_the_end(pgnear: Start) -> None:
    near = pgnear(drain_timeout=60)
    with near.connect() as inside, near.connect() as waiting:
        inside.execute("begin")
        query = Background(lambda: waiting.execute("select pg_sleep(60)"))
        until(lambda: near.metric("pool_busy") == 2)
        near.process.send_signal(signal.SIGTERM)
        near.wait_for_log("stopping")
        near.process.send_signal(signal.SIGTERM)
        with pytest.raises(psycopg.errors.AdminShutdown):
            query.result()
        with pytest.raises(psycopg.errors.AdminShutdown):
            inside.execute("select 1")
        assert near.process.wait(40) == 0


def test_a_transaction_that_does_not_finish_is_cut_off_after_drain_timeout(pgnear: Start) -> None:
    near = pgnear(drain_timeout="300ms")
    client = near.connect()
    client.execute("begin")
    near.process.send_signal(signal.SIGTERM)
    near.wait_for_log("drain_timeout", clients=1)
    with pytest.raises(psycopg.OperationalError) as caught:
        client.execute("select 1")
    assert caught.value.sqlstate == "57P01"
    assert near.process.wait(20) == 0


# ---- systemd ---------------------------------------------------------------------------------------------------------


class Unit:
    """What systemd does for a service with sockets: holds them, passes them on, and listens to what is said."""

    def __init__(self, origin: Server, tmp_path: Path) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2)]
        self.port, self.http = (each.getsockname()[1] for each in self.sockets)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(tmp_path / "notify"))
        self._notify.settimeout(20)
        settings = {"origin": origin.url(), "log": {"format": "json"}}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PGNEAR_")},
            **environment(settings),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "clients:http",
        }

    def start(self) -> subprocess.Popen[bytes]:
        def pass_on() -> None:
            for place, each in enumerate(self.sockets, 10):
                os.dup2(each.fileno(), place)
            for place in range(len(self.sockets)):
                os.dup2(10 + place, 3 + place, inheritable=True)

        script = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command("serve")]
        process = subprocess.Popen(
            script, env=self._environment, preexec_fn=pass_on, close_fds=False, stderr=subprocess.DEVNULL
        )
        assert self.heard() == "READY=1"
        return process

    def heard(self) -> str:
        return self._notify.recv(1024).decode()

    def close(self) -> None:
        for each in (*self.sockets, self._notify):
            each.close()


def test_with_sockets_of_systemd_a_restart_refuses_nobody(origin: Server, tmp_path: Path) -> None:
    """Connections that come while no process is there wait in the socket, which is never closed."""
    unit = Unit(origin, tmp_path)
    try:
        process = unit.start()
        dsn = f"host=127.0.0.1 port={unit.port} user=postgres password='{PASSWORD}' dbname=postgres sslmode=disable"
        with load(dsn) as running:
            process.send_signal(signal.SIGTERM)
            assert unit.heard() == "STOPPING=1"
            assert process.wait(20) == 0
            process = unit.start()
            running.goes_on()
            process.send_signal(signal.SIGHUP)
            assert unit.heard().startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert unit.heard() == "READY=1"
        with socket.create_connection(("127.0.0.1", unit.http), timeout=10) as http:
            http.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200" in http.recv(100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        unit.close()
