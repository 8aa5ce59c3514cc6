"""The promises of ARCHITECTURE.md's table, each against a real PostgreSQL."""

from __future__ import annotations

import subprocess
import threading

import psycopg
import pytest

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear
from tests.support.waiting import until


def one(connection: psycopg.Connection, query: str, *arguments: object) -> object:
    row = connection.execute(query, arguments or None).fetchone()
    return row[0] if row else None


def test_every_client_gets_only_its_own_answers(pgnear: Start) -> None:
    server = pgnear(pool_size="3")
    wrong: list[object] = []

    def work(mark: int) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for number in range(60):
                if number % 3 == 0:
                    with connection.transaction():
                        answer = one(connection, "select %s::int * 1000 + %s::int", mark, number)
                else:
                    answer = one(connection, "select %s::int * 1000 + %s::int, random()", mark, number)
                if answer != mark * 1000 + number:
                    wrong.append((mark, number, answer))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert server.metric("pool_busy") <= 3


def test_a_client_that_vanishes_in_a_transaction_leaves_nothing_behind(pgnear: Start, origin: Server) -> None:
    server = pgnear(pool_size="1")
    with psycopg.connect(origin.url(), autocommit=True) as direct:
        direct.execute("create table if not exists vanish(a int)")
        direct.execute("truncate vanish")
        client = psycopg.connect(server.dsn())
        client.execute("insert into vanish values (1)")
        client.pgconn.finish()  # no Terminate is needed for the origin to be freed
        with psycopg.connect(server.dsn(), autocommit=True) as other:
            assert one(other, "select count(*) from vanish") == 0
            assert other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_settings_follow_their_client_and_nobody_else(pgnear: Start) -> None:
    server = pgnear(pool_size="1")
    with (
        psycopg.connect(server.dsn(application_name="first"), autocommit=True) as first,
        psycopg.connect(server.dsn(options="-c search_path=pg_catalog"), autocommit=True) as second,
    ):
        first.execute("set timezone to 'Asia/Tokyo'")
        assert one(second, "show timezone") != "Asia/Tokyo"
        assert one(first, "show timezone") == "Asia/Tokyo"
        assert one(second, "show search_path") == "pg_catalog"
        assert one(first, "show application_name") == "first"
        first.execute("begin")
        first.execute("set timezone to 'Europe/Paris'")
        first.execute("rollback")
        assert one(second, "select 1") == 1
        assert one(first, "show timezone") == "Asia/Tokyo"
        first.execute("reset timezone")
        assert one(first, "show timezone") == one(second, "show timezone")


def test_a_named_statement_works_on_every_connection(pgnear: Start) -> None:
    server = pgnear(pool_size="2", max_prepared_statements="2")
    with (
        psycopg.connect(server.dsn(), autocommit=True, prepare_threshold=0) as first,
        psycopg.connect(server.dsn(), autocommit=True, prepare_threshold=0) as second,
    ):
        for number in range(6):
            for connection in (first, second):
                with connection.transaction():
                    assert one(connection, "select %s::int + 1", number) == number + 1
                    assert one(connection, "select %s::text || 'x'", str(number)) == f"{number}x"
                    assert one(connection, "select %s::int * 2, now()", number) == number * 2


def test_session_state_that_cannot_follow_pins_and_is_gone_afterwards(pgnear: Start) -> None:
    server = pgnear(pool_size="1")
    with psycopg.connect(server.dsn(), autocommit=True) as client:
        client.execute("create temp table mine(a int)")
        client.execute("insert into mine values (7)")
        assert one(client, "select a from mine") == 7
        assert server.metric("clients_pinned") == 1
    with psycopg.connect(server.dsn(), autocommit=True) as stranger, pytest.raises(psycopg.errors.UndefinedTable):
        stranger.execute("select a from mine")


def test_a_repeated_read_is_answered_from_memory_until_somebody_writes(pgnear: Start, origin: Server) -> None:
    server = pgnear()
    with (
        psycopg.connect(origin.url(), autocommit=True) as direct,
        psycopg.connect(server.dsn(), autocommit=True) as client,
        psycopg.connect(server.dsn(), autocommit=True) as writer,
    ):
        direct.execute("drop table if exists cached")
        writer.execute("create table cached(id int primary key, v int)")
        writer.execute("insert into cached values (1, 10)")
        _until_stored(server, client, "select v from cached where id = 1", 10)
        direct.execute("update cached set v = 11")
        assert one(client, "select v from cached where id = 1") == 10  # proof that it came from memory
        writer.execute("update cached set v = 12")
        assert one(client, "select v from cached where id = 1") == 12
        client.execute("set search_path to pg_catalog, public")
        direct.execute("update cached set v = 13")
        assert one(client, "select v from cached where id = 1") == 13  # other settings, other entry


def _until_stored(server: Pgnear, client: psycopg.Connection, query: str, expected: object) -> None:
    """Ask until the catalog was read after the DDL before and the answer is kept."""
    before = server.metric("cache_stores_total")

    def stored() -> bool:
        assert one(client, query) == expected
        return server.metric("cache_stores_total") > before

    until(stored, what="the answer is not kept")


@pytest.mark.parametrize(
    "query",
    [
        "select now()",
        "select xmax from kept",
        "select random()",
        "select v from seen",
        "select a from kept for update",
        "select 'now'::timestamp",
    ],
)
def test_what_is_not_surely_a_pure_read_is_not_cached(pgnear: Start, origin: Server, query: str) -> None:
    with psycopg.connect(origin.url(), autocommit=True) as direct:
        direct.execute("create table if not exists kept(a int)")
        direct.execute("create or replace view seen as select now() as v")
    server = pgnear()
    with psycopg.connect(server.dsn(), autocommit=True) as client:
        _until_stored(server, client, "select a from kept", None)
        stored = server.metric("cache_stores_total")
        for _ in range(3):
            client.execute(query)
        assert server.metric("cache_stores_total") == stored


def test_an_origin_connection_lost_in_mid_query_is_said_with_class_08(pgnear: Start, origin: Server) -> None:
    server = pgnear()
    with psycopg.connect(origin.url(), autocommit=True) as direct:
        client = psycopg.connect(server.dsn(), autocommit=True)
        failure: list[psycopg.Error] = []

        def sleep() -> None:
            try:
                client.execute("select pg_sleep(60)")
            except psycopg.Error as error:
                failure.append(error)

        thread = threading.Thread(target=sleep)
        thread.start()
        find = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where query = 'select pg_sleep(60)' and state = 'active'"
        )
        until(lambda: direct.execute(find).fetchone(), what="the query does not run")
        thread.join(40)
        assert failure
        assert failure[0].sqlstate == "57P01"


def test_idle_connections_that_died_are_replaced_unnoticed(pgnear: Start, origin: Server) -> None:
    server = pgnear()
    with (
        psycopg.connect(server.dsn(application_name="survivor"), autocommit=True) as client,
        psycopg.connect(origin.url(), autocommit=True) as direct,
    ):
        client.execute("select pg_backend_pid()")
        direct.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where pid <> pg_backend_pid()")
        assert one(client, "select 1 + 1") == 2


def test_no_connection_in_time_is_said_with_53300_and_the_pools_name(pgnear: Start) -> None:
    server = pgnear(pool_size="1", pool_wait_timeout="300ms")
    server.wait_for_log("catalog_read")  # pgnear itself needs the connection for that
    with psycopg.connect(server.dsn()) as holder, psycopg.connect(server.dsn(), autocommit=True) as waiter:
        holder.execute("select 1")
        with pytest.raises(psycopg.errors.TooManyConnections, match='pool "postgres"'):
            waiter.execute("select random()")
        holder.rollback()
        assert one(waiter, "select 2") == 2


def test_a_cancel_reaches_the_query_and_never_the_next_one(pgnear: Start) -> None:
    server = pgnear(pool_size="1")
    with psycopg.connect(server.dsn(), autocommit=True) as client:
        timer = threading.Timer(0.3, client.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute("select pg_sleep(30)")
        timer.join()
        for number in range(30):  # cancels that come too late
            client.cancel_safe()
            assert one(client, "select %s::int, random()", number) == number


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_fails_no_transaction(pgnear: Start, origin: Server, mode: str) -> None:
    server = pgnear(pool_size="4")
    command = [str(origin.bin / "pgbench"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
    environment = {"PGPASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "-i", "-q", "postgres"], env=environment, check=True, capture_output=True)
    done = subprocess.run(
        [*command, "-M", mode, "-c", "16", "-t", "25", "postgres"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "number of failed transactions: 0 " in done.stdout
