"""`defer_begin`: BEGIN reaches the origin with the first statement that needs it; only the clock can tell."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Start
from tests.support.cached import keep
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.proxy import Proxy
from tests.support.waiting import until
from tests.support.wire import FLUSH, SYNC, Frame, WireClient, bind, describe, error_fields, execute, parse, query, rows

SCRIPTS = {
    "nothing": ["begin", "commit"],
    "nothing, undone": ["START TRANSACTION;", "rollback"],
    "in other words": ["Begin Work ;", "select 1", "End Transaction", "begin transaction", "ABORT"],
    "a write": ["begin", "update {t} set v = v where id = 1", "select v from {t} where id = 1", "commit"],
    "a write, undone": ["begin", "insert into {t} values (4, 40)", "rollback", "select count(*) from {t}"],
    "begun twice": ["begin", "begin", "select 1", "commit", "commit"],
    "an error first": ["begin", "select 1 / 0", "select 1", "commit", "select 2"],
    "an error of the parser": ["begin", "selekt", "rollback"],
    "an empty query": ["begin", "", "commit"],
    "a savepoint": ["begin", "savepoint a", "select 1", "rollback to a", "commit"],
    "an isolation level": [
        "begin",
        "set transaction isolation level serializable",
        "show transaction_isolation",
        "end",
    ],
    "with options": ["begin isolation level repeatable read read only", "show transaction_isolation", "end"],
    "a local setting": ["begin", "set local work_mem = '5MB'", "show work_mem", "commit", "show work_mem"],
    "a setting": ["set work_mem = '6MB'", "begin", "show work_mem", "rollback", "show work_mem", "reset work_mem"],
    "statements of its session": ["begin", "deallocate all", "discard temp", "commit"],
    "a chain": ["begin", "commit and chain", "select 1", "rollback"],
    "several at once": ["begin", "select 1; select 2", "commit"],
    "no block": ["commit", "rollback", "begin; select 1", "commit"],
    "a temporary table": ["begin", "create temp table own (x int) on commit drop", "select x + 0 from own", "commit"],
    "two-phase": ["begin", "prepare transaction 'nobody'", "select 1"],
}


@pytest.fixture(scope="module")
def plain(origin: Server) -> Iterator[Pgnear]:
    """One origin connection, no cache."""
    with running(origin.url(), pool_size=1, defer_begin=True, cache={"enabled": False}) as near:
        yield near


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
def test_blocks_are_as_on_a_private_connection(origin: Server, pgnear: Start, table: str, cached: bool) -> None:
    near = pgnear(pool_size=1, defer_begin=True, cache={"enabled": cached})
    if cached:
        near.wait_until_it_caches()
    for _ in range(2):  # the second time answers and statements are known
        for name, script in SCRIPTS.items():
            told, expected = (_answers(port, script, table) for port in (near.port, origin.port))
            assert told == expected, name


def _answers(port: int, script: list[str], table: str) -> list[object]:
    with WireClient.logged_in(port) as client:
        return [(text, _compared(client.query(text.format(t=table)))) for text in script]


def _compared(frames: list[Frame]) -> list[object]:
    """What is to be the same: of errors and notices not where in the server's source they come from."""
    return [
        {key: value for key, value in error_fields(body).items() if key not in "FLR"} if kind in "EN" else (kind, body)
        for kind, body in frames
    ]


BATCHES = {
    "a read": parse("select v from {t} where id = $1") + bind(values=[b"1"]) + describe() + execute() + SYNC,
    "named": parse("select 1", "one") + SYNC + bind("one") + execute() + SYNC,
    "a statement nobody knows": bind("unknown") + execute() + SYNC,
    "an error": parse("select 1 / 0") + bind() + execute() + SYNC,
    "in two parts": parse("select 1") + bind() + FLUSH + execute() + SYNC,
    "nothing": SYNC,
}


@pytest.mark.parametrize("name", BATCHES)
def test_what_comes_first_may_be_of_the_extended_protocol(origin: Server, plain: Pgnear, table: str, name: str) -> None:
    batch = BATCHES[name]
    if b"{t}" in batch:
        batch = parse(f"select v from {table} where id = $1") + batch[batch.index(b"B\0") :]
    syncs = batch.count(SYNC)
    for _ in range(4):
        with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
            for messages in (query("begin"), batch, batch, query("select 1"), query("commit"), query("select 2")):
                ends = syncs if messages is batch else 1
                assert _compared(client.ask(messages, syncs=ends)) == _compared(direct.ask(messages, syncs=ends))


def test_a_pipeline_that_begins_with_begin_is_answered_in_order(origin: Server, plain: Pgnear, table: str) -> None:
    texts = ["begin", f"update {table} set v = v", "commit", "begin", "select 3", "rollback"]
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        messages = b"".join(map(query, texts))
        assert client.ask(messages, syncs=len(texts)) == direct.ask(messages, syncs=len(texts))
        assert client.query("begin") == direct.query("begin")
        assert client.ask(messages, syncs=len(texts)) == direct.ask(messages, syncs=len(texts))


def test_a_block_in_which_nothing_was_asked_holds_no_connection(plain: Pgnear) -> None:
    spared = plain.metric("blocks_spared_total")
    with WireClient.logged_in(plain.port) as idler, WireClient.logged_in(plain.port) as other:
        assert idler.query("begin")[-1] == ("Z", b"T")
        assert other.one("select 1") == b"1"  # there is one connection
        with WireClient.logged_in(plain.port, database="pgnear") as console:
            assert [row[4] for row in rows(console.query("show clients"))].count(b"deferred") == 1
        assert idler.one("select 2") == b"2"
        other.send(query("select 3"))
        assert idler.query("commit")[-1] == ("Z", b"I")
        assert rows(other.receive_until()) == [[b"3"]]
        other.query("begin")
        other.query("rollback")
    assert plain.metric("blocks_spared_total") == spared + 1


def test_a_block_is_one_transaction(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client:
        for undo, last in (("commit", "commit"), ("rollback", "rollback")):
            client.query("begin")
            first = client.one("select pg_current_xact_id()::text")
            assert client.one("select pg_current_xact_id()::text") == first
            client.query(undo)
            client.query("begin")
            assert client.one("select pg_current_xact_id()::text") != first
            client.query(last)


def test_each_block_costs_the_origin_one_exchange_less(origin: Server, pgnear: Start, table: str) -> None:
    """Told by the answers that the origin gives: BEGIN has none of its own."""
    with Proxy(origin.port) as proxy:
        near = pgnear(url=origin.url(port=proxy.port), pool_size=1, defer_begin=True, cache={"enabled": False})
        with WireClient.logged_in(near.port) as client:
            client.query("begin")
            client.query("commit")
            before = proxy.passed_from_origin
            client.query("begin")
            assert proxy.passed_from_origin == before
            client.query(f"update {table} set v = 11 where id = 1")
            client.query("commit")
        assert near.metric("begins_deferred_total") == 2


def test_cached_reads_in_a_block_need_no_origin(origin: Server, pgnear: Start, table: str) -> None:
    near = pgnear(pool_size=1, defer_begin=True, cache={"ttl": "1h", "invalidation": "writes"})
    text = f"select v from {table} where id = 1"
    with near.connect() as client:
        keep(near, client, text)
    with WireClient.logged_in(near.port) as other, WireClient.logged_in(near.port) as client:
        for _ in range(3):  # at first by its key, then by its bytes
            other.query("begin")
            other.query(f"update {table} set v = v where id = 2")  # has the one connection
            client.query("begin")
            other.query("rollback")
            told = client.query(text)
            assert (rows(told), told[-1]) == ([[b"10"]], ("Z", b"T"))
            assert client.query("commit")[-1] == ("Z", b"I")
            told = client.query(text)
            assert (rows(told), told[-1]) == ([[b"10"]], ("Z", b"I"))


def test_a_block_of_a_session_with_one_snapshot_each_is_not_deferred(pgnear: Start, table: str) -> None:
    """Under REPEATABLE READ what the cache answers would be of another snapshot than what the origin does."""
    near = pgnear(pool_size=1, defer_begin=True, cache={"ttl": "1h"})
    with near.connect() as client:
        keep(near, client, f"select v from {table} where id = 1")
    with WireClient.logged_in(near.port) as client:
        client.query("set default_transaction_isolation = 'repeatable read'")
        before = near.metric("begins_deferred_total")
        client.query("begin")
        assert client.one("show transaction_isolation") == b"repeatable read"
        client.query("commit")
    assert near.metric("begins_deferred_total") == before


def test_who_reads_its_own_write_in_a_block_is_not_answered_from_the_cache(pgnear: Start, table: str) -> None:
    near = pgnear(pool_size=1, defer_begin=True, cache={"ttl": "1h"})
    text = f"select v from {table} where id = 1"
    with near.connect() as client:
        keep(near, client, text)
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        assert client.one(text) == b"10"
        client.query(f"update {table} set v = 77 where id = 1")
        assert client.one(text) == b"77"
        client.query("rollback")
        assert client.one(text) == b"10"


def test_after_a_refusal_nothing_runs_outside_the_block(origin: Server, pgnear: Start, table: str) -> None:
    """The block cannot be left failed where no origin knows of it, so the client's connection ends."""
    near = pgnear(pool_size=1, pool_wait_timeout="0.3s", defer_begin=True, cache={"enabled": False})
    with WireClient.logged_in(near.port) as holder, WireClient.logged_in(near.port) as client:
        holder.query("begin")
        holder.query("select 1")
        client.query("begin")
        client.send(query(f"insert into {table} values (5, 50)"), query(f"insert into {table} values (6, 60)"))
        assert client.fatal()["C"] == "53300"
        holder.query("commit")
    assert origin.execute(f"select count(*) from {table}") == [(3,)]


def test_a_connection_that_turns_out_to_be_dead_is_replaced_and_the_block_opened_there(
    origin: Server, pgnear: Start, table: str
) -> None:
    near = pgnear(url=origin.role("deferring"), pool_size=1, defer_begin=True, cache={"enabled": False})
    with WireClient.logged_in(near.port, user="deferring") as client:
        for messages in (query(f"insert into {table} values (7, 70)"), parse("select 1") + bind() + execute() + SYNC):
            client.query("begin")
            origin.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'deferring'")
            assert client.ask(messages)[-1] == ("Z", b"T")
            assert client.query("rollback")[-1] == ("Z", b"I")
    assert origin.execute(f"select count(*) from {table}") == [(3,)]


def test_answers_may_come_in_pieces(origin: Server, pgnear: Start, table: str) -> None:
    with Proxy(origin.port) as proxy, WireClient.logged_in(origin.port) as direct:
        near = pgnear(url=origin.url(port=proxy.port), pool_size=1, defer_begin=True, cache={"enabled": False})
        with WireClient.logged_in(near.port) as client:
            client.query("select 1")
            proxy.throttle(2000)
            for text in ("begin", f"select v from {table} where id = 1", "commit", "begin", "select 1 / 0", "rollback"):
                assert client.query(text) == direct.query(text)


def test_a_block_that_its_origin_loses_ends_the_client(origin: Server, pgnear: Start) -> None:
    with Proxy(origin.port) as proxy:
        near = pgnear(url=origin.url(port=proxy.port), pool_size=1, defer_begin=True, cache={"enabled": False})
        with WireClient.logged_in(near.port) as client:
            client.query("select 1")
            client.query("begin")
            proxy.freeze()
            client.send(query("select 2"))
            proxy.cut_after(0)
            proxy.thaw()
            assert client.fatal()["C"] == "08006"
        with WireClient.logged_in(near.port) as client:
            assert client.one("select 3") == b"3"


@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
def test_a_call_that_is_answered_here_and_fails_leaves_the_block_failed(plain: Pgnear, extended: bool) -> None:
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(plain.port) as other:
        (pid,) = rows(client.query("select pg_backend_pid()"))[0]
        assert pid is not None
        text = f"select pg_cancel_backend({pid.decode()})"
        client.query("begin")
        told = client.ask(parse(text) + bind() + execute() + SYNC if extended else query(text))
        assert (error_fields(told[-2][1])["C"], told[-1]) == ("57014", ("Z", b"E"))
        assert error_fields(client.query("select 1")[0][1])["C"] == "25P02"
        assert client.query("commit")[0] == ("C", b"ROLLBACK\0")
        assert other.one("select 1") == b"1"


def test_who_sleeps_in_a_block_is_sent_away(pgnear: Start) -> None:
    near = pgnear(pool_size=1, defer_begin=True, idle_in_transaction_timeout="0.3s", cache={"enabled": False})
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        assert near.metric("begins_deferred_total") == 1
        assert client.fatal()["C"] == "25P03"


def test_a_drain_waits_for_an_open_block(pgnear: Start) -> None:
    near = pgnear(pool_size=1, defer_begin=True, cache={"enabled": False})
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        assert near.metric("begins_deferred_total") == 1
        near.process.terminate()
        near.wait_for_log("stopping")
        assert client.query("commit")[-1] == ("Z", b"I")
        until(lambda: near.process.poll() is not None, what="it did not end")


def test_psycopg_s_own_transactions(near_cached: Pgnear, table: str) -> None:
    with near_cached.connect(autocommit=False) as client:
        for value in range(3):
            assert client.execute(f"select v from {table} where id = 2".encode()).fetchone() == (20 + value,)
            client.commit()
            with client.transaction():
                client.execute(f"update {table} set v = v + 1 where id = 2".encode())
            with pytest.raises(psycopg.errors.DivisionByZero):
                client.execute("select 1 / 0")
            client.rollback()


@pytest.fixture
def near_cached(pgnear: Start) -> Pgnear:
    near = pgnear(defer_begin=True, cache={"ttl": "1h", "invalidation": "writes"})
    near.wait_until_it_caches()
    return near
