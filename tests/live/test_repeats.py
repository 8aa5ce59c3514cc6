"""Simple Queries that come again and again: kept prepared by the connection, and answered as every one before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.wire import SYNC, WireClient, bind, error_fields, execute, parse, query, rows

TIMES = 6
"""More than it takes for a connection to keep a text, and to use what it keeps."""

KEPT = "select count(*) from pg_prepared_statement() where statement like '%{}%'"


@pytest.fixture(scope="module")
def plain(origin: Server) -> Iterator[Pgnear]:
    """One origin connection, no cache."""
    with running(origin.url(), pool_size=1, cache={"enabled": False}) as near:
        yield near


def kept(client: WireClient, part: str) -> int:
    """How many statements with `part` in their text the connection keeps; this question is none of them."""
    return int(client.one(KEPT.format(part[0] + "%" + part[1:])) or b"0")


@pytest.mark.parametrize(
    "text",
    [
        "select 41 + 1 as answer",
        "select 1 where false",
        "select from generate_series(1, 3)",
        "select null::int, '', true, 1.5::numeric, '{1,2}'::int[], now() - now()",
        "values (1, 'a'), (2, 'b')",
        "select 12 / (g - 3) from generate_series(1, 5) g",
        "select repeat('x', 100000), g from generate_series(1, 40) g",
        "select 1;",
        "with w as (select 7 as seven) select * from w",
    ],
)
def test_a_query_that_comes_again_and_again_is_answered_as_on_a_private_connection(
    origin: Server, plain: Pgnear, text: str
) -> None:
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        expected = direct.query(text)
        for _ in range(TIMES):
            assert client.query(text) == expected


def test_it_is_kept_once_and_counted(plain: Pgnear) -> None:
    before = plain.metric("statements_kept_total")
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(plain.port) as other:
        for _ in range(TIMES):
            assert client.one("select 'kept once'") == b"kept once"
            assert other.one("select 'kept once'") == b"kept once"
        assert kept(client, "kept once") == 1
    assert plain.metric("statements_kept_total") == before + 1


@pytest.mark.parametrize(
    "text",
    [
        "select 'backslash \\ '",
        f"select 1 as {'long' * 16}",
        "select 1; select 2",
        "select set_config('work_mem', '4MB', true)",
        "select someones_own()",
        "select public.lower('X')",
        "show work_mem",
        "explain select 3",
        "select 4 /*+ a hint */",
    ],
)
def test_what_may_depend_on_each_parse_or_plan_is_not_kept(origin: Server, plain: Pgnear, text: str) -> None:
    """Notices about the text come with each parse, and a function of somebody's own may only seem to be immutable."""
    origin.execute("create or replace function someones_own() returns int immutable language sql as 'select 1'")
    origin.execute("create or replace function public.lower(x text) returns text immutable language sql as 'select x'")
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        expected = direct.query(text)
        for _ in range(TIMES):
            assert client.query(text) == expected
        assert kept(client, text[:30].replace("'", "''")) == 0


def test_in_a_transaction_nothing_kept_is_used(origin: Server, plain: Pgnear, table: str) -> None:
    """A plan that has become outdated would end the transaction, as no Query does."""
    text = f"select * from {table} where id = 1"
    with WireClient.logged_in(plain.port) as client:
        for _ in range(TIMES):
            assert rows(client.query(text)) == [[b"1", b"10"]]
        assert kept(client, text) == 1
        origin.execute(f"alter table {table} add column w int default 7")
        client.query("begin")
        assert rows(client.query(text)) == [[b"1", b"10", b"7"]]
        assert client.query("commit")[-1] == ("Z", b"I")


def test_a_table_that_changes_behind_pgnear_fails_no_query(origin: Server, plain: Pgnear, table: str) -> None:
    text = f"select * from {table} where id = 1"
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        for _ in range(TIMES):
            assert rows(client.query(text)) == [[b"1", b"10"]]
        origin.execute(f"alter table {table} add column w int default 7")
        assert client.query(text) == direct.query(text)
        for _ in range(TIMES):
            assert rows(client.query(text)) == [[b"1", b"10", b"7"]]
        origin.execute(f"drop table {table}")
        mine, theirs = client.query(text), direct.query(text)
        assert [error_fields(body) for kind, body in mine if kind == "E"] == [
            error_fields(body) for kind, body in theirs if kind == "E"
        ]
        assert client.one("select 1") == b"1"
        origin.execute(f"create table {table} (id int primary key, v int)")


def test_a_statement_that_a_function_has_deallocated_is_not_missed(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client:
        for _ in range(TIMES):
            assert client.one("select 'deallocated'") == b"deallocated"
        client.query("do $$ begin execute 'deal' || 'locate all'; end $$")
        for _ in range(TIMES):
            assert client.one("select 'deallocated'") == b"deallocated"


def test_settings_decide_what_a_kept_query_means(plain: Pgnear) -> None:
    text = "select '1970-01-01 00:00+00'::timestamptz"
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(plain.port) as other:
        client.query("set timezone = 'Asia/Tokyo'")
        other.query("set timezone = 'UTC'")
        for _ in range(TIMES):
            assert client.one(text) == b"1970-01-01 09:00:00+09"
            assert other.one(text) == b"1970-01-01 00:00:00+00"


def test_a_temporary_table_is_seen_in_place_of_the_table_that_a_kept_query_reads(plain: Pgnear, table: str) -> None:
    text = f"select count(*) from {table}"
    with WireClient.logged_in(plain.port) as client:
        for _ in range(TIMES):
            client.query(text)
        everybody = client.one(text)
        client.query(f"create temp table {table} (id int)")
        for _ in range(TIMES):
            assert client.one(text) == b"0"
        client.query(f"drop table {table}")
        assert client.one(text) == everybody


def test_a_kept_query_ends_the_unnamed_statement_as_any_query_does(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client:
        for _ in range(TIMES):
            client.ask(parse("select 'unnamed'") + SYNC)
            assert client.one("select 'ends it'") == b"ends it"
            answer = client.ask(bind() + execute() + SYNC)
            assert [error_fields(body)["C"] for kind, body in answer if kind == "E"] == ["26000"]


def test_kept_queries_in_a_pipeline_are_answered_in_order(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client:
        for _ in range(TIMES):
            client.one("select 'first'")
        pipeline = [query("select 'first'"), query("select 'second'"), query("select 'first'")]
        assert rows(client.ask(*pipeline, syncs=3)) == [[b"first"], [b"second"], [b"first"]]


def test_nothing_is_kept_where_that_is_switched_off(pgnear: Start) -> None:
    near = pgnear(pool_size=1, cache={"enabled": False}, reuse_statements=False)
    with WireClient.logged_in(near.port) as client:
        for _ in range(TIMES):
            assert client.one("select 'switched off'") == b"switched off"
        assert kept(client, "switched off") == 0


def test_no_more_is_kept_than_a_connection_may_have(pgnear: Start) -> None:
    near = pgnear(pool_size=1, cache={"enabled": False}, max_prepared_statements=5)
    with WireClient.logged_in(near.port) as client:
        for number in range(20):
            for _ in range(TIMES):
                assert client.one(f"select 'bounded', {number}") == b"bounded"
        assert 1 <= kept(client, "bounded") <= 5
