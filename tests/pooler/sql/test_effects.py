"""What each statement does to its session: a table to read."""

from __future__ import annotations

import pytest

from pooler.sql.classifier import Classifier
from pooler.sql.names import renaming
from pooler.sql.statement import Carrier, Effects, Part, PinKind, Transact, classify
from pooler.sql.views import edited


def part(text: str) -> Part:
    parts = classify(text.encode()).parts
    return parts[0] if parts else Part()


@pytest.mark.parametrize(
    ("text", "name", "sql"),
    [
        ("SET timezone TO 'UTC'", "timezone", "SET timezone TO 'UTC'"),
        ("SET TIME ZONE 'UTC';", "timezone", "SET TIME ZONE 'UTC'"),
        ("SET SESSION app.Tenant = 7", "app.tenant", "SET SESSION app.Tenant = 7"),
        ("SET NAMES 'LATIN1'", "client_encoding", "SET NAMES 'LATIN1'"),
        ("SET ROLE clerk", "role", "SET ROLE clerk"),
        ("SET SESSION AUTHORIZATION clerk", "session_authorization", "SET SESSION AUTHORIZATION clerk"),
        ("SET search_path = a, b", "search_path", "SET search_path = a, b"),
        ("RESET search_path", "search_path", None),
        ("SET search_path TO DEFAULT", "search_path", None),
        ("RESET ROLE", "role", None),
        ("RESET ALL", "", None),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "default_transaction_read_only", "SET default_transaction_read_only TO 'on'",
        ),
        (
            "select set_config('a.b', 'it''s', false)",
            "a.b", "SELECT pg_catalog.set_config(E'a.b',E'it''s',false)",
        ),
        (
            "SET application_name TO 'caf\u00e9'",
            "application_name", "SELECT pg_catalog.set_config(E'application_name',E'caf\\U000000e9',false)",
        ),
    ],
)  # fmt: skip
def test_settings_are_kept_as_a_statement_that_makes_them(text: str, name: str, sql: str | None) -> None:
    (change,) = part(text).changes
    assert (change.name, change.apply_sql, change.local) == (name, sql, False)


@pytest.mark.parametrize("text", ["SET LOCAL work_mem = '1MB'", "select set_config('work_mem', '1MB', true)"])
def test_local_settings_are_known_but_never_follow(text: str) -> None:
    (change,) = part(text).changes
    assert change.local


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("create temp table t (a int)", PinKind.TEMPORARY),
        ("create temporary view v as select 1", PinKind.TEMPORARY),
        ("create temp sequence s", PinKind.TEMPORARY),
        ("create table pg_temp.t (a int)", PinKind.TEMPORARY),
        ("create function pg_temp.f() returns int language sql as 'select 1'", PinKind.TEMPORARY),
        ("select 1 into temp t", PinKind.TEMPORARY),
        ("listen news", PinKind.LISTEN),
        ("declare c cursor with hold for select 1", PinKind.CURSOR),
        ("select pg_advisory_lock(1)", PinKind.ADVISORY),
        ("select 1 where pg_try_advisory_lock(1)", PinKind.ADVISORY),
        ("insert into t select pg_advisory_lock_shared(1, 2)", PinKind.ADVISORY),
        ("load 'auto_explain'", PinKind.LOAD),
        ("select setseed(0.5)", PinKind.SEED),
        ("set seed to 0.5", PinKind.SEED),
        ("select lastval()", PinKind.SEQUENCE),
        ("prepare p as select 1", PinKind.PREPARE),
        ("prepare p as select pg_advisory_lock(1)", PinKind.HIDDEN),
        ("do $$ begin set work_mem = '1MB'; end $$", PinKind.HIDDEN),
        ("do $$ begin perform set_config('a.b', 'c', false); end $$", PinKind.HIDDEN),
        ("do $$ begin execute 'listen news'; end $$", PinKind.HIDDEN),
        ("select dblink_connect('x')", PinKind.LASTING),
        ("select * from dblink('named', 'select 1') as t(a int)", PinKind.HIDDEN),
        ("select dbms_output.put_line('x')", PinKind.HIDDEN),
        ("select pg_backup_start('x')", PinKind.LASTING),
        ("select pg_create_physical_replication_slot('s', false, true)", PinKind.REPLICATION),
        ("select pg_create_logical_replication_slot('s', 'pgoutput', temporary => true)", PinKind.REPLICATION),
        ("select pg_create_logical_replication_slot('s', 'pgoutput', $1)", PinKind.REPLICATION),
        ("select pg_copy_logical_replication_slot('s', 'd', 't'::bool)", PinKind.REPLICATION),
        ("select query_to_xml('select set_config(''a.b'', ''c'', false)', true, false, '')", PinKind.HIDDEN),
        ("select query_to_xml($1, true, false, '')", PinKind.HIDDEN),
        ("select query_to_xml(format('select %s', f), true, false, '') from t", PinKind.HIDDEN),
        ("select query_to_xmlschema(query => 'listen x', tableforest => true)", PinKind.HIDDEN),
        ("select * from ts_stat('select set_config(''a.b'', v, false)::tsvector from t')", PinKind.HIDDEN),
        ("select ts_rewrite('a'::tsquery, 'select t, s from make_aliases(pg_advisory_lock(1))')", PinKind.HIDDEN),
        ("select * from crosstab('select a, b, pg_advisory_lock(1) from t') as t(a int, b int)", PinKind.HIDDEN),
        ("select * from crosstab($1, $2) as t(a int, b int)", PinKind.HIDDEN),
        ("do $$ begin perform dblink_connect('named', 'x'); end $$", PinKind.LASTING),
        ("do $$ begin perform setseed(0.5); end $$", PinKind.LASTING),
        ("do language plpython3u $$ GD['a'] = 1 $$", PinKind.LASTING),
        ("select set_config('a.b', v, false) from t", PinKind.SETTING),
        ("select set_config('a' || '.b', 'c', false)", PinKind.SETTING),
        ("set work_mem from current", PinKind.SETTING),
        ("select pg_replication_origin_session_setup('x')", PinKind.REPLICATION),
        ("create temporary tabel", PinKind.UNPARSABLE),
    ],
)
def test_what_cannot_follow_pins(text: str, kind: PinKind) -> None:
    assert kind in part(text).pins


@pytest.mark.parametrize(
    "text",
    [
        "select 1",
        "create table t (a int)",
        "declare c cursor for select 1",
        "select pg_advisory_xact_lock(1)",
        "set transaction isolation level serializable",
        "set constraints all deferred",
        "do $$ begin update t set a = 1; end $$",
        "do $$ begin set local work_mem = '1MB'; perform set_config('a.b', 'c', true); end $$",
        "notify news",
        "begin",
        "select set_config('a.b', v, true) from t",
        "create function f() returns int language sql set work_mem = '1MB' as 'select 1'",
        "select pg_create_physical_replication_slot('s', true)",
        "select pg_create_logical_replication_slot('s', 'pgoutput', false)",
        "select pg_create_logical_replication_slot('s', 'pgoutput', twophase => true)",
        "select query_to_xml('select * from t', true, false, null)",
        "select * from crosstab('select a, b, c from t', 'values (1), (2)') as t(a int, b int)",
        "select * from ts_stat('select v from t')",
        "select ts_rewrite(q, t, s) from aliases",
        "do language plpython3u $$ plan = SD.setdefault('plan', plpy.prepare('select 1')) $$",
        "do $$ begin perform 'GD'; end $$",
    ],
)
def test_what_leaves_nothing_does_not_pin(text: str) -> None:
    found = part(text)
    assert not found.pins
    assert not found.changes


@pytest.mark.parametrize(
    ("text", "what", "savepoint"),
    [
        ("commit", Transact.COMMIT, ""),
        ("END", Transact.COMMIT, ""),
        ("abort", Transact.ROLLBACK, ""),
        ("rollback and chain", Transact.ROLLBACK, ""),
        ('savepoint "A b"', Transact.SAVEPOINT, "A b"),
        ("release a", Transact.RELEASE, "a"),
        ("rollback to savepoint a", Transact.ROLLBACK_TO, "a"),
        ("prepare transaction 'x'", Transact.COMMIT, ""),
    ],
)
def test_transaction_control(text: str, what: Transact, savepoint: str) -> None:
    found = part(text)
    assert (found.transact, found.savepoint) == (what, savepoint)


def test_parts_know_where_they_stand_in_bytes() -> None:
    text = "select '\u20ac'; set work_mem = '1MB'; reset all".encode()
    statement = classify(text)
    assert [text[each.start : each.end].strip() for each in statement.parts] == [
        "select '\u20ac'".encode(),
        b"set work_mem = '1MB'",
        b"reset all",
    ]


def test_named_functions_pin_and_forgotten_ones_are_forgotten() -> None:
    classifier = Classifier(parse_always=False, session_functions=frozenset({"remember_user"}))
    assert PinKind.HIDDEN in classifier(b"select app.remember_user(7)").parts[0].pins
    assert not classifier(b"select hush()").has_effects
    classifier.found_effects("shop", {"hush": PinKind.HIDDEN})
    assert PinKind.HIDDEN in classifier(b"select hush()").parts[0].pins
    assert not classifier(b"select 'hush'").has_effects


CARRIERS: Effects = {
    "hush": PinKind.HIDDEN,
    "keep": PinKind.LASTING,
    Carrier("read", "quiet"): PinKind.HIDDEN,
    Carrier("insert", "Orders"): PinKind.HIDDEN,
    Carrier("delete", "a b"): PinKind.LASTING,
    Carrier("operator", "==>"): PinKind.HIDDEN,
    Carrier("type", "strict"): PinKind.HIDDEN,
}


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("select * from s.quiet", {PinKind.REACHED}),
        ("select * from t where exists (select from quiet)", {PinKind.REACHED}),
        ("copy quiet to stdout", {PinKind.REACHED}),
        ('insert into "Orders" values (1)', {PinKind.REACHED}),
        ('merge into "Orders" using t on true when matched then delete', {PinKind.REACHED}),
        ('delete from "a b"', {PinKind.REACHED, PinKind.LASTING}),
        ("select a ==> b from t", {PinKind.REACHED}),
        ("select a::strict from t", {PinKind.REACHED}),
        ("select table_to_xml('t', true, false, '')", {PinKind.REACHED}),
        ("select query_to_xml('table quiet', true, false, '')", {PinKind.HIDDEN}),
        ("do $$ begin perform hush(); end $$", {PinKind.HIDDEN}),
        ("do $$ begin perform 1 from quiet; end $$", {PinKind.HIDDEN}),
        ('prepare p as insert into "Orders" values (1)', {PinKind.PREPARE, PinKind.HIDDEN}),
        ('insert into orders values (1)', set()),
        ('update "Orders" set a = 1', set()),
        ('select * from "Orders"', set()),
        ("select quiet, 'quiet' from quiets", set()),
        ("lock table quiet", set()),
        ("create view other as table quiet", set()),
    ],
)  # fmt: skip
def test_what_carries_effects_pins_whoever_names_it(text: str, pins: set[PinKind]) -> None:
    classifier = Classifier(parse_always=False)
    classifier.found_effects("shop", CARRIERS)
    parts = classifier(text.encode()).parts
    assert {pin for part in parts for pin in part.pins} == pins


@pytest.mark.parametrize(
    ("ddl", "carrier"),
    [
        ("create trigger x before insert or truncate on s.t execute function f.hush()", "insert t"),
        ("create trigger x before insert or truncate on s.t execute function f.hush()", "truncate cascade t"),
        ("create trigger x before update on t for each row when (hush(new.a)) execute function g()", "update t"),
        ("create view v as select hush()", "read v"),
        ("create view v as select set_config('a.b', 'c', false)", "read v"),
        ("create or replace view v as select * from quiet", "read v"),
        ('create view v as select * from "Orders"', "insert v"),
        ("create materialized view m as select hush()", "refresh m"),
        ("create table t (a int default hush())", "insert t"),
        ("create table t (a int check (hush(a) > 1))", "update t"),
        ("create table t (a strict)", "insert t"),
        ('create table t partition of "Orders" for values in (1)', "insert t"),
        ("alter table t alter a set default pg_advisory_lock(1)", "insert t"),
        ("alter table t add column b strict", "insert t"),
        ('alter table p attach partition "Orders" for values in (1)', "insert p"),
        ('alter table "Orders" rename to o', "insert o"),
        ("alter function hush() rename to silence", "silence"),
        ("create domain d as int check (hush(value) > 1)", "type d"),
        ("alter domain d add check (hush(value) > 1)", "type d"),
        ("create policy p on t using (hush())", "read t"),
        ("create rule r as on delete to t do also select hush()", "delete t"),
        ("create operator <== (function = hush, leftarg = int)", "operator <=="),
        ("create aggregate total(int) (sfunc = hush, stype = int)", "total"),
        ("create cast (text as strict2) with function hush(text)", "type strict2"),
        ("create function g() returns int language sql as 'select hush()'", "g"),
        ("create function g() returns int language sql begin atomic select hush(); end", "g"),
        ("create function g() returns int language plpgsql as 'begin insert into \"Orders\" values (1); end'", "g"),
        (
            "create function g() returns trigger language plpgsql as 'begin listen x; end';"
            "create trigger x before insert on t execute function g()", "insert t",
        ),
    ],
)  # fmt: skip
def test_ddl_makes_carriers_that_are_known_at_once(ddl: str, carrier: str) -> None:
    classifier = Classifier(parse_always=False)
    classifier.found_effects("shop", CARRIERS)
    makes = classifier(ddl.encode()).makes
    assert carrier in {key if isinstance(key, str) else f"{key.what} {key.name}" for key, _ in makes}


@pytest.mark.parametrize(
    "ddl",
    [
        "create trigger x before insert on t execute function g()",
        "create view v as select set_config('a.b', 'c', true)",
        "create view v as select upper(a) from t",
        'alter table "Orders" add column c int default 1',
        'create trigger x before update on "Orders" execute function g()',
        'create rule r as on update to "Orders" do instead nothing',
        "create table t (a int default 1, b text check (b <> ''))",
        "alter table t add column c timestamptz default now()",
        "create function g() returns int language sql set work_mem to '1MB' as 'select 1'",
    ],
)
def test_ordinary_ddl_makes_none(ddl: str) -> None:
    classifier = Classifier(parse_always=False)
    classifier.found_effects("shop", CARRIERS)
    assert not classifier(ddl.encode()).makes


def test_what_was_made_is_known_until_its_database_has_been_read() -> None:
    classifier = Classifier(parse_always=False)
    changes: list[int] = []
    classifier.when_changed = lambda: changes.append(1)
    classifier.add_effects("shop", [(Carrier("insert", "t"), PinKind.HIDDEN)])
    insert = b"insert into t values (1)"
    assert classifier(insert).has_effects
    classifier.found_effects("shop", {}, complete=False)
    classifier.found_effects("other", {})
    assert classifier(insert).has_effects
    assert changes == [1]
    classifier.found_effects("shop", {})
    assert not classifier(insert).has_effects
    assert changes == [1, 1]


def test_what_changes_its_session_is_not_cached() -> None:
    """An answer from the cache would not change it."""
    classifier = Classifier(parse_always=True)
    assert classifier(b"select a ==> b from t").cacheable
    classifier.found_effects("shop", CARRIERS)
    assert not classifier(b"select a ==> b from t").cacheable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("execute s", "execute pgnear_1"),
        ("EXECUTE  S (1, 's')", "EXECUTE  pgnear_1 (1, 's')"),
        ('execute "s"(1)', "execute pgnear_1(1)"),
        ("explain analyze execute s", "explain analyze execute pgnear_1"),
        ("create table t as execute s", "create table t as execute pgnear_1"),
        ("deallocate prepare s", "deallocate prepare pgnear_1"),
        ("prepare s as select 's'", "prepare pgnear_1 as select 's'"),
        ("execute other", "execute other"),
    ],
)
def test_prepared_statements_are_renamed_in_sql(text: str, expected: str) -> None:
    edits = renaming(text.encode(), 0, len(text), {b"s": b"pgnear_1"})
    assert edited(text.encode(), edits) == expected.encode()
