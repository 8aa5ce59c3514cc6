"""Whatever messages a driver asks with, a repeated read is answered from the cache, as the origin would answer it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from tests.support import wire
from tests.support.cached import hits_of, keep
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.wire import Frame, WireClient

BINARY = [1]
_numbers = count(1)


@pytest.fixture(scope="module")
def shaped(origin: Server) -> Iterator[Server]:
    origin.execute("create table shaped (id int primary key, v int, t text)")
    origin.execute("insert into shaped values (1, 10, 'one'), (2, 20, null)")
    yield origin
    origin.execute("drop table shaped")


@pytest.fixture(scope="module")
def near(shaped: Server) -> Iterator[Pgnear]:
    with running(shaped.url(), cache={"ttl": "600s"}) as started:
        started.wait_until_it_caches()
        yield started


def batch(shape: str, text: str, values: list[bytes], formats: list[int], name: str = "") -> bytes:
    """The messages of a shape: P(arse), B(ind), D(escribe portal), d(escribe statement), E(xecute), S(ync)."""
    messages = {
        "P": wire.parse(text, name),
        "B": wire.bind(name, values, result_formats=formats),
        "D": wire.describe("P"),
        "d": wire.describe("S", name),
        "E": wire.execute(),
        "S": wire.SYNC,
    }
    return b"".join(messages[each] for each in shape)


SHAPES = ["PBES", "PBDES", "PdBES", "PBdES", "PdBDES"]
"""libpq and node-postgres send PBDES; pgjdbc, Npgsql and others also ask for the statement's description."""

STATEMENTS: dict[str, tuple[str, list[bytes]]] = {
    "without parameters": ("select id, v, t from shaped where id = 1", []),
    "with a parameter": ("select t, v from shaped where id = $1", [b"2"]),
    "with parameters of two types": ("select v from shaped where id = $1 and t = $2", [b"1", b"one"]),
    "without a row": ("select v, t from shaped where id = $1", [b"99"]),
}


@pytest.mark.parametrize("formats", [[], [0], BINARY], ids=["no formats", "text", "binary"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_shape_is_a_hit_whatever_shape_it_was_kept_from(
    near: Pgnear, shaped: Server, statement: str, formats: list[int]
) -> None:
    text, values = STATEMENTS[statement]
    with WireClient.logged_in(shaped.port) as direct, WireClient.logged_in(near.port) as client:
        for first in SHAPES:
            asked = f"{text} -- {next(_numbers)}"
            client.ask(batch(first, asked, values, formats))
            for shape in SHAPES:
                for expected_hit in (None, True):  # a description that nobody has asked for is asked of the origin once
                    got: list[Frame] = []
                    sent = batch(shape, asked, values, formats)
                    hits = hits_of(near, lambda sent=sent, got=got: got.extend(client.ask(sent)))  # type: ignore[misc]
                    assert got == direct.ask(batch(shape, asked, values, formats)), (first, shape)
                    assert expected_hit is None or hits == 1, (first, shape)


def test_a_named_statement_is_described_and_read_in_one_batch(near: Pgnear, shaped: Server) -> None:
    text, values = STATEMENTS["with a parameter"]
    with WireClient.logged_in(shaped.port) as direct, WireClient.logged_in(near.port) as client:
        for each in (direct, client):
            each.ask(wire.parse(text, "s"), wire.SYNC)
        for shape in ("dBES", "dBDES", "BdES", "BES"):
            sent = batch(shape, text, values, BINARY, "s")
            client.ask(sent)
            got: list[Frame] = []
            assert hits_of(near, lambda sent=sent, got=got: got.extend(client.ask(sent))) == 1  # type: ignore[misc]
            assert got == direct.ask(sent)


def test_statements_that_take_turns_without_a_name_are_hits(near: Pgnear, shaped: Server) -> None:
    texts = [f"select v from shaped where id = $1 -- {next(_numbers)}" for _ in range(2)]
    with WireClient.logged_in(near.port) as client:

        def turns() -> None:
            for text in texts * 3:
                client.ask(batch("PdBES", text, [b"1"], []))

        turns()
        assert hits_of(near, turns) == 6


def test_a_description_of_another_statement_is_the_other_ones(near: Pgnear, shaped: Server) -> None:
    with WireClient.logged_in(shaped.port) as direct, WireClient.logged_in(near.port) as client:
        for each in (direct, client):
            each.ask(wire.parse("select t from shaped", "other"), wire.SYNC)
        sent = wire.parse("select v from shaped where id = 1") + wire.bind() + wire.describe("S", "other")
        for _ in range(3):
            assert client.ask(sent, wire.execute(), wire.SYNC) == direct.ask(sent, wire.execute(), wire.SYNC)


def test_a_statement_from_before_ddl_is_not_answered_with_rows_of_another_shape(near: Pgnear, shaped: Server) -> None:
    """Another client has had the same text answered since: its rows have a column that this one was not told of."""
    shaped.execute("create table if not exists changing as select 1 as a")
    text: Any = f"select * from changing -- {next(_numbers)}"
    read = batch("BES", text, [], [], "s")
    unrelated = f"select v from shaped where id = 2 -- {next(_numbers)}"
    with near.connect() as third, WireClient.logged_in(near.port) as old, WireClient.logged_in(near.port) as other:
        keep(near, third, unrelated)
        old.ask(wire.parse(text, "s"), wire.describe("S", "s"), wire.SYNC)
        assert [kind for kind, _ in old.ask(read)] == list("2DCZ")
        other.query("alter table changing add b int")
        keep(near, third, unrelated)
        for _ in range(3):
            frames = other.ask(batch("PBDES", text, [], []))
            assert [len(row) for row in wire.rows(frames)] == [2]
        (failed,) = [body for kind, body in old.ask(read) if kind == "E"]
        assert wire.error_fields(failed)["C"] == "0A000"
    shaped.execute("drop table changing")
