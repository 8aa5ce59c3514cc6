"""Many clients, big results, slow readers, clients that vanish: memory and origin connections stay what they may be."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import together, until
from tests.support.wire import WireClient, frame, query, rows, startup

MB = 1 << 20


def processor_seconds(process: int) -> float:
    """User and system time that `process` has used so far."""
    with open(f"/proc/{process}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- many clients ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(origin: Server) -> Iterator[Pgnear]:
    """A pgnear with twenty origin connections, pgbench's tables behind it."""
    origin.role("bench")
    subprocess.run(
        [str(origin.bin / "pgbench"), "-i", "-q", "-s", "2", origin.url(user="bench")], check=True, capture_output=True
    )
    with running(origin.url(user="bench"), pool_size=20) as near:
        yield near


def pgbench(origin: Server, near: Pgnear, *options: str) -> str:
    done = subprocess.run(
        [str(origin.bin / "pgbench"), "-n", "-c", "200", "-j", "2", *options, near.dsn(user="bench")],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "number of failed transactions: 0 (0.000%)" in done.stdout, done.stdout
    assert "error" not in done.stderr.lower(), done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_two_hundred_clients_share_twenty_connections(origin: Server, bench: Pgnear, mode: str) -> None:
    pgbench(origin, bench, "-M", mode, "-b", "simple-update", "-t", "20")
    assert 0 < origin.backends("bench") <= 20
    until(lambda: bench.metric("pool_busy") == 0 and bench.metric("clients") == 0)


@pytest.mark.slow
def test_two_hundred_clients_reconnect_for_each_transaction(origin: Server, bench: Pgnear) -> None:
    opened = bench.metric("origin_connections_opened_total")
    accepted = bench.metric("clients_accepted_total")
    pgbench(origin, bench, "-C", "-S", "-M", "prepared", "-t", "2")
    assert bench.metric("clients_accepted_total") >= accepted + 400
    assert bench.metric("origin_connections_opened_total") <= opened + 20
    assert bench.metric("clients_rejected_total") == 0


@pytest.mark.slow
def test_two_thousand_clients_are_connected_at_once(pgnear: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        if hard < 4096:
            pytest.skip("this process may not have as many files open")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    near = pgnear(pool_size=4, max_unauthenticated_connections=2000, client_login_timeout="100s")
    with near.connect() as connection:
        connection.execute("select 1")
    before = near.peak_memory()
    clients = [WireClient(near.port) for _ in range(2000)]
    try:
        for client in clients:  # all are there before any of them is served
            client.send(
                startup({"user": "postgres", "database": "postgres", "application_name": f"idler {id(client)}"})
            )
        waiting = iter(clients)

        def finish_logins(_: int) -> object:
            done = 0
            for client in waiting:
                client.log_in_from_here(PASSWORD)
                done += 1
            return done

        assert sum(together(16, finish_logins)) == 2000  # type: ignore[arg-type]
        assert near.metric("clients") == 2000
        assert near.metric("clients_rejected_total") == 0
        assert near.metric("pool_busy") == 0
        for number, client in enumerate(random.sample(clients, 50)):
            assert client.one(f"select {number}") == str(number).encode()
        assert near.peak_memory() - before < 2000 * 40_000
        used = processor_seconds(near.process.pid)
        with near.connect() as connection:  # idle clients cost nothing
            connection.execute("select pg_sleep(1)")
        assert processor_seconds(near.process.pid) - used < 0.5
    finally:
        for client in clients:
            client.hang_up()
    until(lambda: near.metric("clients") == 0)


# ---- big results -----------------------------------------------------------------------------------------------------


def drain(client: WireClient, buffer: bytearray) -> int:
    """Read and forget until a ReadyForQuery ends what is there; how many bytes that was."""
    total = 0
    tail = b""
    while True:
        size = client.socket.recv_into(buffer)
        assert size, "the server closed the connection"
        total += size
        tail = (tail + bytes(buffer[max(0, size - 6) : size]))[-6:]
        if tail == b"Z\0\0\0\5I":
            return total


@pytest.mark.parametrize("cache", [True, False])
def test_a_gigabyte_passes_through_a_process_that_stays_small(pgnear: Start, cache: bool) -> None:
    near = pgnear(cache={"enabled": cache})
    with WireClient.logged_in(near.port) as client:
        client.send(query("select repeat('x', 1000000) from generate_series(1, 1000)"))
        assert drain(client, bytearray(MB)) > 1_000_000_000
    assert near.peak_memory() < 200 * MB


def test_a_value_larger_than_any_buffer_passes(pgnear: Start) -> None:
    """A single DataRow of 100 MB is never whole in memory."""
    near = pgnear()
    with WireClient.logged_in(near.port) as client:
        client.query("select 1")
        before = near.peak_memory()
        client.send(query("select repeat('x', 100000000)"))
        assert drain(client, bytearray(MB)) > 100_000_000
    assert near.peak_memory() - before < 20 * MB


def backends(origin: Server, condition: str) -> int:
    """How many of the origin's client backends satisfy `condition`, by name slow, fast or none."""
    found = origin.execute(
        f"select count(*) from pg_stat_activity where backend_type = 'client backend' and {condition}"
    )
    count = found[0][0]
    assert isinstance(count, int)
    return count


def test_slow_readers_pause_their_origin_connections_and_nobody_else(pgnear: Start, origin: Server) -> None:
    near = pgnear(url=origin.role("slow"), pool_size=6)
    with near.connect(dsn={"user": "slow"}) as other:
        other.execute("select 1")
        before = near.peak_memory()
        clients = [WireClient.logged_in(near.port, user="slow") for _ in range(5)]
        try:
            for client in clients:
                client.send(query("select repeat('x', 100000) from generate_series(1, 3000)"))
            until(lambda: backends(origin, "usename = 'slow' and wait_event = 'ClientWrite'") == 5)
            assert other.execute("select 'awake', random()").fetchone()[0] == "awake"
            assert near.peak_memory() - before < 20 * MB
            assert drain(clients[0], bytearray(MB)) > 300_000_000
            assert near.peak_memory() - before < 20 * MB
        finally:
            for client in clients:
                client.hang_up()
        until(lambda: near.metric("pool_busy") == 0, what="slow readers that left keep connections")


def test_cached_answers_for_one_who_does_not_read_them_are_not_piled_up(near: Pgnear) -> None:
    near.wait_until_it_caches()
    text = "select repeat('y', 800000)"
    with WireClient.logged_in(near.port) as client:
        for _ in range(2):
            client.query(text)
        hits = near.metric("cache_hits_total")
        before = near.peak_memory()
        client.send(query(text) * 200)
        until(lambda: near.metric("cache_hits_total") > hits)
        with near.connect() as other:
            other.execute("select 1")
        assert near.peak_memory() - before < 20 * MB
        assert sum(len(rows(client.receive_until())[0][0] or b"") for _ in range(200)) == 200 * 800_000
        assert near.metric("cache_hits_total") >= hits + 200


# ---- COPY ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(origin: Server) -> Iterator[str]:
    origin.execute("create unlogged table copied (a text)")
    yield "copied"
    origin.execute("drop table copied")


@pytest.mark.slow
@pytest.mark.parametrize("size", [65536, 50 * MB])
def test_200_megabytes_are_copied_in_through_little_memory(
    pgnear: Start, origin: Server, copied: str, size: int
) -> None:
    near = pgnear()
    with WireClient.logged_in(near.port) as client:
        client.send(query(f"copy {copied} from stdin"))
        assert client.receive()[0] == "G"
        before = near.peak_memory()
        line = b"z" * 8191 + b"\n"
        message = frame("d", line * (size // len(line)))
        for _ in range(200 * MB // size):
            client.send(message)
        frames = client.ask(frame("c"))
        assert frames[0] == ("C", b"COPY 25600\0")
        assert near.peak_memory() - before < 30 * MB
    assert origin.execute(f"select sum(length(a)) from {copied}") == [(25600 * 8191,)]


def send_until_blocked(client: WireClient, message: bytes, *, within: int) -> tuple[int, bytes]:
    """Send `message` again and again until nothing is taken any more: how often it was begun, the rest of the last."""
    client.socket.settimeout(0.5)
    for count in range(within // len(message)):
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[client.socket.send(rest) :]
            except TimeoutError:
                client.socket.settimeout(40)
                return count + 1, bytes(rest)
    raise AssertionError(f"{within} bytes were taken")


def test_an_origin_that_does_not_take_a_copy_pauses_its_client(pgnear: Start, origin: Server, copied: str) -> None:
    near = pgnear()
    with WireClient.logged_in(near.port) as client:
        backend = int(client.one("select pg_backend_pid()") or 0)
        client.send(query(f"copy {copied} from stdin"))
        assert client.receive()[0] == "G"
        assert backends(origin, f"pid = {backend} and query like 'copy%'") == 1
        before = near.peak_memory()
        os.kill(backend, signal.SIGSTOP)
        try:
            begun, rest = send_until_blocked(client, frame("d", b"z" * 65535 + b"\n"), within=200 * MB)
            assert near.peak_memory() - before < 20 * MB
            with near.connect() as other:
                assert other.execute("select 1").fetchone() == (1,)
        finally:
            os.kill(backend, signal.SIGCONT)
        client.send(rest)
        assert client.ask(frame("c"))[0] == ("C", f"COPY {begun}\0".encode())


def test_what_is_left_of_a_failed_copy_never_eats_the_next_clients_query(
    pgnear: Start, origin: Server, copied: str
) -> None:
    """The COPY has failed, its client leaves in the middle of a message whose head the origin has."""
    origin.execute(f"alter table {copied} add check (a <> 'no')")
    near = pgnear(pool_size=1, cache={"enabled": False})
    with WireClient.logged_in(near.port) as client:
        client.send(query(f"copy {copied} from stdin"))
        assert client.receive()[0] == "G"
        client.send(frame("d", b"no\n"), frame("d", b"no\n" * 40000)[:70000])
        client.send(frame("d", b"no\n"))
        assert client.receive_until()[-1][0] == "Z"
    with WireClient.logged_in(near.port) as next_one:
        assert next_one.one("select 'mine'") == b"mine"


# ---- clients that vanish ---------------------------------------------------------------------------------------------


def _in_mid_result(client: WireClient) -> None:
    client.send(query("select repeat('x', 100000) from generate_series(1, 100000)"))
    client.read(1000)


def _in_mid_query(client: WireClient) -> None:
    client.send(query("select pg_sleep(300)"))


def _in_mid_copy(client: WireClient) -> None:
    client.send(query("copy vanishing from stdin"))
    assert client.receive()[0] == "G"
    client.send(frame("d", b"1\n"))


def _in_mid_copy_message(client: WireClient) -> None:
    client.send(query("copy vanishing from stdin"))
    assert client.receive()[0] == "G"
    client.send(frame("d", b"1\n" * 100000)[:-1])


def _in_mid_copy_out(client: WireClient) -> None:
    client.send(query("copy (select repeat('x', 100000) from generate_series(1, 100000)) to stdout"))
    client.read(1000)


def _in_a_transaction(client: WireClient) -> None:
    client.query("begin")
    client.query("insert into vanishing values (1)")


def _in_a_failed_transaction(client: WireClient) -> None:
    client.query("begin")
    client.query("insert into vanishing values (1)")
    client.query("select 1/0")


def _in_a_query_of_a_transaction(client: WireClient) -> None:
    client.query("begin")
    client.query("insert into vanishing values (1)")
    client.send(query("select pg_sleep(300)"))


def _behind_half_a_message(client: WireClient) -> None:
    client.query("begin")
    client.send(query("insert into vanishing values (1)")[:-5])


def _before_sync(client: WireClient) -> None:
    body = b"\0insert into vanishing values (1)\0\0\0"
    client.send(frame("P", body), frame("B", b"\0\0\0\0\0\0\0\0"), frame("E", b"\0\0\0\0\0"), frame("H"))
    assert client.receive()[0] == "1"


@pytest.mark.parametrize("how", ["hang_up", "reset"])
@pytest.mark.parametrize(
    "where",
    [
        _in_mid_result, _in_mid_query, _in_mid_copy, _in_mid_copy_message, _in_mid_copy_out, _in_a_transaction,
        _in_a_failed_transaction, _in_a_query_of_a_transaction, _behind_half_a_message, _before_sync,
    ],
)  # fmt: skip
def test_a_client_that_vanishes_frees_its_connection_and_leaves_no_trace(
    vanishing: Pgnear, origin: Server, where: Callable[[WireClient], None], how: str
) -> None:
    client = WireClient.logged_in(vanishing.port, user="vanishing")
    where(client)
    until(lambda: vanishing.metric("clients_linked") == 1, what="the client has no connection")
    getattr(client, how)()
    until(lambda: vanishing.metric("clients") == 0, what="the session lives on")
    with WireClient.logged_in(vanishing.port, user="vanishing") as next_one:  # the pool has one connection
        assert next_one.one("select count(*) from vanishing") == b"0"
    until(lambda: vanishing.metric("pool_busy") == 0, what="the connection is not free")
    until(
        lambda: backends(origin, "usename = 'vanishing' and state <> 'idle'") == 0,
        what="the origin still works for a client that is gone",
    )


@pytest.fixture(scope="module")
def vanishing(origin: Server) -> Iterator[Pgnear]:
    """A pgnear with one origin connection, whose clients may leave something in the table `vanishing`.

    Without the cache: an answer from it would neither wait for the connection nor tell what was left behind.
    """
    origin.execute("create table vanishing (a int)")
    with running(origin.role("vanishing"), pool_size=1, pool_wait_timeout="20s", cache={"enabled": False}) as near:
        yield near
    origin.execute("drop table vanishing")


def test_a_client_that_vanishes_from_the_queue_is_forgotten(vanishing: Pgnear) -> None:
    with (
        WireClient.logged_in(vanishing.port, user="vanishing") as holder,
        WireClient.logged_in(vanishing.port, user="vanishing") as last,
    ):
        holder.query("begin")
        waiter = WireClient.logged_in(vanishing.port, user="vanishing")
        waiter.send(query("insert into vanishing values (1)"))
        until(lambda: vanishing.metric("clients_waiting") == 1)
        last.send(query("select count(*) from vanishing"))
        until(lambda: vanishing.metric("clients_waiting") == 2)
        waiter.hang_up()
        until(lambda: vanishing.metric("clients") == 2)
        holder.query("commit")
        assert rows(last.receive_until()) == [[b"0"]]


def test_the_next_in_the_queue_is_never_given_a_connection_that_is_being_given_up(vanishing: Pgnear) -> None:
    """The cancelled query's answer arrives while its connection is about to be closed: that made it look free."""
    for _ in range(20):
        client = WireClient.logged_in(vanishing.port, user="vanishing")
        with WireClient.logged_in(vanishing.port, user="vanishing") as next_one:
            client.send(query("select pg_sleep(300)"))
            until(lambda: vanishing.metric("clients_linked") == 1)
            next_one.send(query("select 'mine', random()"))
            until(lambda: vanishing.metric("clients_waiting") == 1)
            client.hang_up()
            assert rows(next_one.receive_until())[0][0] == b"mine"


def test_a_query_that_had_not_begun_when_its_client_vanished_does_not_live_on(
    vanishing: Pgnear, origin: Server
) -> None:
    """A cancel that comes before its query is lost on PostgreSQL, which notices no closed connection while it works."""
    with WireClient.logged_in(vanishing.port, user="vanishing") as client:
        backend = int(client.one("select pg_backend_pid()") or 0)
        forwarded = vanishing.metric("cancels_forwarded_total")
        os.kill(backend, signal.SIGSTOP)
        client.send(query("select pg_sleep(300)"))
        until(lambda: vanishing.metric("clients_linked") == 1)
    until(lambda: vanishing.metric("cancels_forwarded_total") > forwarded)
    os.kill(backend, signal.SIGCONT)
    until(lambda: backends(origin, f"pid = {backend}") == 0)
