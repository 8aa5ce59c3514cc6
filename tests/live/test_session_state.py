"""A pooled connection behaves as a private one: what a client has set and made is there, and only for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import WireClient


@pytest.fixture
def one(pgnear: Start) -> Pgnear:
    """A pgnear with a single origin connection: whatever a client leaves on it, the next one would see."""
    return pgnear(pool_size=1)


@pytest.fixture
def client(one: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(
        one.port, application_name="mine", TimeZone="Asia/Tokyo", options="-c app.tenant=7"
    ) as it:
        yield it


@pytest.fixture
def stranger(one: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(one.port) as it:
        yield it


def statuses(frames: list[wire.Frame]) -> dict[str, str]:
    """ParameterStatus values among `frames`."""
    pairs = [body[:-1].split(b"\0") for kind, body in frames if kind == "S"]
    return {name.decode(): value.decode() for name, value in pairs}


def kinds(frames: list[wire.Frame]) -> str:
    """Message types, ParameterStatus left out."""
    return "".join(kind for kind, _ in frames if kind != "S")


def tags(frames: list[wire.Frame]) -> list[str]:
    return [body[:-1].decode() for kind, body in frames if kind == "C"]


def extended(text: str, *values: bytes) -> list[bytes]:
    return [wire.parse(text), wire.bind(values=values), wire.describe(), wire.execute(), wire.SYNC]


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_reset_goes_back_to_what_the_startup_packet_asked_for(
    client: WireClient, stranger: WireClient, how: str
) -> None:
    def run(text: str) -> list[wire.Frame]:
        return client.query(text) if how == "simple" else client.ask(*extended(text))

    for reset in ("reset timezone", "set timezone to default", "reset all"):
        run("set timezone to 'Europe/Paris'")
        run("begin")
        frames = run(reset)
        assert len(tags(frames)) == 1
        assert "D" not in kinds(frames)
        assert statuses(frames) == {"TimeZone": "Asia/Tokyo"}
        assert client.one("show timezone") == b"Asia/Tokyo"
        run("commit")
        assert stranger.one("show timezone") != b"Asia/Tokyo"
        assert client.one("show timezone") == b"Asia/Tokyo"
        assert client.one("show application_name") == b"mine"


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_discard_all_leaves_what_a_new_connection_would_have(
    client: WireClient, stranger: WireClient, how: str
) -> None:
    client.query("set timezone to 'Europe/Paris'; set work_mem to '7MB'; create temp table t(a int)")
    frames = client.query("discard all") if how == "simple" else client.ask(*extended("discard all"))
    assert tags(frames) == ["DISCARD ALL"]
    assert statuses(frames) == {"TimeZone": "Asia/Tokyo"}
    assert client.one("select current_setting('app.tenant')") == b"7"
    assert client.one("show work_mem") == stranger.one("show work_mem")
    client.query("begin")
    failed = client.query("discard all")
    assert kinds(failed) == "EZ"
    assert failed[-1][1] == b"E"
    client.query("rollback")
    assert client.one("show timezone") == b"Asia/Tokyo"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (["begin", "set work_mem to '5MB'", "commit"], b"5MB"),
        (["begin", "set work_mem to '5MB'", "rollback"], b"4MB"),
        (["begin", "set work_mem to '5MB'", "select 1/0", "commit"], b"4MB"),
        (["set work_mem to '6MB'", "begin", "savepoint a", "set work_mem to '5MB'", "rollback to a", "commit"], b"6MB"),
        (["begin", "set work_mem to '6MB'", "savepoint a", "set work_mem to '5MB'", "rollback to a", "commit"], b"6MB"),
        (["begin", "savepoint a", "set work_mem to '5MB'", "release a", "commit"], b"5MB"),
        (
            ["begin", "set work_mem to '6MB'", "savepoint a", "set work_mem to '7MB'", "select 1/0", "rollback to a",
             "savepoint a", "set work_mem to '8MB'", "rollback to a", "commit"],
            b"6MB",
        ),
        (["begin", "set local work_mem to '5MB'", "commit"], b"4MB"),
        (["begin", "set work_mem to '6MB'", "set local work_mem to '5MB'", "commit"], b"6MB"),
        (["set work_mem to '5MB'; select 1/0"], b"4MB"),
        (["set work_mem to '5MB'; commit; set work_mem to '6MB'; select 1/0"], b"5MB"),
        (["begin; set work_mem to '5MB'; commit and chain; set work_mem to '6MB'", "rollback"], b"5MB"),
        (["select set_config('work_mem', '5MB', false)"], b"5MB"),
        (["select set_config('work_mem', '5MB', true)"], b"4MB"),
        (["do $$ begin set work_mem to '5MB'; end $$"], b"5MB"),
        (["set session characteristics as transaction isolation level serializable", "set work_mem = '5MB'"], b"5MB"),
    ],
)  # fmt: skip
def test_settings_follow_as_transactions_have_it(
    client: WireClient, stranger: WireClient, script: list[str], expected: bytes
) -> None:
    """Between any two statements of the client's, outside transactions, somebody else has the connection if he can."""
    for text in script:
        frames = client.query(text)
        if frames[-1][1] == b"I" and "do $$" not in text:
            assert stranger.one("show work_mem") == b"4MB"
    assert client.one("show work_mem") == expected
    client.query("discard all")


def test_an_error_before_a_set_does_not_undo_it(client: WireClient, stranger: WireClient) -> None:
    """An error outside any watched transaction was remembered, and the next SET forgotten: a stranger got its role."""
    client.query("select no_such_column")
    client.query("set work_mem to '5MB'")
    assert stranger.one("show work_mem") == b"4MB"
    assert client.one("show work_mem") == b"5MB"
    client.ask(*extended("select no_such_column"), *extended("set work_mem to '6MB'"), syncs=2)
    assert stranger.one("show work_mem") == b"4MB"
    assert client.one("show work_mem") == b"6MB"


def test_set_config_follows_with_its_parameters(client: WireClient, stranger: WireClient) -> None:
    text = "select set_config($1, $2, $3)"
    client.ask(wire.parse(text, "s"), wire.SYNC)
    client.ask(wire.bind("s", [b"app.tenant", b"8", b"off"]), wire.execute(), wire.SYNC)
    assert stranger.one("select current_setting('app.tenant', true)") != b"8"
    assert client.one("select current_setting('app.tenant')") == b"8"
    client.ask(wire.bind("s", [b"app.tenant", b"9", b"\1"], formats=[0, 0, 1]), wire.execute(), wire.SYNC)
    assert client.one("select current_setting('app.tenant')") == b"8"


def test_a_set_in_a_pipeline_is_undone_with_it(client: WireClient, stranger: WireClient) -> None:
    messages = [*extended("set work_mem to '5MB'")[:-1], *extended("select 1/0")]
    client.ask(*messages)
    assert client.one("show work_mem") == b"4MB"
    client.ask(*extended("set work_mem to '5MB'"), *extended("select 1/0"), syncs=2)
    assert stranger.one("show work_mem") == b"4MB"
    assert client.one("show work_mem") == b"5MB"


def test_a_setting_that_a_function_changed_behind_our_back_follows_if_it_is_reported(
    client: WireClient, stranger: WireClient, origin: Server
) -> None:
    origin.execute(
        "create or replace function hush() returns void language plpgsql as 'begin execute $q$set t$q$ "
        "|| $q$imezone to ''Europe/Paris''$q$; end'"
    )
    frames = client.query("select hush()")
    assert statuses(frames) == {"TimeZone": "Europe/Paris"}
    assert stranger.one("show timezone") != b"Europe/Paris"
    assert client.one("show timezone") == b"Europe/Paris"


def test_roles_follow_and_settings_are_made_with_the_rights_they_need(
    client: WireClient, stranger: WireClient, origin: Server
) -> None:
    origin.execute("drop role if exists clerk")
    origin.execute("create role clerk")
    client.query("set session_replication_role to replica")  # only a superuser may
    client.query("set role clerk")
    assert stranger.one("select current_user") == b"postgres"
    assert stranger.one("show session_replication_role") == b"origin"
    assert client.one("select current_user") == b"clerk"
    assert client.one("show session_replication_role") == b"replica"
    client.query("set session authorization clerk")
    assert stranger.one("select session_user") == b"postgres"
    assert client.one("select session_user || ' ' || current_setting('role')") == b"clerk none"
    client.query("reset session authorization")
    assert client.one("select session_user") == b"postgres"


def test_new_clients_begin_with_the_defaults_that_alter_role_gave(one: Pgnear, origin: Server) -> None:
    with WireClient.logged_in(one.port) as first:
        first.query("alter role postgres set work_mem to '9MB'")
        try:
            with WireClient.logged_in(one.port) as second:
                assert second.one("show work_mem") == b"9MB"
        finally:
            first.query("alter role postgres reset work_mem")
    with WireClient.logged_in(one.port) as third:
        assert third.one("show work_mem") == b"4MB"


@pytest.mark.parametrize("how", ["through pgnear", "past pgnear"])
def test_clients_from_before_keep_the_defaults_that_they_began_with(one: Pgnear, origin: Server, how: str) -> None:
    one.wait_for_log("catalog_read")
    with WireClient.logged_in(one.port) as before, WireClient.logged_in(one.port, options="-c work_mem=6MB") as own:
        zone = before.one("show timezone")
        before.query("set timezone to 'Asia/Tokyo'")
        try:
            for change in ("role postgres set work_mem to '9MB'", "database postgres set timezone to 'Europe/Paris'"):
                if how == "through pgnear":
                    before.query(f"alter {change}")
                else:
                    origin.execute(f"alter {change}")
            before.query("create table public.look_again (); drop table public.look_again")  # the catalog is read anew
            one.wait_for_log("defaults_changed", count=2 if how == "through pgnear" else 1)
            with WireClient.logged_in(one.port) as behind:
                assert behind.one("show work_mem") == b"9MB"
                assert behind.one("show timezone") == b"Europe/Paris"
                assert before.one("show work_mem") == b"4MB"
                assert before.one("show timezone") == b"Asia/Tokyo"
                before.query("reset timezone; set work_mem to '7MB'; reset work_mem")
                assert before.one("show timezone") == zone
                assert before.one("show work_mem") == b"4MB"
                assert own.one("show work_mem") == b"6MB"
        finally:
            origin.execute("alter role postgres reset all")
            origin.execute("alter database postgres reset all")


# ---- pins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("take", "leave", "reason"),
    [
        ("create temp table scratch(a int)", "drop table scratch", "temporary object"),
        ("create temp table scratch(a int)", "discard temp", "temporary object"),
        ("select 1 as a into temp scratch", "drop table scratch", "temporary object"),
        ("create table pg_temp.scratch(a int)", "drop table scratch", "temporary object"),
        ("listen news", "unlisten news", "LISTEN"),
        ("listen news", "unlisten *", "LISTEN"),
        ("declare c cursor with hold for select 1", "close c", "cursor WITH HOLD"),
        ("declare c cursor with hold for select 1", "close all", "cursor WITH HOLD"),
        ("select pg_advisory_lock(42)", "select pg_advisory_unlock(42)", "advisory lock"),
        ("select pg_try_advisory_lock_shared(4, 2)", "select pg_advisory_unlock_all()", "advisory lock"),
        ("prepare plan as select 1", "deallocate plan", "PREPARE"),
        ("prepare plan as select 1", "deallocate all", "PREPARE"),
        ("do $$ begin set work_mem to '5MB'; end $$", "discard all", "function or block with session effects"),
    ],
)
@pytest.mark.parametrize("how", ["simple", "extended"])
def test_what_cannot_follow_pins_until_it_is_gone(one: Pgnear, take: str, leave: str, reason: str, how: str) -> None:
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:

        def run(text: str) -> None:
            frames = client.query(text) if how == "simple" else client.ask(*extended(text))
            assert "E" not in kinds(frames), wire.error_fields(dict(frames)["E"])

        run(take)
        until(lambda: one.metric("clients_pinned") == 1, what="pinned")
        run("select 1")
        other.send(wire.query("select 2"))
        run("begin")
        run("commit")
        until(lambda: one.metric("clients_waiting") == 1, what="the other waits")
        run(leave)
        assert wire.rows(other.receive_until()) == [[b"2"]]
        assert one.metric("clients_pinned") == 0
        assert [line["reason"] for line in one.log_lines if line["event"] == "client_pinned"] == [reason]


@pytest.mark.parametrize(
    "script",
    [
        ["create temp table scratch(a int); select 1/0"],
        ["begin", "create temp table scratch(a int)", "rollback"],
        ["begin", "create temp table scratch(a int) on commit drop", "commit"],
        ["begin", "select pg_advisory_xact_lock(1)", "commit"],
        ["begin", "listen news", "rollback"],
        ["begin", "declare c cursor with hold for select 1", "close c", "commit"],
        ["listen"],
        ["create temp table"],
        ["select pg_advisory_lock(9), pg_advisory_unlock(9)"],
    ],
)
def test_what_came_to_nothing_does_not_pin(one: Pgnear, script: list[str]) -> None:
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        for text in script:
            client.query(text)
        assert other.one("select 1") == b"1"


def test_a_function_whose_body_changes_the_session_pins_its_caller(one: Pgnear, origin: Server) -> None:
    origin.execute(
        "create or replace function remember() returns void language plpgsql as $$ begin set work_mem to '5MB'; end $$"
    )
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        client.query("create or replace function remember_too() returns void language sql as $$ listen news $$")
        client.query("select remember_too()")
        assert one.metric("clients_pinned") == 1
        client.query("unlisten *; discard all; drop function remember_too()")
        until(
            lambda: client.query("select remember()") and one.metric("clients_pinned") == 1, what="seen in the catalog"
        )
        assert client.one("show work_mem") == b"5MB"
        client.query("discard all")
        assert other.one("show work_mem") == b"4MB"


@pytest.mark.parametrize(
    ("functions", "call"),
    [
        (
            """create function deep() returns void language plpgsql as
               $$ begin perform set_config('a.deep', 'x', false); end $$;
            create function middle() returns void language plpgsql as $$ begin perform public.deep(); end $$;
            create function "Outer"() returns int language sql as $$ select 1 from middle() $$""",
            'select "Outer"()',
        ),
        (
            "create function atomic() returns text begin atomic select set_config('a.deep', 'x', false); end",
            "select atomic()",
        ),
    ],
    ids=["through others", "SQL-standard body"],
)
def test_a_function_that_changes_the_session_by_another_pins_its_caller(
    pgnear: Start, origin: Server, functions: str, call: str
) -> None:
    """A setting that it made was the next client's."""
    origin.execute("create database nested")
    try:
        with origin.connect(dbname="nested") as direct:
            direct.execute(functions.encode())
        near = pgnear(url=origin.url("nested"), pool_size=1)
        near.wait_for_log("catalog_read")
        dsn = {"dbname": "nested"}
        with near.connect(dsn=dsn) as client, near.connect(dsn=dsn) as other:
            client.execute(call.encode())
            assert near.metric("clients_pinned") == 1
            assert client.execute("select current_setting('a.deep')").fetchone() == ("x",)
            client.execute("discard all")
            assert other.execute("select current_setting('a.deep', true)").fetchone() != ("x",)
        near.stop()
    finally:
        origin.execute("drop database nested with (force)")


@pytest.mark.parametrize(
    ("take", "look"),
    [
        (
            "select pg_create_physical_replication_slot('passing', true, true)",
            "select count(*) from pg_replication_slots",
        ),
        ("select pg_backup_start('passing')", "select count(*) from pg_ls_dir('.') where false"),
        ("select keeps_seed()", "select 0"),
    ],
)
def test_what_outlives_discard_all_keeps_its_connection_and_ends_with_it(
    one: Pgnear, origin: Server, take: str, look: str
) -> None:
    origin.execute("create or replace function keeps_seed() returns void language sql as 'select setseed(0.5)'")
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        until(lambda: client.query(take) and one.metric("clients_pinned") == 1, what="pinned")
        pid = client.one("select pg_backend_pid()")
        client.query("discard all")
        assert client.one("select pg_backend_pid()") == pid
        other.send(wire.query("select pg_backend_pid()"))
        until(lambda: one.metric("clients_waiting") == 1)
        client.terminate()
        assert wire.rows(other.receive_until()) != [[pid]]
        until(lambda: origin.execute(look) == [(0,)])


def test_a_text_that_a_function_runs_pins_as_if_it_had_been_sent(one: Pgnear) -> None:
    hidden = "select ts_rewrite('a'::tsquery, 'select ''a''::tsquery, set_config(''a.b'', ''leak'', false)::tsquery')"
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        client.query(hidden)
        assert one.metric("clients_pinned") == 1
        assert client.one("select current_setting('a.b', true)") == b"leak"
        client.query("discard all")
        assert other.one("select current_setting('a.b', true)") != b"leak"
        client.query("select ts_rewrite('a'::tsquery, 'select ''a''::tsquery, ''b''::tsquery')")
        assert one.metric("clients_pinned") == 0


def test_news_that_comes_while_a_connection_is_being_reset_do_no_harm(one: Pgnear, origin: Server) -> None:
    """A notification between the client's end and DISCARD ALL began a second reset of the connection: pgnear ended."""
    with origin.connect() as direct:
        for _ in range(30):
            client = WireClient.logged_in(one.port)
            client.query("listen news")
            client.terminate()
            direct.execute("notify news")
    with WireClient.logged_in(one.port) as other:
        assert other.one("select 1") == b"1"


def test_a_second_state_keeps_the_pin_when_the_first_is_gone(one: Pgnear) -> None:
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        client.query("listen news")
        client.query("create temp table scratch(a int)")
        client.query("unlisten *")
        assert client.one("select count(*) from scratch") == b"0"
        other.send(wire.query("select 2"))
        until(lambda: one.metric("clients_waiting") == 1)
        client.query("drop table scratch")
        assert wire.rows(other.receive_until()) == [[b"2"]]


def test_what_discard_all_cannot_take_back_closes_the_connection(one: Pgnear) -> None:
    with WireClient.logged_in(one.port) as client:
        client.query("select setseed(0.5)")
        pid = client.one("select pg_backend_pid()")
        first = client.one("select random()")
    with WireClient.logged_in(one.port) as other:
        assert other.one("select pg_backend_pid()") != pid
        assert other.one("select random()") != first


def test_session_pooling_keeps_the_connection_until_the_client_leaves(pgnear: Start) -> None:
    near = pgnear(pool_size=2, users={"postgres": {"password": "secret", "pooling": "session"}})
    with WireClient.logged_in(near.port, password="secret") as client:
        pids = {client.one("select pg_backend_pid()") for _ in range(3)}
        client.query("set work_mem to '5MB'")
        with WireClient.logged_in(near.port, password="secret") as other:
            assert other.one("select pg_backend_pid()") not in pids
        assert len(pids) == 1
        assert client.one("show work_mem") == b"5MB"


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_statement_pooling_refuses_transaction_blocks(pgnear: Start, how: str) -> None:
    near = pgnear(pooling="statement")
    with WireClient.logged_in(near.port) as client:
        frames = client.query("begin") if how == "simple" else client.ask(*extended("begin"))
        assert wire.error_fields(dict(frames)["E"])["C"] == "0A000"
        assert client.one("select 1") == b"1"
        assert client.one("select 1; select 2") == b"1"


def test_currval_and_lastval_are_never_somebody_elses(one: Pgnear, origin: Server) -> None:
    origin.execute("drop sequence if exists numbers")
    origin.execute("create sequence numbers")
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:
        assert client.one("select nextval('numbers')") == b"1"
        assert client.one("select currval('numbers')") == b"1"
        client.query("discard sequences")
        client.one("select nextval('numbers')")
        other.one("select nextval('numbers')")
        for how in (client.query, lambda text: client.ask(*extended(text))):
            fields = wire.error_fields(dict(how("select lastval()"))["E"])
            assert fields["M"] == "lastval is not yet defined in this session"
        assert client.one("select nextval('numbers')") == b"4"
        assert client.one("select lastval()") == b"4"


@pytest.mark.parametrize("how", ["simple", "extended", "prepared"])
def test_the_first_that_ever_asks_for_its_sequence_value_finds_it(pgnear: Start, origin: Server, how: str) -> None:
    """On a connection that others have drawn on before: PDO's lastInsertId and DBI's last_insert_id ask like that."""
    origin.execute("drop table if exists numbered")
    origin.execute("create table numbered (id serial, v int)")
    near = pgnear(pool_size=1)
    insert = "insert into numbered values (default, 1)"
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        for each in (client, other):
            each.ask(wire.parse(insert, "s"), wire.SYNC)
        for each in (client, other, client):
            if how == "prepared":
                each.ask(wire.bind("s"), wire.execute(), wire.SYNC)
            else:
                each.query(insert) if how == "simple" else each.ask(*extended(insert))
        assert client.one("select lastval()") == b"3"


@pytest.mark.parametrize(
    "made",
    [
        ("create table numbered (id serial); insert into numbered values (default)",),
        ("begin", "create table numbered (id serial)", "insert into numbered values (default)", "commit"),
        ("create table numbered (id serial)", "insert into numbered values (default)"),
    ],
    ids=["in one text", "in one transaction", "one after the other"],
)
def test_a_value_drawn_by_a_table_that_was_made_a_moment_ago_is_found(
    pgnear: Start, origin: Server, made: tuple[str, ...]
) -> None:
    """Nothing has told pgnear yet that its rows get values of a sequence. Doctrine's tests make tables, and insert."""
    origin.execute("drop table if exists numbered")
    origin.execute("create sequence if not exists drawn")
    near = pgnear(pool_size=1)
    near.wait_for_log("catalog_read")
    with WireClient.logged_in(near.port) as other, WireClient.logged_in(near.port) as client:
        other.one("select nextval('drawn')")
        client.ask(*map(wire.query, made), syncs=len(made))  # in one piece: the catalog is not read in between
        assert client.one("select lastval()") == b"1"


@pytest.mark.parametrize("cached", ["true", "false"])
def test_who_is_likely_to_ask_for_its_sequence_values_finds_them(pgnear: Start, origin: Server, cached: str) -> None:
    """Others take other connections, since a client of the same application has asked once."""
    origin.execute("drop table if exists numbered")
    origin.execute("create table numbered (id serial, v int)")
    near = pgnear(pool_size=2, min_pool_size=2, cache={"enabled": cached})
    near.wait_for_log("catalog_read")
    with WireClient.logged_in(near.port, application_name="php") as first:
        first.query("insert into numbered values (default, 1)")
        assert first.one("select lastval()") == b"1"
    until(lambda: near.metric("pool_idle") == 2)
    with (
        WireClient.logged_in(near.port, application_name="php") as client,
        WireClient.logged_in(near.port, application_name="other") as other,
    ):
        for number in range(2, 20, 2):
            client.ask(*extended("insert into numbered values (default, 3)"))
            other.query("insert into numbered values (default, 4)")
            assert client.one("select currval('numbered_id_seq')") == b"%d" % number
            client.query("discard sequences")


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_a_value_drawn_in_one_transaction_is_found_in_the_next(pgnear: Start, origin: Server, how: str) -> None:
    origin.execute("drop table if exists numbered")
    origin.execute("create table numbered (id serial, v int)")
    near = pgnear(pool_size=2, min_pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:

        def say(text: str) -> None:
            client.query(text) if how == "simple" else client.ask(*extended(text))

        until(lambda: near.metric("pool_idle") == 2)
        for number in (1, 2, 3):
            say("begin")
            say("insert into numbered values (default, 1)")
            other.query("begin")  # takes the other connection, and gives it back last
            say("commit")
            other.query("commit")
            say("begin")
            other.query("begin")
            assert client.one("select currval('numbered_id_seq')") == b"%d" % number
            say("commit")
            other.query("commit")


def test_a_value_drawn_on_another_connection_before_is_not_taken_for_the_last(pgnear: Start, origin: Server) -> None:
    """Nor one from before DISCARD SEQUENCES, wherever that ran."""
    origin.execute("drop sequence if exists drawn; create sequence drawn")
    near = pgnear(pool_size=2, min_pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        until(lambda: near.metric("pool_idle") == 2)
        assert client.one("select nextval('drawn')") == b"1"
        other.query("begin")
        first = other.one("select pg_backend_pid()")
        assert client.one("select nextval('drawn')") == b"2"
        other.query("commit")
        other.query("begin")
        second = other.one("select pg_backend_pid()")
        seen = dict(client.query("select currval('drawn')"))
        assert "D" in seen or "E" in seen
        if "D" in seen:
            assert seen["D"].endswith(b"2"), (first, second)
        other.query("commit")
        client.query("discard sequences")
        for _ in range(2):
            assert "E" in dict(client.query("select lastval()"))
            other.query("begin")
            assert "E" in dict(client.query("select lastval()"))
            other.query("commit")


@pytest.mark.parametrize("setting", ["session authorization", "role"])
def test_a_role_that_was_made_anew_is_the_new_one_on_every_connection(
    pgnear: Start, origin: Server, setting: str
) -> None:
    """A connection that was that role before it was dropped is some other role's than the one that has its name now."""
    origin.execute("drop role if exists passing")
    near = pgnear(pool_size=2, min_pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        until(lambda: near.metric("pool_idle") == 2)
        client.query("create role passing")
        with WireClient.logged_in(near.port) as gone:
            gone.query(f"set {setting} passing; begin")
            client.query(f"set {setting} passing")
            gone.query("commit")  # both connections are passing now
        client.query(f"reset {setting}")
        client.query("drop role passing; create role passing")
        client.query(f"set {setting} passing")
        assert client.one("select current_user, random()") == b"passing"
        other.query("begin; select 1")
        assert client.one("select current_user, random()") == b"passing"
        other.query("commit")
        client.query(f"reset {setting}; drop role passing")


# ---- prepared statements ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("text", ["select 1", "rollback to savepoint a", "rollback"])
def test_a_query_right_behind_a_close_is_answered(near: Pgnear, text: str, fails: bool) -> None:
    """pgjdbc with autosave closes what failed and rolls back to its savepoint, with no Sync in between: the origin had
    been asked for nothing, and its answer was waited for without end."""
    with WireClient.logged_in(near.port) as client:
        client.query("begin; savepoint a")
        statement = "select * from no_such_table" if fails else "select 2"
        client.ask(wire.parse(statement, "s"), wire.bind("s"), wire.execute(), wire.SYNC)
        client.send(wire.close("S", "s"), wire.query(text))
        kinds = [kind for kind, _ in client.receive_until("Z")]
        assert kinds[0] == "3"
        assert kinds[1:] == (["E", "Z"] if fails and text == "select 1" else [*("TD" if "1" in text else ""), "C", "Z"])


def test_a_statement_from_before_ddl_fails_as_on_a_private_connection(pgnear: Start, table: str) -> None:
    """On whichever connection it lands: one that has its plan, or one that never saw it."""
    near = pgnear(pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        client.ask(wire.parse(f"select * from {table} where id = 1", "s"), wire.describe("S", "s"), wire.SYNC)
        other.query(f"alter table {table} add column extra text")
        for _ in range(2):
            other.query("begin")
            other.query("select 1")  # takes the connection that was used last
            frames = client.ask(wire.bind("s"), wire.execute(), wire.SYNC)
            fields = wire.error_fields(dict(frames)["E"])
            assert (fields["C"], fields["M"]) == ("0A000", "cached plan must not change result type")
            other.query("commit")
        client.ask(wire.close("S", "s"), wire.SYNC)
        frames = client.ask(
            wire.parse(f"select * from {table} where id = 1", "s"), wire.bind("s"), wire.execute(), wire.SYNC
        )
        assert wire.rows(frames) == [[b"1", b"10", None]]


def test_a_statement_outlives_its_table_where_another_takes_its_place(pgnear: Start, table: str) -> None:
    """psycopg's own suite drops and makes a table for each test, and a connection that lasts has prepared a query of
    it: PostgreSQL compares names and types, pgnear compared the table's oid as well."""
    near = pgnear(pool_size=2)
    text = f"select id, v, 1 as one from {table} where id = 7"
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        client.ask(wire.parse(text, "s"), wire.describe("S", "s"), wire.SYNC)
        for columns, values, row in (("id int, v int", "7, 8", [b"7", b"8", b"1"]), ("id int, v text", "7, 'x'", None)):
            other.query(f"drop table {table}; create table {table} ({columns}); insert into {table} values ({values})")
            other.query("begin; select 1")  # takes the connection that was used last
            frames = client.ask(wire.bind("s"), wire.execute(), wire.SYNC)
            other.query("commit")
            if row is None:
                assert wire.error_fields(dict(frames)["E"])["C"] == "0A000"
            else:
                assert wire.rows(frames) == [row], frames


def test_the_same_text_means_what_each_clients_settings_make_of_it(one: Pgnear) -> None:
    """A literal is read when a statement is parsed: sharing it across DateStyle would give one client's date to all."""
    text = "select to_char('01/02/2020'::date, 'YYYY-MM-DD')"
    with (
        WireClient.logged_in(one.port, DateStyle="ISO, MDY") as american,
        WireClient.logged_in(one.port, DateStyle="ISO, DMY") as british,
    ):
        for client, day in ((american, b"2020-01-02"), (british, b"2020-02-01")):
            client.ask(wire.parse(text, "s"), wire.SYNC)
            assert wire.rows(client.ask(wire.bind("s"), wire.execute(), wire.SYNC)) == [[day]]


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_deallocate_of_a_protocol_level_statement_works_in_a_transaction(one: Pgnear, how: str) -> None:
    with WireClient.logged_in(one.port) as client:
        client.ask(wire.parse("select 1", "s"), wire.SYNC)
        client.query("begin")
        frames = client.query("deallocate s") if how == "simple" else client.ask(*extended("deallocate s"))
        assert tags(frames) == ["DEALLOCATE"]
        client.query("commit")
        frames = client.ask(wire.bind("s"), wire.execute(), wire.SYNC)
        assert wire.error_fields(dict(frames)["E"])["M"] == 'prepared statement "s" does not exist'
        frames = client.ask(wire.parse("select 1", "s"), wire.bind("s"), wire.execute(), wire.SYNC)
        assert wire.rows(frames) == [[b"1"]]


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_a_statement_whose_table_is_gone_can_be_deallocated_on_any_connection(
    pgnear: Start, origin: Server, how: str
) -> None:
    """In a transaction as well, which it leaves intact: ActiveRecord deallocates all that it has before a migration."""
    origin.execute("drop table if exists going; create table going (v int)")
    near = pgnear(pool_size=2, min_pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        until(lambda: near.metric("pool_idle") == 2)
        for name in ("one", "two"):
            client.ask(wire.parse("select * from going", name), wire.SYNC)
        client.query("drop table going")
        other.query("begin; select 1")  # takes the connection that has them
        client.query("begin")
        if how == "simple":
            assert tags(client.query("deallocate one; deallocate two")) == ["DEALLOCATE", "DEALLOCATE"]
        else:
            for name in ("one", "two"):
                assert tags(client.ask(*extended(f"deallocate {name}"))) == ["DEALLOCATE"]
        assert client.one("select 1") == b"1"
        client.query("rollback")
        for name in ("one", "two"):
            frames = client.ask(wire.bind(name), wire.execute(), wire.SYNC)
            assert wire.error_fields(dict(frames)["E"])["M"] == f'prepared statement "{name}" does not exist'


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_sql_speaks_of_protocol_level_statements_by_the_clients_names(one: Pgnear, how: str) -> None:
    with WireClient.logged_in(one.port) as client, WireClient.logged_in(one.port) as other:

        def run(text: str) -> list[wire.Frame]:
            other.one("select 1")
            return client.query(text) if how == "simple" else client.ask(*extended(text))

        client.ask(wire.parse("select $1::int + 1", "Plus one"), wire.SYNC)
        assert wire.rows(run('execute "Plus one" (41)')) == [[b"42"]]
        frames = client.ask(wire.parse('execute "Plus one" (42)', "again"), wire.describe("S", "again"), wire.SYNC)
        assert "E" not in kinds(frames), frames
        other.one("select 1")
        assert wire.rows(client.ask(wire.bind("again"), wire.execute(), wire.SYNC)) == [[b"43"]]
        assert "E" not in kinds(run('explain execute "Plus one" (41)'))
        fields = wire.error_fields(dict(run('prepare "Plus one" as select 1'))["E"])
        assert (fields["C"], fields["M"]) == ("42P05", 'prepared statement "Plus one" already exists')
        run("prepare two as select 2")
        fields = wire.error_fields(dict(client.ask(wire.parse("select 3", "two"), wire.SYNC))["E"])
        assert fields["C"] == "42P05"


def test_errors_speak_of_the_clients_own_statement_names(one: Pgnear) -> None:
    with WireClient.logged_in(one.port) as client:
        client.ask(wire.parse("select $1::int", "s"), wire.SYNC)
        frames = client.ask(wire.bind("s"), wire.execute(), wire.SYNC)
        message = wire.error_fields(dict(frames)["E"])["M"]
        assert message == 'bind message supplies 0 parameters, but prepared statement "s" requires 1'


def test_protocol_and_sql_prepared_statements_share_one_name_space(one: Pgnear) -> None:
    with WireClient.logged_in(one.port) as client:
        client.query("prepare s as select 42")
        frames = client.ask(wire.describe("S", "s"), wire.bind("s"), wire.execute(), wire.SYNC)
        assert wire.rows(frames) == [[b"42"]]
        client.query("deallocate s")
        assert "E" in kinds(client.ask(wire.bind("s"), wire.execute(), wire.SYNC))


def test_a_query_behind_a_batch_without_sync_is_skipped_with_it_or_ends_it(client: WireClient) -> None:
    frames = client.ask(wire.parse("select 1"), wire.bind(), wire.execute(), wire.FLUSH, wire.query("select 2"))
    assert [row[0] for row in wire.rows(frames)] == [b"1", b"2"]
    frames = client.ask(wire.parse("select 1/0"), wire.bind(), wire.execute(), wire.query("select 2"), wire.SYNC)
    assert kinds(frames) == "1EZ"
    assert client.one("select 3") == b"3"


@pytest.mark.parametrize("before", ["", "begin"], ids=["outside a transaction", "inside one"])
def test_an_error_in_a_batch_is_told_before_its_sync_and_without_a_flush(client: WireClient, before: str) -> None:
    """PostgreSQL flushes errors by itself; psycopg's tests wait for one that way, and waited for ever."""
    client.query(before)
    client.send(wire.parse("select 1/$1::int", "s"), wire.bind("s", [b"1"]), wire.execute())
    client.send(wire.bind("s", [b"0"]), wire.execute(), wire.bind("s", [b"1"])[:3])
    assert kinds(client.receive_until("E")) == "12DCE"
    assert kinds(client.ask(wire.bind("s", [b"1"])[3:], wire.execute(), wire.SYNC)) == "Z"
    client.query("rollback")
    assert client.one("select 3") == b"3"


def test_an_unfinished_batch_that_waits_for_a_connection_goes_on_when_it_has_one(pgnear: Start) -> None:
    near = pgnear(pool_size=1)
    with WireClient.logged_in(near.port) as holder, WireClient.logged_in(near.port) as client:
        holder.query("begin")
        client.send(wire.parse("select nonsense"))
        until(lambda: near.metric("pool_waiting") == 1)
        holder.query("commit")
        assert kinds(client.receive_until("E")) == "E"
        assert kinds(client.ask(wire.SYNC)) == "Z"


def test_terminate_behind_a_batch_without_sync_ends_at_once_and_undoes_it(one: Pgnear, table: str) -> None:
    for messages in ([], [wire.FLUSH]):
        client = WireClient.logged_in(one.port)
        client.send(wire.parse(f"delete from {table}"), wire.bind(), wire.execute(), *messages, wire.TERMINATE)
        client.receive_all()
    with WireClient.logged_in(one.port) as other:
        assert other.one(f"select count(*) from {table}") == b"3"


def test_a_notification_names_its_sender_as_clients_know_it(pgnear: Start) -> None:
    near = pgnear(pool_size=2)
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        client.query("listen news")
        other.query("notify news")
        kind, body = client.receive()
        assert (kind, int.from_bytes(body[:4], "big")) == ("A", other.pid)
        own = [body for kind, body in client.query("notify news") if kind == "A"]
        assert [int.from_bytes(body[:4], "big") for body in own] == [client.pid]


def test_an_idle_pool_is_not_in_the_way_of_dropping_its_database(pgnear: Start, origin: Server) -> None:
    origin.execute("drop database if exists doomed")
    origin.execute("create database doomed")
    near = pgnear(databases={"doomed": {"origin": origin.url().rpartition("/")[0] + "/doomed"}})
    with WireClient.logged_in(near.port, database="doomed") as visitor:
        visitor.one("select 1")
    with WireClient.logged_in(near.port) as client:
        frames = client.query("drop database doomed")
        assert tags(frames) == ["DROP DATABASE"], frames


@pytest.mark.parametrize("template", ["", "template default"])
def test_an_idle_pool_is_not_in_the_way_of_making_a_database(pgnear: Start, origin: Server, template: str) -> None:
    """Who names no template copies template1, where nobody may be connected; node-postgres's tests connect to it."""
    origin.execute("drop database if exists doomed")
    near = pgnear(databases={"template1": {"origin": origin.url().rpartition("/")[0] + "/template1"}})
    with WireClient.logged_in(near.port, database="template1") as visitor:
        visitor.one("select 1")
    with WireClient.logged_in(near.port) as client:
        frames = client.query(f"create database doomed {template}")
        assert tags(frames) == ["CREATE DATABASE"], frames
        client.query("drop database doomed")


def test_a_database_that_was_just_made_answers_what_was_prepared_before_ddl(pgnear: Start, origin: Server) -> None:
    """postgres.js's own tests drop and make their database, and then hung: for ten seconds connections to it were
    closed when they were free, the one included on which a statement from before DDL had just been described again, so
    that the next one knew nothing of that and was asked again, and so on."""
    origin.execute("drop database if exists doomed")
    near = pgnear(databases={"doomed": {"origin": origin.url().rpartition("/")[0] + "/doomed"}})
    with WireClient.logged_in(near.port) as administrator:
        administrator.query("create database doomed")
        administrator.query("drop database doomed")
        administrator.query("create database doomed")
    with WireClient.logged_in(near.port, database="doomed") as client:
        client.query("create table made (v int)")
        client.ask(wire.parse("select v from made", "s"), wire.describe("S", "s"), wire.SYNC)
        client.query("create table later (v int)")
        frames = client.ask(wire.bind("s"), wire.execute(), wire.SYNC)
        assert tags(frames) == ["SELECT 0"], frames
    assert near.metric("origin_connections_opened_total") < 20


def test_psycopg_and_asyncpg_pools_reset_without_pinning(one: Pgnear) -> None:
    """asyncpg's reset is this text; it used to pin each connection for good."""
    reset = "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;"
    connections: list[psycopg.Connection[Any]] = [one.connect() for _ in range(3)]
    for connection in connections:
        connection.execute(reset)
        assert connection.execute("select 1").fetchone() == (1,)
        connection.close()


def test_a_client_that_has_made_a_table_is_not_sent_elsewhere_by_pgnears_look_at_it(
    pgnear: Start, origin: Server
) -> None:
    """PostgreSQL's regression suite: statistics that a backend has not told yet, and what C functions keep in its
    memory, were elsewhere whenever pgnear read the catalog in between."""
    near = pgnear(pool_size=3, min_pool_size=3, origin_connect_timeout=60)
    until(lambda: near.metric("origin_connections_opened_total") >= 3)
    near.wait_until_it_caches()
    reading = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    with WireClient.logged_in(near.port) as client, origin.connect() as holder:
        backend = client.one("select pg_backend_pid()")
        holder.execute("begin; lock table pg_attrdef in access exclusive mode")
        client.query("create table looked_at ()")
        until(lambda: origin.execute(reading) == [(1,)], what="pgnear does not read the catalog")
        assert client.one("select pg_backend_pid()") == backend
        holder.execute("rollback")
        until(lambda: origin.execute(reading) == [(0,)])
        assert client.one("select pg_backend_pid()") == backend
        client.query("drop table looked_at")
