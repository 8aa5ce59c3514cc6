"""Deadlines of queries, transactions, waits and silence: by user, each with its SQLSTATE and its setting's name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import Background, until
from tests.support.wire import WireClient

LIMITS = {
    "query": 'query_timeout = "300ms"',
    "block": 'transaction_timeout = "600ms"',
    "silent": 'idle_in_transaction_timeout = "300ms"',
    "quiet": 'client_idle_timeout = "300ms"',
    "hasty": 'pool_wait_timeout = "200ms"',
}
"""Users, and the deadline that each of them has."""


@pytest.fixture(scope="module")
def near(origin: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pgnear]:
    file: Path = tmp_path_factory.mktemp("deadlines") / "pgnear.toml"
    lines = ["pool_size = 3"]
    lines += [f'[users.{name}]\npassword = "{PASSWORD}"' for name in ("postgres", *LIMITS)]
    lines += [f'[[override]]\nuser = "{name}"\n{setting}' for name, setting in LIMITS.items()]
    file.write_text("\n".join(lines))
    with running(origin.url(), "--config", str(file)) as server:
        yield server


def as_user(near: Pgnear, user: str, **more: Any) -> Any:
    return near.connect(dsn={"user": user}, **more)


def exceeded(near: Pgnear, deadline: str) -> float:
    return near.metric("deadlines_exceeded_total", deadline=deadline)


def test_a_query_that_takes_too_long_is_cancelled_at_the_origin_and_the_session_goes_on(
    near: Pgnear, origin: Server
) -> None:
    before = exceeded(near, "query_timeout")
    with as_user(near, "query") as connection:
        for _ in range(2):
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                connection.execute("select 'too slow', pg_sleep(20)")
            assert "query_timeout" in str(caught.value)
            assert connection.execute("select 1").fetchone() == (1,)
        running_still = "select count(*) from pg_stat_activity where state = 'active' and query like '%%too slow%%'"
        until(lambda: origin.execute(running_still + " and pid <> pg_backend_pid()") == [(0,)])
    assert exceeded(near, "query_timeout") == before + 2
    assert near.wait_for_log("deadline_exceeded", deadline="query_timeout")["user"] == "query"


def test_a_query_timeout_inside_a_transaction_fails_only_its_statement(near: Pgnear) -> None:
    with as_user(near, "query") as connection:
        connection.execute("begin")
        connection.execute("savepoint before")
        with pytest.raises(psycopg.errors.QueryCanceled, match="query_timeout"):
            connection.execute("select pg_sleep(20)")
        connection.execute("rollback to before")
        assert connection.execute("select 2").fetchone() == (2,)
        connection.execute("commit")


def test_every_query_of_a_long_transaction_has_its_own_query_timeout(near: Pgnear) -> None:
    with as_user(near, "query") as connection, connection.transaction():
        for _ in range(4):
            connection.execute("select pg_sleep(0.15)")


def test_another_user_of_the_same_database_has_no_query_timeout(near: Pgnear) -> None:
    with as_user(near, "postgres") as connection:
        connection.execute("select pg_sleep(0.7)")


def test_a_transaction_that_is_open_too_long_ends_its_connection_and_is_rolled_back(
    near: Pgnear, origin: Server, table: str
) -> None:
    before = exceeded(near, "transaction_timeout")
    connection = as_user(near, "block")
    connection.execute("begin")
    connection.execute(f"update {table} set v = 0")

    def never_idle() -> None:
        while True:
            connection.execute("select pg_sleep(0.01)")

    with pytest.raises(psycopg.Error) as caught:
        never_idle()
    assert caught.value.sqlstate == "25P04"
    assert "transaction_timeout" in str(caught.value)
    until(lambda: origin.execute(f"select count(*) from {table} where v = 0") == [(0,)])
    origin.execute(f"set lock_timeout = '5s'; update {table} set v = 1")
    assert exceeded(near, "transaction_timeout") == before + 1


def test_a_client_that_is_silent_inside_a_transaction_loses_it_and_a_busy_one_does_not(
    near: Pgnear, origin: Server, table: str
) -> None:
    with WireClient.logged_in(near.port, user="silent") as client:
        client.query("begin")
        client.query(f"update {table} set v = 0")
        client.query("select pg_sleep(0.5)")  # the origin is at work: the client is not what is waited for
        fatal = client.fatal()
        assert fatal["C"] == "25P03"
        assert "idle_in_transaction_timeout" in fatal["M"]
    origin.execute(f"set lock_timeout = '5s'; update {table} set v = 1")
    with as_user(near, "silent") as connection, connection.transaction():
        for _ in range(20):
            connection.execute("select pg_sleep(0.03)")


def test_a_client_that_says_nothing_is_told_why_it_goes_and_one_that_speaks_stays(near: Pgnear) -> None:
    with as_user(near, "quiet") as speaks:
        silent = as_user(near, "quiet")
        gone = threading.Event()

        def speak() -> None:
            while not gone.is_set():
                speaks.execute("select 1")
                gone.wait(0.05)

        speaking = Background(speak)
        near.wait_for_log("deadline_exceeded", deadline="client_idle_timeout")
        gone.set()
        speaking.result()
        with pytest.raises(psycopg.OperationalError) as caught:
            silent.execute("select 1")
        assert caught.value.sqlstate == "57P05"
        assert "client_idle_timeout" in str(caught.value)


def test_who_waits_for_a_connection_waits_as_long_as_its_own_deadline_says(near: Pgnear) -> None:
    holders = [as_user(near, "postgres") for _ in range(3)]
    for holder in holders:
        holder.execute("begin")
        holder.execute("lock table pg_class in access share mode")
    patient = as_user(near, "postgres")
    waits = Background(lambda: patient.execute("select 'patient', clock_timestamp()").fetchone())
    until(lambda: near.metric("pool_waiting") == 1)
    with as_user(near, "hasty") as hasty, pytest.raises(psycopg.OperationalError, match=r"within 0\.2 s") as caught:
        hasty.execute("select 'hasty', clock_timestamp()")
    assert caught.value.sqlstate == "53300"
    assert waits.running
    for holder in holders:
        holder.close()
    assert waits.result()
    patient.close()


def test_a_client_in_a_transaction_is_not_idle_by_client_idle_timeout(near: Pgnear) -> None:
    before = exceeded(near, "client_idle_timeout")
    with as_user(near, "quiet") as inside:
        inside.execute("begin")
        with as_user(near, "quiet"):
            until(lambda: exceeded(near, "client_idle_timeout") > before)
        assert inside.execute("select 1").fetchone() == (1,)
        inside.execute("commit")


def test_an_origin_that_does_not_obey_a_cancel_costs_the_client_its_connection_and_no_more(
    pgnear: Start, origin: Server
) -> None:
    near = pgnear(query_timeout="200ms", cancel_wait_timeout="300ms", pool_size=2)
    with near.connect() as stuck, near.connect() as other:
        stuck.execute("begin")
        backend = stuck.execute("select pg_backend_pid()").fetchone()[0]
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(psycopg.Error) as caught:
                stuck.execute("select 'never answered'")
            assert caught.value.sqlstate == "57014"
            assert "query_timeout" in str(caught.value)
            assert stuck.closed
            assert other.execute("select clock_timestamp()").fetchone()
        finally:
            os.kill(backend, signal.SIGCONT)
    near.wait_for_log("cancel_not_obeyed", origin_pid=backend)
