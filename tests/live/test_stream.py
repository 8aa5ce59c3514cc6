"""Writes that go past pgnear end its cached answers, by a real logical replication stream; what happens without one."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count, product
from string import ascii_lowercase

import psycopg
import pytest
import trio

from config import url
from pooler.ceremony.stream import ECHO_SECONDS, MAX_TABLES, Stream
from pooler.embedded import installed
from pooler.reactor import Reactor
from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, run, running
from tests.support.proxy import Proxy
from tests.support.waiting import Background, until

VERSIONS = (16, 18)
_numbers = count(1)
_letters = ("".join(pair) for pair in product(ascii_lowercase, repeat=2))
"""Tables are told apart by letters: the classifier takes names that differ in digits for one."""


def _server(version: int, **settings: str) -> Iterator[Server]:
    with Server(installation=installed(version), settings={"wal_level": "logical", **settings}) as server:
        server.execute("create publication pgnear for all tables")
        yield server


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"PostgreSQL {version}")
def logical(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An origin that is ready for a stream."""
    yield from _server(request.param, logical_decoding_work_mem="64kB")


@pytest.fixture(scope="module")
def streamed(logical: Server) -> Iterator[Pgnear]:
    """A pgnear with a stream, shared by tests that only use it."""
    with running(logical.url()) as near:
        near.wait_for_log("cache_stream_connected")
        near.wait_until_it_caches()
        yield near


@pytest.fixture
def name(logical: Server) -> Iterator[str]:
    """A new table (id int primary key, v int) with (1, 10)."""
    table = f"s{next(_letters)}"
    logical.execute(f"create table {table} (id int primary key, v int)")
    logical.execute(f"insert into {table} values (1, 10)")
    _tell(logical)
    yield table
    logical.execute(f"drop table {table} cascade")


def _tell(server: Server) -> None:
    """Let every pgnear with a stream read the catalog anew: it has seen no DDL, and would otherwise in 30 s."""
    server.execute("select pg_logical_emit_message(true, 'pgnear', 'ddl')")


def keep(near: Pgnear, client: psycopg.Connection, query: str, *, for_seconds: float = 0.0) -> None:
    """Until `query` has been answered from the cache for so long: no repetition of an invalidation is to come."""
    missed = time.monotonic()

    def is_kept() -> bool:
        nonlocal missed
        before = near.metric("cache_hits_total")
        client.execute(query.encode())
        if near.metric("cache_hits_total") > before:
            return time.monotonic() >= missed + for_seconds
        missed = time.monotonic()
        return False

    until(is_kept, what=f"not cached: {query}", within=60)


def becomes(client: psycopg.Connection, query: str, value: object) -> None:
    """Until the answer is `value`, well before any TTL."""
    until(lambda: client.execute(query.encode()).fetchone() == (value,), within=40, what=f"{query} is not {value}")


def slots(server: Server) -> list[str]:
    """The names of pgnear's slots."""
    return [str(slot) for (slot,) in server.execute("select slot_name from pg_replication_slots order by 1")]


# ---- every kind of write ---------------------------------------------------------------------------------------------

WRITES = {
    "insert": (["insert into {t} values (2, 5)"], 15),
    "update": (["update {t} set v = 11"], 11),
    "delete": (["delete from {t}"], 0),
    "truncate": (["truncate {t}"], 0),
    "truncate of a table that refers to it": (["create table {t}_ref (id int primary key references {t})",
                                               "truncate {t} cascade"], 0),
    "merge": (["merge into {t} using (values (1)) n(id) on n.id = {t}.id when matched then update set v = 12"], 12),
    "transaction": (["begin", "update {t} set v = 1", "update {t} set v = 2", "commit"], 2),
    "savepoint rolled back": (["begin", "update {t} set v = 3", "savepoint s", "delete from {t}", "rollback to s",
                               "commit"], 3),
    "function": (["do $$ begin update {t} set v = 14; end $$"], 14),
    "large, streamed while it runs": (["begin", "insert into {t} select n, 1 from generate_series(2, 5001) n",
                                       "commit"], 5010),
    "two-phase looking prepared statement": (["prepare {t}_p as update {t} set v = 15", "execute {t}_p"], 15),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_past_pgnear_is_seen_by_its_clients(logical: Server, streamed: Pgnear, name: str, kind: str) -> None:
    statements, value = WRITES[kind]
    query = f"select coalesce(sum(v), 0)::int from {name}"
    with streamed.connect() as client, logical.connect() as writer:
        keep(streamed, client, query)
        for statement in statements:
            writer.execute(statement.format(t=name).encode())
        becomes(client, query, value)


def test_a_copy_past_pgnear_is_seen(logical: Server, streamed: Pgnear, name: str) -> None:
    query = f"select sum(v)::int from {name}"
    with streamed.connect() as client, logical.connect() as writer:
        keep(streamed, client, query)
        with writer.cursor().copy(f"copy {name} from stdin".encode()) as copy:
            copy.write("2\t7\n3\t8\n")
        becomes(client, query, 25)


def test_a_row_that_moves_to_another_partition_is_seen_in_both(logical: Server, streamed: Pgnear, name: str) -> None:
    logical.execute(f"create table {name}_p (id int, k int, primary key (id, k)) partition by list (k)")
    for key in (1, 2):
        logical.execute(f"create table {name}_p{key} partition of {name}_p for values in ({key})")
    logical.execute(f"insert into {name}_p values (1, 1)")
    _tell(logical)
    queries = {f"select count(*)::int from {name}_p{key}": key - 1 for key in (1, 2)}
    with streamed.connect() as client:
        for query in queries:
            keep(streamed, client, query)
        logical.execute(f"update {name}_p set k = 2")
        for query, value in queries.items():
            becomes(client, query, value)
    logical.execute(f"drop table {name}_p")


def test_a_rollback_ends_nothing(logical: Server, streamed: Pgnear, name: str) -> None:
    query = f"select v from {name}"
    with streamed.connect() as client, logical.connect() as writer:
        keep(streamed, client, query, for_seconds=4 * ECHO_SECONDS[0])
        ended = streamed.metric("cache_invalidations_total")
        writer.execute("begin")
        writer.execute(f"insert into {name} select n, 1 from generate_series(2, 5000) n".encode())  # is streamed
        writer.execute("rollback")
        _until_passed(logical)
        hits = streamed.metric("cache_hits_total")
        assert client.execute(query.encode()).fetchone() == (10,)
        assert streamed.metric("cache_hits_total") == hits + 1
        assert streamed.metric("cache_invalidations_total") == ended


def _until_passed(server: Server) -> None:
    """Until every stream has confirmed what the server has written so far."""
    (lsn,) = server.execute("select pg_current_wal_insert_lsn()::text")[0]
    query = "select coalesce(bool_and(confirmed_flush_lsn >= %s::pg_lsn), false) from pg_replication_slots"
    until(lambda: server.execute(query, lsn)[0][0], within=40, what="the stream does not confirm")


def test_a_commit_past_pgnear_ends_what_it_made_old_within_milliseconds(
    logical: Server, streamed: Pgnear, name: str, record_property: Callable[[str, object], None]
) -> None:
    query = f"select v from {name}".encode()
    took = []
    with streamed.connect() as client, logical.connect() as writer:
        for value in range(100, 300):
            keep(streamed, client, query.decode())
            writer.execute(f"update {name} set v = {value}".encode())
            committed = time.perf_counter()
            while client.execute(query).fetchone() != (value,):
                assert time.perf_counter() < committed + 10
            took.append(time.perf_counter() - committed)
    cuts = statistics.quantiles(took, n=100)
    record_property("p50_ms", round(cuts[49] * 1000, 2))
    record_property("p99_ms", round(cuts[98] * 1000, 2))
    print(f"commit to no longer served: p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms")
    assert cuts[49] < 0.25
    assert max(took) < 5


# ---- what it does not tell -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unlogged table", "materialized view", "view of an unlogged table"])
def test_what_the_stream_does_not_tell_of_is_served_no_longer_than_without_a_stream(
    logical: Server, name: str, kind: str
) -> None:
    """Also while the stream is well, and although the ttl is ten minutes; other tables' answers live on."""
    read = f"{name}_u" if kind != "view of an unlogged table" else f"{name}_w"
    if kind == "materialized view":
        logical.execute(f"create unlogged table {name}_x as select 1 as id, 10 as v")
        logical.execute(f"create materialized view {name}_u as select * from {name}_x")
    else:
        logical.execute(f"create unlogged table {name}_u (id int primary key, v int)")
        logical.execute(f"insert into {name}_u values (1, 10)")
        logical.execute(f"create view {name}_w as select * from {name}_u")
    cache = {"ttl": "600s", "ttl_without_stream": "1s"}
    with running(logical.url(), cache=cache) as near, near.connect() as client:
        near.wait_for_log("cache_stream_connected")
        keep(near, client, f"select v from {name}", for_seconds=4 * ECHO_SECONDS[0])
        query = f"select max(v) from {read}"
        keep(near, client, query)
        asked = time.monotonic()
        if kind == "materialized view":
            logical.execute(f"update {name}_x set v = 11")
            logical.execute(f"refresh materialized view {name}_u")
        else:
            logical.execute(f"update {name}_u set v = 11")
        becomes(client, query, 11)
        assert time.monotonic() < asked + 3
        hits = near.metric("cache_hits_total")
        client.execute(f"select v from {name}".encode())
        assert near.metric("cache_hits_total") == hits + 1
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            explained = dict(console.execute(f"explain cache {query}".encode()).fetchall())
            assert explained["capped"] == f"1 s: the stream does not tell of changes of public.{name}_u"
            assert "capped" not in dict(console.execute(f"explain cache select v from {name}".encode()).fetchall())
    if kind == "materialized view":
        logical.execute(f"drop table {name}_x cascade")
    else:
        logical.execute(f"drop table {name}_u cascade")


# ---- lost and found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "terminated"])
def test_a_lost_stream_takes_every_entry_with_it_and_comes_back(
    logical: Server, pgnear: Start, name: str, how: str
) -> None:
    query = f"select v from {name}"
    with Proxy(logical.port) as proxy:
        near = pgnear(url=logical.url(sslmode="disable").replace(str(logical.port), str(proxy.port)))
        near.wait_for_log("cache_stream_connected")
        with near.connect() as client:
            keep(near, client, query)
        if how == "cut":
            proxy.cut()
        else:
            logical.execute("select pg_terminate_backend(pid) from pg_stat_replication")
        lost = near.wait_for_log("cache_stream_lost")
        assert lost["reason"]
        near.wait_for_log("cache_stream_connected", count=2)
        assert near.metric("cache_stream_losses_total") == 1
        assert near.metric("cache_stream_connected") == 1
        with near.connect() as client:
            hits = near.metric("cache_hits_total")
            client.execute(query.encode())
            assert near.metric("cache_hits_total") == hits
            keep(near, client, query)
            logical.execute(f"update {name} set v = 77")
            becomes(client, query, 77)


def test_a_killed_pgnear_leaves_no_slot_behind(logical: Server, name: str) -> None:
    before = slots(logical)
    near = Pgnear(logical.url(), {})
    near.wait_for_log("cache_stream_connected")
    assert len(slots(logical)) == len(before) + 1
    near.process.send_signal(signal.SIGKILL)
    near.process.wait(40)
    until(lambda: slots(logical) == before, what="the slot is still there")


def test_a_stopped_pgnear_leaves_no_slot_behind(logical: Server) -> None:
    before = slots(logical)
    with running(logical.url()) as near:
        near.wait_for_log("cache_stream_connected")
    until(lambda: slots(logical) == before, what="the slot is still there")


def test_the_origin_keeps_no_wal_for_the_stream(logical: Server, streamed: Pgnear, name: str) -> None:
    for number in range(5):
        logical.execute(f"insert into {name} select {number + 10} * 1000 + n, 1 from generate_series(1, 900) n")
    (written,) = logical.execute("select pg_current_wal_insert_lsn()::text")[0]
    _until_passed(logical)

    def released() -> object:
        logical.execute("select pg_log_standby_snapshot()")  # what lets a slot's restart_lsn move on
        query = "select bool_and(restart_lsn >= %s::pg_lsn) from pg_replication_slots"
        return logical.execute(query, written)[0][0]

    until(released, within=40, what="WAL is kept")


def test_a_slot_that_must_wait_for_a_transaction_is_not_left_waiting(logical: Server, pgnear: Start) -> None:
    """Making a slot waits for every writing transaction. A pgnear that stops meanwhile takes its walsender with it,
    which would otherwise notice nothing, and hold one of max_wal_senders."""
    waiting = "select count(*) from pg_stat_activity where query like 'CREATE_REPLICATION_SLOT%%' and state = 'active'"
    with logical.connect() as writer:
        writer.execute("begin")
        writer.execute("select pg_current_xact_id()")
        with running(logical.url()) as near:
            until(lambda: logical.execute(waiting)[0][0] == 1, what="nothing waits")
            with near.connect() as client:
                assert client.execute("select 1").fetchone() == (1,)
            assert near.metric("cache_stream_connected") == 0
        until(lambda: logical.execute(waiting)[0][0] == 0, what="the walsender is still there")
        writer.execute("rollback")


# ---- without a stream ------------------------------------------------------------------------------------------------


def _unavailable(near: Pgnear) -> dict[str, object]:
    """The one line that says why."""
    line = near.wait_for_log("cache_stream_unavailable")
    near.wait_until_it_caches()
    assert near.metric("cache_stream_connected") == 0
    assert len([each for each in near.log_lines if each.get("event") == "cache_stream_unavailable"]) == 1
    return line


def test_an_origin_without_logical_wal_is_cached_all_the_same_and_the_log_says_why(near: Pgnear) -> None:
    line = _unavailable(near)
    assert line["level"] == "info"
    assert "wal_level is replica" in str(line["reason"])
    assert "ALTER SYSTEM SET wal_level = logical" in str(line["remedy"])


def test_a_stream_that_was_asked_for_and_cannot_be_had_is_a_warning(pgnear: Start) -> None:
    assert _unavailable(pgnear(cache={"invalidation": "stream"}))["level"] == "warning"


def test_a_role_that_may_not_replicate_is_told_so_with_the_sql_that_helps(logical: Server, pgnear: Start) -> None:
    logical.execute("drop role if exists plain")
    logical.execute(f"create role plain login password '{PASSWORD}'")
    near = pgnear(url=logical.url(user="plain"))
    line = near.wait_for_log("cache_stream_unavailable")
    assert line["reason"] == "role plain may not replicate"
    assert line["remedy"] == "ALTER ROLE plain REPLICATION;"


def test_invalidation_by_writes_alone_opens_no_stream(logical: Server, pgnear: Start) -> None:
    before = logical.execute("select count(*) from pg_stat_replication")
    near = pgnear(url=logical.url(), cache={"invalidation": "writes"})
    near.wait_until_it_caches()
    assert "cache_stream" not in near.metrics()
    assert logical.execute("select count(*) from pg_stat_replication") == before


def test_a_publication_that_tells_of_topmost_tables_is_not_used(logical: Server, pgnear: Start) -> None:
    logical.execute("create publication rooted for all tables with (publish_via_partition_root = true)")
    near = pgnear(url=logical.url(), cache={"publication": "rooted"})
    assert "topmost table" in near.wait_for_log("cache_stream_unavailable")["reason"]
    logical.execute("drop publication rooted")


# ---- setup, status, teardown -----------------------------------------------------------------------------------------


@pytest.fixture
def fresh(logical: Server) -> Iterator[tuple[str, Callable[[str], object]]]:
    """A database without a publication: its URL, and what runs SQL in it."""
    database = f"d{next(_numbers)}"
    logical.execute(f"create database {database}")
    with psycopg.connect(logical.url(database), autocommit=True) as connection:

        def sql(text: str) -> object:
            cursor = connection.execute(text.encode())
            return cursor.fetchall() if cursor.description else None

        yield logical.url(database), sql
    logical.execute(f"drop database {database} with (force)")


def _exists(sql: Callable[[str], object]) -> bool:
    return sql("select 1 from pg_publication where pubname = 'pgnear'") == [(1,)]


def test_setup_status_and_teardown(fresh: tuple[str, Callable[[str], object]]) -> None:
    origin, sql = fresh
    before = run("cache", "status", "--origin", origin)
    assert before.returncode == 1
    assert "missing: there is no publication pgnear\n    do: pgnear cache setup" in before.stdout
    made, again = (run("cache", "setup", "--origin", origin) for _ in range(2))
    assert made.returncode == again.returncode == 0
    assert "made: publication pgnear for all tables" in made.stdout
    assert "ok: publication pgnear was there already" in again.stdout
    assert _exists(sql)
    with running(origin) as near:
        near.wait_for_log("cache_stream_connected")
        held = run("cache", "status", "--origin", origin)
        assert held.returncode == 0
        assert "a stream is possible" in held.stdout
        assert "in use by process" in held.stdout
        gone = run("cache", "teardown", "--origin", origin)
        assert gone.returncode == 0
        assert "dropped: publication pgnear" in gone.stdout
        near.wait_for_log("cache_stream_lost")  # PostgreSQL 18 itself would say nothing
    assert not _exists(sql)
    assert run("cache", "teardown", "--origin", origin).returncode == 0
    for done in (before, made, again, held, gone):
        assert done.stderr == ""
        assert PASSWORD not in done.stdout


def test_teardown_drops_a_slot_of_pgnears_that_nobody_uses_and_no_other(
    logical: Server, fresh: tuple[str, Callable[[str], object]]
) -> None:
    origin, sql = fresh
    for slot in ("pgnear_0123456789ab", "pgnear_of_somebody_else"):
        sql(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    assert "dropped: slot pgnear_0123456789ab" in run("cache", "teardown", "--origin", origin).stdout
    assert "pgnear_of_somebody_else" in slots(logical)
    assert "pgnear_0123456789ab" not in slots(logical)
    sql("select pg_drop_replication_slot('pgnear_of_somebody_else')")


@pytest.mark.parametrize("how", ["setup", "serve"])
def test_no_publication_is_made_where_it_would_make_updates_fail(
    fresh: tuple[str, Callable[[str], object]], pgnear: Start, how: str
) -> None:
    """A published table without a primary key or another replica identity refuses UPDATE and DELETE."""
    origin, sql = fresh
    sql("create table keyless (id int); insert into keyless values (1)")
    if how == "setup":
        done = run("cache", "setup", "--origin", origin)
        assert done.returncode == 1
        said = done.stdout
    else:
        said = str(pgnear(url=origin, cache={"invalidation": "stream"}).wait_for_log("cache_stream_unavailable"))
    assert "public.keyless has no replica identity" in said
    assert "ALTER TABLE public.keyless REPLICA IDENTITY FULL" in said
    assert not _exists(sql)
    sql("update keyless set id = 2")


def test_a_stream_that_is_asked_for_makes_its_publication(
    fresh: tuple[str, Callable[[str], object]], pgnear: Start
) -> None:
    origin, sql = fresh
    pgnear(url=origin, cache={"invalidation": "stream"}).wait_for_log("cache_stream_connected")
    assert _exists(sql)


def test_without_being_asked_pgnear_makes_nothing(fresh: tuple[str, Callable[[str], object]], pgnear: Start) -> None:
    origin, sql = fresh
    assert pgnear(url=origin).wait_for_log("cache_stream_unavailable")["remedy"] == "pgnear cache setup"
    assert not _exists(sql)


def test_setup_by_a_role_that_may_not_prints_the_sql(
    logical: Server, fresh: tuple[str, Callable[[str], object]]
) -> None:
    logical.execute("drop role if exists plain")
    logical.execute(f"create role plain login password '{PASSWORD}'")
    done = run("cache", "setup", "--origin", fresh[0].replace("//postgres:", "//plain:"))
    assert done.returncode == 1
    assert "do: ALTER ROLE plain REPLICATION;" in done.stdout
    assert "do: CREATE PUBLICATION pgnear FOR ALL TABLES; as a superuser" in done.stdout


def test_an_origin_that_is_not_there_is_status_1_and_a_wrong_name_is_2() -> None:
    nowhere = "postgresql://app:hush@127.0.0.1:1/shop"
    done = run("cache", "status", "--origin", nowhere)
    assert (done.returncode, done.stderr) == (1, "")
    assert "failed: the origin database cannot be reached: Connection refused" in done.stdout
    assert "hush" not in done.stdout
    assert run("cache", "status", "--origin", nowhere, "--database", "shpo").returncode == 2
    assert run("cache", "status").returncode == 2


# ---- the stream itself -----------------------------------------------------------------------------------------------


class Told:
    """What a stream has told, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self._news = trio.Event()

    def __call__(self, event: object) -> None:
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[list[object]], bool], within: float = 10.0) -> None:
        with trio.fail_after(within):
            while not condition(self.events):
                await self._news.wait()


@asynccontextmanager
async def streaming(
    server: Server, *, port: int | None = None, **arguments: float
) -> AsyncIterator[tuple[Stream, Told]]:
    """A stream in this process, past its first invalidations."""
    target = url.parse(server.url(sslmode="disable").replace(str(server.port), str(port or server.port)))
    reactor, told = Reactor(), Told()
    stream = Stream(
        target,
        reactor,
        on_invalidate=told,
        on_schema=lambda: told("schema"),
        on_lost=lambda reason: told(f"lost: {reason}"),
        on_recovered=lambda: told("recovered"),
        **arguments,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        nursery.start_soon(stream.run)
        await told.until(lambda events: events == ["recovered", "schema", None, "schema", None])
        told.events.clear()
        yield stream, told
        nursery.cancel_scope.cancel()


async def test_everything_is_invalidated_when_a_stream_is_lost_and_when_there_is_one_again(logical: Server) -> None:
    async with streaming(logical) as (stream, told):
        logical.execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
        await told.until(lambda events: "recovered" in events and events[-1] is None)
        lost, *others = told.events
        assert str(lost).startswith("lost: terminating connection")
        assert others[:4] == [None, "recovered", "schema", None]
        assert (stream.connected, stream.losses, stream.last_error) == (True, 1, None)


async def test_a_stream_that_says_nothing_any_more_is_lost(logical: Server) -> None:
    with Proxy(logical.port) as proxy:
        async with streaming(logical, port=proxy.port, status_seconds=0.1, silence_seconds=0.5) as (stream, told):
            await trio.sleep(1.0)  # an idle stream that answers is none of that
            assert told.events == []
            proxy.freeze()
            await told.until(lambda events: events == ["lost: the origin has said nothing for 1 s", None])
            assert not stream.connected
            proxy.thaw()
            await told.until(lambda events: "recovered" in events)


async def test_each_commit_names_its_tables_and_names_them_again_once_it_is_surely_visible(
    logical: Server, name: str
) -> None:
    logical.execute(f"create table {name}_2 (id int primary key references {name})")
    one, two = _oids(logical, name, f"{name}_2")
    async with streaming(logical) as (stream, told):
        with logical.connect() as writer:
            writer.execute("begin")
            writer.execute(f"update {name} set v = 1".encode())
            writer.execute(f"insert into {name}_2 values (1)".encode())
            writer.execute("commit")
            began = trio.current_time()
            await told.until(lambda events: len(events) == 2)
            assert trio.current_time() - began >= ECHO_SECONDS[0] / 2
            assert told.events == [frozenset({one, two})] * 2
            told.events.clear()
            writer.execute(f"truncate {name} cascade".encode())
            await told.until(lambda events: len(events) == 2)
            assert told.events == [frozenset({one, two})] * 2
        assert stream.transactions == 2
        assert 0 <= stream.lag_seconds < 5


async def test_a_row_that_moves_names_the_partitions_and_not_their_root(logical: Server, name: str) -> None:
    logical.execute(f"create table {name}_p (id int, k int, primary key (id, k)) partition by list (k)")
    for key in (1, 2):
        logical.execute(f"create table {name}_p{key} partition of {name}_p for values in ({key})")
    logical.execute(f"insert into {name}_p values (1, 1)")
    async with streaming(logical) as (_, told):
        logical.execute(f"update {name}_p set k = 2")
        await told.until(lambda events: bool(events))
        assert told.events[0] == frozenset(_oids(logical, f"{name}_p1", f"{name}_p2"))
    logical.execute(f"drop table {name}_p")


def _oids(server: Server, *tables: str) -> list[int]:
    return [int(str(server.execute("select %s::regclass::oid", table)[0][0])) for table in tables]


async def test_a_new_definition_is_told_of_with_the_next_write(logical: Server, name: str) -> None:
    async with streaming(logical) as (_, told):
        logical.execute(f"update {name} set v = 1")
        await told.until(lambda events: len(events) == 2)
        assert "schema" not in told.events
        told.events.clear()
        logical.execute(f"alter table {name} add column w text")
        logical.execute(f"update {name} set w = 'new'")
        await told.until(lambda events: len(events) == 4)
        assert told.events[:2] == ["schema", frozenset(_oids(logical, name))]


async def test_an_event_trigger_can_tell_of_ddl(logical: Server, name: str) -> None:
    """As docs/invalidation.md has it."""
    async with streaming(logical) as (_, told):
        logical.execute("select pg_logical_emit_message(true, 'pgnear', 'create view')")
        await told.until(lambda events: events[:2] == ["schema", None])


async def test_a_large_transaction_is_known_by_its_commit_and_its_rollback_is_nothing(
    logical: Server, name: str
) -> None:
    with logical.connect() as writer:
        async with streaming(logical) as (stream, told):
            for end in ("rollback", "commit"):
                arrived = stream.messages
                writer.execute("begin")
                writer.execute(f"insert into {name} select n, 1 from generate_series(2, 20000) n".encode())
                with trio.fail_after(10):
                    while stream.messages < arrived + 10000:  # noqa: ASYNC110 (nothing else tells)
                        await trio.sleep(0.01)
                assert told.events == []
                writer.execute(end.encode())
            await told.until(lambda events: bool(events))
            assert told.events[0] == frozenset(_oids(logical, name))


async def test_more_tables_than_can_be_counted_are_the_whole_database(logical: Server) -> None:
    names = [f"many{number}" for number in range(MAX_TABLES + 1)]
    with logical.connect() as writer:
        writer.execute(";".join(f"create table {name} (id int primary key)" for name in names).encode())
        async with streaming(logical) as (_, told):
            writer.execute(";".join(f"insert into {name} values (1)" for name in names).encode())
            await told.until(lambda events: bool(events))
            assert told.events[0] is None
        for start in range(0, len(names), 50):
            writer.execute(f"drop table {', '.join(names[start : start + 50])}".encode())


async def test_tables_whose_changes_are_not_in_the_wal_are_known(logical: Server, name: str) -> None:
    logical.execute(f"create unlogged table {name}_u (id int primary key)")
    logical.execute(f"create materialized view {name}_m as select 1")
    async with streaming(logical) as (stream, _):
        assert stream.uncovered == set(_oids(logical, f"{name}_u", f"{name}_m"))
    logical.execute(f"drop table {name}_u; drop materialized view {name}_m")


def test_an_entry_from_before_a_commit_that_waits_for_its_standby_does_not_stay() -> None:
    """The commit is in the WAL, so the stream tells of it; but until its standby confirms, readers see the old row, and
    what they read was stored after the invalidation."""
    with Server(installation=installed(18), settings={"wal_level": "logical"}) as server:
        server.execute("create publication pgnear for all tables")
        server.execute("create table w (id int primary key, v int); insert into w values (1, 10)")
        server.execute("alter system set synchronous_standby_names = 'nobody'")
        server.execute("select pg_reload_conf()")
        until(lambda: server.execute("show synchronous_standby_names") == [("nobody",)])
        with running(server.url()) as near, near.connect() as client, server.connect() as writer:
            near.wait_for_log("cache_stream_connected")
            keep(near, client, "select v from w")
            told = near.metric("cache_stream_transactions_total")
            with server.connect() as other:
                waiter = other.info.backend_pid
                update = Background(lambda: other.execute("update w set v = 11"))
                until(lambda: near.metric("cache_stream_transactions_total") > told)
                keep(near, client, "select v from w", for_seconds=4 * ECHO_SECONDS[0])
                assert client.execute("select v from w").fetchone() == (10,)
                writer.execute("select pg_cancel_backend(%s)", (waiter,))  # it waits no longer, and is committed here
                update.result()
                assert writer.execute("select v from w").fetchone() == (11,)
                until(lambda: client.execute("select v from w").fetchone() == (11,), within=50)


def test_a_killed_walsender_is_a_lost_stream_that_comes_back(logical: Server, pgnear: Start) -> None:
    """SIGKILL of a walsender makes the origin restart all of its processes: the stream is lost, then found again."""
    near = pgnear(url=logical.url())
    near.wait_for_log("cache_stream_connected")
    pid = logical.execute("select pid from pg_stat_replication where application_name = 'pgnear stream' limit 1")[0][0]
    os.kill(int(str(pid)), signal.SIGKILL)
    near.wait_for_log("cache_stream_lost")
    near.wait_for_log("cache_stream_connected", count=2)
