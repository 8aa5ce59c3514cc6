"""The console of a pgnear of two workers: whichever of them hears a command, it is for both, and so is the answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pooler import __version__
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until
from tests.workers.test_workers import clients, in_a_thread, processes, worker_of

ASKED = 6
"""So many conversations that both workers hear some of them, most of the time: the kernel deals them out."""


@pytest.fixture(scope="module")
def two(origin: Server) -> Iterator[Pgnear]:
    """One for all tests that leave it as it was."""
    with running(origin.url(), workers=2, http=None, pool_size=7) as near:
        yield near


@contextmanager
def consoles(near: Pgnear) -> Iterator[list[psycopg.Connection[dict[str, Any]]]]:
    with ExitStack() as stack:
        yield [stack.enter_context(near.connect(dsn={"dbname": "pgnear"}, row_factory=dict_row)) for _ in range(ASKED)]


def show(console: psycopg.Connection[dict[str, Any]], table: str) -> list[dict[str, Any]]:
    return console.execute(f"show {table}".encode()).fetchall()


def test_every_console_shows_the_clients_and_connections_of_all_workers(house: Callable[..., Pgnear]) -> None:
    near = house(pool_size=7)
    with clients(near) as connected, consoles(near) as asked:
        for client in connected:
            client.execute("select 1")
        expected = {(client.info.backend_pid, worker_of(client)) for client in connected}
        for console in asked:
            shown = {(row["pid"], row["worker"]) for row in show(console, "clients") if row["state"] != "console"}
            assert shown == expected
            (pool,) = show(console, "pools")
            assert (pool["pool"], pool["size"], pool["ready"]) == ("postgres", 7, "yes")
            assert pool["idle"] == len(show(console, "servers")) >= 2
            (database,) = show(console, "databases")
            assert database["pool_size"] == 7
            totals = {row["name"]: row["value"] for row in show(console, "stats")}
            assert totals["clients"] == len(connected) + len(asked)
            assert totals["queries.bypass"] + totals["queries.miss"] + totals["queries.hit"] == len(connected)
            lists = {row["list"]: row["items"] for row in show(console, "lists")}
            assert (lists["databases"], lists["used_clients"]) == (1, len(connected) + len(asked))


def test_the_workers_are_shown(two: Pgnear) -> None:
    with clients(two) as connected, consoles(two) as asked:
        for console in asked:
            rows = show(console, "workers")
            assert {row["worker"]: row["pid"] for row in rows} == processes(two)
            assert sum(row["clients"] for row in rows) == len(connected) + len(asked)
            assert all(row["memory_bytes"] > 10_000_000 and row["cpu_seconds"] > 0 for row in rows)


def test_one_process_is_one_worker_and_its_tables_have_no_column_more(near: Pgnear) -> None:
    with consoles(near) as asked:
        (row,) = show(asked[0], "workers")
        assert (row["worker"], row["pid"], row["clients"]) == (0, near.process.pid, ASKED)
        assert "worker" not in show(asked[0], "clients")[0]
        assert show(asked[0], "version") == [{"version": f"pgnear {__version__}"}]


def test_the_whole_configuration_is_shown_and_not_a_workers_share_of_it(two: Pgnear) -> None:
    with consoles(two) as asked:
        for console in asked:
            settings = {row["name"]: row["value"] for row in show(console, "config")}
            assert (settings["pool_size"], settings["workers"]) == ("7", "2")


def test_a_pause_is_over_when_no_worker_has_a_connection_left(two: Pgnear) -> None:
    with clients(two) as connected, consoles(two) as (watch, *asked):
        held = {worker_of(client): client for client in connected}
        for client in held.values():
            client.execute("begin")
            client.execute("select 1")
        paused = [in_a_thread(lambda each=each: each.execute("pause")) for each in asked]  # type: ignore[misc]
        until(lambda: show(watch, "pools")[0]["paused"] == "yes")
        held[0].execute("commit")
        until(lambda: [row["worker"] for row in show(watch, "origins")] == [1])
        assert all(thread.is_alive() for thread in paused)
        held[1].execute("commit")
        for thread in paused:
            thread.join(20)
            assert not thread.is_alive()
        assert show(watch, "origins") == []
        watch.execute("resume")
        assert [client.execute("select 2").fetchone() for client in connected] == [(2,)] * len(connected)
        assert {row["paused"] for console in asked for row in show(console, "pools")} == {"no"}


def test_a_worker_that_takes_anothers_place_holds_what_is_held(house: Callable[..., Pgnear]) -> None:
    near = house()
    with near.connect(dsn={"dbname": "pgnear"}, row_factory=dict_row) as console:
        console.execute("pause")
        other = 1 - worker_of(console)
        os.kill(processes(near)[other], signal.SIGKILL)
        near.wait_for_log("worker_started", worker=other, count=2)
        until(lambda: len(show(console, "workers")) == 2)
        assert show(console, "pools")[0]["paused"] == "yes"
        assert show(console, "origins") == []
        console.execute("resume")
        near.wait_for_log("pool_resumed", worker=other)  # which it says of one that was paused
        until(lambda: {row["worker"] for row in show(console, "origins")} == {0, 1})


def test_a_database_is_disabled_in_every_worker_and_its_clients_are_killed_in_every_worker(
    house: Callable[..., Pgnear],
) -> None:
    near = house()
    with clients(near) as connected, consoles(near) as asked:
        asked[0].execute("disable postgres")
        for _ in range(8):
            with pytest.raises(psycopg.OperationalError, match="takes no new clients"):
                near.connect()
        asked[1].execute("enable postgres")
        asked[2].execute("kill postgres")
        for client in connected:
            with pytest.raises(psycopg.errors.AdminShutdown):
                client.execute("select 1")
        asked[3].execute("resume")
        with clients(near) as others:
            assert [client.execute("select 1").fetchone() for client in others] == [(1,)] * len(others)


def test_a_purge_says_how_many_answers_all_workers_have_dropped(house: Callable[..., Pgnear], table: str) -> None:
    near = house()
    query = f"select v from {table} where id = 1".encode()
    with clients(near) as connected, consoles(near) as asked:

        def cached() -> bool:
            for client in connected:
                client.execute(query)
            explained = dict(
                row.values()
                for row in asked[0].execute(b"explain cache " + query).fetchall()
                if row["property"] != "entry"
            )
            return bool(explained["entries"].startswith("2, "))

        until(cached)
        (everything, *_) = show(asked[1], "cache")
        assert everything["entries"] >= 2
        explained = asked[1].execute(b"explain cache " + query).fetchall()
        entries = [row["value"] for row in explained if row["property"] == "entry"]
        assert sorted(entry.rpartition(", ")[2] for entry in entries) == ["worker 0", "worker 1"]
        assert asked[2].execute(f"purge table {table}").statusmessage == "PURGE 2"
        for console in asked:
            console.execute("purge all")
            until(cached)
            assert console.execute("purge namespace default").statusmessage == "PURGE 2"


def test_a_command_that_fails_is_told_once(two: Pgnear) -> None:
    with consoles(two) as asked:
        for console in asked:
            with pytest.raises(psycopg.errors.InvalidCatalogName) as caught:
                console.execute("pause nowhere")
            assert "orker" not in (caught.value.diag.message_detail or "")


def test_a_reload_says_each_setting_once(house: Callable[..., Pgnear], tmp_path: Any) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text("query_timeout = 0\n")
    near = house("--config", str(file))
    file.write_text('query_timeout = "50ms"\npool_size = 30\ncache.max_bytes = "99MB"\n')
    with consoles(near) as asked:
        rows = asked[0].execute("reload").fetchall()
        assert {row["setting"]: row["outcome"] for row in rows} == {
            "query_timeout": "changed",
            "pool_size": "changed",
            "cache.max_bytes": "needs a restart",
        }
        assert len(rows) == 3
        for console in asked:
            settings = {row["name"]: (row["value"], row["default"]) for row in show(console, "config")}
            assert settings["pool_size"] == ("30", "20")
            assert settings["cache.max_bytes"][0] == settings["cache.max_bytes"][1]
        (pool,) = show(asked[1], "pools")
        assert pool["size"] == 30


def test_a_worker_that_hangs_is_said_to_and_the_other_one_answers(house: Callable[..., Pgnear]) -> None:
    near = house()
    with consoles(near) as asked:
        told: list[str] = []
        worker = 1 - worker_of(asked[0])
        asked[0].add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
        os.kill(processes(near)[worker], signal.SIGSTOP)
        try:
            (row,) = show(asked[0], "workers")
            assert row["worker"] == 1 - worker
            assert told == [f"worker {worker} does not answer"]
            with pytest.raises(psycopg.errors.SystemError, match=f"worker {worker} does not answer"):
                asked[0].execute("reconnect")
        finally:
            os.kill(processes(near)[worker], signal.SIGCONT)
        until(lambda: len(show(asked[0], "workers")) == 2)
