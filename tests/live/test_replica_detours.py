"""Reads that a replica fails with, and the primary answers; whole READ ONLY transactions on a replica; which one is
asked.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.proxy import Proxy
from tests.support.standby import Standby
from tests.support.waiting import Background, until
from tests.support.wire import SYNC, WireClient, bind, execute, parse, query

LINGERS = """create function linger(i int) returns int immutable language plpgsql as $$
begin if pg_is_in_recovery() then perform pg_sleep(60); end if; return i; end $$"""
"""So a read takes a minute on a replica, and no time on the primary."""


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    with Server(installation=installed(18)) as server:
        server.execute("create table shelf (id int primary key, v int)")
        server.execute("insert into shelf select i, i from generate_series(1, 1000) i")
        server.execute(LINGERS)
        yield server


@pytest.fixture(scope="module")
def standby(primary: Server) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


Near = Callable[..., Pgnear]


@pytest.fixture
def near(pgnear: Start, primary: Server, standby: Standby, tmp_path: Path) -> Near:
    """Start a pgnear with replicas at these ports (the standby's), ready to be asked."""

    def start(*ports: int, **settings: object) -> Pgnear:
        path = tmp_path / "pgnear.toml"
        more = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        path.write_text(
            "".join(
                f'[[replica]]\nurl = "postgresql://postgres@127.0.0.1:{port}/postgres"\nmax_lag = "60s"\n{more}'
                for port in ports or (standby.port,)
            )
            + '[cache]\ninvalidation = "writes"\n'
        )
        made = pgnear("--config", str(path), url=primary.url())
        made.wait_until_it_caches()
        until(lambda: made.metric("replica_usable") == len(ports or (1,)))
        with made.connect() as client:
            numbers = iter(range(2000, 100_000))

            def taken() -> bool:
                client.execute(f"select v from shelf where id = {next(numbers)}")
                return made.metric("replica_reads_total") > 0

            until(taken)  # the first finds no connection there
        return made

    return start


def lingering(standby: Server) -> int:
    """How many reads a replica works on."""
    (count,) = standby.execute(
        "select count(*) from pg_stat_activity where query like '%linger(%' and state = 'active' "
        "and pid <> pg_backend_pid()"
    )[0]
    assert isinstance(count, int)
    return count


def conflict(primary: Server, standby: Standby) -> None:
    """What the read has locked is locked exclusively on the primary: it must give way."""
    standby.execute("alter system set max_standby_streaming_delay = 0")
    standby.execute("select pg_reload_conf()")
    with primary.connect() as direct, direct.transaction():
        direct.execute("lock table shelf in access exclusive mode")
    until(lambda: not lingering(standby))
    standby.execute("alter system reset max_standby_streaming_delay")
    standby.execute("select pg_reload_conf()")


def terminate(primary: Server, standby: Standby) -> None:
    reads = "select pid from pg_stat_activity where query like 'select linger(%' and state = 'active'"
    standby.execute(f"select pg_terminate_backend(pid) from ({reads}) each")


def crash(primary: Server, standby: Standby) -> None:
    standby.crash()
    standby.restart()


SIMPLE: dict[str, Any] = {"prepare_threshold": None}


@pytest.mark.parametrize("fails", [conflict, terminate, crash], ids=lambda each: each.__name__)
def test_a_read_that_its_replica_fails_with_is_answered_by_the_primary(
    near: Near, primary: Server, standby: Standby, fails: Callable[[Server, Standby], None]
) -> None:
    made = near()
    reads: dict[str, Callable[[Any], Any]] = {
        "a simple query": lambda client: client.execute("select linger(id) from shelf where id = 1"),
        "unnamed": lambda client: client.execute("select linger(id) from shelf where id = %s", (2,), prepare=False),
        "prepared first": lambda client: client.execute(
            "select linger(id) from shelf where v = %s", (3,), prepare=True
        ),
    }
    clients = [made.connect() for _ in reads]
    try:
        work = [
            Background(lambda read=read, client=client: read(client).fetchall())  # type: ignore[misc]
            for read, client in zip(reads.values(), clients, strict=True)
        ]
        until(lambda: lingering(standby) >= 1)
        going = until(lambda: lingering(standby))
        fails(primary, standby)
        assert [each.result() for each in work] == [[(1,)], [(2,)], [(3,)]]
        assert made.metric("replica_retries_total") >= going
        for client in clients:  # the connection is what it was
            assert client.execute("select linger(id) from shelf where v = %s", (3,), prepare=True).fetchone() == (3,)
            assert client.execute("update shelf set v = v where id = 1").rowcount == 1
        made.wait_for_log("replica_read_repeated")
    finally:
        for client in clients:
            client.close()


def test_a_read_on_a_replica_that_freezes_is_answered_by_the_primary(
    near: Near, primary: Server, standby: Standby
) -> None:
    with Proxy(standby.port) as proxy:
        made = near(proxy.port)
        with made.connect() as client:
            work = Background(lambda: client.execute("select linger(id) from shelf where id = 5").fetchone())
            until(lambda: lingering(standby) == 1)
            proxy.freeze()
            assert work.result() == (5,)
            proxy.thaw()
            until(lambda: made.metric("replica_usable") == 1)
    terminate(primary, standby)
    until(lambda: not lingering(standby))


def test_a_read_that_its_client_cancels_on_a_replica_is_not_repeated(near: Near, standby: Standby) -> None:
    made = near()
    with made.connect() as client:
        work = Background(lambda: client.execute("select linger(id) from shelf where id = 4"))
        until(lambda: lingering(standby) == 1)
        client.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()
        assert made.metric("replica_retries_total") == 0


@pytest.mark.parametrize("vanish", [WireClient.hang_up, WireClient.reset])
def test_a_client_that_vanishes_from_its_read_on_a_replica_holds_nothing_there(
    near: Near, standby: Standby, vanish: Callable[[WireClient], None]
) -> None:
    made = near()
    client = WireClient.logged_in(made.port)
    client.send(query("select linger(id) from shelf where id = 6"))
    until(lambda: lingering(standby) == 1)
    vanish(client)
    until(lambda: not lingering(standby))
    until(lambda: made.metric("clients") == 0)
    until(lambda: made.metric("replica_usable") == 1)
    with made.connect() as other:
        assert other.execute("select v from shelf where id = 7").fetchone() == (7,)


def test_what_is_sent_behind_a_read_goes_to_the_primary(near: Near, primary: Server) -> None:
    """A pipelined write came to the replica with the read before it, and failed there (25006)."""
    made = near()
    before = made.metric("replica_reads_total")
    with WireClient.logged_in(made.port, user="postgres", timeout=20) as client:
        read, write = query("select v from shelf where id = 901"), query("update shelf set v = 1 where id = 901")
        frames = client.ask(read + write, syncs=2)
        assert "E" not in [kind for kind, _ in frames], frames
    assert made.metric("replica_reads_total") == before + 1


def test_what_waits_behind_a_read_is_done_before_the_process_ends(near: Near, standby: Standby) -> None:
    with Proxy(standby.port) as proxy:
        made = near(proxy.port)
        before = made.metric("replica_reads_total")
        with WireClient.logged_in(made.port, timeout=20) as client:
            proxy.freeze()
            client.send(query("select v from shelf where id = 903"), query("update shelf set v = v where id = 903"))
            until(lambda: made.metric("replica_reads_total") == before + 1)
            made.process.send_signal(signal.SIGTERM)
            made.wait_for_log("stopping")
            proxy.thaw()
            for tag in (b"SELECT 1", b"UPDATE 1"):
                assert tag in [body[:-1] for kind, body in client.receive_until("Z") if kind == "C"]
            assert client.fatal()["C"] == "57P01"
        assert made.process.wait(20) == 0


def test_an_answer_that_has_begun_is_not_begun_again(near: Near, standby: Standby) -> None:
    with Proxy(standby.port) as proxy:
        made = near(proxy.port)
        with made.connect() as client:
            proxy.cut_after(300_000)
            with pytest.raises(psycopg.OperationalError) as lost:
                client.execute("select repeat('x', 1000) from shelf, generate_series(1, 3)")
            assert lost.value.sqlstate in ("08006", None)
        assert made.metric("replica_retries_total") == 0


# ---- READ ONLY transactions ------------------------------------------------------------------------------------------


def transactions(near: Pgnear) -> float:
    return near.metric("replica_transactions_total")


def is_replica(client: Any) -> bool:
    (standby,) = client.execute("select pg_is_in_recovery()").fetchone()
    return bool(standby)


def in_block(client: Any, begin: str = "begin read only") -> bool:
    """Whether such a block is done on a replica."""
    client.execute(begin)
    where = is_replica(client)
    client.execute("commit")
    return where


def test_a_read_only_transaction_is_done_on_a_replica_as_a_whole(near: Near) -> None:
    made = near(read_only_transactions="all")
    with made.connect() as client:
        until(lambda: in_block(client))
        before = transactions(made)
        for begin in ("start transaction read only", "begin isolation level repeatable read, read only"):
            assert in_block(client, begin), begin
        client.execute("set default_transaction_read_only = on")
        assert in_block(client, "begin")
        assert not in_block(client, "begin read write")
        client.execute("reset default_transaction_read_only")
        for begin in ("begin", "begin isolation level serializable, read only"):
            assert not in_block(client, begin), begin
        assert transactions(made) == before + 3
        client.execute("begin read only")
        stored = made.metric("cache_stores_total")
        assert client.execute("select v from shelf where id = %s", (902,)).fetchone() == (902,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            client.execute("update shelf set v = 1")
        client.execute("rollback")
        assert made.metric("cache_stores_total") == stored  # it is as old as the replica
        assert not is_replica(client)
        client.execute("update shelf set v = v where id = 1")
        client.read_only = None
        with client.transaction():
            client.execute("update shelf set v = v where id = 1")
    assert made.metric("pool_busy") == 0


def test_what_comes_behind_the_end_of_a_read_only_transaction_goes_to_the_primary(near: Near) -> None:
    made = near(read_only_transactions="all")
    texts = ["begin read only", "select 1", "commit", "update shelf set v = v where id = 3", "select 2"]
    batch = b"".join(parse(text) + bind() + execute() for text in texts[:2]) + SYNC
    for requests in ([*map(query, texts)], [batch, *map(query, texts[2:])]):
        with made.connect() as client:
            until(lambda: in_block(client))
        before = transactions(made)
        with WireClient.logged_in(made.port, timeout=20) as wire:
            frames = wire.ask(*requests, syncs=len(requests))
            assert "E" not in [kind for kind, _ in frames], frames
        assert transactions(made) == before + 1


@pytest.mark.parametrize("has", ["own", "all"])
def test_a_read_only_transaction_sees_its_clients_writes(near: Near, standby: Standby, has: str) -> None:
    made = near(read_only_transactions=has)
    with made.connect() as client, made.connect() as another:
        until(lambda: in_block(client))
        standby.execute("select pg_wal_replay_pause()")
        until(lambda: standby.execute("select pg_get_wal_replay_pause_state()") == [("paused",)])
        try:
            client.execute("update shelf set v = -1 where id = 10")
            client.execute("begin read only")
            assert client.execute("select v from shelf where id = 10").fetchone() == (-1,)
            client.execute("commit")
            assert in_block(another) == (has == "own")
        finally:
            standby.execute("select pg_wal_replay_resume()")
        until(lambda: in_block(client))
        client.execute("begin read only")
        assert client.execute("select v from shelf where id = 10").fetchone() == (-1,)
        client.execute("commit")


def test_read_only_transactions_stay_on_the_primary_unless_they_are_let_go(near: Near) -> None:
    made = near()
    with made.connect() as client:
        assert not in_block(client)
    assert transactions(made) == 0


def test_state_that_would_tie_a_session_to_a_replica_ends_it(near: Near) -> None:
    made = near(read_only_transactions="all")
    with made.connect() as client:
        until(lambda: in_block(client))
        client.execute("begin read only")
        client.execute("select pg_advisory_lock(1)")
        client.execute("select pg_advisory_unlock(1)")
        client.execute("commit")
        assert not is_replica(client)
    with WireClient.logged_in(made.port, timeout=20) as wire:
        for text in ("begin read only", "select pg_advisory_lock(1)", "commit"):
            wire.query(text)
        fields = wire.fatal()
        assert fields["C"] == "0A000"
        assert "advisory lock" in fields["M"]
    with made.connect() as client:
        until(lambda: in_block(client))
        client.execute("begin read only")
        locks = "select count(*) from pg_locks where locktype = 'advisory'"
        until(lambda: client.execute(locks).fetchone() == (0,), what="the lock stays")


# ---- which replica ---------------------------------------------------------------------------------------------------


def reads_by(near: Pgnear) -> dict[str, tuple[float, float]]:
    """Reads that each replica was given, and its latency in seconds, by host."""
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        cursor = console.execute("show replicas")
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return {row["host"]: (row["reads"], row["latency_seconds"]) for row in rows}


def test_of_two_replicas_the_one_that_answers_faster_is_asked(near: Near, standby: Standby) -> None:
    with Proxy(standby.port) as one, Proxy(standby.port) as other:
        one.lag(0.05)
        made = near(one.port, other.port)
        numbers = iter(range(200_000, 900_000))

        def all_go_to(proxy: Proxy) -> bool:
            before = reads_by(made)
            with made.connect() as client:
                for _ in range(3):
                    client.execute(f"select v from shelf where id = {next(numbers)}")
            place = f"127.0.0.1:{proxy.port}"
            return reads_by(made)[place][0] - before[place][0] == 3

        until(lambda: all_go_to(other))
        one.lag(0)
        other.lag(0.05)
        until(lambda: all_go_to(one))
        near_latency, far_latency = (reads_by(made)[f"127.0.0.1:{each.port}"][1] for each in (one, other))
        assert near_latency < far_latency


def test_a_replica_that_lacks_too_much_of_the_log_is_not_asked(near: Near, primary: Server, standby: Standby) -> None:
    made = near(max_lag_bytes="64kB")
    standby.execute("select pg_wal_replay_pause()")
    try:
        primary.execute("create table filler as select repeat('x', 100) from generate_series(1, 10000)")
        until(lambda: made.metric("replica_lag_bytes") > 65536)
        assert made.metric("replica_usable") == 0
    finally:
        standby.execute("select pg_wal_replay_resume()")
        primary.execute("drop table filler")
    until(lambda: made.metric("replica_usable") == 1)
