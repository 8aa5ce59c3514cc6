"""Whose cached answer is whose, and how long it is served: settings, roles, policies, ttl, what is never kept.

Not here: what a write ends (`test_cache`), that cached answers equal the origin's byte by byte (`test_cache_answers`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from threading import Barrier, Event
from typing import Any

import psycopg
import pytest

from pooler.embedded import installed
from tests.support.cached import answer, hits_of, is_hit, keep, never_kept
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import Background, together, until

TABLES = f"""
create table item (id int primary key, v int);
create table bystander (id int primary key, v int);
create table short_lived (id int primary key, v int);
create table never_cached (id int primary key, v int);
create table of_many_types (id int, at timestamptz, span interval, bits bytea, number float8, price money);
insert into of_many_types values
  (1, '2024-03-31 01:30:00+00', '1 day 02:03:04', '\\xdeadbeef', 0.1::float8 + 0.2::float8, 12.5);
create sequence calls;
create function counted(v int) returns int immutable language plpgsql as
  $$ begin perform nextval('calls'); return v; end $$;
create function counted_slowly(v int) returns int immutable language plpgsql as
  $$ begin perform nextval('calls'), pg_sleep(0.5); return v; end $$;
create role alice login password '{PASSWORD}';
create role bob login password '{PASSWORD}';
create table by_role (owner name, v int);
insert into by_role values ('alice', 1), ('bob', 2), ('bob', 3);
alter table by_role enable row level security;
create policy own on by_role using (owner = current_user);
create table by_tenant (tenant text, v int);
insert into by_tenant values ('a', 1), ('b', 2), ('b', 3);
alter table by_tenant enable row level security;
create policy own on by_tenant using (tenant = current_setting('app.tenant', true));
create schema one create table named (v int);
create schema two create table named (v int);
insert into one.named values (1);
insert into two.named values (2);
grant usage on schema one, two to public;
grant all on all tables in schema public, one, two to public;
"""
ROWS = """
truncate item, bystander, short_lived, never_cached;
insert into item values (1, 10), (2, 20);
insert into bystander values (1, 1);
insert into short_lived values (1, 10);
insert into never_cached values (1, 10);
"""
CONFIGURATION = f"""
[users]
postgres.password = "{PASSWORD}"
alice.password = "{PASSWORD}"
bob.password = "{PASSWORD}"
[cache]
max_entry_bytes = 4096
[[cache.policy]]
name = "tables"
tables = ["public.never_cached"]
enabled = false
[[cache.policy]]
name = "users"
user = ["bob"]
tables = ["item"]
enabled = false
[[cache.policy]]
name = "programs"
application_name = ["audit"]
enabled = false
[[cache.policy]]
name = "texts"
text = "(?i)ORDER BY random_order"
enabled = false
[[cache.policy]]
name = "short"
tables = ["short_lived"]
ttl = "1s"
stale_while_revalidate = 0
"""
_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(installation=installed(18), settings={"max_connections": "150"}) as origin:
        with origin.connect() as connection:
            connection.execute(TABLES.encode())
        yield origin


@pytest.fixture(scope="module")
def near(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pgnear]:
    file = tmp_path_factory.mktemp("pgnear") / "pgnear.toml"
    file.write_text(CONFIGURATION)
    with running(server.url(), "--config", str(file)) as started:
        started.wait_until_it_caches()
        yield started


@pytest.fixture(scope="module")
def as_alice(server: Server) -> Iterator[Pgnear]:
    """A pgnear that logs in to the origin as alice, who is no superuser."""
    users = {name: {"password": PASSWORD} for name in ("postgres", "alice")}
    with running(server.url(user="alice"), users=users) as started:
        started.wait_until_it_caches()
        yield started


@pytest.fixture
def past(near: Pgnear, server: Server) -> Iterator[psycopg.Connection]:
    """A connection past pgnear; the tables as at the beginning, and nothing cached."""
    with server.connect() as connection, near.connect() as writer:
        connection.execute(ROWS.encode())
        writer.execute(b"do $$ begin end $$")
        yield connection


def fresh(query: str) -> str:
    """`query` as nobody has asked it before."""
    return f"{query} -- {next(_numbers)}"


# ---- settings --------------------------------------------------------------------------------------------------------

DIFFERENCES = [
    ("TimeZone", "UTC", "Asia/Tokyo", "select at::text from of_many_types"),
    ("TimeZone", "UTC", "Europe/Berlin", "select at from of_many_types"),
    ("TimeZone", "UTC", "America/New_York", "select extract(hour from at) from of_many_types"),
    ("TimeZone", "UTC", "Asia/Tokyo", "select at::date from of_many_types"),
    ("DateStyle", "ISO, MDY", "German", "select at::text from of_many_types"),
    ("DateStyle", "ISO, MDY", "ISO, DMY", "select '01/02/2024'::date::text from of_many_types"),
    ("IntervalStyle", "postgres", "iso_8601", "select span::text from of_many_types"),
    ("bytea_output", "hex", "escape", "select bits::text from of_many_types"),
    ("extra_float_digits", "1", "0", "select number::text from of_many_types"),
    ("lc_monetary", "C", "C.UTF-8", "select price::text from of_many_types"),
    ("standard_conforming_strings", "on", "off", r"select 'a\\b' from of_many_types"),
    ("backslash_quote", "safe_encoding", "off", "select id from of_many_types"),
    ("transform_null_equals", "off", "on", "select count(*) from of_many_types where null = null"),
    ("array_nulls", "on", "off", "select '{NULL}'::text[] from of_many_types"),
    ("quote_all_identifiers", "off", "on", "select quote_ident('a') from of_many_types"),
    ("default_text_search_config", "pg_catalog.simple", "pg_catalog.english", "select id from of_many_types"),
    ("search_path", "one", "two", "select v from named"),
    ("app.tenant", "a", "b", "select v from by_tenant order by v"),
    ("work_mem", "4MB", "8MB", "select id from of_many_types"),
]


def _set(client: Any, name: str, value: str, how: str) -> None:
    text = ", ".join(value.split(", ")) if name in ("search_path", "DateStyle") else f"'{value}'"
    if how == "SET":
        client.execute(f"set {name} to {text}".encode())
    else:
        client.execute("select set_config(%s, %s, false)", (name, value))


@pytest.mark.parametrize("how", ["SET", "set_config", "startup"])
def test_clients_with_different_settings_get_each_his_own_answer(
    as_alice: Pgnear, server: Server, past: psycopg.Connection, how: str
) -> None:
    for name, one, two, query in DIFFERENCES:
        read = fresh(query)
        options = [f"-c {name}={value}".replace(", ", ",") if how == "startup" else "" for value in (one, two)]
        with (
            as_alice.connect(dsn={"options": options[0], "user": "alice"}) as first,
            as_alice.connect(dsn={"options": options[1], "user": "alice"}) as second,
            psycopg.connect(server.url(user="alice"), autocommit=True) as direct,
        ):
            if how != "startup":
                _set(first, name, one, how)
                _set(second, name, two, how)
            answers = []
            for value in (one, two):
                _set(direct, name, value, "SET")
                answers.append(direct.execute(read.encode()).fetchall())
            for _ in range(3):
                assert first.execute(read.encode()).fetchall() == answers[0], (name, one)
                assert second.execute(read.encode()).fetchall() == answers[1], (name, two)


def test_clients_with_equal_settings_share_answers(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select at::text from of_many_types")
    with near.connect() as first, near.connect() as second:
        for client in (first, second):
            client.execute(b"set timezone to 'Asia/Tokyo'")
        keep(near, first, read)
        assert is_hit(near, second, read)
        second.execute(b"set timezone to 'UTC'")
        assert not is_hit(near, second, read)
        second.execute(b"set timezone to 'Asia/Tokyo'")
        assert is_hit(near, second, read)


def test_a_setting_of_a_transaction_counts_in_it_and_not_behind_it(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select at::text from of_many_types")
    with near.connect() as client:
        client.execute(b"set timezone to 'UTC'")
        outside = keep(near, client, read)
        for change in ("set local timezone to 'Asia/Tokyo'", "set timezone to 'Asia/Tokyo'"):
            client.execute(b"begin")
            client.execute(change.encode())
            assert answer(client, read) != outside
            client.execute(b"rollback")
            assert answer(client, read) == outside
        client.execute(b"begin")
        client.execute(b"set timezone to 'Asia/Tokyo'")
        inside = answer(client, read)
        client.execute(b"commit")
        assert answer(client, read) == inside != outside


# ---- who one is ------------------------------------------------------------------------------------------------------


def test_row_level_security_by_role_shows_each_his_own_rows(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from by_role order by v")
    rows = {"alice": [(1,)], "bob": [(2,), (3,)]}
    with (
        near.connect(dsn={"options": "-c role=alice"}) as alice,
        near.connect(dsn={"options": "-c role=bob"}) as bob,
        near.connect() as superuser,
        near.connect() as changing,
    ):
        for _ in range(3):
            assert alice.execute(read.encode()).fetchall() == rows["alice"]
            assert bob.execute(read.encode()).fetchall() == rows["bob"]
            assert len(superuser.execute(read.encode()).fetchall()) == 3
            for change in ("set role {}", "set session authorization {}", "select set_config('role', '{}', false)"):
                for name, expected in rows.items():
                    changing.execute(change.format(name).encode())
                    assert changing.execute(read.encode()).fetchall() == expected, change
                    changing.execute(b"reset role; reset session authorization")
                    assert len(changing.execute(read.encode()).fetchall()) == 3
            changing.execute(b"begin; set local role alice")
            assert changing.execute(read.encode()).fetchall() == rows["alice"]
            changing.execute(b"commit")
            assert len(changing.execute(read.encode()).fetchall()) == 3


def test_row_level_security_by_a_setting_shows_each_his_own_rows(as_alice: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from by_tenant order by v").encode()
    rows: dict[str, list[tuple[int]]] = {"a": [(1,)], "b": [(2,), (3,)], "nobody": []}
    with as_alice.connect(dsn={"user": "alice"}) as one, as_alice.connect(dsn={"user": "alice"}) as other:
        for _ in range(3):
            for tenant, expected in rows.items():
                one.execute(f"set app.tenant to '{tenant}'".encode())
                assert one.execute(read).fetchall() == expected
                assert other.execute(read).fetchall() == []
                with other.transaction():
                    other.execute(f"set local app.tenant to '{tenant}'".encode())
                    assert other.execute(read).fetchall() == expected
                other.execute("select set_config('app.tenant', %s, false)", (tenant,))
                assert other.execute(read).fetchall() == expected
                other.execute(b"reset app.tenant")


def test_a_right_that_was_taken_away_holds_for_cached_answers_too(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from bystander")
    with near.connect() as alice, near.connect() as admin:
        alice.execute(b"set role alice")
        assert keep(near, alice, read) == 1
        admin.execute(b"revoke all on bystander from public")
        try:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                alice.execute(read.encode())
        finally:
            admin.execute(b"grant all on bystander to public")


def test_what_one_user_may_read_is_not_given_to_another(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from bystander")
    past.execute(b"revoke all on bystander from public; grant select on bystander to alice")
    try:
        with near.connect() as alice, near.connect() as bob:
            alice.execute(b"set role alice")
            bob.execute(b"set role bob")
            keep(near, alice, read)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                bob.execute(read.encode())
    finally:
        past.execute(b"grant all on bystander to public")


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_temporary_table_stands_before_the_real_one_for_its_client_only(
    near: Pgnear, past: psycopg.Connection
) -> None:
    read = fresh("select sum(v)::int from item")
    with near.connect() as reader, near.connect() as owner:
        assert keep(near, reader, read) == 30
        owner.execute(b"create temporary table item as select 1 as id, 5 as v")
        for _ in range(3):
            assert answer(owner, read) == 5
            assert answer(reader, read) == 30
        owner.execute(b"drop table item")
        for _ in range(3):
            assert answer(owner, read) == 30
            assert answer(reader, read) == 30


def test_a_temporary_view_or_function_stands_before_the_real_one(near: Pgnear, past: psycopg.Connection) -> None:
    with near.connect() as owner, near.connect() as reader:
        read = fresh("select v from bystander")
        assert keep(near, reader, read) == 1
        owner.execute(b"create temporary view bystander as select 8 as v")
        assert answer(owner, read) == 8
        assert answer(reader, read) == 1


def test_one_name_in_two_schemas_is_two_tables(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from named")
    with near.connect() as first, near.connect() as second:
        first.execute(b"set search_path to one, two")
        second.execute(b"set search_path to two, one")
        assert keep(near, first, read) == 1
        assert keep(near, second, read) == 2
        second.execute(b"update named set v = 22")
        assert answer(second, read) == 22
        assert answer(first, read) == 1
        second.execute(b"update named set v = 2")


# ---- what is never kept ----------------------------------------------------------------------------------------------


def test_one_name_in_two_databases_is_two_tables(server: Server, past: psycopg.Connection) -> None:
    past.execute(b"create database elsewhere")
    with psycopg.connect(server.url("elsewhere"), autocommit=True) as direct:
        direct.execute(b"create table item as select 1 as id, 77 as v")
    query = "select v from item where id = 1"
    with (
        running(server.url(), databases={"elsewhere": {"origin": server.url("elsewhere")}}) as near,
        near.connect() as here,
        near.connect(dsn={"dbname": "elsewhere"}) as there,
    ):
        assert keep(near, here, query) == 10
        assert keep(near, there, query) == 77
        here.execute(b"update item set v = 11 where id = 1")
        assert is_hit(near, there, query)
        assert answer(here, query) == 11
        assert answer(there, query) == 77
    past.execute(b"drop database elsewhere with (force)")


def test_an_error_is_not_kept(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select 1 / (20 - v) from item order by id")
    with near.connect() as client:
        for _ in range(3):
            with pytest.raises(psycopg.errors.DivisionByZero):
                client.execute(read.encode())
        past.execute(b"update item set v = 19 where id = 2")
        assert client.execute(read.encode()).fetchall() == [(0,), (1,)]


def test_a_large_answer_is_passed_on_and_not_kept(near: Pgnear, past: psycopg.Connection) -> None:
    with near.connect() as client:
        large, small = (fresh(f"select repeat('x', {size}), v from bystander") for size in (5000, 3000))
        keep(near, client, small)
        assert never_kept(near, client, large)
        assert len(answer(client, large)) == 5000
        many = fresh("select n, v from bystander, generate_series(1, 1000) n")
        assert never_kept(near, client, many)
        assert len(client.execute(many.encode()).fetchall()) == 1000


@pytest.mark.parametrize(
    "query",
    [
        "select now(), v from item",
        "select random() from item",
        "select v from item where v < extract(epoch from clock_timestamp())",
        "select current_date",
        "select 'now'::timestamptz",
        "select 'today'::date from item",
        "select nextval('calls')",
        "select last_value from calls",
        "select * from item for update",
        "select * from item for share",
        "select count(*) from pg_class",
        "select count(*) from information_schema.tables",
        "select pg_backend_pid()",
        "select txid_current()",
        "select pg_try_advisory_xact_lock(1)",
        "select count(*) from item tablesample bernoulli (50)",
        "select pg_sleep(0)",
        "select inet_client_port()",
        "show timezone",
        "explain select * from item",
        "table pg_stat_activity",
        "select current_setting('timezone')",
    ],
)
def test_what_may_differ_each_time_is_not_kept(near: Pgnear, past: psycopg.Connection, query: str) -> None:
    with near.connect() as client:
        assert never_kept(near, client, fresh(query))


# ---- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "query"),
    [
        ({}, "select v from never_cached"),
        ({}, "select v from public.never_cached"),
        ({}, "select i.v from item i join never_cached using (id)"),
        ({"user": "bob"}, "select v from item"),
        ({"application_name": "audit"}, "select v from bystander"),
        ({}, "select v as random_order from item order by random_order"),
        ({}, "/* pgnear: ttl=300 */ select v from never_cached"),
        ({}, "/* pgnear: off */ select v from item"),
        ({}, "/* a tracer's */ /* pgnear: off */ select v from item"),
        ({"options": "-c pgnear.cache=off"}, "select v from item"),
    ],
)
def test_a_policy_that_is_off_keeps_nothing(
    near: Pgnear, past: psycopg.Connection, who: dict[str, object], query: str
) -> None:
    with near.connect(dsn=who) as client:
        assert never_kept(near, client, fresh(query))


@pytest.mark.parametrize(
    ("who", "query"),
    [
        ({"user": "bob"}, "select v from bystander"),
        ({"user": "alice"}, "select v from item"),
        ({"application_name": "shop"}, "select v from bystander"),
        ({}, "select v as random_order from item"),
        ({}, "/* pgnear: ttl=300 */ select v from item"),
        ({}, "/* nothing of pgnear's */ select v from item"),
    ],
)
def test_a_policy_for_others_changes_nothing(
    near: Pgnear, past: psycopg.Connection, who: dict[str, object], query: str
) -> None:
    with near.connect(dsn=who) as client:
        keep(near, client, fresh(query))


def test_a_session_switches_the_cache_off_and_on(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from bystander")
    with near.connect() as client:
        assert keep(near, client, read) == 1
        past.execute(b"update bystander set v = 2")
        client.execute(b"set pgnear.cache = off")
        assert answer(client, read) == 2
        assert never_kept(near, client, read)
        client.execute(b"reset pgnear.cache")
        assert answer(client, read) == 1


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("select v from short_lived", 11),
        ("/* pgnear: ttl=1s swr=0 */ select v from bystander", 11),
        ("select v from bystander", 1),
    ],
)
def test_a_policy_says_how_long_an_answer_is_served(
    near: Pgnear, past: psycopg.Connection, query: str, value: int
) -> None:
    read = fresh(query)
    with near.connect() as client:
        keep(near, client, read)
        stored = time.monotonic()
        past.execute(b"update bystander set v = 11; update short_lived set v = 11")
        until(lambda: time.monotonic() > stored + 1.4)
        assert answer(client, read) == value


# ---- freshness -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brief(server: Server) -> Iterator[Pgnear]:
    """A pgnear whose answers are stale after a second."""
    with running(
        server.url(), cache={"ttl": "1s", "stale_while_revalidate": "30s", "negative_ttl": "500ms"}
    ) as started:
        started.wait_until_it_caches()
        yield started


def test_a_stale_answer_is_served_at_once_and_one_query_fetches_a_new_one(
    brief: Pgnear, past: psycopg.Connection
) -> None:
    read = fresh("select counted_slowly(v) from bystander")
    with brief.connect() as client:
        assert keep(brief, client, read) == 1
        stored = time.monotonic()
        past.execute(b"update bystander set v = 2")
        until(lambda: time.monotonic() > stored + 1.4)
        asked = answer(past, "select last_value from calls")
        clients = [brief.connect() for _ in range(20)]
        gate = Barrier(20)

        def ask(number: int) -> object:
            gate.wait(40)
            return answer(clients[number], read)

        with past.transaction():
            past.execute(b"lock table bystander")  # so that the query for a new one cannot end before all are served
            assert set(together(20, ask)) == {1}
        until(lambda: answer(client, read) == 2, within=15, what="no new answer was fetched")
        assert answer(past, "select last_value from calls") == asked + 1
        for each in clients:
            each.close()


def test_an_answer_without_rows_is_served_a_shorter_time(near: Pgnear, past: psycopg.Connection) -> None:
    empty = fresh("/* pgnear: negative_ttl=500ms, ttl=60s, swr=60s */ select v from bystander where id = 7")
    other = fresh("/* pgnear: negative_ttl=500ms, ttl=60s, swr=60s */ select v from bystander where id = 1")
    with near.connect() as client:
        assert keep(near, client, empty) is None
        assert keep(near, client, other) == 1
        past.execute(b"insert into bystander values (7, 70); update bystander set v = 2 where id = 1")
        until(lambda: answer(client, empty) == 70, within=20, what="the new row is not seen")
        assert answer(client, other) == 1


def test_a_write_ends_a_stale_answer_too(brief: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select counted(v) from bystander")
    with brief.connect() as client:
        assert keep(brief, client, read) == 1
        stored = time.monotonic()
        until(lambda: time.monotonic() > stored + 1.4)
        client.execute(b"update bystander set v = 3")
        assert answer(client, read) == 3


def test_a_refresh_that_a_write_has_overtaken_is_not_kept(brief: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select counted_slowly(v) from bystander")
    with brief.connect() as client, brief.connect() as writer:
        assert keep(brief, client, read) == 1
        stored = time.monotonic()
        until(lambda: time.monotonic() > stored + 1.4)
        assert answer(client, read) == 1  # begins a refresh
        running = "select count(*) from pg_stat_activity where state = 'active' and query = %s"
        until(lambda: past.execute(running, (read,)).fetchone() == (1,), what="no refresh")
        writer.execute(b"update bystander set v = 4")
        assert answer(writer, read) == 4
        until(lambda: past.execute(running, (read,)).fetchone() == (0,))
        Event().wait(0.05)
        assert answer(client, read) == 4


def test_many_who_miss_the_same_key_are_one_query(near: Pgnear, past: psycopg.Connection) -> None:
    with near.connect() as client:
        keep(near, client, fresh("select counted(v) from bystander"))  # the catalog is known
    read = fresh("select counted_slowly(v) from bystander")
    clients = [near.connect() for _ in range(30)]
    asked = answer(past, "select last_value from calls")
    gate = Barrier(30)

    def ask(number: int) -> object:
        gate.wait(40)
        return answer(clients[number], read)

    assert set(together(30, ask)) == {1}
    for each in clients:
        each.close()
    assert answer(past, "select last_value from calls") == asked + 1


def test_the_first_reads_of_a_transaction_may_be_cached_answers(near: Pgnear, past: psycopg.Connection) -> None:
    read = fresh("select v from bystander")
    with near.connect() as client:
        keep(near, client, read)

        def transaction() -> None:
            client.execute(b"begin")
            client.execute(read.encode())
            client.execute(b"commit")

        assert hits_of(near, transaction) == 1


def test_a_read_that_waited_for_a_connection_is_kept(server: Server, past: psycopg.Connection) -> None:
    with running(server.url(), pool_size=1) as narrow:
        narrow.wait_until_it_caches()
        with narrow.connect() as holder, narrow.connect() as reader:
            keep(narrow, reader, fresh("select v from bystander"))
            read = fresh("select v from bystander")
            holder.execute(b"begin; select pg_backend_pid()")
            waiting = Background(lambda: answer(reader, read))
            until(lambda: narrow.metric("clients_waiting") == 1, what="nobody waits")
            holder.execute(b"commit")
            assert waiting.result() == 1
            assert is_hit(narrow, reader, read)
