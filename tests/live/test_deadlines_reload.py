"""Each deadline holds from the moment of a reload, by SIGHUP or by RELOAD, for the sessions that are there already."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import SSL_REQUEST, Frame, Refused, WireClient, error_fields, query, startup


@pytest.fixture(params=["SIGHUP", "RELOAD"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pgnear.toml"
    path.write_text("pool_size = 1\nmin_pool_size = 1\n")
    return path


def reload(near: Pgnear, file: Path, how: str, *lines: str) -> None:
    file.write_text("\n".join((file.read_text(), *lines)))
    before = sum(line.get("event") == "reloaded" for line in near.log_lines)
    if how == "SIGHUP":
        near.process.send_signal(signal.SIGHUP)
    else:
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            console.execute(b"reload")
    near.wait_for_log("reloaded", count=before + 1)


def said(frames: list[Frame]) -> dict[str, str]:
    return error_fields(next(body for kind, body in frames if kind == "E"))


def all_of(fields: dict[str, str]) -> str:
    return " ".join(fields.values())


def test_the_deadlines_of_sessions_change_for_those_that_are_there(
    pgnear: Start, origin: Server, file: Path, how: str
) -> None:
    near = pgnear("--config", str(file))
    with WireClient.logged_in(near.port) as one, WireClient.logged_in(near.port) as other:
        one.query("begin")
        reload(near, file, how, 'query_timeout = "200ms"')
        fields = said(one.query("select pg_sleep(20)"))
        assert fields["C"] == "57014"
        assert "query_timeout" in fields["M"]
        one.query("rollback")

        one.query("begin")
        reload(near, file, how, 'idle_in_transaction_timeout = "200ms"')
        fields = one.fatal()
        assert fields["C"] == "25P03"
        assert "idle_in_transaction_timeout" in fields["M"]

        reload(near, file, how, 'client_idle_timeout = "200ms"')
        fields = other.fatal()
        assert fields["C"] == "57P05"
        assert "client_idle_timeout" in fields["M"]


def test_a_transaction_that_is_open_has_the_new_deadline(pgnear: Start, file: Path, how: str) -> None:
    near = pgnear("--config", str(file))
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        reload(near, file, how, 'transaction_timeout = "200ms"')
        fields = client.fatal()
        assert fields["C"] == "25P04"
        assert "transaction_timeout" in fields["M"]


def test_who_waits_already_has_the_new_patience(pgnear: Start, file: Path, how: str) -> None:
    near = pgnear("--config", str(file))
    with WireClient.logged_in(near.port) as holder, WireClient.logged_in(near.port) as waits:
        holder.query("begin")
        holder.query("lock table pg_class in access share mode")
        waits.send(query("select clock_timestamp()"))
        until(lambda: near.metric("pool_waiting") == 1)
        reload(near, file, how, 'pool_wait_timeout = "200ms"')
        fields = said(waits.receive_until())
        assert fields["C"] == "53300"
        assert "pool_wait_timeout" in all_of(fields)


@pytest.mark.parametrize("where", ["plaintext", "TLS handshake"])
def test_who_is_logging_in_already_has_the_new_deadline(pgnear: Start, file: Path, how: str, where: str) -> None:
    near = pgnear("--config", str(file))
    with WireClient(near.port) as client:
        if where == "plaintext":
            client.send(startup({"user": "postgres"})[:10])
        else:
            client.send(SSL_REQUEST)
            assert client.read(1) == b"S"
            client.send(b"\x16\x03\x01\x02\x00")
        until(lambda: near.metric("clients_unauthenticated") == 1)
        began = time.monotonic()
        reload(near, file, how, 'client_login_timeout = "1s"')
        if where == "plaintext":
            fields = client.fatal()
            assert fields["C"] == "57014"
            assert "client_login_timeout" in fields["H"]
        else:
            client.receive_all()
        assert time.monotonic() - began < 10


def test_origin_connections_have_their_new_age(pgnear: Start, file: Path, how: str) -> None:
    near = pgnear("--config", str(file))
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        before = client.one("select pg_backend_pid(), clock_timestamp()")
        client.query("commit")
        reload(near, file, how, 'origin_lifetime = "200ms"')
        until(lambda: client.one("select pg_backend_pid(), clock_timestamp()") != before)


def test_a_drain_that_is_cut_off_names_its_deadline(pgnear: Start, file: Path, how: str) -> None:
    near = pgnear("--config", str(file))
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        reload(near, file, how, 'drain_timeout = "200ms"')
        near.process.send_signal(signal.SIGTERM)
        fields = client.fatal()
        assert fields["C"] == "57P01"
        assert "drain_timeout" in fields["D"]
        assert near.process.wait(20) == 0


def test_connecting_has_its_new_deadline_for_one_database_only(
    pgnear: Start, origin: Server, file: Path, how: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://postgres@127.0.0.1:{port}/x?sslmode=disable"
        file.write_text(
            f'origin_connect_timeout = "1s"\n[breaker]\nfailures = 1000\n[databases.silent]\norigin = "{url}"\n'
        )
        near = pgnear("--config", str(file))

        def refusal() -> str:
            with pytest.raises(Refused) as refused:
                WireClient.logged_in(near.port, database="silent")
            assert refused.value.sqlstate in ("08001", "57P03")
            return all_of(refused.value.fields)

        assert "1 s (origin_connect_timeout)" in refusal()
        reload(near, file, how, '[[override]]\ndatabase = "silent"\norigin_connect_timeout = "200ms"')
        until(lambda: "0.2 s (origin_connect_timeout)" in refusal())  # an attempt that is under way keeps its deadline
        with WireClient.logged_in(near.port) as client:
            assert client.one("select 1") == b"1"
