"""PAUSE, RESUME and their kind: clients wait while the origin is away, and nothing fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import Background, until


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A PostgreSQL that may be restarted."""
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def near(own: Server) -> Iterator[Pgnear]:
    with running(own.url(application_name="pooled"), pool_size=4, cache={"enabled": False}) as server:
        yield server


def console(near: Pgnear, command: str) -> list[tuple[Any, ...]]:
    with near.connect(dsn={"dbname": "pgnear"}) as connection:
        cursor = connection.execute(command.encode())
        return list(cursor.fetchall()) if cursor.description else []


def paused(near: Pgnear) -> bool:
    return near.metric("pool_paused") == 1


def connections(own: Server) -> int:
    count = own.execute("select count(*) from pg_stat_activity where application_name = 'pooled'")[0][0]
    assert isinstance(count, int)
    return count


def test_the_origin_restarts_during_a_pause_and_no_client_notices(near: Pgnear, own: Server) -> None:
    """The load goes on all the time: each client inserts and counts what it has inserted."""
    own.execute("create table restarts (client int, n int)")
    stopped = False

    def load(number: int) -> int:
        with near.connect() as connection:
            done = 0
            while not stopped:
                with connection.transaction():
                    connection.execute("insert into restarts values (%s, %s)", (number, done))
                    count = connection.execute("select count(*) from restarts where client = %s", (number,)).fetchone()
                done += 1
                assert count == (done,)
            return done

    clients = [Background(lambda number=number: load(number)) for number in range(8)]  # type: ignore[misc]
    try:
        until(lambda: own.execute("select count(distinct client) from restarts") == [(8,)])
        console(near, "pause postgres")
        assert paused(near)
        assert connections(own) == 0
        own.crash()
        own.restart()
        until(lambda: near.metric("pool_waiting") == 8)
        before = own.execute("select count(*) from restarts")[0][0]
        console(near, "resume postgres")
        until(lambda: own.execute("select count(*) from restarts")[0][0] > before)  # type: ignore[operator]
    finally:
        stopped = True
    done = [each.result() for each in clients]
    assert own.execute("select count(*) from restarts") == [(sum(done),)]  # type: ignore[arg-type]
    assert not paused(near)


def test_pause_waits_for_transactions_and_lets_no_new_one_begin(near: Pgnear) -> None:
    with near.connect() as inside, near.connect() as outside:
        inside.execute("begin")
        pausing = Background(lambda: console(near, "PAUSE"))
        until(lambda: paused(near))
        waits = Background(lambda: outside.execute("select 'waits'").fetchone())
        until(lambda: near.metric("pool_waiting") == 1)
        assert inside.execute("select 1").fetchone() == (1,)
        assert pausing.running
        inside.execute("commit")
        pausing.result()
        assert waits.running
        rows = console(near, "show pools")
        assert rows[0][11] == "yes"
        console(near, "RESUME")
        assert waits.result() == ("waits",)


def test_a_client_can_log_in_and_cancel_while_its_database_is_paused(near: Pgnear) -> None:
    with near.connect():
        console(near, "pause")
        with near.connect() as connection:
            waits = Background(lambda: connection.execute("select 1"))
            until(lambda: near.metric("pool_waiting") == 1)
            connection.cancel()
            with pytest.raises(psycopg.errors.QueryCanceled):
                waits.result()
        console(near, "resume")


def test_pool_wait_timeout_does_not_count_during_a_pause_and_pause_timeout_does(pgnear: Start, own: Server) -> None:
    near = pgnear(url=own.url(), pool_wait_timeout="150ms", pause_timeout="600ms")
    with near.connect() as connection:
        console(near, "pause")
        with pytest.raises(psycopg.OperationalError, match="is paused") as caught:
            connection.execute("select 1")
        assert caught.value.sqlstate == "57P03"
        assert near.metric("deadlines_exceeded_total", deadline="pause_timeout") == 1
        assert near.metric("pool_timeouts_total") == 0
        console(near, "resume")
        assert connection.execute("select 1").fetchone() == (1,)


def test_resume_before_the_origin_is_back_costs_no_client_its_query(pgnear: Start, own: Server) -> None:
    near = pgnear(url=own.url(), cache={"enabled": False}, breaker={"failures": 2, "retry_after": "300ms"})
    with near.connect() as early, near.connect() as late:
        console(near, "pause")
        own.crash()
        try:
            waits = Background(lambda: early.execute("select 'early'").fetchone())
            until(lambda: near.metric("pool_waiting") == 1)
            console(near, "resume")
            near.wait_for_log("origin_breaker_open")
            comes = Background(lambda: late.execute("select 'late'").fetchone())
            until(lambda: near.metric("pool_waiting") == 2)
        finally:
            own.restart()
        assert waits.result() == ("early",)
        assert comes.result() == ("late",)


def test_an_origin_that_stays_away_after_resume_is_waited_for_as_long_as_for_a_connection(
    pgnear: Start, own: Server
) -> None:
    near = pgnear(url=own.url(), cache={"enabled": False}, pool_wait_timeout="700ms", breaker={"failures": 2})
    with near.connect() as connection:
        console(near, "pause")
        own.crash()
        try:
            waits = Background(lambda: connection.execute("select 1"))
            until(lambda: near.metric("pool_waiting") == 1)
            console(near, "resume")
            with pytest.raises(psycopg.errors.CannotConnectNow, match="Connection refused"):
                waits.result()
            near.wait_for_log("origin_not_back", waiting=1)
        finally:
            own.restart()


def test_suspend_is_done_at_once_and_a_running_transaction_goes_on(near: Pgnear) -> None:
    until(lambda: near.metric("pool_ready") == 1)  # its origin was away during the tests before
    with near.connect() as inside:
        inside.execute("begin")
        console(near, "suspend")
        assert paused(near)
        assert inside.execute("select 1").fetchone() == (1,)
        inside.execute("commit")
        until(lambda: near.metric("pool_busy") == 0)
        console(near, "resume")
        assert inside.execute("select 2").fetchone() == (2,)


def test_reconnect_replaces_connections_once_they_are_idle(near: Pgnear) -> None:
    with near.connect() as inside, near.connect() as other:
        backend = inside.execute("begin; select pg_backend_pid()")
        backend.nextset()
        before = backend.fetchone()
        idle = other.execute("select pg_backend_pid()").fetchone()
        console(near, "reconnect")
        assert inside.execute("select pg_backend_pid()").fetchone() == before
        inside.execute("commit")
        assert other.execute("select pg_backend_pid()").fetchone() not in (before, idle)


def test_a_disabled_database_turns_new_clients_away_and_keeps_those_it_has(near: Pgnear) -> None:
    with near.connect() as connection:
        console(near, "disable postgres")
        with pytest.raises(psycopg.OperationalError, match="takes no new clients"):
            near.connect()
        assert connection.execute("select 1").fetchone() == (1,)
        console(near, "enable postgres")
        near.connect().close()


def test_killed_clients_hear_why_and_those_who_come_wait_for_resume(near: Pgnear, own: Server) -> None:
    busy = near.connect()
    busy.execute("begin")
    console(near, "kill postgres")
    with pytest.raises(psycopg.OperationalError) as caught:
        busy.execute("select 1")
    assert caught.value.sqlstate == "57P01"
    until(lambda: connections(own) == 0)
    with near.connect() as connection:
        waits = Background(lambda: connection.execute("select 1").fetchone())
        until(lambda: near.metric("pool_waiting") == 1)
        console(near, "resume")
        assert waits.result() == (1,)


def test_an_operator_who_gives_up_waiting_for_pause_gets_the_console_back(near: Pgnear) -> None:
    with near.connect() as inside, near.connect(dsn={"dbname": "pgnear"}) as operator:
        inside.execute("begin")
        pausing = Background(lambda: operator.execute("pause"))
        until(lambda: paused(near))
        operator.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            pausing.result()
        assert operator.execute("show state").fetchall() == [("active", "no"), ("paused", "yes"), ("suspended", "no")]
        operator.execute("resume")
        inside.execute("commit")


def test_wait_close_waits_for_what_reconnect_replaces(near: Pgnear) -> None:
    with near.connect() as inside:
        before = inside.execute("begin; select pg_backend_pid()")
        console(near, "reconnect")
        waiting = Background(lambda: console(near, "wait_close postgres"))
        until(lambda: before and waiting.running)
        assert waiting.running
        inside.execute("commit")
        waiting.result()
        assert console(near, "wait_close") == []


def test_one_client_is_killed_by_its_process_id_and_others_stay(near: Pgnear) -> None:
    with near.connect() as one, near.connect() as other:
        console(near, f"kill_client {one.info.backend_pid}")
        with pytest.raises(psycopg.errors.AdminShutdown):
            one.execute("select 1")
        assert other.execute("select 1").fetchone() == (1,)
        with pytest.raises(psycopg.Error, match="no client with the process id"):
            console(near, f"kill_client {one.info.backend_pid}")
        (row,) = console(near, "show users")
        assert row[0] == "postgres"


def test_what_is_no_database_or_lacks_one_is_refused(near: Pgnear) -> None:
    with pytest.raises(psycopg.Error, match="does not exist"):
        console(near, "pause shpo")
    with pytest.raises(psycopg.Error, match="unknown console command"):
        console(near, "kill")
    with pytest.raises(psycopg.Error, match="unknown console command"):
        console(near, "reload postgres")
