"""Many clients that miss the same answer at the same time cost the origin one query."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.cached import keep
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import WireClient

CLIENTS = 60


@pytest.fixture
def near(pgnear: Start, table: str) -> Pgnear:
    started = pgnear(pool_size=4)
    started.wait_until_it_caches()
    return started


def executions(origin: Server, table: str) -> int:
    """How often `table` was read from its beginning to its end."""
    ((count,),) = origin.execute("select seq_scan from pg_stat_user_tables where relname = %s", table)
    assert isinstance(count, int)
    return count


def held(direct: psycopg.Connection, table: str) -> None:
    direct.execute("begin")
    direct.execute(f"lock table {table}".encode())


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_many_clients_and_one_cold_key_are_one_query(
    near: Pgnear, origin: Server, direct: psycopg.Connection, table: str, how: str
) -> None:
    text = f"select sum(v) from {table}"
    clients = [WireClient.logged_in(near.port) for _ in range(CLIENTS)]
    direct.execute("select pg_stat_force_next_flush()")  # it has made the table, and an index on it
    before = executions(origin, table)
    held(direct, table)  # so that the first one takes as long as the others need to ask
    for client in clients:
        if how == "simple":
            client.send(wire.query(text))
        else:
            client.send(wire.parse(text), wire.bind(), wire.describe(), wire.execute(), wire.SYNC)
    until(lambda: near.metric("cache_flights_joined_total") == CLIENTS - 1, what="the others wait")
    assert near.metric("clients_linked") == 1
    direct.execute("commit")
    for client in clients:
        assert wire.rows(client.receive_until()) == [[b"60"]]
        client.hang_up()
    near.stop()  # a backend that has just told what it did tells again after 10 s, or at its end
    until(lambda: executions(origin, table) == before + 1, what="one execution")


def test_when_the_leader_fails_the_next_one_asks_and_an_error_is_not_kept(
    near: Pgnear, direct: psycopg.Connection, table: str
) -> None:
    text = f"select sum(v) from {table}"
    leader, *others = [WireClient.logged_in(near.port) for _ in range(5)]
    held(direct, table)
    leader.send(wire.query(text))
    until(lambda: near.metric("clients_linked") == 1)
    for client in others:
        client.send(wire.query(text))
    until(lambda: near.metric("cache_flights_joined_total") == len(others))
    leader.hang_up()
    direct.execute("commit")
    for client in others:
        assert wire.rows(client.receive_until()) == [[b"60"]]
        client.hang_up()


def test_one_who_waits_can_cancel_and_can_leave(near: Pgnear, direct: psycopg.Connection, table: str) -> None:
    text = f"select sum(v) from {table}"
    leader, waiter, leaver = [WireClient.logged_in(near.port) for _ in range(3)]
    held(direct, table)
    leader.send(wire.query(text))
    until(lambda: near.metric("clients_linked") == 1)
    waiter.send(wire.query(text))
    leaver.send(wire.query(text))
    until(lambda: near.metric("cache_flights_joined_total") == 2)
    with WireClient(near.port) as canceller:
        canceller.send(wire.cancel_request(waiter.pid, waiter.secret))
    assert wire.error_fields(dict(waiter.receive_until())["E"])["C"] == "57014"
    assert waiter.one("select 1") == b"1"
    leaver.hang_up()
    direct.execute("commit")
    assert wire.rows(leader.receive_until()) == [[b"60"]]
    assert waiter.one(text) == b"60"


def test_an_answer_from_before_a_write_is_not_given_to_who_asks_after_it(
    near: Pgnear, origin: Server, table: str
) -> None:
    """The reader's query has its snapshot, the writer commits, then somebody asks: he must not join the reader."""
    text = f"select sum(v) from {table} where v >= all (select v from {table} where id = 1)"
    with (
        WireClient.logged_in(near.port) as early,
        WireClient.logged_in(near.port) as late,
        WireClient.logged_in(near.port) as writer,
    ):
        for number in range(50):
            early.send(wire.query(text))
            writer.query(f"update {table} set v = {100 + number} where id = 2")
            late_answer = int(late.one(text) or 0)
            assert late_answer == 10 + 100 + number + 30
            early.receive_until()


def test_an_answer_that_came_too_late_to_be_used_is_not_used_later(
    near: Pgnear, origin: Server, direct: psycopg.Connection, table: str
) -> None:
    """While the catalog is read anew, who was given another's answer asks for himself, and must forget what he got.

    He once kept it, and was served it when he asked again, behind a write.
    """
    text = f"select sum(v) from {table} where v > 0"
    with (
        origin.connect() as locker,
        near.connect() as reader,
        WireClient.logged_in(near.port) as leader,
        WireClient.logged_in(near.port) as waiter,
        WireClient.logged_in(near.port) as writer,
    ):
        held(direct, table)
        leader.send(wire.query(text))
        until(lambda: near.metric("pool_busy") == 1, what="the first one asks")
        waiter.send(wire.query(text))
        until(lambda: near.metric("cache_flights_joined_total") == 1, what="the second one waits")
        locker.execute(b"begin; lock table pg_policy in access exclusive mode")  # the catalog cannot be read
        writer.query(f"create table {table}_more (id int)")
        direct.execute("commit")
        for client in (leader, waiter):
            assert wire.rows(client.receive_until()) == [[b"60"]]
        locker.execute(b"commit")
        keep(near, reader, f"select v from {table} where id = 1")
        writer.query(f"update {table} set v = 100 where id = 1")
        assert waiter.one(text) == b"150"
        writer.query(f"drop table {table}_more")
