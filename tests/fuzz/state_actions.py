"""Actions on state that stays on a connection: temporary tables, LISTEN, cursors, locks, SQL's PREPARE, sequences."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.actions import Action, Draw, carried, executed, group, pick


@group("data", 5)
def data(draw: Draw, client: int) -> Action:
    table = f"public.t{client}"
    name, text = pick(
        draw,
        [
            ("select", f"select id, v from {table} order by id"),
            ("insert", f"insert into {table} values ({pick(draw, [2, 3, 4])}, 'new')"),
            ("update", f"update {table} set v = v || '+'"),
            ("delete", f"delete from {table} where id > 1"),
            ("returning", f"update {table} set v = 'r' where id = 1 returning id, v"),
            ("one", "select 1"),
            ("empty", ""),
            ("read another's", f"select count(*) from public.t{(client + 1) % 3}"),
            ("word", "select id, v from public.word where id = 2"),
        ],
    )
    return name, carried(draw, text)


@group("again", 3)
def again(draw: Draw, client: int) -> Action:
    """Few texts, so that they come again and again, which connections may keep prepared."""
    text = pick(
        draw,
        [
            "select id, v from public.t0 order by id",
            "select id, v from word where id = 1",
            "select current_setting('timezone')",
            "select 1 / 0",
            "select count(*) from public.t1",
        ],
    )
    return "again", [("Query", text)] if draw(st.booleans()) else [*executed(text), ("Sync",)]


@group("discard", 2)
def discard(draw: Draw, client: int) -> Action:
    text = pick(draw, ["discard all", "discard plans", "discard temp", "discard sequences"])
    return text, carried(draw, text)


@group("temp", 4)
def temporary(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("create", "create temp table tmp (a int)"),
            ("insert", f"insert into tmp values ({client})"),
            ("select", "select a from tmp"),
            ("drop", "drop table tmp"),
            ("on commit drop", "create temporary table tmp (a int) on commit drop"),
            ("on commit delete", "create temp table tmp (a int) on commit delete rows"),
            ("as", "create temp table tmp as select 7 as a"),
            ("into", "select 8 as a into temp tmp"),
            ("in pg_temp", "create table pg_temp.tmp (a int)"),
            ("shadow", "create temp table word (id int, v text)"),
            ("drop shadow", "drop table pg_temp.word"),
            ("view", "create temp view tmp_view as select 1 as a"),
            ("drop view", "drop view tmp_view"),
            ("sequence", "create temp sequence tmp_seq"),
            ("nextval", "select nextval('tmp_seq')"),
            ("function", "create function pg_temp.f() returns int language sql as 'select 5'"),
            ("call", "select pg_temp.f()"),
            ("path", "set search_path to pg_temp, public"),
            ("by path", f"create table by_path{client} (a int)"),
            ("select by path", f"select a from by_path{client}"),
            ("drop by path", f"drop table by_path{client}"),
        ],
    )
    return name, carried(draw, text)


@group("listen", 4)
def listen(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("listen", "listen ch"),
            ("notify", f"notify ch, '{client}:hello'"),
            ("unlisten", "unlisten ch"),
            ("unlisten all", "unlisten *"),
            ("listen other", 'listen "Other Channel"'),
            ("notify other", f"notify \"Other Channel\", '{client}:over'"),
            ("pg_notify", f"select pg_notify('ch', '{client}:by function')"),
        ],
    )
    return name, carried(draw, text)


@group("cursor", 3)
def cursor(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("declare", "declare cur cursor for select id, v from public.word order by id"),
            ("fetch", "fetch 2 from cur"),
            ("fetch back", "fetch backward 1 from cur"),
            ("move", "move 1 in cur"),
            ("close", "close cur"),
            ("close all", "close all"),
            ("scroll", "declare cur scroll cursor for select id from public.word order by id"),
            ("binary", "declare cur binary cursor for select id from public.word order by id"),
            ("fetch from portal", "fetch 1 from p1"),
            ("close portal", "close p1"),
            ("execute", [("Execute", "cur", 2), ("Sync",)]),
            ("describe", [("Describe", "P", "cur"), ("Sync",)]),
            ("close by protocol", [("Close", "P", "cur"), ("Sync",)]),
        ],
    )
    return name, text if isinstance(text, list) else carried(draw, text)


@group("hold", 2)
def hold(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("declare", "declare held cursor with hold for select id, v from public.word order by id"),
            ("fetch", "fetch 2 from held"),
            ("close", "close held"),
            ("close all", "close all"),
        ],
    )
    return name, carried(draw, text)


@group("advisory", 4)
def advisory(draw: Draw, client: int) -> Action:
    own = 100 + client
    name, text = pick(
        draw,
        [
            ("lock", f"select pg_advisory_lock({own})"),
            ("unlock", f"select pg_advisory_unlock({own})"),
            ("unlock all", "select pg_advisory_unlock_all()"),
            ("try", "select pg_try_advisory_lock(1)"),
            ("unlock shared key", "select pg_advisory_unlock(1)"),
            ("transaction", f"select pg_advisory_xact_lock({own})"),
            ("try transaction", "select pg_try_advisory_xact_lock(1)"),
            ("shared", "select pg_try_advisory_lock_shared(2)"),
            ("unlock shared", "select pg_advisory_unlock_shared(2)"),
            ("two keys", f"select pg_advisory_lock({own}, 7)"),
        ],
    )
    return name, carried(draw, text)


@group("sql prepare", 4)
def sql_prepare(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("prepare", f"prepare q1 as select {client}, v from public.word where id = 1"),
            ("execute", "execute q1"),
            ("prepare with types", "prepare q2 (int) as select v from public.word where id = $1"),
            ("execute with value", "execute q2 (2)"),
            ("deallocate", "deallocate q1"),
            ("deallocate prepare", "deallocate prepare q2"),
            ("deallocate all", "deallocate all"),
            ("prepare insert", f"prepare q1 as insert into public.t{client} values (9, 'p')"),
            ("explain", "explain (costs off) execute q1"),
        ],
    )
    return name, carried(draw, text)


@group("shared names", 2)
def shared_names(draw: Draw, client: int) -> Action:
    """Protocol-level and SQL-level statements have one name space."""
    name, messages = pick(
        draw,
        [
            ("execute s1", [("Query", "execute s1")]),
            ("deallocate s1", [("Query", "deallocate s1")]),
            ("prepare s1", [("Query", f"prepare s1 as select 'sql {client}'")]),
            ("bind q1", [("Bind", "", "q1"), ("Execute", ""), ("Sync",)]),
            ("parse q1", [("Parse", "q1", "select 'wire'"), ("Sync",)]),
            ("describe q1", [("Describe", "S", "q1"), ("Sync",)]),
            ("close q1", [("Close", "S", "q1"), ("Sync",)]),
        ],
    )
    return name, list(messages)


@group("sequence", 3)
def sequence(draw: Draw, client: int) -> Action:
    own = f"public.seq{client}"
    name, text = pick(
        draw,
        [
            ("nextval", f"select nextval('{own}')"),
            ("currval", f"select currval('{own}')"),
            ("lastval", "select lastval()"),
            ("shared nextval", "select nextval('public.shared_seq')"),
            ("shared currval", "select currval('public.shared_seq')"),
            ("setval", f"select setval('{own}', 40)"),
            ("insert", f"insert into public.t{client} values (nextval('{own}') + 50, 's')"),
            ("nextval then currval", f"select nextval('{own}'), currval('{own}')"),
            ("nextval call", ("FunctionCall", 1574, (own,))),
            ("lastval call", ("FunctionCall", 2559, ())),
        ],
    )
    return name, [text] if isinstance(text, tuple) else carried(draw, text)


@group("random", 1)
def random_state(draw: Draw, client: int) -> Action:
    name, text = pick(draw, [("setseed", "select setseed(0.25)"), ("seeded", "select setseed(0.5), random()")])
    return name, carried(draw, text)


@group("ddl", 3)
def ddl(draw: Draw, client: int) -> Action:
    table = f"public.t{client}"
    name, text = pick(
        draw,
        [
            ("add column", f"alter table {table} add column extra int"),
            ("drop column", f"alter table {table} drop column if exists extra"),
            ("create", f"create table public.made{client} (a int)"),
            ("drop", f"drop table public.made{client}"),
            ("change type", f"alter table {table} alter column id type bigint"),
            ("truncate", f"truncate {table}"),
            ("index", f"create index if not exists t{client}_v on {table} (v)"),
            ("rename", f"alter table {table} rename column v to w"),
            ("rename back", f"alter table {table} rename column w to v"),
        ],
    )
    return name, carried(draw, text)


@group("catalog", 1)
def catalog(draw: Draw, client: int) -> Action:
    """What the server's own views tell a client about its session."""
    name, text = pick(
        draw,
        [
            ("prepared statements", "select name, statement, from_sql from pg_prepared_statements order by name"),
            ("reset_val", "select name, reset_val from pg_settings where name in ('TimeZone', 'work_mem') order by 1"),
            ("source", "select name, source from pg_settings where name in ('TimeZone', 'work_mem') order by 1"),
        ],
    )
    return name, carried(draw, text)
