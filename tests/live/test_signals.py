"""Clients cancel and terminate each other by SQL, with the process ids that they got at login."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg import errors

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import Background, until
from tests.support.wire import FLUSH, SYNC, WireClient, bind, close, describe, execute, parse, query

CANCEL, TERMINATE = "select pg_cancel_backend(%s)", "select pg_terminate_backend(%s)"
INT2, INT4, INT8, TEXT = 21, 23, 20, 25


@pytest.fixture(scope="module")
def shared(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=4) as near:
        yield near


@pytest.fixture
def sleeping(direct: psycopg.Connection) -> Callable[[Any], Background]:
    """Have a client sleep; returns when the origin is at it."""
    marks = iter(range(1, 1 << 30))

    def start(client: Any) -> Background:
        mark = f"sleeper {next(marks)}"
        work = Background(lambda: client.execute(f"select pg_sleep(60), '{mark}'"))
        until(lambda: is_at_it(mark))
        return work

    def is_at_it(mark: str) -> bool:
        asked = "select from pg_stat_activity where state = 'active' and query like %s and pid <> pg_backend_pid()"
        return direct.execute(asked, [f"%sleep%{mark}%"]).fetchone() is not None

    return start


def pid_of(client: Any) -> int:
    return int(client.info.backend_pid)


# ---- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancel_by_sql_ends_what_that_client_waits_for(shared: Pgnear, sleeping: Callable[[Any], Background]) -> None:
    with shared.connect() as slow, shared.connect() as other:
        for statement in (
            CANCEL,
            "select pg_cancel_backend(%d)",
            "Select PG_CATALOG.pg_cancel_backend ( '%d' ) as x ;",
        ):
            work = sleeping(slow)
            done = (
                other.execute(statement, [pid_of(slow)])
                if statement is CANCEL
                else other.execute(statement % pid_of(slow))
            )
            assert done.fetchall() == [(True,)]
            with pytest.raises(errors.QueryCanceled, match="canceling statement due to user request"):
                work.result()
            assert slow.execute("select 1").fetchone() == (1,)
    assert shared.metric("signals_total", function="pg_cancel_backend") >= 3


def test_who_cancels_does_not_wait_for_the_connection_that_is_too_busy(
    pgnear: Start, sleeping: Callable[[Any], Background]
) -> None:
    """With one connection, a program that has given up on a query could not say so before the query has ended."""
    near = pgnear(pool_size=1)

    async def by_asyncpg(pid: int | None) -> object:
        client = await asyncpg.connect(**place(near))
        try:
            return await client.fetchval("select pg_cancel_backend($1)", pid) if pid else None
        finally:
            await client.close()

    def by_psycopg(pid: int) -> object:
        with near.connect() as client:
            return client.execute(CANCEL, [pid]).fetchone()[0]

    asyncio.run(by_asyncpg(None))  # what it is told at login has to be asked once
    with near.connect() as slow:
        for cancel in (by_psycopg, lambda pid: asyncio.run(by_asyncpg(pid))):
            work = sleeping(slow)
            assert cancel(pid_of(slow)) is True
            with pytest.raises(errors.QueryCanceled):
                work.result()


def place(near: Pgnear) -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": near.port, "user": "postgres", "password": PASSWORD, "database": "postgres",
        "ssl": False, "timeout": 40,
    }  # fmt: skip


def test_who_waits_for_a_connection_is_cancelled_there(pgnear: Start, sleeping: Callable[[Any], Background]) -> None:
    near = pgnear(pool_size=1)
    with near.connect() as slow, near.connect() as waiting, near.connect() as other:
        work = sleeping(slow)
        queued = Background(lambda: waiting.execute("select 1"))
        until(lambda: near.metric("clients_waiting") == 1)
        assert other.execute(CANCEL, [pid_of(waiting)]).fetchone() == (True,)
        with pytest.raises(errors.QueryCanceled):
            queued.result()
        assert work.running
        other.execute(CANCEL, [pid_of(slow)])
        with pytest.raises(errors.QueryCanceled):
            work.result()


def test_a_cancel_by_sql_never_hits_the_next_clients_query(pgnear: Start) -> None:
    near = pgnear(pool_size=1)
    with near.connect() as target, near.connect() as witness, near.connect() as other:
        stop: list[bool] = []

        def query_and_be_cancelled() -> int:
            hits = 0
            while not stop:
                try:
                    target.execute("select pg_sleep(0.001)")
                except errors.QueryCanceled:
                    hits += 1
            return hits

        def cancel() -> None:
            while not stop:
                assert other.execute(CANCEL, [pid_of(target)]).fetchone() == (True,)

        work = [Background(query_and_be_cancelled), Background(cancel)]
        try:
            for number in range(300):
                assert witness.execute("select %s::int, pg_sleep(0.001)", [number]).fetchone() == (number, "")
        finally:
            stop.append(True)
        assert work[0].result()
        work[1].result()


def test_a_client_that_does_nothing_is_cancelled_in_vain(shared: Pgnear) -> None:
    with shared.connect() as idle, shared.connect() as other:
        assert other.execute(CANCEL, [pid_of(idle)]).fetchone() == (True,)
        assert idle.execute("select 1").fetchone() == (1,)


def test_who_cancels_itself_is_cancelled(shared: Pgnear) -> None:
    with shared.connect() as client:
        with pytest.raises(errors.QueryCanceled, match="canceling statement due to user request"):
            client.execute(CANCEL, [pid_of(client)])
        assert client.execute("select 1").fetchone() == (1,)
        client.execute("begin")
        with pytest.raises(errors.QueryCanceled):
            client.execute(CANCEL, [pid_of(client)])
        with pytest.raises(errors.InFailedSqlTransaction):
            client.execute("select 1")


# ---- the answer is PostgreSQL's --------------------------------------------------------------------------------------

Shape = Callable[[int], list[bytes]]
"""The messages for a process id."""


def int4(value: int) -> bytes:
    return value.to_bytes(4, "big")


SHAPES: dict[str, Shape] = {
    "simple": lambda pid: [query(f"select pg_cancel_backend({pid})")],
    "simple, named": lambda pid: [query(f'SELECT pg_catalog.PG_CANCEL_BACKEND({pid}::int) AS "Done";')],
    "simple, a string": lambda pid: [query(f"select pg_cancel_backend('{pid}')")],
    "text": lambda pid: [
        parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), describe(), execute(), SYNC,
    ],
    "binary": lambda pid: [
        parse("select pg_cancel_backend($1)", types=[INT4]),
        bind(values=[int4(pid)], formats=[1], result_formats=[1]), describe(), execute(), SYNC,
    ],
    "wider": lambda pid: [
        parse("select pg_cancel_backend($1::integer) x", types=[INT8]), describe("S"),
        bind(values=[pid.to_bytes(8, "big")], formats=[1]), execute(), SYNC,
    ],
    "too wide": lambda pid: [
        parse("select pg_cancel_backend($1)", types=[INT8]), bind(values=[b"%d" % pid]), execute(), SYNC,
    ],
    "a constant": lambda pid: [parse(f"select pg_cancel_backend({pid})"), bind(), describe(), execute(), SYNC],
    "described first": lambda pid: [
        parse("select pg_cancel_backend($1)", "s"), describe("S", "s"), SYNC,
        bind("s", [b"%d" % pid]), execute(), SYNC, bind("s", [int4(pid)], formats=[1]), describe(), execute(), SYNC,
        close("S", "s"), SYNC,
    ],
    "described before a Flush": lambda pid: [
        parse("select pg_cancel_backend($1)"), describe("S"), FLUSH,
        bind(values=[b"%d" % pid]), execute(), close("P"), SYNC,
    ],
    "one row, two rows": lambda pid: [
        parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), execute(limit=1), SYNC,
        bind(values=[b"%d" % pid]), execute(limit=2), SYNC,
    ],
    "taken": lambda pid: [
        parse("select pg_cancel_backend($1)", "s"), SYNC, parse("select pg_cancel_backend($1)", "s"), SYNC,
        close("S", "s"), SYNC,
    ],
    "null": lambda pid: [parse("select pg_cancel_backend($1)"), bind(values=[None]), describe(), execute(), SYNC],
    "no number": lambda pid: [parse("select pg_cancel_backend($1)"), bind(values=[b"x"]), execute(), SYNC],
    "no value": lambda pid: [parse("select pg_cancel_backend($1)"), bind(), execute(), SYNC],
    "only prepared": lambda pid: [parse("select pg_cancel_backend($1)"), describe("S"), bind(values=[b"1"]), SYNC],
    "no execute": lambda pid: [parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), describe(), SYNC],
    "in a transaction": lambda pid: [
        query("begin"), query(f"select pg_cancel_backend({pid})"), query("select 1"),
        parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), describe(), execute(), SYNC,
        query("select 2"), query("commit"),
    ],
    "in a failed transaction": lambda pid: [
        query("begin"), query("select 1/0"), query(f"select pg_cancel_backend({pid})"),
        parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), describe(), execute(), SYNC,
        query("rollback"),
    ],
    "a failure in front": lambda pid: [
        query("begin"), parse("select pg_cancel_backend($1)", "s"), SYNC, parse("select 1/0"), bind(), execute(), SYNC,
        bind("s", [b"%d" % pid]), execute(), SYNC, query("rollback"), close("S", "s"), SYNC,
    ],
    "between others": lambda pid: [
        query("select 1"), query(f"select pg_cancel_backend({pid})"), query("select 2"),
        parse("select 3"), bind(), execute(), SYNC,
        parse("select pg_cancel_backend($1)"), bind(values=[b"%d" % pid]), describe(), execute(), SYNC,
        query("select 4; select 5"),
    ],
    "not waited for": lambda pid: [query(f"select pg_terminate_backend({pid + 1000000}, -1)")],
}  # fmt: skip


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_answer_is_what_postgresql_gives(shared: Pgnear, origin: Server, shape: Shape, *, at_once: bool) -> None:
    heard = []
    for port in (origin.port, shared.port):
        with WireClient.logged_in(port) as asker, WireClient.logged_in(port) as target:
            messages = shape(target.pid)
            ends = [message for message in messages if message[:1] in b"QS"]
            if at_once:
                asker.send(*messages)
                heard.append([frame for _ in ends for frame in asker.receive_until()])
                continue
            frames, batch = [], list[bytes]()
            for message in messages:
                batch.append(message)
                if message[:1] in b"QSH":
                    asker.send(*batch)
                    batch = []
                    frames += asker.receive_until("nT" if message[:1] == b"H" else "Z")
            heard.append(frames)
    assert [list(map(readable, frames)) for frames in heard[1:]] == [
        list(map(readable, frames)) for frames in heard[:1]
    ]


def readable(frame: wire.Frame) -> object:
    """Of errors what a program goes by."""
    kind, body = frame
    if kind not in "EN":
        return frame
    fields = wire.error_fields(body)
    return kind, *(fields.get(name) for name in "VCMDP")


def test_a_process_id_that_nobody_has_is_postgresqls_to_answer(shared: Pgnear) -> None:
    notices: list[str] = []
    with shared.connect() as client, shared.connect() as gone:
        pid = pid_of(gone)
        gone.close()
        client.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        for statement in (CANCEL, TERMINATE):
            until(lambda: client.execute("select 1"))
            assert client.execute(statement, [pid]).fetchone() == (False,)
    assert notices == [f"PID {pid} is not a PostgreSQL backend process"] * 2


def test_a_process_of_the_origins_is_cancelled_by_the_origin(
    shared: Pgnear, direct: psycopg.Connection, sleeping: Callable[[Any], Background]
) -> None:
    with shared.connect() as slow, shared.connect() as other:
        work = sleeping(slow)
        found = direct.execute(
            "select pid from pg_stat_activity where state = 'active' and query like '%sleep(60)%''sl%'"
        )
        pid = next(pid for (pid,) in found if pid != direct.info.backend_pid)
        assert other.execute(CANCEL, [pid]).fetchone() == (True,)
        with pytest.raises(errors.QueryCanceled):
            work.result()


# ---- terminating -----------------------------------------------------------------------------------------------------


def test_who_is_terminated_hears_so_and_its_work_is_undone(
    shared: Pgnear, direct: psycopg.Connection, table: str, sleeping: Callable[[Any], Background]
) -> None:
    with closing(shared.connect(autocommit=False)) as target, shared.connect() as other:
        target.execute(f"update {table} set v = 99")
        work = sleeping(target)
        assert other.execute("select pg_terminate_backend(%s, 20000)", [pid_of(target)]).fetchone() == (True,)
        with pytest.raises(errors.AdminShutdown, match="terminating connection due to administrator command"):
            work.result()
        direct.execute("set lock_timeout = '20s'")
        assert direct.execute(f"select sum(v) from (select v from {table} for update) t").fetchone() == (60,)
    shared.wait_for_log("client_terminated", by="postgres")


def test_who_is_terminated_while_it_does_nothing_finds_out_when_it_asks(shared: Pgnear, table: str) -> None:
    with (
        closing(shared.connect()) as idle,
        closing(shared.connect(autocommit=False)) as within,
        shared.connect() as other,
    ):
        within.execute(f"update {table} set v = 99")
        for target in (idle, within):
            assert other.execute(TERMINATE, [pid_of(target)]).fetchone() == (True,)
            with pytest.raises(errors.AdminShutdown):
                target.execute("select 1")
        other.execute("set lock_timeout = '20s'")
        assert other.execute(f"select sum(v) from (select v from {table} for update) t").fetchone() == (60,)
        other.execute("reset lock_timeout")


def test_who_terminates_itself_has_no_answer_but_that(shared: Pgnear) -> None:
    for begins in (False, True):
        with WireClient.logged_in(shared.port) as client:
            if begins:
                client.send(query("begin"))
                client.receive_until()
            client.send(query(f"select pg_terminate_backend({client.pid})"))
            assert client.fatal()["C"] == "57P01"


# ---- who may ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staff(origin: Server) -> Iterator[Pgnear]:
    """Users of pgnear with roles of little or more power at the origin, by database."""
    roles = {"weak": "login", "signaller": "login in role pg_signal_backend", "strong": "login superuser"}
    for name, options in roles.items():
        origin.execute(f"create role {name} {options} password '{PASSWORD}'")
    origin.execute("create role other_role role weak, strong")
    users = {name: {"password": PASSWORD} for name in ("alice", "bob")}
    databases = {name: {"origin": origin.url(user=name)} for name in roles}
    with running(origin.url(user="weak"), users=users, databases=databases) as near:
        yield near


def at(staff: Pgnear, user: str, database: str = "postgres") -> Any:
    return staff.connect(dsn={"user": user, "dbname": database})


def test_another_users_client_is_not_for_everybody(staff: Pgnear, origin: Server) -> None:
    origin.execute(f"create role weak_too login password '{PASSWORD}'")
    words = []
    with at(staff, "alice") as target, at(staff, "bob") as other:
        words += [said(other, statement, pid_of(target)) for statement in (CANCEL, TERMINATE)]
        assert target.execute("select 1").fetchone() == (1,)
        other.execute("begin")
        assert said(other, CANCEL, pid_of(target)) == words[0]
        with pytest.raises(errors.InFailedSqlTransaction):
            other.execute("select 1")
    with origin.connect(user="weak") as target, origin.connect(user="weak_too") as other:
        assert [said(other, statement, pid_of(target)) for statement in (CANCEL, TERMINATE)] == words
    origin.execute("drop role weak_too")
    staff.wait_for_log("signal_denied", user="bob", target_user="alice")


def said(client: Any, statement: str, pid: int) -> list[str | None]:
    with pytest.raises(errors.InsufficientPrivilege) as caught:
        client.execute(statement, [pid])
    told = caught.value.diag
    return [told.sqlstate, told.message_primary, told.message_detail, told.severity]


def test_ones_own_clients_are_and_so_is_everybodys_for_who_may_signal(staff: Pgnear, origin: Server) -> None:
    with at(staff, "alice") as target, at(staff, "alice", "signaller") as mine:
        assert mine.execute(CANCEL, [pid_of(target)]).fetchone() == (True,)
    for database in ("signaller", "strong"):
        with at(staff, "alice") as target, at(staff, "bob", database) as other:
            assert other.execute(CANCEL, [pid_of(target)]).fetchone() == (True,)
            other.execute("begin")
            assert other.execute(CANCEL, [pid_of(target)]).fetchone() == (True,)
            other.execute("commit")
    with at(staff, "alice", "strong") as target, at(staff, "bob", "signaller") as other:
        words = [said(other, statement, pid_of(target)) for statement in (CANCEL, TERMINATE)]
    with origin.connect() as target, origin.connect(user="signaller") as other:
        assert [said(other, statement, pid_of(target)) for statement in (CANCEL, TERMINATE)] == words


def test_who_has_taken_another_role_has_that_ones_rights(staff: Pgnear) -> None:
    """As in PostgreSQL: SET ROLE gives up one's own."""
    with at(staff, "alice") as target, at(staff, "alice") as other:
        other.execute("set role other_role")
        said(other, CANCEL, pid_of(target))
        other.execute("reset role")
        assert other.execute(CANCEL, [pid_of(target)]).fetchone() == (True,)
        other.execute("begin")
        other.execute("set local role other_role")
        said(other, CANCEL, pid_of(target))
        other.execute("rollback")
    with at(staff, "alice") as target, at(staff, "bob", "strong") as other:
        other.execute("set role other_role")
        said(other, CANCEL, pid_of(target))
