"""What each statement does to its session: a table to read."""

from __future__ import annotations

import pytest

from pooler.sql.classifier import Classifier
from pooler.sql.names import renaming
from pooler.sql.statement import Part, PinKind, Transact, classify
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
    classifier.found_functions("shop", {"hush": PinKind.HIDDEN})
    assert PinKind.HIDDEN in classifier(b"select hush()").parts[0].pins
    assert not classifier(b"select 'hush'").has_effects


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
