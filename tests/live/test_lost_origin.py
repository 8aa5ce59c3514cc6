"""The origin dies, restarts, freezes, refuses: its clients get an error they can act on, or notice nothing at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.freezing import stopped
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.proxy import Proxy
from tests.support.waiting import Background, until
from tests.support.wire import SYNC, WireClient, bind, error_fields, execute, frame, parse, query, rows


@pytest.fixture(scope="module")
def fragile() -> Iterator[Server]:
    """A PostgreSQL of this file's own, to be killed."""
    with Server(installation=installed(18)) as server:
        yield server


@pytest.fixture
def proxy(origin: Server) -> Iterator[Proxy]:
    with Proxy(origin.port) as made:
        yield made


@pytest.fixture
def through(pgnear: Start, origin: Server, proxy: Proxy) -> Callable[..., Pgnear]:
    """Start a pgnear whose way to the origin leads through the proxy."""

    def start(**settings: object) -> Pgnear:
        return pgnear(url=origin.url(sslmode="disable").replace(str(origin.port), str(proxy.port)), **settings)

    return start


def test_what_the_origin_says_right_behind_its_login_is_not_lost(through: Callable[..., Pgnear], proxy: Proxy) -> None:
    proxy.behind_login = frame("S", b"said_behind_login\0heard\0")
    near = through(pool_size=1, cache={"enabled": False})  # without a stream, whose connection may be the first
    with WireClient.logged_in(near.port) as client:
        assert client.parameters["said_behind_login"] == "heard"
        assert client.one("select 1") == b"1"


def active(origin: Server, text: str) -> Callable[[], bool]:
    """Whether the origin is at work on the query `text`."""
    counting = "select count(*) from pg_stat_activity where query = %s and state = 'active' and pid <> pg_backend_pid()"
    return lambda: origin.execute(counting, text)[0][0] != 0


# ---- lost in mid-query -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminate", "kill", "crash", "cut"])
def test_an_origin_lost_in_mid_query_is_an_error_and_no_hang(
    through: Callable[..., Pgnear], pgnear: Start, origin: Server, fragile: Server, proxy: Proxy, how: str
) -> None:
    server = fragile if how in ("kill", "crash") else origin
    near = pgnear(url=fragile.url()) if server is fragile else through()
    text = f"select repeat('x', 100), pg_sleep(60) /* {how} */"
    with WireClient.logged_in(near.port, timeout=40) as client:
        client.send(query(text))
        until(active(server, text))
        if how == "terminate":
            origin.execute("select pg_terminate_backend(pid) from pg_stat_activity where query = %s", text)
        elif how == "kill":
            (pid,) = fragile.execute("select pid from pg_stat_activity where query = %s", text)[0]
            os.kill(int(str(pid)), signal.SIGKILL)
        elif how == "crash":
            fragile.crash()
        elif how == "cut":
            proxy.cut()
        fields = client.fatal()
        if how == "terminate":  # the origin's own words, as on a private connection
            assert (fields["C"], fields["M"]) == ("57P01", "terminating connection due to administrator command")
        else:
            assert fields["C"] == "08006"
            assert fields["M"] == "the connection to the origin database was lost"
            assert fields["D"]
            assert fields["H"]
    if server is fragile:
        if how == "crash":
            fragile.restart()
        until(lambda: _serves(near), what="pgnear does not recover")
    else:
        assert _serves(near)
    assert near.metric("origin_connections_lost_total") >= 1
    assert near.metric("query_errors_total") == 0  # a lost connection is no failed query


def _serves(near: Pgnear) -> bool:
    try:
        with near.connect() as connection:
            return bool(connection.execute("select 1").fetchone() == (1,))
    except psycopg.OperationalError:
        return False


def test_a_row_that_was_cut_short_is_not_filled_up_with_an_error(through: Callable[..., Pgnear], proxy: Proxy) -> None:
    """Half a DataRow was passed on: bytes of an ErrorResponse behind it would be the rest of its value."""
    near = through(cache={"enabled": False})
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 1") == b"1"
        proxy.cut_after(2_000_000)
        client.send(query("select repeat('x', 2000000)"))
        kind, _ = client.receive()
        assert kind == "T"
        with pytest.raises((EOFError, ConnectionError)):
            client.receive()
        assert len(client.buffer) > 1_000_000
        assert set(client.buffer[6:]) == {ord("x")}


def test_an_origin_lost_in_a_transaction_tells_at_once(through: Callable[..., Pgnear], proxy: Proxy) -> None:
    """Not only at the next statement: the client would work on what is rolled back already."""
    near = through()
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        proxy.cut()
        assert client.fatal()["C"] == "08006"


def test_a_timeout_of_the_origins_that_ends_a_session_is_told_as_such(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as client:
        client.query("set idle_in_transaction_session_timeout to '50ms'; begin")
        fields = client.fatal()
        assert (fields["C"], fields["M"]) == ("25P03", "terminating connection due to idle-in-transaction timeout")


def test_only_the_client_of_the_lost_connection_hears_of_it(through: Callable[..., Pgnear], origin: Server) -> None:
    near = through(pool_size=3)
    with near.connect() as first, near.connect() as second, near.connect() as idle:
        first.execute("begin")
        second.execute("begin")
        (pid,) = first.execute("select pg_backend_pid()").fetchone()
        origin.execute("select pg_terminate_backend(%s, 5000)", pid)
        with pytest.raises(psycopg.OperationalError):
            first.execute("select 1")
        assert second.execute("select 2").fetchone() == (2,)
        assert idle.execute("select 3").fetchone() == (3,)


def test_an_extended_query_lost_in_flight_is_not_repeated(through: Callable[..., Pgnear], origin: Server) -> None:
    """Whether it took effect is not known, so pgnear must not decide for the client."""
    origin.execute("create table if not exists once (a int)")
    origin.execute("truncate once")
    near = through(pool_size=1)
    text = "with w as (insert into once values (1) returning a) select pg_sleep(60) from w"
    with WireClient.logged_in(near.port) as client:
        client.send(parse(text), bind(), execute(), SYNC)
        until(active(origin, text))
        origin.execute("select pg_terminate_backend(pid) from pg_stat_activity where query = %s", text)
        assert client.fatal()["C"] == "57P01"
    assert _serves(near)
    assert near.metric("retries_total") == 0
    assert origin.execute("select count(*) from once") == [(0,)]
    origin.execute("drop table once")


# ---- lost between queries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
def test_an_origin_that_restarted_between_queries_goes_unnoticed(pgnear: Start, fragile: Server, reset: bool) -> None:
    near = pgnear(url=fragile.url(), pool_size=2, min_pool_size=2)
    with near.connect() as connection, near.connect(prepare_threshold=0) as other:
        connection.execute("set timezone to 'Asia/Tokyo'")
        assert other.execute("select %s::int", (1,)).fetchone() == (1,)
        if reset:
            fragile.crash()
        else:
            assert fragile.process is not None
            fragile.process.send_signal(signal.SIGINT)
            fragile.process.wait(40)
        fragile.restart()
        # An attempt of pgnear's own to connect that began while the server was starting fails whoever waits for it.
        until(lambda: near.metric("pool_connecting") == 0 and near.metric("pool_ready") == 1)
        assert connection.execute("show timezone").fetchone() == ("Asia/Tokyo",)
        assert other.execute("select %s::int", (2,)).fetchone() == (2,)


def test_a_connection_whose_end_is_not_yet_seen_is_not_given_to_a_query(
    through: Callable[..., Pgnear], proxy: Proxy
) -> None:
    """The query is handled before the end of the connection that it would take, both having arrived."""
    near = through(pool_size=1, min_pool_size=0, cache={"enabled": False})
    with WireClient.logged_in(near.port) as client:
        for number in range(5):
            assert client.one(f"select {number}") == str(number).encode()
            until(lambda: near.metric("pool_busy") == 0)
            os.kill(near.process.pid, signal.SIGSTOP)
            idle_since = time.monotonic()
            client.send(query(f"select {number}"))
            proxy.cut()
            until(lambda since=idle_since: time.monotonic() - since > 0.05)  # type: ignore[misc]
            os.kill(near.process.pid, signal.SIGCONT)
            assert rows(client.receive_until()) == [[str(number).encode()]]
        assert near.metric("retries_total") == 5


# ---- never reached ---------------------------------------------------------------------------------------------------


def test_an_origin_that_is_not_there_is_told_with_its_reason(pgnear: Start) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        near = pgnear(url=f"postgresql://postgres:x@127.0.0.1:{port}/postgres")
        with pytest.raises(psycopg.OperationalError, match="cannot be reached: Connection refused"):
            near.connect(dsn={"password": "x"})
        assert near.get("/readyz")[0] == 503
        assert near.get("/healthz")[0] == 200
        assert near.wait_for_log("origin_connect_failed")["reason"].endswith("Connection refused")
    near = pgnear(url="postgresql://postgres:x@no-such-host.invalid/postgres")
    with pytest.raises(psycopg.OperationalError, match="the origin database cannot be reached"):
        near.connect(dsn={"password": "x"})


def test_an_origin_that_comes_later_is_found(pgnear: Start, fragile: Server) -> None:
    fragile.crash()
    near = pgnear(url=fragile.url())
    assert not _serves(near)
    fragile.restart()
    until(lambda: near.get("/readyz")[0] == 200, what="it is not found by itself")
    assert _serves(near)


def test_an_origin_that_accepts_and_says_nothing_runs_into_the_connect_timeout(pgnear: Start, fragile: Server) -> None:
    with stopped(fragile):
        near = pgnear(url=fragile.url(), origin_connect_timeout="500ms")
        started = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"no answer within 0\.5 s \(origin_connect_timeout\)"):
            near.connect()
        assert time.monotonic() - started < 20
        assert near.get("/readyz")[0] == 503
    until(lambda: _serves(near))


def test_an_origin_that_freezes_during_a_greeting_does_not_keep_its_client(
    through: Callable[..., Pgnear], proxy: Proxy
) -> None:
    """Settings at login are tried on a pooled connection; that, too, has a deadline."""
    near = through(origin_connect_timeout="500ms", pool_wait_timeout="1s")
    until(lambda: _serves(near))
    proxy.freeze()
    with pytest.raises(psycopg.OperationalError, match=r"08006|was lost"):
        near.connect(dsn={"options": "-c work_mem=5MB"})
    proxy.thaw()
    until(lambda: _serves(near))


def test_pgnear_stops_cleanly_while_its_origin_is_frozen(through: Callable[..., Pgnear], proxy: Proxy) -> None:
    """Connecting, resetting and looking up the catalog are under way and will never end."""
    near = through(drain_timeout="200ms", pool_size=4)
    with near.connect() as connection:
        connection.execute("create temp table pins (a int)")
        proxy.freeze()
    until(lambda: near.metric("clients") == 0)
    attempts = [Background(lambda: _serves(near)) for _ in range(5)]
    until(lambda: near.metric("pool_connecting") > 0)
    near.stop(within=15)
    assert [attempt.result() for attempt in attempts] == [False] * 5


# ---- waiting in the queue --------------------------------------------------------------------------------------------


def test_waiting_too_long_is_53300_and_names_the_pool_and_its_limits(pgnear: Start) -> None:
    near = pgnear(pool_size=2, pool_wait_timeout="300ms")
    with near.connect() as first, near.connect() as second, WireClient.logged_in(near.port) as waiter:
        first.execute("begin")
        second.execute("begin")
        for messages in ((query("select random()"),), (parse("select random()"), bind(), execute(), SYNC)):
            frames = dict(waiter.ask(*messages))
            fields = error_fields(frames["E"])
            assert (fields["S"], fields["C"]) == ("ERROR", "53300")
            assert 'pool "postgres"' in fields["M"]
            assert "0.3 s" in fields["M"]
            assert "All 2 connections" in fields["D"]
            assert "pool_size" in fields["H"]
            assert "pool_wait_timeout" in fields["H"]
            assert frames["Z"] == b"I"
        assert near.metric("pool_timeouts_total") == 2
        first.execute("rollback")
        assert waiter.one("select 'after'") == b"after"  # the session goes on


def test_who_waits_is_served_in_the_order_they_came(pgnear: Start, origin: Server) -> None:
    origin.execute("create table if not exists queue (place serial, who int)")
    origin.execute("truncate queue restart identity")
    near = pgnear(pool_size=1)
    with near.connect() as holder:
        holder.execute("begin")
        clients = [WireClient.logged_in(near.port) for _ in range(10)]
        try:
            for number, client in enumerate(clients):
                client.send(query(f"insert into queue (who) values ({number})"))
                until(lambda number=number: near.metric("clients_waiting") == number + 1)  # type: ignore[misc]
            holder.execute("commit")
            for client in clients:
                client.receive_until()
        finally:
            for client in clients:
                client.hang_up()
    assert origin.execute("select who from queue order by place") == [(number,) for number in range(10)]
    origin.execute("drop table queue")


# ---- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_cancel_safe_ends_a_running_query(near: Pgnear, origin: Server, sslmode: str) -> None:
    text = f"select pg_sleep(60) /* cancel {sslmode} */"
    with near.connect(dsn={"sslmode": sslmode}) as connection:
        work = Background(lambda: connection.execute(text))
        until(active(origin, text))
        connection.cancel_safe(timeout=40)
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()
        assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("sslmode", ["disable", "require"])
def test_the_old_cancel_of_libpq_ends_a_running_query(near: Pgnear, origin: Server, sslmode: str) -> None:
    text = f"select pg_sleep(60) /* old cancel {sslmode} */"
    with near.connect(dsn={"sslmode": sslmode}) as connection:
        work = Background(lambda: connection.execute(text))
        until(active(origin, text))
        connection.pgconn.get_cancel().cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()


def test_ctrl_c_in_psql_ends_its_query_and_not_its_session(near: Pgnear, origin: Server) -> None:
    """On a terminal: psql ends a script at Ctrl-C, but goes on talking to a person."""
    text = "select pg_sleep(60) /* ctrl-c */"
    ours, its = os.openpty()
    with open(ours, "r+b", buffering=0) as terminal:
        process = subprocess.Popen(
            [str(origin.bin / "psql"), near.dsn(), "-XAtn"],
            stdin=its, stdout=its, stderr=its, start_new_session=True, env={"PAGER": "", "TERM": "dumb"},
        )  # fmt: skip
        os.close(its)
        try:
            terminal.write(f"{text};\n".encode())
            until(active(origin, f"{text};"))
            process.send_signal(signal.SIGINT)  # what the terminal would send to its foreground process
            seen = b""
            while b"canceling statement due to user request" not in seen:
                seen += terminal.read(4096)
            terminal.write(b"select 'still ' || 'here';\n\\q\n")
            while b"still here" not in seen:
                seen += terminal.read(4096)
            assert process.wait(40) == 0
        finally:
            process.kill()
            process.wait()


def test_a_cancel_of_one_who_waits_in_the_queue_takes_only_him_out(pgnear: Start) -> None:
    near = pgnear(pool_size=2)
    with near.connect() as first, near.connect() as second, near.connect() as waiter:
        for holder in (first, second):
            holder.execute("begin")
        work = Background(lambda: waiter.execute("select random()"))
        until(lambda: near.metric("clients_waiting") == 1)
        waiter.cancel_safe(timeout=40)
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()
        assert near.metric("clients_waiting") == 0
        assert first.execute("select 'untouched'").fetchone() == ("untouched",)
        begin = Background(lambda: waiter.execute("begin"))
        until(lambda: near.metric("clients_waiting") == 1)
        first.execute("commit")
        begin.result()
        backend = "select pg_backend_pid()"
        mine = waiter.execute(backend).fetchone()
        second.execute("commit")  # what becomes free now is nobody's
        until(lambda: near.metric("pool_idle") == 1)
        assert waiter.execute(backend).fetchone() == mine


def test_a_cancel_that_the_origin_does_not_take_in_time_is_given_up(
    through: Callable[..., Pgnear], proxy: Proxy, origin: Server
) -> None:
    near = through(cancel_wait_timeout="600ms")
    text = "select pg_sleep(60) /* cancel frozen */"
    with near.connect() as connection:
        work = Background(lambda: connection.execute(text))
        until(active(origin, text))
        proxy.freeze()
        connection.cancel_safe(timeout=40)
        proxy.thaw()
        connection.cancel_safe(timeout=40)
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()


# ---- ageing ----------------------------------------------------------------------------------------------------------


def test_the_first_query_finds_a_warm_connection(pgnear: Start, origin: Server) -> None:
    near = pgnear(url=origin.role("warm"), min_pool_size=3)
    until(lambda: origin.backends("warm") == 3)
    until(lambda: near.metric("pool_idle") == 3 and near.metric("pool_ready") == 1)
    names = ("origin_connections_opened_total", "pool_wait_seconds_count")
    before = [near.metric(name) for name in names]
    with near.connect(dsn={"user": "warm"}) as connection:
        connection.execute("select random()")
    assert [near.metric(name) for name in names] == before


def test_warm_connections_that_are_lost_are_replaced(pgnear: Start, origin: Server) -> None:
    near = pgnear(url=origin.role("rewarm"), min_pool_size=2)
    until(lambda: origin.backends("rewarm") == 2)
    origin.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'rewarm'")
    until(lambda: near.metric("pool_idle") == 2)
    assert origin.backends("rewarm") == 2


def test_idle_connections_beyond_the_minimum_are_closed(pgnear: Start, origin: Server) -> None:
    near = pgnear(url=origin.role("idler"), min_pool_size=1, pool_size=5, origin_idle_timeout="300ms")
    connections = [near.connect(dsn={"user": "idler"}, autocommit=False) for _ in range(5)]
    for connection in connections:
        connection.execute("select 1")
    assert origin.backends("idler") == 5
    for connection in connections[1:]:
        connection.rollback()
    until(lambda: origin.backends("idler") <= 2)
    assert connections[0].execute("select 'mine'").fetchone() == ("mine",)  # busy ones are not idle
    for connection in connections:
        connection.close()
    until(lambda: origin.backends("idler") == 1)


def test_a_connection_is_replaced_at_the_end_of_its_life_but_not_in_a_transaction(
    pgnear: Start, origin: Server
) -> None:
    near = pgnear(url=origin.role("mortal"), min_pool_size=1, pool_size=1, origin_lifetime="300ms")
    with near.connect(dsn={"user": "mortal"}) as connection:
        connection.execute("begin")
        (first,) = connection.execute("select pg_backend_pid()").fetchone()
        age = "select clock_timestamp() - backend_start > '1 second' from pg_stat_activity where pid = pg_backend_pid()"
        until(lambda: connection.execute(age).fetchone() == (True,))
        assert connection.execute("select pg_backend_pid()").fetchone() == (first,)
        connection.execute("commit")
        (second,) = connection.execute("select pg_backend_pid()").fetchone()
        assert first != second
    until(
        lambda: origin.execute("select count(*) from pg_stat_activity where pid in (%s, %s)", first, second)[0][0] == 0
    )
    assert near.metric("origin_connections_lost_total") == 0
