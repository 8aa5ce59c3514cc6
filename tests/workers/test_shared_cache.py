"""Two workers, a real origin: what a client has heard of through one worker, the other's cache answers no more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, product
from string import ascii_lowercase
from typing import Any

import psycopg
import pytest

from pooler.ceremony import greeting
from pooler.embedded import installed
from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until

_letters = ("".join(pair) for pair in product(ascii_lowercase, repeat=2))
_numbers = count(1)


def worker_of(client: psycopg.Connection) -> int:
    return (client.info.backend_pid - greeting._ABOVE_ALL_PROCESSES) % 2


@contextmanager
def one_of_each(near: Pgnear, **parameters: Any) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """A client of each worker: the kernel decides where one comes in, so it is tried until there are both."""
    with ExitStack() as stack:
        found: dict[int, psycopg.Connection] = {}
        while len(found) < 2:
            client = near.connect(**parameters)
            stack.callback(client.close)
            found.setdefault(worker_of(client), client)
        yield found[0], found[1]


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(
        origin.url(), workers=2, pool_size=8, http=None, cache={"ttl": "1h", "invalidation": "writes"}
    ) as near:
        yield near


@pytest.fixture
def table(near: Pgnear, origin: Server) -> Iterator[str]:
    """A new table (id, v) with (1, 10), made through one of the workers."""
    name = f"w{next(_letters)}"
    with near.connect() as client:
        client.execute(f"create table {name} (id int primary key, v int)")
        client.execute(f"insert into {name} values (1, 10)")
    yield name
    origin.execute(f"drop table if exists {name} cascade")


def value(client: psycopg.Connection, query: str) -> Any:
    row = client.execute(query.encode()).fetchone()
    return row[0] if row else None


def keep(origin: Server, client: psycopg.Connection, table: str) -> str:
    """A query whose answer `client`'s worker has in its cache now: what is written past pgnear, it does not show."""
    query = f"select v from {table} where id = 1"

    def is_kept() -> bool:
        shown = value(client, query)
        origin.execute(f"update {table} set v = {next(_numbers)} + 1000 where id = 1")
        return bool(value(client, query) == shown)

    until(is_kept, what=f"not cached: {query}")
    return query


WRITES = {
    "simple": ["update {t} set v = {n} where id = 1"],
    "transaction": ["begin", "update {t} set v = {n} where id = 1", "select 1", "commit"],
    "function": ["do $$ begin update {t} set v = {n}; end $$"],
    "truncate": ["begin", "truncate {t}", "insert into {t} values (1, {n})", "commit"],
    "upsert": ["insert into {t} values (1, {n}) on conflict (id) do update set v = excluded.v"],
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_through_one_worker_is_seen_through_the_other(
    near: Pgnear, origin: Server, table: str, kind: str
) -> None:
    with one_of_each(near) as (one, other):
        for writer, reader in ((one, other), (other, one)) * 3:
            query = keep(origin, reader, table)
            number = next(_numbers)
            for text in WRITES[kind]:
                writer.execute(text.format(t=table, n=number).encode())
            assert value(reader, query) == number


def test_copy_through_one_worker_is_seen_through_the_other(near: Pgnear, origin: Server, table: str) -> None:
    with one_of_each(near) as (one, other):
        keep(origin, other, table)
        sums = f"select sum(v) from {table} where id > 1"
        assert value(other, sums) is None
        with one.cursor().copy(f"copy {table} from stdin".encode()) as copy:
            copy.write("2\t5\n")
        assert value(other, sums) == 5


def test_a_prepared_write_is_seen_too(near: Pgnear, origin: Server, table: str) -> None:
    with one_of_each(near) as (one, other):
        for _ in range(10):
            query = keep(origin, other, table)
            number = next(_numbers)
            one.execute(f"update {table} set v = %s where id = 1".encode(), (number,), prepare=True)
            assert value(other, query) == number


def test_writers_and_readers_that_tell_each_other_never_see_what_is_older(
    near: Pgnear, origin: Server, table: str
) -> None:
    """The last number that was written and told is the least that anybody may read, while all are busy."""
    told = 0
    wrong: list[tuple[int, int]] = []
    done = threading.Event()

    with one_of_each(near) as (one, other), ExitStack() as stack:
        origin.execute(f"update {table} set v = 0")
        one.execute(f"update {table} set v = 0".encode())
        extra = [stack.enter_context(near.connect()) for _ in range(4)]
        query = f"select v from {table} where id = 1".encode()

        def read(client: psycopg.Connection) -> None:
            while not done.is_set():
                least = told
                row = client.execute(query).fetchone()
                assert row is not None
                if row[0] < least:
                    wrong.append((row[0], least))

        threads = [threading.Thread(target=read, args=(client,)) for client in (other, *extra)]
        for thread in threads:
            thread.start()
        for number in range(1, 400):
            one.execute(f"update {table} set v = {number} where id = 1".encode())
            told = number
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_ddl_through_one_worker_is_known_to_the_other(near: Pgnear, origin: Server, table: str) -> None:
    """A view that reads another table now, and a statement that was prepared before its table had another column."""
    with one_of_each(near) as (one, other):
        query = keep(origin, other, table)
        one.execute(f"create table {table}_two as select 1 as id, 77 as v".encode())
        try:
            one.execute(f"alter table {table} rename to {table}_old".encode())
            one.execute(f"alter table {table}_two rename to {table}".encode())
            assert value(other, query) == 77
        finally:
            one.execute(f"drop table {table}".encode())
            one.execute(f"alter table {table}_old rename to {table}".encode())


def test_a_trigger_made_through_one_worker_is_known_to_writes_through_the_other(
    near: Pgnear, origin: Server, table: str
) -> None:
    with one_of_each(near) as (one, other):
        other.execute(f"create table {table}_log (id int primary key, v int)".encode())
        other.execute(f"insert into {table}_log values (1, 0)".encode())
        keep(origin, one, table)
        query = keep(origin, other, f"{table}_log")
        try:
            one.execute(
                f"create function {table}_f() returns trigger language plpgsql as "
                f"$$ begin update {table}_log set v = new.v; return new; end $$".encode()
            )
            one.execute(f"create trigger t after update on {table} for each row execute function {table}_f()".encode())
            query = keep(origin, other, f"{table}_log")
            number = next(_numbers)
            one.execute(f"update {table} set v = {number}".encode())
            assert value(other, query) == number
            number = next(_numbers)
            keep(origin, one, f"{table}_log")
            other.execute(f"update {table} set v = {number}".encode())
            assert value(one, query) == number
        finally:
            origin.execute(f"drop table {table}_log")
            origin.execute(f"drop function {table}_f cascade")


def test_new_defaults_reach_new_clients_of_every_worker_and_leave_the_old_ones(origin: Server, pgnear: Start) -> None:
    near = pgnear(workers=2, pool_size=8, http=None)
    near.wait_for_log("catalog_read", worker=0)
    near.wait_for_log("catalog_read", worker=1)
    try:
        with one_of_each(near) as old:
            before = [value(client, "show work_mem") for client in old]
            old[0].execute(b"alter role postgres set work_mem = '5MB'")
            near.wait_for_log("defaults_changed", worker=0)
            near.wait_for_log("defaults_changed", worker=1)
            with one_of_each(near) as new:
                assert [value(client, "show work_mem") for client in new] == ["5MB", "5MB"]
            assert [value(client, "show work_mem") for client in old] == before
    finally:
        origin.execute("alter role postgres reset work_mem")


def test_a_database_can_be_dropped_though_another_worker_has_connections_to_it(origin: Server, pgnear: Start) -> None:
    origin.execute("create database leaving")
    near = pgnear(workers=2, pool_size=8, http=None, databases={"leaving": {"origin": origin.url("leaving")}})
    with one_of_each(near, dsn={"dbname": "leaving"}) as both:
        for client in both:
            client.execute(b"select 1")
    with one_of_each(near) as (one, _):
        one.execute(b"drop database leaving")


def test_what_a_dead_worker_had_sent_and_is_committed_later_counts(near: Pgnear, origin: Server, table: str) -> None:
    """Nobody is told of its end; the others look after its backends until they are gone."""
    with one_of_each(near) as (one, other), origin.connect() as direct:
        other.execute(f"create table {table}_two as select 1 as id, 10 as v".encode())
        query = keep(origin, other, table)
        direct.autocommit = False
        direct.execute(f"select v from {table} where id = 1 for update".encode())
        writer = threading.Thread(target=_until_it_is_lost, args=(one, f"update {table} set v = 5 where id = 1"))
        writer.start()
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like 'update %'"
        until(lambda: origin.execute(waits) == [(1,)])
        os.kill(process_of(near, worker_of(one)), signal.SIGKILL)
        near.wait_for_log("writes_unsure")
        writer.join()
        keep(origin, other, f"{table}_two")  # the catalog has been read, so the next answer is kept
        shown = value(other, query)
        assert value(other, query) == shown
        direct.commit()
        until(lambda: value(other, query) == 5, within=10)
        other.execute(f"drop table {table}_two".encode())
    until(lambda: _has_both(near))


def _until_it_is_lost(client: psycopg.Connection, text: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        client.execute(text.encode())


def process_of(near: Pgnear, worker: int) -> int:
    """The latest process of a worker."""
    return next(
        int(line["pid"])
        for line in reversed(near.log_lines)
        if line.get("event") == "worker_started" and line["worker"] == worker
    )


def _has_both(near: Pgnear) -> bool:
    with one_of_each(near):
        return True


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logical() -> Iterator[Server]:
    with Server(installation=installed(16), settings={"wal_level": "logical"}) as server:
        server.execute("create publication pgnear for all tables")
        server.execute("create table heard (id int primary key, v int)")
        server.execute("insert into heard values (1, 10)")
        yield server


def test_one_worker_hears_the_stream_for_all_and_another_takes_its_place(logical: Server) -> None:
    with running(logical.url(), workers=2, pool_size=8, http=None, cache={"ttl": "1h"}) as near:
        near.wait_for_log("cache_stream_connected")
        slots = "select count(*) from pg_replication_slots"
        assert logical.execute(slots) == [(1,)]
        with one_of_each(near) as (_, other):
            query = "select v from heard where id = 1"
            for number in range(20):
                value(other, query)
                logical.execute(f"update heard set v = {number} where id = 1")
                until(lambda number=number: value(other, query) == number)  # type: ignore[misc]
            os.kill(process_of(near, 0), signal.SIGKILL)
            near.wait_for_log("cache_stream_connected", count=2)
            until(lambda: logical.execute(slots) == [(1,)])
            for number in range(100, 110):
                value(other, query)
                logical.execute(f"update heard set v = {number} where id = 1")
                until(lambda number=number: value(other, query) == number)  # type: ignore[misc]


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_client_connections", "max_connections_per_address"])
def test_a_limit_is_one_for_all_workers(pgnear: Start, limit: str) -> None:
    near = pgnear(workers=2, http=None, **{limit: 10})
    with ExitStack() as stack:
        clients = [stack.enter_context(near.connect()) for _ in range(10)]
        assert {worker_of(client) for client in clients} == {0, 1}
        for _ in range(4):
            with pytest.raises(psycopg.OperationalError, match="too many"):
                near.connect()
        clients[0].close()
        until(lambda: _comes_in(near))


def _comes_in(near: Pgnear) -> bool:
    try:
        near.connect().close()
        return True
    except psycopg.OperationalError:
        return False


def test_the_clients_of_a_dead_worker_count_no_more(pgnear: Start) -> None:
    near = pgnear(workers=2, http=None, max_client_connections=10)
    with ExitStack() as stack:
        for _ in range(10):
            stack.callback(near.connect().close)
        os.kill(process_of(near, 0), signal.SIGKILL)
        near.wait_for_log("worker_ended")
        until(lambda: _comes_in(near))
