"""`pgnear trace` between a real client and a real server."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from tests.support import wire
from tests.support.postgres import PASSWORD, Server
from tests.support.process import command, run


class Relay:
    """A running `pgnear trace`; `port` is where it listens."""

    def __init__(self, target: str, *flags: str) -> None:
        self.process = subprocess.Popen(
            command("trace", "--listen", "127.0.0.1:0", *flags, target),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        found = re.search(r"tracing 127\.0\.0\.1:(\d+) -> ", self.process.stderr.readline())
        assert found is not None
        self.port = int(found[1])
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n").split("\t", 1)[1])  # without the time
                self._news.notify_all()

    def wait_for(self, text: str, *, count: int = 1) -> list[str]:
        """Every line so far, once `count` of them hold `text`; "number TAB what libpq would print"."""
        with self._news:
            assert self._news.wait_for(lambda: sum(text in line for line in self._lines) >= count, 15), self._lines
            return list(self._lines)

    def dsn(self, more: str = "") -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres password='{PASSWORD}' dbname=postgres {more}"

    def stop(self) -> str:
        """Ctrl-C. What it wrote to standard error since it began to listen."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(40)
        assert self.process.returncode == 0
        assert self.process.stderr is not None
        return self.process.stderr.read()


@contextmanager
def relay(target: str, *flags: str) -> Iterator[Relay]:
    running = Relay(target, *flags)
    try:
        yield running
        assert running.stop() == ""
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def traced(origin: Server) -> Iterator[Relay]:
    with relay(f"127.0.0.1:{origin.port}", "--limit", "0") as running:
        yield running


def test_it_prints_what_libpq_prints(traced: Relay, tmp_path: Path) -> None:
    """Line by line, but for what `protocol.trace` says. libpq 18 leaves AuthenticationOk out."""
    with (tmp_path / "libpq").open("wb") as file:
        connection = pq.PGconn.connect_start(traced.dsn("application_name=traced").encode())
        connection.trace(file.fileno())
        connection.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        finish_connecting(connection)
        connection.exec_("select 1, 'hé', null::int, repeat('x', 3000)".encode())
        connection.exec_(b"select 1/0")
        connection.exec_(b"do $$begin raise notice 'n'; end$$")
        connection.exec_params(b"select $1::int, $2::bytea", [b"4", b"\0\xff"], param_formats=[0, 1], result_format=1)
        connection.prepare(b"s1", b"select $1::text", [25])
        connection.describe_prepared(b"s1")
        connection.exec_prepared(b"s1", [None])
        connection.exec_(b"listen news")
        connection.exec_(b"notify news, 'payload'")
        connection.exec_(b"")
        connection.exec_(b"copy (select 1) to stdout")
        while connection.get_copy_data(0)[0] > 0:
            pass
        while connection.get_result():
            pass
        connection.exec_(b"select 1; select 2")
        connection.finish()
    ours = [line.split("\t", 1)[1] for line in traced.wait_for("# closed") if "#" not in line]
    libpq = (tmp_path / "libpq").read_text()
    theirs = libpq.replace(" 65535 ", " -1 ").replace("OutResponse\t \\x00 ", "OutResponse\t 0 ").splitlines()
    ours = [line for line in ours if not re.search("AuthenticationOk|CopyData", line)]
    theirs = [line for line in theirs if not re.fullmatch(r".\t\d+\t|.*AuthenticationOk|.*CopyData.*", line)]
    assert len(ours) == len(theirs) > 60
    for own, other in zip(ours, theirs, strict=True):
        assert re.fullmatch(re.escape(own).replace(r"\*\*\*", ".*"), other)
    hidden = [line.split("\t")[2] for line in ours if "***" in line]
    assert hidden == ["SASLInitialResponse", "SASLResponse", "AuthenticationSASLFinal", "BackendKeyData"]


def finish_connecting(connection: pq.abc.PGconn) -> None:
    status = pq.PollingStatus.WRITING
    while status != pq.PollingStatus.OK:
        assert status != pq.PollingStatus.FAILED, connection.error_message
        reads = [connection.socket] if status == pq.PollingStatus.READING else []
        writes = [connection.socket] if status == pq.PollingStatus.WRITING else []
        select.select(reads, writes, [], 10)
        status = connection.connect_poll()


def test_a_large_result_and_copy_pass_whole(traced: Relay) -> None:
    with psycopg.connect(traced.dsn(), autocommit=True) as connection:
        connection.execute("create temp table t (v text)")
        with connection.cursor().copy("copy t from stdin") as copy:
            for _ in range(20):
                copy.write(b"y" * 100_000 + b"\n")
        row = connection.execute("select string_agg(v, '') from t").fetchone()
        assert row == ("y" * 2_000_000,)
    lines = traced.wait_for("# closed")
    assert sum("\tCopyData\t" in line for line in lines) >= 1
    assert any("2000000 'yyy" in line for line in lines)


def test_a_cancel_passes_on_a_connection_of_its_own_without_its_key(traced: Relay) -> None:
    with psycopg.connect(traced.dsn(), autocommit=True) as connection:
        connection.execute("create temp table t ()")  # the connection works
        timer = threading.Thread(target=lambda: (traced.wait_for("pg_sleep"), connection.cancel_safe()))
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(50)")
        timer.join(40)
    (line,) = [line for line in traced.wait_for("CancelRequest") if "CancelRequest" in line]
    assert line.startswith("2\tF\t")
    assert line.endswith(" ***")


def test_protocol_3_2_and_its_long_keys_pass(traced: Relay) -> None:
    with wire.WireClient.logged_in(traced.port, minor=2) as client:
        assert len(client.secret) == 32
        assert client.one("select 1") == b"1"
    lines = traced.wait_for("BackendKeyData")
    assert any("StartupMessage\t 3 2 " in line for line in lines)


def test_a_client_that_begins_with_tls_is_told_so(traced: Relay) -> None:
    with socket.create_connection(("127.0.0.1", traced.port), timeout=40) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert b"sslmode=disable" in answer
    traced.wait_for("# closed")


def test_a_server_that_is_not_there_is_an_error_for_the_client_and_not_the_end() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening
        with relay(f"127.0.0.1:{nobody.getsockname()[1]}") as running:
            for number in (1, 2):
                with pytest.raises(psycopg.OperationalError, match=r"cannot be reached: Connection refused"):
                    psycopg.connect(running.dsn("sslmode=disable"))
                running.wait_for("# closed", count=number)


def test_a_taken_port_is_one_line_and_status_1(origin: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("trace", "--listen", address, f"127.0.0.1:{origin.port}")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"pgnear: cannot listen on {address}: the port is taken\n"


def test_an_address_that_is_none_is_one_line_and_status_2() -> None:
    ended = run("trace", "somewhere")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "pgnear: somewhere is not HOST:PORT\n")


def test_it_ends_when_nobody_reads_it_any_more(origin: Server) -> None:
    """`pgnear trace ... | head`."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        command("trace", "--listen", "127.0.0.1:0", f"127.0.0.1:{origin.port}"),
        stdout=writer, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(writer)
        os.close(reader)
        assert process.stderr is not None
        port = process.stderr.readline().split(" ->")[0].rpartition(":")[2]
        with socket.create_connection(("127.0.0.1", int(port)), timeout=40) as client:
            assert client.recv(1) == b""
        assert process.wait(40) == 0
        assert process.stderr.read() == ""
