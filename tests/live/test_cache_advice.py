"""SHOW CACHE ADVICE tells who has not switched the cache on, and who has, what it is good for: from real traffic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from tests.support.cached import keep
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until

TABLES = """
create table goods (id int primary key, v int);
create table ledger (id int primary key, v int);
insert into goods select n, n from generate_series(1, 500) n;
insert into ledger select n, n from generate_series(1, 500) n;
create function slow_price(n int) returns int stable language sql as 'select n';
"""


@pytest.fixture(scope="module")
def shop(origin: Server) -> Iterator[Server]:
    with origin.connect() as connection:
        connection.execute(TABLES.encode())
        yield origin
        connection.execute(b"drop table goods, ledger; drop function slow_price")


@pytest.fixture(scope="module", params=["on", "off"])
def near(shop: Server, request: pytest.FixtureRequest) -> Iterator[Pgnear]:
    """One pgnear with the cache and one without: the advice is for both."""
    with running(shop.url(), cache={"enabled": request.param == "on"}) as started:
        with started.connect(dsn={"dbname": "pgnear"}) as console:
            until(lambda: _knows_tables(started, console), what="the catalog is not known")
        yield started


def _knows_tables(near: Pgnear, console: Any) -> bool:
    with near.connect() as client:
        client.execute(b"select count(*) from goods where v = 0")
    found = [row for row in advice(console) if row["tables"] == "public.goods"]
    return bool(found)


def advice(console: Any) -> list[dict[str, Any]]:
    cursor = console.execute(b"show cache advice")
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def advice_about(near: Pgnear, statement: str) -> dict[str, Any]:
    """The row of the shape whose statement, without literals, has `statement` in it."""
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        found = [row for row in advice(console) if statement in (row["statement"] or "")]
    assert len(found) == 1, found
    return found[0]


def test_a_read_that_is_repeated_is_to_be_cached_and_shown_without_its_literals(near: Pgnear) -> None:
    with near.connect() as client:
        client.execute(
            b"select set_config('pgnear.cache', 'off', false)"
        )  # so that the origin answers with a cache, too
        for number in range(60):
            client.execute(f"select id, v from goods where id = {number % 3} and v <> 987654".encode())
    row = advice_about(near, "select id, v from goods where id = $1 and v <> $2")
    assert row["verdict"] == "cache", row
    assert row["calls"] == 60
    assert row["repeats_percent"] == 95.0
    assert row["saves_seconds"] > 0
    assert row["origin_seconds"] >= row["saves_seconds"]
    assert row["mean_bytes"] > 20
    assert row["ttl"] >= 1
    assert row["tables"] == "public.goods"


def test_parameters_count_as_the_literals_do(near: Pgnear) -> None:
    with near.connect() as client:
        client.execute(b"select set_config('pgnear.cache', 'off', false)")
        for number in range(40):
            client.execute("select v, id from goods where id = %s and v >= 0", (number % 4,), prepare=number % 2 == 0)
    row = advice_about(near, "select v, id from goods where id = $1 and v >=")
    assert row["calls"] == 40
    assert row["repeats_percent"] == 90.0


def test_what_is_asked_once_each_is_left_alone(near: Pgnear) -> None:
    with near.connect() as client:
        for number in range(50):
            client.execute(f"select v + 1 from goods where id = {number}".encode())
    row = advice_about(near, "select v + $1 from goods")
    assert row["verdict"] == "leave"
    assert row["saves_seconds"] <= 0
    assert row["ttl"] is None


def test_a_condition_on_the_current_time_is_called_temporal(near: Pgnear) -> None:
    with near.connect() as client:
        client.execute(b"select count(*) from goods where v > date_part('epoch', now())")
        client.execute(b"select count(*) from goods where now()::date = current_date")
        client.execute(b"select 1 from goods where current_date > '2020-01-01'")
    for statement in ("now())", "now()::date", "current_date >"):
        row = advice_about(near, statement)
        assert row["verdict"] == "temporal", row
        assert "parameter" in row["reason"]


def test_what_cannot_be_cached_says_why(near: Pgnear) -> None:
    with near.connect() as client:
        client.execute(b"select slow_price(v) from goods where id = 1")
        client.execute(b"select v from goods where id = 7 for update")
        client.execute(b"select relname from pg_class limit 1")
    for statement, reason in (
        ("slow_price", "stable and not in cache.safe_functions"),
        ("for update", "locks rows"),
        ("pg_class", "system catalog"),
    ):
        row = advice_about(near, statement)
        assert row["verdict"] == "not cacheable"
        assert reason in row["reason"]


def test_what_is_read_behind_its_own_write_each_time_is_called_so(near: Pgnear) -> None:
    with near.connect() as client:
        for number in range(20):
            client.execute(f"update ledger set v = v + {number} where id = 1".encode())
            client.execute(b"select sum(v) from ledger")
    row = advice_about(near, "select sum(v) from ledger")
    assert row["verdict"] == "write-then-read", row
    assert row["behind_writes_percent"] == 100.0
    assert "directly behind a write" in row["reason"]
    assert row["update_interval"] is not None


def test_a_write_to_another_table_is_none_to_this_one(near: Pgnear) -> None:
    with near.connect() as client:
        for _ in range(5):
            client.execute(b"update ledger set v = 1 where id = 1")
            client.execute(b"select max(v) from goods")
    row = advice_about(near, "select max(v) from goods")
    assert row["behind_writes_percent"] == 0.0


def test_writes_and_commands_are_no_reads(near: Pgnear) -> None:
    with near.connect() as client:
        for statement in ("begin", "update ledger set v = 77777", "commit", "show timezone", "explain select 77777"):
            client.execute(statement.encode())
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        shown = [row["statement"] or "" for row in advice(console)]
    assert not [each for each in shown if each.startswith(("begin", "update", "commit", "show", "explain"))]


def test_what_the_cache_has_answered_is_saved_already(shop: Server) -> None:
    with running(shop.url()) as near, near.connect() as client:
        near.wait_until_it_caches()
        keep(near, client, "select min(v) from goods")
        for _ in range(20):
            client.execute(b"select min(v) from goods")
        row = advice_about(near, "select min(v) from goods")
        assert row["verdict"] == "cached"
        assert row["hits"] >= 20
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            console.execute(b"purge all")
        assert advice_about(near, "select min(v) from goods")["hits"] == row["hits"]  # entries that are gone count


def test_as_many_shapes_are_remembered_as_are_allowed(shop: Server) -> None:
    pairs = list(product(("=", "<", ">", "<>", "<=", ">="), repeat=2))
    with running(shop.url(), cache={"max_advice_shapes": 10}) as near:
        near.wait_until_it_caches()
        with near.connect() as client:
            for first, second in pairs:
                client.execute(f"select v from goods where id {first} 1 and v {second} 1".encode())
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            rows = advice(console)
        assert 5 <= len(rows) <= 11
        assert rows[-1]["verdict"] == "unknown"
        assert "cheaper shapes were forgotten" in rows[-1]["reason"]


def test_nothing_is_counted_where_that_is_switched_off(shop: Server) -> None:
    with running(shop.url(), cache={"max_advice_shapes": 0}) as near:
        near.wait_until_it_caches()
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            assert advice(console) == []
