"""Effects on the session that no call shows: a function reached by a trigger, a view, a default and the like pins its
client as one that is called by name does, and leaves nothing to the next client of the connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until

CATALOG = """
create function remember() returns int language plpgsql as $$ begin
  perform set_config('app.who', 'leak', false); return 1; end $$;
create function remember(int) returns boolean language sql as 'select public.remember() = 1';
create function stamp() returns trigger language plpgsql as $$ begin perform remember(); return new; end $$;
create function stamp_here() returns trigger language plpgsql as $$ begin
  perform set_config('app.who', 'here', true); set local app.who = 'there'; return new; end $$;
create function stamp_set() returns trigger language plpgsql set app.who to 'x' as $$ begin return new; end $$;
create function log_it() returns trigger language plpgsql as $$ begin
  insert into public.logged values (new.a); return new; end $$;
create function leak_sql(int, int) returns int immutable language plpgsql as $$ begin
  perform set_config('app.who', 'leak', false); return $1; end $$;

create table plain(a int primary key);
create table by_trigger(a int);
create trigger t after insert on by_trigger for each row execute function stamp();
create table by_truncate(a int);
create trigger t after truncate on by_truncate execute function stamp();
create table logged(a int);
create trigger t before insert on logged for each row execute function stamp();
create table logging(a int);
create trigger t before insert on logging for each row execute function log_it();
create table parts(a int) partition by list (a);
create table part_1 partition of parts for values in (1);
create trigger t after insert on part_1 for each row execute function stamp();
create table parent(a int primary key);
create table child(a int references parent on delete cascade);
create trigger t after delete on child for each row execute function stamp();
create table conditional(a int);
create trigger t after update on conditional for each row when (remember(new.a)) execute function stamp_here();
insert into conditional values (1);

create function seeds() returns trigger language plpgsql as $$ begin perform setseed(0.5); return new; end $$;
create table seeding(a int);
create trigger t before insert on seeding for each row execute function seeds();
create function counts() returns trigger language plpgsql as $$ begin
  execute 'update ' || tg_argv[0] || ' set a = a'; return new; end $$;
create table counting(a int);
create trigger t before insert on counting for each row execute function counts('plain');
create function by_parts() returns trigger language plpgsql as $$ begin
  execute 'se' || 't app.who = ''leak'''; return new; end $$;
create table by_parts(a int);
create trigger t before insert on by_parts for each row execute function by_parts();
create table members(a int);
create trigger t after insert on members for each row execute function stamp();
create table shared(a int);
alter table shared enable row level security;
create policy p on shared using (a in (select a from members));
create table local_only(a int);
create trigger t before insert on local_only for each row execute function stamp_here();
create table attribute(a int);
create trigger t before insert on attribute for each row execute function stamp_set();

create view direct_view as select set_config('app.who', 'leak', false);
create view local_view as select set_config('app.who', 'here', true) as a, upper('x');
create view by_view as select remember() as a;
create view over_view as select a from by_view;
create view on_trigger as select * from by_trigger;
create materialized view refreshed as select a, remember(a) from plain with no data;

create table by_default(a int, b int default remember());
create table built_in_default(a int, b text default set_config('app.who', 'leak', false));
create table by_generated(a int, b int generated always as (leak_sql(a, 1)) stored);
create table by_check(a int check (remember(a)));
create domain checked as int check (remember(value));
create table by_domain(a checked);
create table by_policy(a int);
alter table by_policy enable row level security;
alter table by_policy force row level security;
create policy p on by_policy using (remember(a));
create table by_rule(a int);
create rule r as on insert to by_rule do also select remember();
create table by_index(a int);
create index on by_index (leak_sql(a, 2));

create operator ==> (function = leak_sql, leftarg = int, rightarg = int);
grant all on by_policy to ordinary;
create view by_operator as select a ==> a as b from plain;
create aggregate leaking(int) (sfunc = leak_sql, stype = int, initcond = '0');
create type wrapped as (a int);
create function unwrap(wrapped) returns int language plpgsql as 'begin return remember(); end';
create cast (wrapped as int) with function unwrap(wrapped);
create procedure proceed() language plpgsql as $$ begin insert into by_trigger values (1); end $$;
"""

LEAKING = {
    "a trigger": "insert into by_trigger values (1)",
    "a trigger's condition": "update conditional set a = 1",
    "COPY into a trigger": "copy by_trigger from stdin",
    "a trigger that writes to another table": "insert into logging values (1)",
    "a partition's trigger": "insert into parts values (1)",
    "a trigger behind a cascade": "delete from parent",
    "a trigger on TRUNCATE": "truncate by_truncate",
    "a view with set_config": "select * from direct_view",
    "a view": "select * from public.by_view",
    "a view on a view": "select a from over_view",
    "a write to a view": "insert into on_trigger values (1)",
    "a default": "insert into by_default(a) values (1)",
    "set_config as a default": "insert into built_in_default(a) values (1)",
    "a generated column": "insert into by_generated values (1)",
    "a check": "insert into by_check values (1)",
    "a domain's check": "insert into by_domain values (1)",
    "a cast to a domain": "select 1::checked",
    "a policy": "insert into by_policy values (1)",
    "a rule": "insert into by_rule values (1)",
    "an index": "insert into by_index values (1)",
    "an operator": "select 1 ==> 2",
    "an operator in a view": "select * from by_operator",
    "an aggregate": "select leaking(a) from plain",
    "a cast": "select row(1)::wrapped::int",
    "a procedure": "call proceed()",
    "a DO block": "do $$ begin insert into by_trigger values (1); end $$",
    "a CTE": "with w as (insert into by_trigger values (1) returning a) select * from w",
    "EXPLAIN ANALYZE": "explain analyze insert into by_trigger values (1)",
    "quotes": 'insert into "by_trigger" values (1)',
    "capitals": "INSERT INTO Public.BY_TRIGGER VALUES (1)",
}
BEFORE = {
    LEAKING["a trigger behind a cascade"]: "insert into parent values (1); insert into child values (1)",
    LEAKING["a policy"]: "set role ordinary",
}
HARMLESS = {
    "a table without any": "insert into plain values (2) on conflict do nothing",
    "another event": "update by_trigger set a = 2",
    "a read of a table with a trigger": "select * from by_trigger",
    "a foreign key's triggers": "insert into child select null where false",
    "set_config that is local": "select a from local_view",
    "SET LOCAL in a trigger": "insert into local_only values (1)",
    "a function's own setting": "insert into attribute values (1)",
    "an UPDATE put together in a trigger": "insert into counting values (1)",
    "a policy that reads a table with a trigger": "select * from shared",
    "a view of what only writes reach": "select * from on_trigger",
    "the name in a literal": "select 'by_view'",
}


@dataclass
class Place:
    near: Pgnear
    dsn: dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def place(origin: Server) -> Iterator[Place]:
    """A database full of carriers, behind a pgnear with a single connection to it."""
    origin.execute("create database carriers")
    origin.execute("create role ordinary login password 'x'")
    try:
        dsn = {"dbname": "carriers"}
        with origin.connect(**dsn) as direct:
            direct.execute(CATALOG.encode())
            direct.execute("insert into plain values (1)")
        with running(origin.url("carriers"), pool_size=1) as near:
            near.wait_for_log("catalog_read")
            yield Place(near, dsn)
    finally:
        origin.execute("drop database carriers with (force)")
        origin.execute("drop role ordinary")


@pytest.mark.parametrize("how", ["simple", "extended"])
@pytest.mark.parametrize("text", LEAKING.values(), ids=LEAKING)
def test_what_a_function_sets_is_not_the_next_clients_however_it_was_reached(place: Place, text: str, how: str) -> None:
    with place.near.connect(dsn=place.dsn) as client, place.near.connect(dsn=place.dsn) as other:
        if text in BEFORE:
            client.execute(BEFORE[text].encode())
        if text.startswith("copy"):
            with client.cursor().copy(text.encode()) as copy:
                copy.write("1\n")
        else:
            client.execute(text.encode(), prepare=how == "extended")
        assert place.near.metric("clients_pinned") == 1
        assert client.execute("select current_setting('app.who', true)").fetchone() == ("leak",)
        client.execute("discard all")
        until(lambda: place.near.metric("clients_pinned") == 0)
        assert other.execute("select current_setting('app.who', true)").fetchone() != ("leak",)


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_leaves_nothing_behind_does_not_pin(place: Place, text: str) -> None:
    with place.near.connect(dsn=place.dsn) as client:
        client.execute(text.encode())
        assert place.near.metric("clients_pinned") == 0


@pytest.mark.parametrize("how", ["simple", "named statement"])
def test_a_trigger_that_a_client_makes_is_known_to_the_others_at_once(place: Place, how: str) -> None:
    """With what they prepared before it. Until the catalog had been read again its effects were the next client's."""
    with place.near.connect(dsn=place.dsn) as maker, place.near.connect(dsn=place.dsn) as client:
        table, prepare = f"later_by_{how[:5]}", how != "simple"
        insert = f"insert into {table} values (1)"
        maker.execute(f"create table {table} (a int)".encode())
        client.execute(insert.encode(), prepare=prepare)
        assert place.near.metric("clients_pinned") == 0
        maker.execute(f"create trigger t after insert on {table} for each row execute function stamp()".encode())
        client.execute(insert.encode(), prepare=prepare)
        assert place.near.metric("clients_pinned") == 1
        client.execute("discard all")
        assert maker.execute("select current_setting('app.who', true)").fetchone() != ("leak",)


def test_a_reading_of_the_catalog_does_not_forget_what_is_not_yet_committed(pgnear: Start, origin: Server) -> None:
    """It does not see it. Done by then, the trigger's effects were the next client's until the next reading."""
    near = pgnear(url=origin.url("carriers"), pool_size=3)
    near.wait_for_log("session_effects_found")
    dsn = {"dbname": "carriers"}
    with near.connect(dsn=dsn) as maker, near.connect(dsn=dsn) as other:
        maker.execute("begin")
        maker.execute("create table meanwhile (a int)")
        maker.execute("create trigger t after insert on meanwhile for each row execute function stamp()")
        other.execute("create trigger another before delete on counting for each row execute function stamp()")
        near.wait_for_log("session_effects_found", count=2)
        maker.execute("insert into meanwhile values (1)")
        maker.execute("commit")
        assert near.metric("clients_pinned") == 1


def test_a_function_that_the_operator_names_is_found_behind_a_trigger(pgnear: Start, origin: Server) -> None:
    near = pgnear(url=origin.url("carriers"), pool_size=2, session_functions="by_parts")
    near.wait_for_log("session_effects_found")
    with near.connect(dsn={"dbname": "carriers"}) as client:
        client.execute("insert into by_parts values (1)")
        assert near.metric("clients_pinned") == 1


def test_effects_that_outlive_discard_all_end_with_the_connection(place: Place) -> None:
    with place.near.connect(dsn=place.dsn) as other:
        pid = other.execute("select pg_backend_pid()").fetchone()
        with place.near.connect(dsn=place.dsn) as client:
            client.execute("insert into seeding values (1)")
            client.execute("discard all")
            assert place.near.metric("clients_pinned") == 1
        assert other.execute("select pg_backend_pid()").fetchone() != pid


@pytest.mark.parametrize(
    ("ddl", "carrier"),
    [
        ("alter table plain add column b checked", "insert plain"),
        ("alter view by_view rename to by_other_name", "read by_other_name"),
        ("alter table parts attach partition by_trigger for values in (2)", "update parts"),
        ("create or replace view local_view as select public.remember()::text as a, upper('x')", "read local_view"),
        ("create or replace function silent() returns int language sql as 'select public.remember()'", "read silence"),
        ("create index on plain (public.leak_sql(a, 1))", "update plain"),
    ],
)
def test_ddl_past_pgnear_is_noticed_when_the_catalog_is_read_again(
    pgnear: Start, origin: Server, ddl: str, carrier: str
) -> None:
    """It is read anew only where something has changed."""
    url = origin.url("rereading")
    origin.execute("create database rereading")
    try:
        with origin.connect(dbname="rereading") as direct:
            direct.execute(CATALOG.encode())
            direct.execute("create function silent() returns int language sql as 'select 1'")
            direct.execute("create view silence as select silent()")
            direct.execute("create trigger x after update on by_trigger for each row execute function stamp()")
            direct.execute("create table unseen (a int)")
        with running(url, pool_size=1) as near:
            near.wait_for_log("session_effects_found")
            with origin.connect(dbname="rereading") as direct:
                direct.execute(ddl.encode())
            with near.connect(dsn={"dbname": "rereading"}) as client:
                client.execute("create table told ()")
            found = near.wait_for_log("session_effects_found", count=2)
            assert carrier in found["new"]
    finally:
        origin.execute("drop database rereading with (force)")


def test_a_trigger_that_is_gone_pins_nobody_any_more(place: Place) -> None:
    with place.near.connect(dsn=place.dsn) as client:
        client.prepare_threshold = None  # DISCARD ALL would end them
        client.execute("create table gone (a int)")
        client.execute("create trigger t after insert on gone for each row execute function stamp()")
        client.execute("drop trigger t on gone")

        def pins() -> bool:
            client.execute("insert into gone values (1)")
            pinned = place.near.metric("clients_pinned") == 1
            client.execute("discard all")
            return pinned

        until(lambda: not pins())


def test_refreshing_a_materialized_view_pins(place: Place) -> None:
    """PostgreSQL takes settings back behind it, but no locks."""
    with place.near.connect(dsn=place.dsn) as client:
        client.execute("refresh materialized view refreshed")
        assert place.near.metric("clients_pinned") == 1


def test_the_operator_hears_what_was_found(place: Place) -> None:
    found = place.near.wait_for_log("session_effects_found")
    assert found["carriers"] > 20
    assert len(found["new"]) == 20
