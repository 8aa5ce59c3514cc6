"""The console: what an operator sees and does with psql and drivers on the database called pgnear."""

from __future__ import annotations

import subprocess
from typing import Any

import psycopg
import pytest

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, run
from tests.support.waiting import until
from tests.support.wire import WireClient, bind, close, describe, execute, parse
from tests.support.wire import frame as message

SYNC = message("S")


def console(near: Pgnear, **dsn: object) -> Any:
    return near.connect(dsn={"dbname": "pgnear", **dsn})


def show(near: Pgnear, what: str) -> list[dict[str, Any]]:
    with console(near) as connection:
        cursor = connection.execute(f"show {what}".encode())
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def explained(near: Pgnear, statement: str, *, on: str = "") -> dict[str, str]:
    with console(near) as connection:
        found = connection.execute(f"explain cache {on} {statement}".encode()).fetchall()
    return dict(reversed(found))


def psql(origin: Server, near: Pgnear, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(origin.bin / "psql"), near.dsn(dbname="pgnear"), "-X", *options],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- clients ---------------------------------------------------------------------------------------------------------


def test_psql_shows_tables_and_says_what_is_no_command(near: Pgnear, origin: Server) -> None:
    done = psql(origin, near, "show version;\nSHOW  Pools ;\nselect 1;\nshow version;\n", "-At")
    assert done.returncode == 0
    first, pool, last = done.stdout.splitlines()
    assert first == last
    assert first.startswith("pgnear ")
    assert pool.startswith("postgres|20|")
    assert 'ERROR:  unknown console command "select 1"' in done.stderr
    assert "HINT:  SHOW HELP lists the commands." in done.stderr


def test_every_command_that_help_shows_works_by_either_protocol(near: Pgnear) -> None:
    listed = [row["command"] for row in show(near, "help") if row["command"].startswith("SHOW")]
    assert len(listed) > 7
    with console(near) as connection:
        for each in listed:
            simple = psycopg.ClientCursor(connection).execute(each.encode())
            names = [column.name for column in simple.description or ()]
            for binary in (False, True):
                extended = connection.cursor(binary=binary).execute(each.encode(), prepare=True)
                assert [column.name for column in extended.description] == names
                assert len(extended.fetchall()) > 0 or each in ("SHOW ORIGINS", "SHOW CACHE ADVICE", "SHOW REPLICAS")


def test_numbers_are_numbers_in_text_and_in_binary(near: Pgnear) -> None:
    with console(near) as connection:
        for binary in (False, True):
            row = connection.cursor(binary=binary).execute(b"show pools", prepare=True).fetchone()
            assert row[:2] == ("postgres", 20)
            assert isinstance(row[6], float)


def test_an_extended_batch_fails_as_one_and_the_next_works(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.log_in("postgres", PASSWORD, "pgnear")
        failed = client.ask(parse("nonsense"), bind(), describe(), execute(), SYNC)
        assert [kind for kind, _ in failed] == ["E", "Z"]
        good = client.ask(parse("show help", "s"), describe("S", "s"), bind("s"), execute("", 1), SYNC)
        assert [kind for kind, _ in good] == ["1", "t", "T", "2", "D", "s", "Z"]
        assert [kind for kind, _ in client.ask(execute(), SYNC)] == ["E", "Z"]
        assert [kind for kind, _ in client.ask(close("S", "s"), SYNC)] == ["3", "Z"]
        assert [kind for kind, _ in client.ask(parse(";"), bind(), describe(), execute(), SYNC)] == list("12nIZ")


def test_a_message_that_is_none_of_its_own_ends_the_conversation_with_a_reason(near: Pgnear) -> None:
    for bad in (message("F", b""), message("B", b"\0"), message("Q", b"show help"), bind("", [b"1"])):
        with WireClient(near.port) as client:
            client.log_in("postgres", PASSWORD, "pgnear")
            client.ask(parse("show help"), SYNC)
            client.send(bad, *[message("Q", b"show help\0")] * 100)
            assert client.fatal()["C"] == "08P01"
    assert len(show(near, "clients")) == 1


# ---- who, and when ---------------------------------------------------------------------------------------------------


def test_only_administrators_may_use_it(pgnear: Start) -> None:
    near = pgnear(users={"postgres": {"password": PASSWORD}, "app": {"password": "app"}}, admin_users="app")
    with console(near, user="app", password="app") as connection:
        assert connection.execute("show version").fetchone()
    with pytest.raises(psycopg.OperationalError, match="may not use the console"):
        console(near)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        console(near, user="app", password="wrong")


def test_with_users_and_no_administrators_nobody_may(pgnear: Start) -> None:
    near = pgnear(users={"postgres": {"password": PASSWORD}})
    with pytest.raises(psycopg.OperationalError, match="may not use the console"):
        console(near)


def test_it_works_while_the_origin_is_down(pgnear: Start) -> None:
    near = pgnear(url=f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/postgres")
    near.wait_for_log("origin_connect_failed")
    (pool,) = show(near, "pools")
    assert pool["ready"] == "no"
    assert "Connection refused" in pool["last_failure"]
    assert explained(near, "select 1")["reason"] == "the origin's catalog is not known now: see SHOW POOLS"


def test_it_works_while_every_connection_is_taken_and_shows_who_waits(pgnear: Start) -> None:
    near = pgnear(pool_size=1, min_pool_size=1)
    near.wait_until_it_caches()
    holder = near.connect(autocommit=False, dsn={"application_name": "holder"})
    holder.execute("select txid_current()")
    with WireClient(near.port) as waiter:
        waiter.log_in("postgres", PASSWORD, "postgres", application_name="waiter")
        waiter.send(message("Q", b"select txid_current()\0"))
        (pool,) = until(lambda: [each for each in show(near, "pools") if each["waiting"] == 1])
        assert (pool["size"], pool["idle"], pool["busy"]) == (1, 0, 1)
        clients = {each["application_name"]: each for each in show(near, "clients")}
        assert clients["waiter"]["state"] == "waiting"
        assert clients["holder"]["state"] == "linked"
        (origin,) = show(near, "origins")
        assert origin["pid"] == clients["holder"]["origin_pid"]
        assert origin["client_pid"] == clients["holder"]["pid"]
        holder.rollback()
        assert waiter.receive_until("Z")
    holder.close()


def test_a_pin_is_shown_with_its_reason_and_age(near: Pgnear) -> None:
    with near.connect(dsn={"application_name": "pinned"}) as connection:
        connection.execute("create temporary table mine (id int)")
        (client,) = [each for each in show(near, "clients") if each["application_name"] == "pinned"]
        assert "temp" in client["pinned"]
        assert client["pinned_seconds"] >= 0


def test_its_clients_count_among_the_clients(pgnear: Start) -> None:
    near = pgnear(max_client_connections=1)
    with console(near), pytest.raises(psycopg.OperationalError, match="too many clients"):
        near.connect()


def test_whoever_is_on_it_hears_of_a_shutdown(pgnear: Start) -> None:
    near = pgnear()
    with WireClient(near.port) as client:
        client.log_in("postgres", PASSWORD, "pgnear")
        near.process.terminate()
        assert client.fatal()["C"] == "57P01"


def test_exporters_for_pgbouncer_find_what_they_ask_for(near: Pgnear) -> None:
    """By the names and number of columns that pgbouncer_exporter relies on."""
    with near.connect() as busy, near.connect() as idle:
        busy.execute("begin")
        busy.execute("select 1")
        idle.execute("select 1")
        pool = show(near, "pools")[0]
        assert (pool["database"], pool["user"], pool["cl_active"], pool["cl_waiting"]) == ("postgres", "postgres", 2, 0)
        assert (pool["sv_active"], pool["maxwait"], pool["pool_mode"]) == (1, 0, "transaction")
        database = show(near, "databases")[0]
        assert (database["name"], database["paused"], database["disabled"]) == ("postgres", 0, 0)
        assert database["current_connections"] >= pool["sv_active"] + pool["sv_idle"]
        assert {"database", "user", "application_name", "state"} <= show(near, "clients")[0].keys()
        assert show(near, "stats_totals")[0]["xact_count"] >= 1
        lists = {row["list"]: row["items"] for row in show(near, "lists")}
        assert (lists["databases"], lists["used_clients"]) == (1, 3)
        assert [*show(near, "config")[0]] == ["name", "value", "default", "changeable"]
        assert show(near, "servers")[0].keys() == show(near, "origins")[0].keys()


def test_no_secret_is_shown(pgnear: Start) -> None:
    near = pgnear(users={"postgres": {"password": PASSWORD}}, admin_users="postgres")
    settings = {row["name"]: row["value"] for row in show(near, "config")}
    assert settings["origin"].startswith("postgresql://postgres:********@127.0.0.1:")
    assert settings["cache.ttl"] == "60"
    assert settings["users.postgres.password"] == "********"
    assert PASSWORD not in "".join(value or "" for value in settings.values()).replace("postgres", "")


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_purging_a_table_drops_what_was_read_from_it_and_nothing_else(table: str, near: Pgnear, origin: Server) -> None:
    near.wait_until_it_caches()
    with near.connect() as client:
        client.execute(f"select v from {table} where id = 1")
        client.execute("select 'another'")

        def entries() -> int:
            return next(row["entries"] for row in show(near, "cache") if row["namespace"] is None)

        before = entries()
        assert psql(origin, near, f"purge table public.{table};").stdout == "PURGE 1\n"
        assert entries() == before - 1
        done = psql(origin, near, "purge table no_such_table; purge namespace nowhere; purge namespace default;")
        assert 'relation "no_such_table" does not exist' in done.stderr
        assert 'namespace "nowhere" does not exist' in done.stderr
        assert done.stdout == f"PURGE {before - 1}\n"
        client.execute("select 'another'")
        assert psql(origin, near, "PURGE ALL").stdout == "PURGE 1\n"


def test_a_purged_answer_is_asked_for_again(direct: psycopg.Connection, table: str, near: Pgnear) -> None:
    near.wait_until_it_caches()
    with near.connect() as client, console(near) as operator:
        text = f"select v from {table} where id = 1".encode()
        assert client.execute(text).fetchone() == (10,)
        direct.execute(f"update {table} set v = 11 where id = 1".encode())
        assert client.execute(text).fetchone() == (10,)  # it was written past pgnear
        operator.execute(f"purge table {table}".encode())
        assert client.execute(text).fetchone() == (11,)


def test_explain_says_what_decides(direct: psycopg.Connection, table: str, pgnear: Start) -> None:
    direct.execute(f"create view seen_{table} as select v, upper('a') from {table}".encode())
    near = pgnear()
    near.wait_until_it_caches()
    found = explained(near, f"select lower('x'), v from seen_{table};")
    assert (found["cacheable"], found["reason"], found["tables"]) == ("yes", "", f"public.{table}")
    assert (found["policy"], found["ttl"], found["entries"]) == ("default", "60 s", "0, 0 of them for user postgres")
    assert "entry" not in found
    found = explained(near, f"select random() from {table}")
    assert found["cacheable"] == "no"
    assert found["reason"].startswith("function random ")
    assert (found["tables"], found["functions"]) == (table, "random")
    assert explained(near, "/* pgnear: ttl=300 */ select 1")["ttl"] == "300 s"
    assert "off" in explained(near, "/* pgnear: off */ select 1")["reason"]
    assert explained(near, "select 1", on="on postgres")["database"] == "postgres"
    with pytest.raises(psycopg.errors.InvalidCatalogName):
        explained(near, "select 1", on="on nowhere")


def test_explain_finds_the_entry_that_a_client_left(table: str, near: Pgnear) -> None:
    near.wait_until_it_caches()
    text = f"select v from {table} where id = 2"
    with near.connect() as client:
        client.execute(text.encode())
        client.execute(text.encode())
        found = explained(near, text + " ;")
        assert found["entries"] == "1, 1 of them for user postgres"
        assert found["entry"].startswith("fresh, ")
        assert " 1 rows, " in found["entry"]
        assert ", 1 hits; user postgres, settings " in found["entry"]
        client.execute(f"update {table} set v = 21 where id = 2".encode())
        assert explained(near, text).get("entry", "ended").startswith("ended")


def test_without_a_cache_it_says_so(pgnear: Start, origin: Server) -> None:
    near = pgnear(cache={"enabled": "false"})
    assert explained(near, "select 1")["reason"] == "the cache is off (cache.enabled)"
    assert "the cache is off" in psql(origin, near, "show cache; purge all;").stderr


# ---- pgnear explain-cache --------------------------------------------------------------------------------------------


def test_the_command_line_prints_the_same(table: str, near: Pgnear) -> None:
    near.wait_until_it_caches()
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{near.port}"
    done = run("explain-cache", "--console", url, "--database", "postgres", f"select v from {table}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
    assert lines["cacheable:"] == "yes"
    assert lines["tables:"] == f"public.{table}"


def test_the_command_line_fails_in_words(near: Pgnear) -> None:
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{near.port}"
    done = run("explain-cache", "--console", url, "--database", "nowhere", "select 1")
    assert (done.returncode, 'database "nowhere" does not exist' in done.stderr) == (1, True)
    done = run("explain-cache", "--console", f"postgresql://postgres:wrong@127.0.0.1:{near.port}", "select 1")
    assert (done.returncode, "password authentication failed" in done.stderr) == (1, True)
    done = run("explain-cache", "select 1")
    assert (done.returncode, "--console" in done.stderr) == (2, True)


def test_its_address_may_be_in_the_environment_and_bothers_nobody_else(near: Pgnear) -> None:
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{near.port}"
    assert "cacheable:" in run("explain-cache", "select 1", console=url).stdout
    assert "PGNEAR_CONSOLE" not in run("serve", console=url).stderr
