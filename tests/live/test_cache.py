"""A write through pgnear ends the cached answers that it makes old, before its own completion, and no others.

Not here: whose answer is whose and how long it may be served (`test_cache_keys`), writes past pgnear (`test_stream`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import psycopg
import pytest

from pooler.embedded import installed
from tests.support import wire
from tests.support.cached import answer, hits_of, is_hit, keep
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.proxy import Proxy
from tests.support.waiting import Background, until
from tests.support.wire import WireClient

TABLES = """
create table item (id int primary key, v int);
create table bystander (id int primary key, v int);
create table owner (id int primary key, v int);
create table owned (id int primary key, owner int references owner on delete cascade on update cascade, v int);
create table owned_twice (id int primary key, owned int references owned on delete cascade, v int);
create table orphan (id int primary key, owner int references owner on delete set null on update set null, v int);
create table part (id int primary key, v int) partition by range (id);
create table part_low partition of part for values from (0) to (100);
create table part_high partition of part for values from (100) to (200) partition by range (id);
create table part_high_leaf partition of part_high for values from (100) to (200);
create table base (id int, v int);
create table derived (w int) inherits (base);
create table ruled (id int, v int);
create table ruled_log (id int, v int);
create rule copies as on insert to ruled do also insert into ruled_log values (new.id, new.v);
create table replaced (id int, v int);
create rule elsewhere as on delete to replaced do instead update item set v = 77;
create table triggered (id int, v int);
create view item_view as select id, v from item;
create view part_view as select sum(v) as v from part;
create view view_of_view as select v + 1 as v from item_view;
create materialized view summary as select coalesce(sum(v), 0) as v from item;
create table altered (id int, v int);
create function changes_item() returns trigger language plpgsql as
  'begin update item set v = v + 1000; return new; end';
create trigger far after insert on triggered for each row execute function changes_item();
create function bump() returns int language sql as 'update item set v = v + 1 returning v';
create function bump_hidden() returns int language plpgsql as
  $$ begin execute 'update item set v = v + 1'; return 1; end $$;
create procedure bump_by(n int) language plpgsql as 'begin update item set v = v + n; end';
create procedure bump_and_commit(n int) language plpgsql as 'begin update item set v = v + n; commit; end';
create function bump_stubborn() returns void language plpgsql as $$ begin
  begin perform pg_sleep(20); exception when query_canceled then perform pg_sleep(0.3); end;
  update item set v = 43 where id = 1; end $$;
create function added(n int) returns int immutable language sql as 'select n + 1';
"""

ROWS = """
truncate item, bystander, owner, owned, owned_twice, orphan, part, base, derived, ruled, ruled_log, replaced, triggered,
  altered;
insert into item values (1, 10), (2, 20);
insert into bystander values (1, 1);
insert into owner values (1, 1), (2, 2);
insert into owned values (1, 1, 10), (2, 2, 20);
insert into owned_twice values (1, 1, 100);
insert into orphan values (1, 1, 10);
insert into part values (1, 10), (150, 20);
insert into base values (1, 10);
insert into derived values (2, 20, 0);
insert into replaced values (1, 1);
insert into altered values (1, 1);
refresh materialized view summary;
"""

SUM = "select coalesce(sum(v), 0)::int from {}"


class Write(NamedTuple):
    """What one client sends, statement by statement, and what another one had read.

    Attributes:
      spares: answers from tables that it does not touch stay.
    """

    statements: tuple[str, ...]
    read: str
    spares: bool = True


ITEM = SUM.format("item")
WRITES = {
    "INSERT": Write(("insert into item values (3, 30)",), ITEM),
    "INSERT ON CONFLICT": Write(("insert into item values (1, 0) on conflict (id) do update set v = 31",), ITEM),
    "INSERT SELECT": Write(("insert into item select v + 100, id from bystander",), ITEM),
    "UPDATE": Write(("update item set v = 11",), ITEM),
    "UPDATE FROM": Write(("update item set v = bystander.v from bystander",), ITEM),
    "DELETE": Write(("delete from item where id = 1",), ITEM),
    "DELETE USING": Write(("delete from item using bystander b where b.id = item.id",), ITEM),
    "TRUNCATE": Write(("truncate item",), ITEM),
    "MERGE": Write(
        ("merge into item using bystander b on b.id = item.id when matched then update set v = 5",), ITEM
    ),
    "a CTE that writes": Write(("with w as (update item set v = 12 returning v) select v from w",), ITEM),
    "a CTE that writes, read by an INSERT": Write(
        ("with gone as (delete from item returning id) insert into owner select id + 10 from gone",), ITEM
    ),
    "a name with its schema": Write(("update public.item set v = 13",), ITEM),
    "a quoted name": Write(('update "item" set v = 13',), ITEM),
    "several statements in one Query": Write(("select 1; update item set v = 14; select 2",), ITEM),
    "a transaction in one Query": Write(("begin; update item set v = 16; commit",), ITEM),
    "a transaction": Write(("begin", "update item set v = 16", "commit"), ITEM),
    "a transaction, ended by END": Write(("begin", "update item set v = 16", "end"), ITEM),
    "COMMIT AND CHAIN": Write(("begin", "update item set v = 17", "commit and chain"), ITEM),
    "a released savepoint": Write(
        ("begin", "savepoint s", "update item set v = 18", "release s", "commit"), ITEM
    ),
    "before a savepoint that was rolled back": Write(
        ("begin", "update item set v = 19", "savepoint s", "select 1", "rollback to s", "commit"), ITEM
    ),
    "two phases": Write(
        ("begin", "update item set v = 20", "prepare transaction 'two'", "commit prepared 'two'"), ITEM, False
    ),
    "SQL's PREPARE and EXECUTE": Write(("prepare p as update item set v = 21", "execute p"), ITEM, False),
    "EXPLAIN ANALYZE": Write(("explain analyze update item set v = 22",), ITEM),
    "a function that writes": Write(("select bump()",), ITEM, False),
    "a function that hides what it writes": Write(("select bump_hidden()",), ITEM, False),
    "a function that writes, in FROM": Write(("select * from bump()",), ITEM, False),
    "a function that writes, in VALUES": Write(("values (bump())",), ITEM, False),
    "CALL": Write(("call bump_by(5)",), ITEM, False),
    "CALL with a COMMIT inside": Write(("call bump_and_commit(5)",), ITEM, False),
    "DO": Write(("do $$ begin update item set v = 23; end $$",), ITEM, False),
    "a trigger of unknown reach": Write(("insert into triggered values (1, 1)",), ITEM, False),
    "a rule that adds a write": Write(("insert into ruled values (1, 9)",), SUM.format("ruled_log")),
    "a rule that writes elsewhere instead": Write(("delete from replaced",), ITEM),
    "ON DELETE CASCADE": Write(("delete from owner where id = 1",), SUM.format("owned")),
    "ON DELETE CASCADE over two steps": Write(("delete from owner where id = 1",), SUM.format("owned_twice")),
    "ON DELETE SET NULL": Write(("delete from owner where id = 1",), "select count(owner)::int from orphan"),
    "ON UPDATE CASCADE": Write(("update owner set id = 9 where id = 1",), "select sum(owner)::int from owned"),
    "TRUNCATE CASCADE": Write(("truncate owner cascade",), SUM.format("owned_twice")),
    "a partition, read through its parent": Write(("update part_low set v = 5",), SUM.format("part")),
    "a partition of a partition, read through the top": Write(
        ("update part_high_leaf set v = 5",), SUM.format("part")
    ),
    "a parent, read through its partition": Write(("update part set v = 6",), SUM.format("part_high_leaf")),
    "a row that moves to another partition": Write(
        ("update part set id = 160 where id = 1",), SUM.format("part_high_leaf")
    ),
    "a child, read through its parent": Write(("update derived set v = 7",), SUM.format("base")),
    "a parent, read through its child": Write(("update base set v = 8",), SUM.format("derived")),
    "a table, read through a view": Write(("update item set v = 24",), SUM.format("item_view")),
    "a table, read through a view of a view": Write(("update item set v = 24",), SUM.format("view_of_view")),
    "a partition, read through a view": Write(("update part_low set v = 25",), SUM.format("part_view")),
    "a view, read as its table": Write(("update item_view set v = 26",), ITEM),
    "REFRESH MATERIALIZED VIEW": Write(
        ("update item set v = 27", "refresh materialized view summary"), SUM.format("summary")
    ),
    "a table in a subquery": Write(
        ("update item set v = 28 where id = 1",), "select id from bystander where 28 not in (select v from item)"
    ),
    "a table in a join": Write(
        ("update item set v = 28",), "select i.v from bystander b join item i using (id)"
    ),
    "a table in a CTE": Write(("update item set v = 28",), "with i as (select v from item) select v from i"),
    "ALTER TABLE that rewrites": Write(
        ("alter table altered alter v type int using v + 1",), SUM.format("altered"), False
    ),
    "CREATE OR REPLACE VIEW": Write(
        ("create or replace view item_view as select id, v * 2 as v from item",), SUM.format("item_view"), False
    ),
    "CREATE OR REPLACE FUNCTION": Write(
        ("create or replace function added(n int) returns int immutable language sql as 'select n + 2'",),
        "select added(1) from bystander", False,
    ),
    "DETACH PARTITION": Write(("alter table part detach partition part_low",), SUM.format("part"), False),
    "DROP and CREATE": Write(
        ("drop table if exists derived", "create table derived (w int) inherits (base)"), SUM.format("base"), False
    ),
    "a new table before it in the search path": Write(
        ("create schema postgres; create table postgres.bystander as select 1 as id, 99 as v",),
        SUM.format("bystander"), False,
    ),
}  # fmt: skip
UNDO = """
create or replace view item_view as select id, v from item;
create or replace function added(n int) returns int immutable language sql as 'select n + 1';
drop schema if exists postgres cascade
"""
REDEFINES = ("ALTER TABLE", "CREATE", "DETACH", "DROP", "a new table")
_numbers = count(1)


@pytest.fixture(scope="module", params=(16, 18), ids=lambda version: f"PostgreSQL {version}")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An origin without a stream: what changes past pgnear stays unknown to it."""
    settings = {"max_prepared_transactions": "5", "max_connections": "100"}
    with Server(installation=installed(request.param), settings=settings) as origin, origin.connect() as connection:
        connection.execute(TABLES.encode())
        yield origin


@pytest.fixture(scope="module")
def near(server: Server) -> Iterator[Pgnear]:
    with running(server.url()) as started:
        started.wait_until_it_caches()
        yield started


@pytest.fixture
def clients(near: Pgnear, server: Server) -> Iterator[tuple[Any, Any, Any]]:
    """A reader and a writer through pgnear, and a connection past it; the tables as at the beginning."""
    with near.connect() as reader, near.connect() as writer, server.connect() as past:
        past.execute(ROWS.encode())
        writer.execute(b"do $$ begin end $$")  # of unknown reach: what was kept before is gone
        yield reader, writer, past


def fresh(query: str) -> str:
    """`query` as nobody has asked it before."""
    return f"{query} -- {next(_numbers)}"


# ---- every kind of write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITES)
def test_behind_a_write_nobody_gets_an_answer_from_before_it(
    near: Pgnear, clients: tuple[Any, Any, Any], kind: str
) -> None:
    reader, writer, past = clients
    write = WRITES[kind]
    read, other = fresh(write.read), fresh("select v from bystander")
    before = keep(near, reader, read)
    keep(near, reader, other)
    try:
        for statement in write.statements:
            writer.execute(statement.encode())
        after = answer(reader, read)
        assert answer(writer, read) == after
        assert after == answer(past, read)
        assert after != before
        assert is_hit(near, reader, other) is write.spares
    finally:
        writer.execute(b"rollback")
        if kind.startswith(REDEFINES):
            writer.execute(UNDO.encode())
            if kind.startswith("DETACH"):
                writer.execute(b"alter table part attach partition part_low for values from (0) to (100)")


def test_behind_a_copy_nobody_gets_an_answer_from_before_it(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    other = fresh("select v from bystander")
    assert keep(near, reader, ITEM) == 30
    keep(near, reader, other)
    with writer.cursor().copy(b"copy item from stdin") as copy:
        copy.write("3\t7\n4\t8\n")
    assert answer(reader, ITEM) == 45
    assert is_hit(near, reader, other)


@pytest.mark.parametrize("prepare", [True, False], ids=["named statement", "unnamed statement"])
def test_behind_a_write_with_parameters_nobody_gets_an_answer_from_before_it(
    near: Pgnear, clients: tuple[Any, Any, Any], prepare: bool
) -> None:
    reader, writer, _ = clients
    other = fresh("select v from bystander")
    for value in range(50, 55):
        keep(near, reader, ITEM)
        keep(near, reader, other)
        writer.execute("update item set v = %s where id = 1", (value,), prepare=prepare)
        assert answer(reader, ITEM) == value + 20
        assert is_hit(near, reader, other)


def test_a_write_in_a_pipeline_is_seen_by_the_read_behind_it(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    keep(near, reader, ITEM)
    with writer.pipeline():
        writer.execute("update item set v = %s where id = 1", (60,))
        read = writer.execute(ITEM.encode(), prepare=False)
    assert read.fetchone() == (80,)
    assert answer(reader, ITEM) == 80


# ---- transactions ----------------------------------------------------------------------------------------------------


def test_a_read_between_a_write_and_its_commit_is_not_kept_beyond_the_commit(
    near: Pgnear, clients: tuple[Any, Any, Any]
) -> None:
    reader, writer, _ = clients
    writer.execute(b"begin")
    writer.execute(b"update item set v = 40 where id = 1")
    assert keep(near, reader, ITEM) == 30
    assert answer(writer, ITEM) == 60
    assert answer(reader, ITEM) == 30
    writer.execute(b"commit")
    assert answer(reader, ITEM) == 60
    assert answer(writer, ITEM) == 60


def test_what_was_rolled_back_is_read_by_nobody(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    writer.execute(b"begin")
    writer.execute(b"update item set v = 40")
    assert answer(writer, ITEM) == 80
    writer.execute(b"rollback")
    for client in (writer, reader, writer):
        assert answer(client, ITEM) == 30


def test_a_failed_write_leaves_right_answers(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    keep(near, reader, ITEM)
    with pytest.raises(psycopg.errors.UniqueViolation):
        writer.execute(b"update item set v = 1; insert into item values (1, 1)")
    assert answer(reader, ITEM) == answer(writer, ITEM) == 30


def test_a_transaction_reads_its_own_writes_and_its_own_snapshot(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    keep(near, reader, ITEM)
    reader.execute(b"begin isolation level repeatable read")
    assert answer(reader, ITEM) == 30
    writer.execute(b"update item set v = 41 where id = 1")
    assert keep(near, writer, ITEM) == 61
    assert answer(reader, ITEM) == 30  # not what the cache has
    reader.execute(b"commit")
    assert answer(reader, ITEM) == 61


def test_a_read_in_flight_while_a_write_completes_is_not_kept(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    """This test once proved nothing: behind a DO block the catalog is read anew, and until then nothing is kept."""
    reader, writer, past = clients
    keep(near, reader, fresh("select v from bystander"))  # so what is read now can be kept
    slow = fresh("select item.v + 0 * count(*) from generate_series(1, 1500000) n, item where item.id = 1 group by v")
    begun = "select 1 from pg_stat_activity where state = 'active' and query = %s"
    stored = near.metric("cache_stores_total")
    reading = Background(lambda: answer(reader, slow))
    until(lambda: past.execute(begun, (slow,)).fetchone(), what="the read does not run")
    writer.execute(b"update item set v = 42 where id = 1")
    assert reading.running
    assert reading.result() == 10
    assert near.metric("cache_stores_total") == stored
    assert answer(reader, slow) == 42
    assert near.metric("cache_stores_total") == stored + 1


def test_a_write_whose_client_is_gone_before_its_end_counts(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, _, past = clients
    keep(near, reader, ITEM)
    running = "select count(*) from pg_stat_activity where state = 'active' and query like 'with s as (select pg_sl%'"
    with near.connect() as hasty:
        hasty.pgconn.send_query(b"with s as (select pg_sleep(0.3)) update item set v = 43 from s where id = 1")
        until(lambda: answer(past, running), what="the write does not run")
        hasty.pgconn.finish()
    until(lambda: not answer(past, running), what="the write does not end")
    until(lambda: answer(reader, ITEM) == answer(past, ITEM), within=15, what="an old answer is served")


def test_a_write_that_commits_after_its_client_is_gone_counts(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    """It is cancelled when its client goes, which may come too late: what it reaches ends when it has ended."""
    reader, _, past = clients
    with near.connect() as hasty:
        hasty.pgconn.send_query(b"select bump_stubborn()")
        sleeps = _runs("select bump_stubborn()") + " and wait_event = 'PgSleep'"  # where it is stubborn
        until(lambda: answer(past, sleeps), what="the write does not run")
        hasty.pgconn.finish()
    assert keep(near, reader, ITEM) == 30
    until(lambda: answer(past, ITEM) == 63, what="the write does not end")
    until(lambda: answer(reader, ITEM) == 63, within=3, what="an old answer is served")


def test_a_write_whose_connection_is_lost_counts_when_the_origin_commits_it(server: Server) -> None:
    with Proxy(server.port) as proxy, server.connect() as past:
        past.execute(ROWS.encode())
        with running(server.url(sslmode="disable").replace(str(server.port), str(proxy.port))) as near:
            near.wait_until_it_caches()
            with near.connect() as reader, WireClient.logged_in(near.port) as writer:
                slow = "with s as (select pg_sleep(1)) update item set v = 44 from s where id = 1"
                writer.send(wire.query(slow))
                until(lambda: answer(past, _runs(slow)), what="the write does not run")
                proxy.cut()
                assert keep(near, reader, ITEM) == 30
                until(lambda: answer(past, ITEM) == 64, what="the write does not end")
                until(lambda: answer(reader, ITEM) == 64, within=3, what="an old answer is served")
                assert near.metric("cache_writes_unsure_total") == 1
                assert near.wait_for_log("write_unsure")["pool"] == "postgres"


def _runs(query: str) -> str:
    return f"select count(*) from pg_stat_activity where state = 'active' and query = '{query}'"


# ---- several writes, and writes without a CommandComplete ------------------------------------------------------------


def test_all_that_a_transaction_has_written_ends_at_its_commit(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    other = fresh("select v from bystander")
    keep(near, reader, other)
    writer.execute(b"begin; update bystander set v = 5")
    writer.execute(b"update item set v = 45 where id = 1")
    assert keep(near, reader, other) == 1
    writer.execute(b"commit")
    assert answer(reader, other) == 5


def test_the_second_of_two_writes_that_were_sent_at_once_counts(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, _, past = clients
    other = fresh("select v from bystander")
    keep(near, reader, other)
    second = "with s as (select pg_sleep(0.4)) update bystander set v = 46 from s"
    with WireClient.logged_in(near.port) as client:
        client.send(wire.query("update item set v = 46"), wire.query(second))
        until(lambda: answer(past, _runs(second)), what="the second write does not run")
        assert keep(near, reader, other) == 1
        client.receive_until("Z")
        client.receive_until("Z")
        assert answer(reader, other) == 46


def test_a_write_by_a_portal_that_is_not_read_to_its_end_counts(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, _, _ = clients
    keep(near, reader, ITEM)
    with WireClient.logged_in(near.port) as client:
        frames = client.ask(
            wire.parse("update item set v = 47 returning id"), wire.bind(), wire.execute(limit=1), wire.SYNC
        )
    assert [kind for kind, _ in frames] == list("12DsZ")
    assert answer(reader, ITEM) == 94


def test_a_write_by_a_function_call_message_counts(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, _, past = clients
    keep(near, reader, ITEM)
    oid = answer(past, "select 'bump'::regproc::oid::bigint")
    with WireClient.logged_in(near.port) as client:
        frames = client.ask(wire.frame("F", oid.to_bytes(4, "big") + bytes(4) + bytes(2)))
    assert [kind for kind, _ in frames] == list("VZ")
    assert answer(reader, ITEM) == 32


def test_a_temporary_table_before_a_real_one_may_write_anywhere(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    writer.execute(b"create temporary table bystander (id int, v int)")
    writer.execute(b"create trigger far after insert on bystander for each row execute function changes_item()")
    try:
        assert keep(near, reader, ITEM) == 30
        writer.execute(b"insert into bystander values (1, 1)")
        assert answer(reader, ITEM) == 2030
    finally:
        writer.execute(b"drop table pg_temp.bystander")


# ---- what is not touched stays ---------------------------------------------------------------------------------------


def test_a_read_ends_nothing(near: Pgnear, clients: tuple[Any, Any, Any]) -> None:
    reader, writer, _ = clients
    keep(near, reader, ITEM)
    for statement in (
        "select now()", "select pg_backend_pid()", "select * from item for update", "show timezone", "begin",
        "select v from bystander", "commit", "set timezone to 'Asia/Tokyo'", "reset timezone",
        "explain update item set v = 1",
    ):  # fmt: skip
        writer.execute(statement.encode())
    assert is_hit(near, reader, ITEM)


def test_a_table_that_is_written_all_the_time_leaves_the_others_alone(
    near: Pgnear, clients: tuple[Any, Any, Any]
) -> None:
    reader, writer, past = clients
    read = fresh("select v from bystander")
    keep(near, reader, read)
    past.execute(b"update bystander set v = 2")  # which pgnear does not see: only the cache says 1 now

    def writes() -> None:
        for number in range(50):
            writer.execute(f"update item set v = {number}".encode())
            assert answer(reader, read) == 1

    assert hits_of(near, writes) == 50
