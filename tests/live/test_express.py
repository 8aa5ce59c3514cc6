"""The express lane and what it keeps: requests that come again and again are answered as the first one was.

What comes for the third time goes another way than the first, so these tests ask at least that often.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from tests.conftest import Start
from tests.support.cached import hits_of
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until
from tests.support.wire import (
    SYNC,
    TERMINATE,
    WireClient,
    bind,
    describe,
    error_fields,
    execute,
    frame,
    parse,
    query,
    rows,
)  # fmt: skip

KEPT = "select count(*) from pg_prepared_statement() where not from_sql and statement like '%{}%'"
"""The view of that name shows a client its own only."""


@pytest.fixture(scope="module")
def plain(origin: Server) -> Iterator[Pgnear]:
    """One origin connection, no cache."""
    with running(origin.url(), pool_size=1, cache={"enabled": False}) as near:
        yield near


@pytest.fixture(scope="module")
def caching(origin: Server) -> Iterator[Pgnear]:
    """With a table `wanted` that it knows from the beginning."""
    origin.execute("create table wanted (id int primary key, v int)")
    origin.execute("insert into wanted values (1, 10), (2, 20)")
    with running(origin.url(), pool_size=4) as near:
        near.wait_until_it_caches()
        yield near
    origin.execute("drop table wanted")


def unnamed(text: str, *values: bytes) -> bytes:
    """What most drivers send for a query with parameters."""
    return parse(text) + bind(values=values) + describe() + execute() + SYNC


def named(name: str, *values: bytes) -> bytes:
    return bind(name, values) + describe() + execute() + SYNC


# ---- statements without a name ---------------------------------------------------------------------------------------


def test_what_is_parsed_again_and_again_is_kept_by_the_connection_and_answered_alike(
    origin: Server, plain: Pgnear
) -> None:
    request = unnamed("select $1::int + 1 as again", b"41")
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        first = direct.ask(request)
        assert all(client.ask(request) == first for _ in range(6))
        assert client.one(KEPT.format("as again")) == b"1"


def test_what_is_parsed_once_is_not_kept(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client:
        for number in range(5):
            assert rows(client.ask(unnamed(f"select {number} as once"))) == [[str(number).encode()]]
        assert client.one(KEPT.format("as once")) == b"0"


def test_nothing_is_kept_where_that_is_switched_off(pgnear: Start) -> None:
    near = pgnear(pool_size=1, cache={"enabled": False}, reuse_statements=False)
    with WireClient.logged_in(near.port) as client:
        for _ in range(5):
            assert rows(client.ask(unnamed("select $1::int as never", b"7"))) == [[b"7"]]
        assert client.one(KEPT.format("as never")) == b"0"


def test_a_table_that_changes_behind_pgnear_fails_no_request_that_parses_its_statement(
    origin: Server, plain: Pgnear, table: str
) -> None:
    """A kept plan of the old table is refused by PostgreSQL ("cached plan must not change result type"), but this
    client has never asked for it to be kept.
    """
    request = unnamed(f"select * from {table} where id = $1", b"1")
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        for _ in range(5):
            assert rows(client.ask(request)) == [[b"1", b"10"]]
        origin.execute(f"alter table {table} add column w int default 7")
        assert client.ask(request) == direct.ask(request)
        for _ in range(5):
            assert rows(client.ask(request)) == [[b"1", b"10", b"7"]]
        assert client.query("select 1")[-1] == ("Z", b"I")


def test_an_error_behind_a_parse_that_was_not_sent_is_the_clients_own(origin: Server, plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(origin.port) as direct:
        for value in (b"1", b"2", b"3", b"0", b"x", b"4"):
            request = unnamed("select 12 / $1::int as quotient", value)
            mine, theirs = client.ask(request), direct.ask(request)
            assert [kind for kind, _ in mine] == [kind for kind, _ in theirs]
            assert rows(mine) == rows(theirs)
            errors = [[error_fields(body) for kind, body in answer if kind == "E"] for answer in (mine, theirs)]
            assert errors[0] == errors[1]


def test_a_statement_that_was_not_sent_can_be_bound_again_without_its_parse(plain: Pgnear) -> None:
    with WireClient.logged_in(plain.port) as client, WireClient.logged_in(plain.port) as other:
        for _ in range(4):
            client.ask(unnamed("select $1::text || '!' as shout", b"a"))
        other.ask(unnamed("select 'another'"))
        assert rows(client.ask(bind(values=[b"b"]) + execute() + SYNC)) == [[b"b!"]]


def test_in_a_transaction_a_statement_is_parsed_as_ever(plain: Pgnear) -> None:
    """An outdated plan would end the transaction."""
    with WireClient.logged_in(plain.port) as client:
        client.query("begin")
        for _ in range(5):
            assert rows(client.ask(unnamed("select $1::int as inside", b"3"))) == [[b"3"]]
        assert client.one(KEPT.format("as inside")) == b"0"
        client.query("rollback")


# ---- frames that lie about their length ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [
        parse("select $1::int as lie") + frame("B", b"\0\0")[:1] + pack("!i", -20) + bind(values=[b"1"])[5:]
        + describe() + execute() + SYNC,
        frame("B", b"\0unending") + execute() + SYNC,
        parse("select $1::int as lie") + frame("B", b"\0") + describe() + execute() + SYNC,
        parse("select $1::int as lie") + frame("B", b"\0\0") + describe() + execute() + SYNC,
    ],
)  # fmt: skip
def test_a_bind_that_lies_about_its_length_harms_nobody_else(plain: Pgnear, request_: bytes) -> None:
    with WireClient.logged_in(plain.port) as other:
        with WireClient.logged_in(plain.port) as client:
            for _ in range(4):
                client.ask(unnamed("select $1::int as lie", b"1"))
            client.send(request_, TERMINATE)
            seen = client.receive_all()
            assert any(kind == "E" for kind, _ in seen)
        for _ in range(3):
            assert other.one("select 'unharmed'") == b"unharmed"
            assert rows(other.ask(unnamed("select $1::int as lie", b"1"))) == [[b"1"]]


# ---- answers that are ready ------------------------------------------------------------------------------------------


def test_one_name_of_two_statements_leads_each_client_to_its_own_answer(caching: Pgnear) -> None:
    with WireClient.logged_in(caching.port) as one, WireClient.logged_in(caching.port) as two:
        one.ask(parse("select v from wanted where id = $1", "s") + SYNC)
        two.ask(parse("select v + 1 from wanted where id = $1", "s") + SYNC)
        until(lambda: hits_of(caching, lambda: [each.ask(named("s", b"1")) for each in (one, two)]) == 2)
        for _ in range(4):
            assert rows(one.ask(named("s", b"1"))) == [[b"10"]]
            assert rows(two.ask(named("s", b"1"))) == [[b"11"]]


@pytest.mark.parametrize("mode", ["simple", "unnamed", "named"])
def test_a_ready_answer_ends_with_a_write_and_with_a_setting(caching: Pgnear, mode: str) -> None:
    text = "select v, '1970-01-01 00:00+00'::timestamptz from wanted where id = 1"
    request = {"simple": query(text), "unnamed": unnamed(text), "named": named("s")}[mode]
    with WireClient.logged_in(caching.port) as client, WireClient.logged_in(caching.port) as writer:
        client.query("set timezone = 'UTC'")
        client.ask(parse(text, "s") + SYNC)
        until(lambda: hits_of(caching, lambda: client.ask(request)) == 1)
        before = client.ask(request)
        assert hits_of(caching, lambda: [client.ask(request) for _ in range(3)]) == 3
        assert client.ask(request) == before
        assert rows(before) == [[b"10", b"1970-01-01 00:00:00+00"]]
        writer.query("update wanted set v = 11 where id = 1")
        for _ in range(4):
            assert rows(client.ask(request)) == [[b"11", b"1970-01-01 00:00:00+00"]]
        client.query("set timezone = 'Asia/Tokyo'")
        for _ in range(4):
            assert rows(client.ask(request)) == [[b"11", b"1970-01-01 09:00:00+09"]]
        client.query("set timezone = 'UTC'")
        client.query("begin")
        client.query("update wanted set v = 12 where id = 1")
        assert rows(client.ask(request))[0][0] == b"12"
        client.query("rollback")
        for _ in range(4):
            assert rows(client.ask(request))[0][0] == b"11"
        writer.query("update wanted set v = 10 where id = 1")


def test_a_ready_answer_in_a_transaction_is_no_end_of_it(caching: Pgnear) -> None:
    request = query("select v from wanted where id = 2")
    with WireClient.logged_in(caching.port) as client:
        until(lambda: hits_of(caching, lambda: client.ask(request)) == 1)
        assert client.ask(request)[-1] == ("Z", b"I")
        client.query("begin isolation level read committed")
        for _ in range(3):
            assert client.ask(request)[-1] == ("Z", b"T")
        client.query("commit")
        assert client.ask(request)[-1] == ("Z", b"I")


def test_a_ready_answer_prepares_what_its_request_parses(caching: Pgnear) -> None:
    text = "select v from wanted where id = $1"
    with WireClient.logged_in(caching.port) as client:
        until(lambda: hits_of(caching, lambda: client.ask(unnamed(text, b"1"))) == 1)
        for _ in range(3):
            client.ask(unnamed("select 'something else'"))
            assert rows(client.ask(unnamed(text, b"1"))) == [[b"10"]]
            assert rows(client.ask(bind(values=[b"2"]) + execute() + SYNC)) == [[b"20"]]
            client.query("select 1")
            assert [kind for kind, _ in client.ask(bind(values=[b"2"]) + execute() + SYNC)] == ["E", "Z"]
