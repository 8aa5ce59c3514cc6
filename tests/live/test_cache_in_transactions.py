"""Reads in transaction blocks: answered from the cache in READ COMMITTED, until the block writes or locks."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.wire import WireClient


@pytest.fixture
def near(pgnear: Start, table: str) -> Pgnear:
    started = pgnear(pool_size=4)
    started.wait_until_it_caches()
    return started


def value(client: WireClient, table: str, how: str = "simple") -> bytes | None:
    text = f"select v from {table} where id = 2"
    if how == "simple":
        return client.one(text)
    return wire.rows(client.ask(wire.parse(text), wire.bind(), wire.describe(), wire.execute(), wire.SYNC))[0][0]


@pytest.mark.parametrize("how", ["simple", "extended"])
@pytest.mark.parametrize("begin", ["begin", "start transaction read only", "begin isolation level read committed"])
def test_a_block_that_only_reads_is_answered_from_the_cache(
    near: Pgnear, origin: Server, table: str, how: str, begin: str
) -> None:
    with WireClient.logged_in(near.port) as client:
        client.query(begin)
        assert value(client, table, how) == b"20"  # a miss in a block is kept too
        client.query("commit")
        origin.execute(f"update {table} set v = 21 where id = 2")  # around pgnear
        assert client.query(begin)[-1] == ("Z", b"T")
        frames = client.query(f"select v from {table} where id = 2")
        assert wire.rows(frames) == [[b"20"]]
        assert frames[-1] == ("Z", b"T")
        client.query("rollback")


@pytest.mark.parametrize(
    "first",
    [
        "update {0} set v = v where id = 1",
        "select v from {0} where id = 1 for update",
        "lock table {0} in share mode",
        "savepoint s",
        "set local work_mem = '5MB'",
        "set transaction isolation level repeatable read",
        "declare c cursor for select v from {0}",
    ],
)
def test_a_block_that_did_anything_else_is_not(near: Pgnear, origin: Server, table: str, first: str) -> None:
    with WireClient.logged_in(near.port) as client:
        assert value(client, table) == b"20"
        origin.execute(f"update {table} set v = 21 where id = 2")
        client.query("begin")
        client.query(first.format(table))
        assert value(client, table) == b"21"
        client.query("rollback")


@pytest.mark.parametrize(
    "how", ["begin isolation level repeatable read", "begin isolation level serializable", "default", "characteristics"]
)
def test_higher_isolation_levels_read_one_snapshot(near: Pgnear, origin: Server, table: str, how: str) -> None:
    with WireClient.logged_in(near.port) as client:
        if how == "default":
            client.query("set default_transaction_isolation to 'repeatable read'")
        elif how == "characteristics":
            client.query("set session characteristics as transaction isolation level serializable")
        assert value(client, table) == b"20"
        origin.execute(f"update {table} set v = 21 where id = 2")
        client.query(how if how.startswith("begin") else "begin")
        assert value(client, table) == b"21"
        client.query("rollback")


def test_a_block_reads_its_own_writes_and_others_see_them_at_commit(near: Pgnear, table: str) -> None:
    with WireClient.logged_in(near.port) as writer, WireClient.logged_in(near.port) as reader:
        assert value(reader, table) == b"20"
        writer.query("begin")
        assert value(writer, table) == b"20"
        writer.query(f"update {table} set v = 30 where id = 2")
        assert value(writer, table) == b"30"
        assert value(reader, table) == b"20"
        writer.query("commit")
        assert value(reader, table) == b"30"


def test_psycopg_without_autocommit_is_answered_from_the_cache(near: Pgnear, origin: Server, table: str) -> None:
    with near.connect(autocommit=False) as connection:
        for _ in range(2):
            assert connection.execute(f"select v from {table} where id = %s".encode(), (2,)).fetchone() == (20,)
            connection.commit()
        hits = near.metric("cache_hits_total")
        assert connection.execute(f"select v from {table} where id = %s".encode(), (2,)).fetchone() == (20,)
        assert near.metric("cache_hits_total") == hits + 1
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
