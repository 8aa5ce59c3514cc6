"""Programs that write past pgnear tell it what to purge, by NOTIFY; without a stream, so that nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.cached import answer, is_hit, keep
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.proxy import Proxy
from tests.support.waiting import until

SETUP = """
create schema shop;
create table shop.told (id int primary key, v int);
create table told_not (id int primary key, v int);
create table told_part (id int) partition by range (id);
create table told_part_low partition of told_part for values from (0) to (100);
insert into shop.told values (1, 10);
insert into told_not values (1, 10);
"""
TOLD, TOLD_NOT = "select v from shop.told", "select v from told_not"
POLICY = '[{"name": "catalogue", "tables": "shop.told"}]'


@pytest.fixture(scope="module")
def told(origin: Server) -> Iterator[Server]:
    origin.execute(SETUP)
    yield origin
    origin.execute("drop schema shop cascade; drop table told_not, told_part")


@pytest.fixture(scope="module")
def near(told: Server) -> Iterator[Pgnear]:
    with running(told.url(), cache={"notify_channel": "purge it", "policy": POLICY, "ttl": "600s"}) as started:
        started.wait_for_log("cache_notify_listening")
        started.wait_until_it_caches()
        yield started


@pytest.fixture
def reader(near: Pgnear, told: Server) -> Iterator[Any]:
    """A client for whom both tables' answers are kept, and old."""
    told.execute("update shop.told set v = 10; update told_not set v = 10")
    with near.connect() as client, near.connect(dsn={"dbname": "pgnear"}) as console:
        console.execute(b"purge all")
        assert [keep(near, client, query) for query in (TOLD, TOLD_NOT)] == [10, 10]
        told.execute("update shop.told set v = 11; update told_not set v = 11")
        assert [answer(client, query) for query in (TOLD, TOLD_NOT)] == [10, 10]
        yield client


def tell(server: Server, payload: str) -> None:
    server.execute("select pg_notify('purge it', %s)", payload)


@pytest.mark.parametrize(
    ("payload", "spares_other"),
    [
        ("table shop.told", True),
        ('TABLE "shop"."told"', True),
        ("table told", True),
        ("namespace catalogue", True),
        ("all", False),
    ],
)
def test_what_is_told_is_purged_and_nothing_else(
    near: Pgnear, told: Server, reader: psycopg.Connection, payload: str, spares_other: bool
) -> None:
    tell(told, payload)
    until(lambda: answer(reader, TOLD) == 11, within=5, what="it is not purged")
    assert answer(reader, TOLD_NOT) == (10 if spares_other else 11)


def test_a_fingerprint_is_purged(near: Pgnear, told: Server, reader: psycopg.Connection) -> None:
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        mark = dict(console.execute(f"explain cache {TOLD}".encode()).fetchall())["fingerprint"]
    tell(told, f"fingerprint {mark}")
    until(lambda: answer(reader, TOLD) == 11, within=5, what="it is not purged")
    assert answer(reader, TOLD_NOT) == 10


@pytest.mark.parametrize(
    "payload", ["", "tables told", "table", "table no.such", "namespace nobodys", "drop table told"]
)
def test_what_is_not_understood_is_logged_and_counted_and_purges_nothing(
    near: Pgnear, told: Server, reader: psycopg.Connection, payload: str
) -> None:
    rejected = near.metric("cache_notify_rejected_total")
    tell(told, payload)
    until(lambda: near.metric("cache_notify_rejected_total") == rejected + 1, what="it is not counted")
    assert near.wait_for_log("cache_notify_rejected", payload=payload)["reason"]
    assert answer(reader, TOLD) == 10


def test_a_transaction_that_is_rolled_back_tells_nothing(
    near: Pgnear, told: Server, reader: psycopg.Connection
) -> None:
    received = near.metric("cache_notify_received_total")
    with told.connect() as writer:
        writer.execute(b"begin; select pg_notify('purge it', 'all')")
        writer.execute(b"rollback")
    tell(told, "table told_part")
    until(lambda: near.metric("cache_notify_received_total") == received + 1, what="nothing is heard")
    assert answer(reader, TOLD) == 10


def test_a_listener_that_was_lost_takes_every_answer_with_it_and_comes_back(
    near: Pgnear, told: Server, reader: psycopg.Connection
) -> None:
    """What was told while nobody listened is not known."""
    listening = "select pid from pg_stat_activity where application_name = 'pgnear notify'"
    count = int(near.metric("cache_notify_losses_total"))
    told.execute(f"select pg_terminate_backend(pid) from ({listening}) one")
    near.wait_for_log("cache_notify_lost", count=count + 1)
    near.wait_for_log("cache_notify_listening", count=count + 2)
    assert answer(reader, TOLD) == answer(reader, TOLD_NOT) == 11
    assert near.metric("cache_notify_connected") == 1
    tell(told, "table told")
    assert is_hit(near, reader, TOLD_NOT)


def test_without_a_listener_answers_live_as_long_as_without_a_stream(told: Server) -> None:
    settings = {"notify_channel": "purge it", "ttl": "600s", "ttl_without_stream": "1s"}
    with Proxy(told.port) as proxy:
        through = told.url(sslmode="disable").replace(str(told.port), str(proxy.port))
        with running(through, cache=settings, min_pool_size=2) as near, near.connect() as client:
            near.wait_for_log("cache_notify_listening")
            near.wait_until_it_caches()
            proxy.refuse()
            told.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnear notify'"
            )
            near.wait_for_log("cache_notify_unavailable")
            before = keep(near, client, TOLD)
            told.execute("update shop.told set v = v + 1")
            until(lambda: answer(client, TOLD) == before + 1, within=5, what="an old answer lives on")
            with near.connect(dsn={"dbname": "pgnear"}) as console:
                explained = dict(console.execute(f"explain cache {TOLD}".encode()).fetchall())
            assert explained["capped"] == "1 s: the notify that tells of writes past pgnear is lost"
            proxy.refuse(False)
            near.wait_for_log("cache_notify_listening", count=2, within=25)
