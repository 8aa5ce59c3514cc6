"""What two workers' rows are together, by each table's own rule; and who is asked, with a stand-in for the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from pooler.admin.advice import COLUMNS as ADVICE
from pooler.admin.everybody import ask_everybody
from pooler.admin.rows import Row, columns
from pooler.admin.tables import TABLES
from pooler.workers import peers
from protocol.responses import PgError


def rows_of(table: str, **values: Any) -> Row:
    """A row of `table` with these values, None in the other columns."""
    return tuple(values.get(column.name) for column in TABLES[table].own)


def joined(table: str, *parts: list[Row]) -> list[dict[str, Any]]:
    """As dictionaries, without what is None."""
    join = TABLES[table].join
    assert join is not None
    names = [column.name for column in join.columns(TABLES[table].own)]
    rows = join.rows(TABLES[table].own, list(enumerate(parts)))
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None} for row in rows]


def test_every_table_without_a_rule_says_the_same_everywhere() -> None:
    assert {name for name, table in TABLES.items() if table.join is None} == {"HELP", "VERSION", "CONFIG", "STATE"}


def test_pools_are_added_and_their_states_are_the_worst() -> None:
    here = rows_of(
        "POOLS", pool="shop", size=4, waiting=1, oldest_wait_seconds=0.9, ready="yes", paused="no", enabled="yes",
        mode="transaction", maxwait=0, maxwait_us=900000, last_failure=None,
    )  # fmt: skip
    there = rows_of(
        "POOLS", pool="shop", size=3, waiting=2, oldest_wait_seconds=1.2, ready="no", paused="yes", enabled="no",
        mode="transaction", maxwait=1, maxwait_us=200000, last_failure="connection refused",
    )  # fmt: skip
    assert joined("POOLS", [here], [there]) == [
        {
            "pool": "shop", "size": 7, "waiting": 3, "oldest_wait_seconds": 1.2, "ready": "no", "paused": "yes",
            "enabled": "no", "mode": "transaction", "maxwait": 1, "maxwait_us": 200000,
            "last_failure": "connection refused",
        }
    ]  # fmt: skip


def test_texts_that_differ_stand_one_behind_the_other() -> None:
    here, there = (rows_of("POOLS", pool="shop", last_failure=text) for text in ("refused", "timed out"))
    assert joined("POOLS", [here], [there])[0]["last_failure"] == "refused; timed out"


def test_rows_of_single_things_say_whose_they_are_in_the_last_column() -> None:
    client = rows_of("CLIENTS", user="app", pid=5)
    assert joined("CLIENTS", [client], [client]) == [
        {"user": "app", "pid": 5, "worker": 0},
        {"user": "app", "pid": 5, "worker": 1},
    ]
    worker = rows_of("WORKERS", worker=1, pid=7)
    assert joined("WORKERS", [], [worker]) == [{"worker": 1, "pid": 7}]


def test_what_there_is_once_is_not_counted_twice() -> None:
    rows: list[Row] = [("databases", 2), ("users", 1), ("pools", 3), ("used_clients", 5)]
    assert [tuple(row.values()) for row in joined("LISTS", rows, rows)] == [
        ("databases", 2), ("users", 1), ("pools", 3), ("used_clients", 10),
    ]  # fmt: skip


def test_totals_that_one_worker_alone_has_are_there() -> None:
    rows = joined("STATS", [("clients", 1.0), ("query_seconds.hit", 0.1)], [("clients", 2.0), ("pins.x", 4.0), ("query_seconds.hit", 0.2)])  # fmt: skip # noqa: E501
    assert [tuple(row.values()) for row in rows] == [("clients", 3.0), ("query_seconds.hit", 0.3), ("pins.x", 4.0)]


def test_a_cache_is_as_large_as_its_shares() -> None:
    whole = rows_of("CACHE", entries=3, max_bytes=100)
    policy = rows_of("CACHE", namespace="x", entries=1)
    assert joined("CACHE", [whole, policy], [whole]) == [
        {"entries": 6, "max_bytes": 200},
        {"namespace": "x", "entries": 1},
    ]


def shape(**values: Any) -> Row:
    return tuple({"database": "shop", "fingerprint": "a", **values}.get(each.name) for each in columns(ADVICE))


def test_advice_on_one_shape_is_its_sum_and_the_words_of_who_decides_it() -> None:
    here = shape(
        verdict="cache", reason="", saves_seconds=2.0, origin_seconds=4.0, calls=300, mean_ms=10.0, mean_bytes=100,
        repeats_percent=90.0, hits=0, update_interval=20.0, ttl=2.0, statement="select 1",
    )  # fmt: skip
    there = shape(
        verdict="leave", reason="it was asked once", saves_seconds=-0.5, origin_seconds=1.0, calls=100, mean_ms=30.0,
        mean_bytes=300, repeats_percent=10.0, hits=7, update_interval=10.0, statement="select 1",
    )  # fmt: skip
    assert joined("CACHE ADVICE", [here], [there]) == [
        {
            "database": "shop", "fingerprint": "a", "verdict": "cached", "reason": "", "saves_seconds": 1.5,
            "origin_seconds": 5.0, "calls": 400, "mean_ms": 15.0, "mean_bytes": 150, "repeats_percent": 70.0,
            "hits": 7, "behind_writes_percent": 0.0, "update_interval": 10.0, "ttl": 2.0, "statement": "select 1",
        }
    ]  # fmt: skip


def test_advice_begins_with_what_saves_most_of_all_and_ends_with_what_was_forgotten() -> None:
    forgotten = shape(
        fingerprint=None, verdict="unknown", reason="3 cheaper shapes were forgotten (cache.max_advice_shapes)",
        saves_seconds=0.0, origin_seconds=1.5,
    )  # fmt: skip
    here = [shape(fingerprint="b", saves_seconds=3.0), shape(saves_seconds=2.0), forgotten]
    there = [shape(saves_seconds=2.0), forgotten]
    rows = joined("CACHE ADVICE", here, there)
    assert [row.get("fingerprint") for row in rows] == ["a", "b", None]
    assert rows[-1]["reason"] == "6 cheaper shapes were forgotten (cache.max_advice_shapes)"
    assert rows[-1]["origin_seconds"] == 3.0


# ---- who is asked ----------------------------------------------------------------------------------------------------


class Others:
    """A stand-in for the way to two other workers: what each says, or raises; an Event is waited for."""

    index, count = 1, 3

    def __init__(self, **says: Any) -> None:
        self.says = says

    async def ask_one(self, index: int, what: str, data: Any = None) -> Any:
        said = self.says[f"w{index}"]
        if isinstance(said, Exception):
            raise said
        if isinstance(said, trio.Event):
            await said.wait()
        return said


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks "it" of everybody; the worker itself says 1, or raises."""

    async def ask(mine: Any = 1, within: float | None = 0.01, **says: Any) -> Any:
        async def own(service: Any, data: Any) -> Any:
            if isinstance(mine, Exception):
                raise mine
            return mine

        monkeypatch.setitem(peers.ANSWERS, "it", own)
        service: Any = SimpleNamespace(peers=Others(**says))
        return await ask_everybody(service, "it", within=within)

    return ask


async def test_everybody_is_asked_and_answers_come_in_the_order_of_workers(asked: Any) -> None:
    replies = await asked(w2=2, w0=0)
    assert (replies.answers, list(replies.answers), replies.silent) == ({0: 0, 1: 1, 2: 2}, [0, 1, 2], [])


async def test_who_is_not_there_or_stuck_is_named(asked: Any) -> None:
    replies = await asked(w0=None, w2=trio.Event())
    assert (replies.answers, replies.silent) == ({1: 1}, [0, 2])
    with pytest.raises(PgError, match="workers 0, 2 do not answer"):
        replies.check()


async def test_what_takes_as_long_as_clients_do_is_waited_for(asked: Any, autojump_clock: Any) -> None:
    with trio.move_on_after(3600) as scope:
        await asked(within=None, w0=0, w2=trio.Event())
    assert scope.cancelled_caught


async def test_a_failure_of_some_is_told_with_their_numbers_and_of_all_as_one(asked: Any) -> None:
    failure = PgError("55000", "the catalog is not known")
    with pytest.raises(PgError) as caught:
        await asked(w0=failure, w2=2)
    assert (caught.value.sqlstate, caught.value.message) == ("55000", "the catalog is not known")
    assert caught.value.detail == "Worker 0 has failed; the others have done what they were told."
    with pytest.raises(PgError) as caught:
        await asked(mine=failure, w0=failure, w2=failure)
    assert caught.value.detail is None
