"""Replication connections: passed through, each on an origin connection of its own, until either side ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack

import psycopg
import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.proxy import Proxy
from tests.support.waiting import until
from tests.support.wire import (
    Frame,
    Refused,
    WireClient,
    cancel_request,
    describe,
    error_fields,
    frame,
    query,
    rows,
)

LOGICAL = {"wal_level": "logical", "max_wal_senders": "30", "max_replication_slots": "30"}
STREAM = "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'everything')"


@pytest.fixture(scope="module")
def source() -> Iterator[Server]:
    """A PostgreSQL whose changes can be decoded, with a publication of all tables."""
    with Server(installation=installed(18), settings=LOGICAL) as server:
        server.execute("create publication everything for all tables")
        server.execute("create table news (id int primary key, text text)")
        yield server


@pytest.fixture
def fragile() -> Iterator[Server]:
    """One of this test's own, to be killed."""
    with Server(installation=installed(18), settings=LOGICAL) as server:
        yield server


@pytest.fixture(scope="module")
def near(source: Server) -> Iterator[Pgnear]:
    with running(source.url(), pool_size=2) as server:
        yield server


@pytest.fixture
def proxy(source: Server) -> Iterator[Proxy]:
    with Proxy(source.port) as made:
        yield made


def replicating(near: Pgnear, value: str = "database", **more: str) -> WireClient:
    return WireClient.logged_in(near.port, replication=value, **more)


def backends(source: Server, name: str) -> list[int]:
    """The process ids of the origin's backends, walsenders included, with this application_name."""
    found = source.execute("select pid from pg_stat_activity where application_name = %s", name)
    return [int(str(pid)) for (pid,) in found]


@contextmanager
def streaming(near: Pgnear, slot: str, **more: str) -> Iterator[WireClient]:
    """A client that has begun to stream the changes of a temporary slot."""
    with replicating(near, **more) as client:
        assert not errors_in(client.query(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput"))
        client.send(query(STREAM.format(slot=slot)))
        assert client.receive()[0] == "W"
        yield client


def errors_in(frames: list[Frame]) -> list[dict[str, str]]:
    return [error_fields(body) for kind, body in frames if kind == "E"]


def status_update(position: int, *, reply: bool = False) -> bytes:
    return frame("d", b"r" + pack("!QQQqB", position, position, position, 0, reply))


# ---- what passes -----------------------------------------------------------------------------------------------------


def test_a_change_is_streamed_and_acknowledged(near: Pgnear, source: Server) -> None:
    """The whole conversation of a logical replication client: who are you, a slot, the stream, keepalives, the end."""
    with replicating(near, application_name="subscriber") as client:
        ((_, _, position, database),) = rows(client.query("IDENTIFY_SYSTEM"))
        assert position is not None
        assert b"/" in position
        assert database == b"postgres"
        ((slot, *_),) = rows(client.query("CREATE_REPLICATION_SLOT s1 TEMPORARY LOGICAL pgoutput"))
        assert slot == b"s1"
        client.send(query(STREAM.format(slot="s1")))
        assert client.receive()[0] == "W"
        source.execute("insert into news values (1, 'hello from afar')")
        changes = b""
        acknowledged = 0
        while b"hello from afar" not in changes:
            kind, body = client.receive()
            assert kind == "d"
            if body[:1] == b"w":
                changes += body[25:]
                acknowledged = unpack("!Q", body[9:17])[0]
        client.send(status_update(acknowledged, reply=True))
        while client.receive()[1][:1] != b"k":  # the keepalive that was asked for: the origin has read the update
            pass
        flushed = "select flush_lsn = '0/0'::pg_lsn + %s from pg_stat_replication where application_name = 'subscriber'"
        assert source.execute(flushed, acknowledged) == [(True,)]
        frames = client.ask(frame("c"))
        assert next(kind for kind, _ in frames if kind != "d") == "c"
        assert client.one("select count(*) from news") == b"1"
        client.terminate()
    until(lambda: not backends(source, "subscriber"))


@pytest.mark.parametrize("value", ["true", "on", "yes", "1", "TRUE", "t"])
def test_physical_replication_passes(near: Pgnear, value: str) -> None:
    with replicating(near, value) as client:
        ((system, _, position, database),) = rows(client.query("IDENTIFY_SYSTEM"))
        assert system
        assert database is None
        assert position is not None
        client.send(query(f"START_REPLICATION PHYSICAL {position.decode()}"))
        client.receive_until("W")


def test_a_client_is_greeted_in_the_origins_words_and_with_a_key_of_its_own(near: Pgnear, source: Server) -> None:
    wanted = {"application_name": "asks", "options": "-c work_mem=5MB -c timezone=Asia/Tokyo"}
    with replicating(near, **wanted) as client, replicating(_directly(source), **wanted) as direct:
        assert client.parameters == direct.parameters
        assert client.parameters["TimeZone"] == "Asia/Tokyo"
        assert client.one("SHOW work_mem") == direct.one("SHOW work_mem") == b"5MB"
        assert len(backends(source, "asks")) == 2
        assert client.pid not in backends(source, "asks")
        assert [kind for kind, _ in client.greeting] == [kind for kind, _ in direct.greeting]


class _Port:
    def __init__(self, port: int) -> None:
        self.port = port


def _directly(source: Server) -> Pgnear:
    return _Port(source.port)  # type: ignore[return-value]


def test_a_client_cannot_choose_the_origins_user_or_database_by_its_options(near: Pgnear, source: Server) -> None:
    source.role("somebody")
    with replicating(near, options="-c user=somebody -c database=template1 -c replication=off") as client:
        assert client.one("select session_user || ' ' || current_database()") == b"postgres postgres"
        assert rows(client.query("IDENTIFY_SYSTEM"))


@pytest.mark.parametrize("version", [16, 18])
def test_pg_recvlogical_receives(near: Pgnear, source: Server, tmp_path: Path, version: int) -> None:
    def recvlogical(*arguments: str) -> subprocess.Popen[str]:
        program = str(installed(version) / "bin" / "pg_recvlogical")
        common = ["-d", near.dsn(), "-S", f"received_{version}", *arguments]
        return subprocess.Popen([program, *common], stderr=subprocess.PIPE, text=True)

    def done(process: subprocess.Popen[str]) -> None:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said

    done(recvlogical("--create-slot", "-P", "pgoutput"))
    got = tmp_path / "got"
    options = ["-o", "proto_version=1", "-o", "publication_names=everything"]
    receiver = recvlogical("--start", "-f", str(got), "--fsync-interval", "0", "-F", "0", *options)
    try:
        source.execute("insert into news values (%s, 'through the programs')", 100 + version)
        until(lambda: got.exists() and b"through the programs" in got.read_bytes())
    finally:
        receiver.send_signal(signal.SIGINT)
        done(receiver)
    until(lambda: near.metric("replication_connections") == 0)
    done(recvlogical("--drop-slot"))
    assert near.wait_for_log("replication_ended", kind="logical")["reason"]


def test_pg_receivewal_and_pg_basebackup_work_without_naming_a_database(
    near: Pgnear, source: Server, tmp_path: Path
) -> None:
    """libpq then asks for a database named `replication`, which is none."""
    programs = installed(18) / "bin"
    where = ["-h", "127.0.0.1", "-p", str(near.port), "-U", "postgres"]
    environment = os.environ | {"PGPASSWORD": PASSWORD}
    wal = tmp_path / "wal"
    wal.mkdir()
    receiver = subprocess.Popen(
        [str(programs / "pg_receivewal"), *where, "-D", str(wal), "--no-sync"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: list(wal.glob("*.partial")), what="no WAL came")
        source.execute("select pg_switch_wal()")
        until(lambda: [file for file in wal.iterdir() if len(file.name) == 24], within=40, what="no segment is whole")
    finally:
        receiver.send_signal(signal.SIGINT)
        _, said = receiver.communicate(timeout=60)
    assert receiver.returncode == 0, said
    backup = [str(programs / "pg_basebackup"), *where, "-D", str(tmp_path / "backup"), "-c", "fast", "-X", "stream"]
    made = subprocess.run([*backup, "--no-sync"], env=environment, capture_output=True, text=True, timeout=100)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "backup" / "PG_VERSION").read_text().strip() == "18"


def test_a_driver_replicates_over_tls(near: Pgnear) -> None:
    with near.connect(dsn={"replication": "database", "sslmode": "require"}) as connection:
        assert connection.pgconn.ssl_in_use
        row = connection.pgconn.exec_(b"IDENTIFY_SYSTEM")
        assert row.get_value(0, 3) == b"postgres"
        text = connection.pgconn.exec_(b"select repeat('x', 3000000)").get_value(0, 0)
        assert text == b"x" * 3_000_000


def test_what_the_origin_says_of_a_wrong_command_passes(near: Pgnear) -> None:
    with replicating(near) as client:
        (error,) = errors_in(client.query("START_REPLICATION SLOT nosuch LOGICAL 0/0"))
        assert (error["S"], error["C"]) == ("ERROR", "42704")
        client.send(describe("S"))
        (error,) = errors_in([client.receive()])
        assert error["C"] == "08P01"


def test_they_take_no_connection_of_the_pool(pgnear: Start, source: Server) -> None:
    near = pgnear(url=source.url(), pool_size=1)
    with replicating(near) as one, replicating(near) as two, WireClient.logged_in(near.port) as client:
        assert near.metric("replication_connections") == 2
        assert one.one("select 1") == two.one("select 1") == b"1"
        assert client.one("select 1") == b"1"
        assert near.metric("clients") == 1


def test_a_write_over_one_is_seen_by_readers_of_the_cache(pgnear: Start, source: Server) -> None:
    """A walsender in a database takes SQL as well."""
    source.execute("create table counted (v int primary key)")
    source.execute("insert into counted values (1)")
    near = pgnear(url=source.url())
    near.wait_until_it_caches()
    with WireClient.logged_in(near.port) as reader, replicating(near) as writer:
        for value in range(2, 5):
            hits = near.metric("cache_hits_total")

            def cached(before: float = hits) -> bool:
                reader.one("select v from counted")
                return near.metric("cache_hits_total") > before

            until(cached, what="the answer is never cached")
            assert not errors_in(writer.query(f"update counted set v = {value}"))
            assert reader.one("select v from counted") == str(value).encode()


# ---- who gets in -----------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_refused_as_ever(near: Pgnear) -> None:
    with pytest.raises(Refused) as refused:
        replicating(near, password="wrong")
    assert refused.value.sqlstate == "28P01"


def test_an_unknown_database_is_refused(near: Pgnear) -> None:
    for value in ("database", "true"):
        with pytest.raises(Refused, match='database "nosuch" does not exist') as refused:
            replicating(near, value, database="nosuch")
        assert refused.value.sqlstate == "3D000"
    with pytest.raises(Refused):
        replicating(near, "database", database="replication")
    with replicating(near, "true", database="replication") as client:
        assert rows(client.query("IDENTIFY_SYSTEM"))


def test_an_origins_refusal_is_told_in_its_words(pgnear: Start, source: Server, near: Pgnear) -> None:
    with pytest.raises(Refused, match='invalid value for parameter "replication": "maybe"') as refused:
        replicating(near, "maybe")
    assert refused.value.sqlstate == "22023"
    with pytest.raises(Refused, match="unrecognized configuration parameter") as refused:
        replicating(near, nosuchsetting="1")
    assert refused.value.sqlstate == "42704"
    source.execute(f"create role modest login password '{PASSWORD}'")
    modest = pgnear(url=source.url(user="modest"))
    with pytest.raises(Refused) as refused:
        replicating(modest, user="modest")
    with pytest.raises(Refused) as directly:
        replicating(_directly(source), user="modest")
    assert refused.value.sqlstate == "42501"
    assert [refused.value.fields[name] for name in "SMD"] == [directly.value.fields[name] for name in "SMD"]
    with WireClient.logged_in(modest.port, user="modest") as client:
        assert client.one("select 1") == b"1"
    assert modest.metric("replication_connections") == 0


def test_an_origin_that_cannot_be_reached_is_told(pgnear: Start, source: Server, proxy: Proxy) -> None:
    near = pgnear(url=_through(source, proxy), origin_connect_timeout="500ms")
    proxy.refuse()
    with pytest.raises(Refused, match="the origin database cannot be reached") as refused:
        replicating(near)
    assert refused.value.sqlstate == "08001"
    proxy.refuse(False)
    proxy.freeze()
    with pytest.raises(Refused, match=r"no answer within 0\.5 s \(origin_connect_timeout\)"):
        replicating(near)
    proxy.thaw()
    with replicating(near) as client:
        assert client.one("select 1") == b"1"
        assert near.metric("replication_connections") == 1


def _through(source: Server, proxy: Proxy) -> str:
    return source.url(sslmode="disable").replace(str(source.port), str(proxy.port))


def test_one_more_than_the_limit_is_refused_until_another_leaves(pgnear: Start, source: Server) -> None:
    near = pgnear(url=source.url(), max_replication_connections=2)
    with replicating(near), replicating(near) as second:
        with pytest.raises(Refused) as refused:
            replicating(near)
        assert refused.value.sqlstate == "53300"
        assert "max_replication_connections" in refused.value.fields["H"]
        assert near.metric("clients_rejected_total", sqlstate="53300") == 1
        second.terminate()
        until(lambda: near.metric("replication_connections") == 1)
        with replicating(near) as third:
            assert rows(third.query("IDENTIFY_SYSTEM"))


def test_a_limit_of_nought_turns_them_off(pgnear: Start, source: Server) -> None:
    near = pgnear(url=source.url(), max_replication_connections=0)
    with pytest.raises(Refused) as refused:
        replicating(near)
    assert refused.value.sqlstate == "0A000"
    assert "max_replication_connections" in refused.value.fields["H"]
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 1") == b"1"


# ---- cancel ----------------------------------------------------------------------------------------------------------


def _cancel(near: Pgnear, pid: int, secret: bytes) -> None:
    with WireClient(near.port) as other:
        other.send(cancel_request(pid, secret))
        assert other.receive_all() == []


@pytest.mark.parametrize("minor", [0, 2])
def test_a_cancel_reaches_its_own_origin_connection_and_no_other(near: Pgnear, source: Server, minor: int) -> None:
    with replicating(near, application_name="slow", minor=minor) as client, replicating(near) as other:
        assert len(client.secret) == (32 if minor else 4)
        client.send(query("select pg_sleep(50)"))
        sleeping = "select 1 from pg_stat_activity where application_name = 'slow' and wait_event = 'PgSleep'"
        until(lambda: source.execute(sleeping))
        _cancel(near, client.pid, bytes(len(client.secret)))
        _cancel(near, other.pid, client.secret)
        (origin_pid,) = backends(source, "slow")
        _cancel(near, origin_pid, client.secret)
        assert source.execute(sleeping)
        _cancel(near, client.pid, client.secret)
        (error,) = errors_in(client.receive_until())
        assert error["C"] == "57014"
        assert client.one("select 1") == other.one("select 1") == b"1"


def test_a_stream_can_be_cancelled(near: Pgnear) -> None:
    with streaming(near, "cancelled") as client:
        _cancel(near, client.pid, client.secret)
        (error,) = errors_in(client.receive_until("E"))
        assert error["C"] == "57014"


# ---- its end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminate", "hang_up", "reset"])
def test_a_client_that_leaves_in_mid_stream_takes_its_origin_connection_along(
    near: Pgnear, source: Server, how: str
) -> None:
    name = f"leaves by {how}"
    with streaming(near, f"left_{how}", application_name=name) as client:
        (origin_pid,) = backends(source, name)
        getattr(client, how)()
    until(lambda: not backends(source, name))
    near.wait_for_log("replication_ended", origin_pid=origin_pid)
    until(lambda: near.metric("replication_connections") == 0)


def test_a_terminated_walsender_is_told_of_in_the_origins_words(near: Pgnear, source: Server) -> None:
    with streaming(near, "ended", application_name="to be ended") as client:
        (origin_pid,) = backends(source, "to be ended")
        source.execute("select pg_terminate_backend(%s)", origin_pid)
        assert client.fatal()["C"] == "57P01"
    assert near.wait_for_log("replication_ended", origin_pid=origin_pid)["reason"] == "the origin closed the connection"


def test_a_crashed_origin_ends_its_clients_and_pgnear_goes_on(pgnear: Start, fragile: Server) -> None:
    near = pgnear(url=fragile.url())
    with replicating(near) as client:
        fragile.crash()
        client.receive_all()
    until(lambda: near.metric("replication_connections") == 0)
    fragile.restart()
    until(lambda: near.get("/readyz")[0] == 200)
    with replicating(near) as client:
        assert rows(client.query("IDENTIFY_SYSTEM"))


def test_a_cut_line_to_the_origin_ends_the_client(pgnear: Start, source: Server, proxy: Proxy) -> None:
    near = pgnear(url=_through(source, proxy))
    with replicating(near) as client:
        proxy.cut()
        assert client.receive_all() == []
    near.wait_for_log("replication_ended")


def test_a_shutdown_says_57p01_to_a_stream(pgnear: Start, source: Server) -> None:
    near = pgnear(url=source.url())
    with streaming(near, "shut", application_name="shut") as client, replicating(near) as idle:
        near.process.send_signal(signal.SIGTERM)
        for each in (client, idle):
            assert each.fatal()["C"] == "57P01"
    assert near.process.wait(40) == 0
    ended = near.wait_for_log("replication_ended", count=2)
    assert ended["reason"] == "pgnear is shutting down"
    until(lambda: not backends(source, "shut"))


def test_a_shutdown_never_speaks_inside_a_frame(pgnear: Start, source: Server) -> None:
    """The client is in the middle of a row when pgnear is told to stop: its last words come behind the row."""
    near = pgnear(url=source.url(), drain_timeout="100ms", buffer_high_water=16384)
    with replicating(near) as client:
        client.send(query("select repeat('x', 400000) from generate_series(1, 100000)"))
        client.receive_until("D")
        near.process.send_signal(signal.SIGTERM)
        near.wait_for_log("stopping")
        frames = client.receive_all()
        assert not client.buffer
    assert {body for _, body in frames[:-1]} == {b"\0\1" + pack("!I", 400_000) + b"x" * 400_000}
    assert frames[-1][0] == "E"
    assert error_fields(frames[-1][1])["C"] == "57P01"
    assert near.process.wait(40) == 0


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_a_slow_reader_does_not_fill_pgnears_memory(pgnear: Start, source: Server) -> None:
    near = pgnear(url=source.url())
    with replicating(near, application_name="floods") as client:
        before = near.peak_memory()
        client.send(query("select repeat('x', 1000000) from generate_series(1, 150)"))
        waits = "select 1 from pg_stat_activity where application_name = 'floods' and wait_event = 'WalSenderWriteData'"
        blocked = "select 1 from pg_stat_activity where application_name = 'floods' and wait_event_type = 'Client'"
        until(lambda: source.execute(blocked) or source.execute(waits), what="the origin is never held up")
        with WireClient.logged_in(near.port) as other:
            assert other.one("select 1") == b"1"
        frames = client.receive_until()
        assert sum(len(body) for kind, body in frames if kind == "D") > 150_000_000
        assert near.peak_memory() - before < 20_000_000


def test_a_slow_origin_does_not_fill_pgnears_memory(pgnear: Start, source: Server, proxy: Proxy) -> None:
    near = pgnear(url=_through(source, proxy))
    source.execute("create table if not exists uploads (v text)")
    with replicating(near, application_name="uploads") as client:
        client.send(query("copy uploads from stdin"))
        assert client.receive()[0] == "G"
        before = near.peak_memory()
        proxy.freeze()
        rest = memoryview(frame("d", b"y" * 1_000_000 + b"\n") * 60)
        client.socket.settimeout(1)
        try:
            while rest:
                rest = rest[client.socket.send(rest) :]
        except TimeoutError:  # pgnear takes no more
            pass
        client.socket.settimeout(40)
        assert len(rest) > 30_000_000
        proxy.thaw()
        client.socket.sendall(rest)
        assert ("C", b"COPY 60\0") in client.ask(frame("c"))
        assert near.peak_memory() - before < 20_000_000


def test_psycopg_sees_a_refusal_as_it_would_without_pgnear(near: Pgnear) -> None:
    with pytest.raises(psycopg.OperationalError, match='database "nosuch" does not exist'):
        near.connect(dsn={"replication": "database", "dbname": "nosuch"})
