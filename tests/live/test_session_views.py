"""What a client sees of its own session in pg_prepared_statements and pg_settings: what a private connection shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.wire import WireClient

VIEW = "pg_prepared_statements"
ALL = f"select name, statement, parameter_types, result_types, from_sql from {VIEW} order by name"


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    """One origin connection: what others have prepared is on it, too."""
    with running(origin.url(), pool_size=1) as pgnear:
        yield pgnear


@pytest.fixture
def stranger(near: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(near.port) as it:
        it.ask(wire.parse("select 'a stranger''s'", "s"), wire.SYNC)
        it.ask(wire.bind("s"), wire.execute(), wire.SYNC)
        yield it


@pytest.fixture
def both(near: Pgnear, origin: Server, stranger: WireClient) -> Iterator[tuple[WireClient, WireClient]]:
    """(private, pooled), with the same statements."""
    with (
        WireClient.logged_in(origin.port, options="-c work_mem=6MB -c timezone=Asia/Tokyo") as private,
        WireClient.logged_in(near.port, options="-c work_mem=6MB -c timezone=Asia/Tokyo") as pooled,
    ):
        for client in (private, pooled):
            client.ask(wire.parse("select $1::int, $2::text /* \u00fc '\\' */", "s"), wire.SYNC)
            client.ask(wire.parse("delete from pg_class where oid = $1", "no rows"), wire.SYNC)
            stranger.one("select 1")
        yield private, pooled


def extended(text: str) -> list[bytes]:
    return [wire.parse(text), wire.bind(), wire.describe(), wire.execute(), wire.SYNC]


def seen(frames: list[wire.Frame]) -> list[wire.Frame]:
    """Everything but which tables' columns the rows have."""
    return [(kind, body) for kind, body in frames if kind not in "TS"]


TEXTS = [
    ALL,
    f"select count(*) from pg_catalog.{VIEW} as p where p.name = 's'",
    f"select {VIEW}.name from {VIEW}, (values (1)) v(x) where name like '%s' order by 1",
    f"table {VIEW} limit 0",
    f"with mine as (select name from {VIEW}) select * from mine order by 1",
    f"with {VIEW} as (select 1 as a) select * from {VIEW}",
    f"explain (costs off) select 1 where exists (select from {VIEW})",
    f'select \'in {VIEW}\', (select count(*) from "pg_catalog" . "{VIEW}" where not from_sql)',
    f"select prepare_time between now() - interval '1 minute' and now() from {VIEW}",
    f"select generic_plans + custom_plans from {VIEW}",
    "select name, setting, reset_val, source from pg_settings where name ~ '^(TimeZone|work_mem|geqo)$' order by 1",
    "select s.* from pg_settings s where name = 'work_mem'",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("how", ["simple", "extended", "in a transaction"])
def test_a_client_sees_what_it_would_see_on_a_private_connection(
    both: tuple[WireClient, WireClient], text: str, how: str
) -> None:
    said = []
    for client in both:
        if how == "in a transaction":
            client.query("begin; set local timezone to 'UTC'")
        said.append(seen(client.ask(*extended(text)) if how == "extended" else client.query(text)))
        if how == "in a transaction":
            client.query("commit")
    if text.startswith("explain"):
        said = [frames[-2:] for frames in said]
    assert said[0] == said[1]
    assert "E" not in dict(said[1])


def test_statements_come_and_go_in_the_view_as_the_client_makes_and_ends_them(
    both: tuple[WireClient, WireClient],
) -> None:
    for sent in (
        [wire.parse("select 3", "third"), wire.SYNC],
        [wire.close("S", "s"), wire.SYNC],
        [wire.query("prepare sql (int) as select $1")],
        [wire.query('deallocate "no rows"')],
        [wire.parse(ALL, "asks"), wire.SYNC],
        [wire.bind("asks"), wire.execute(), wire.SYNC],
        [wire.close("S", "third"), wire.SYNC],
        [wire.bind("asks"), wire.execute(), wire.SYNC],
        [wire.describe("S", "asks"), wire.SYNC],
        [wire.query("deallocate sql")],
        [wire.query("discard all")],
    ):
        private, pooled = (seen(client.ask(*sent)) for client in both)
        assert private == pooled
        private, pooled = (seen(client.query(ALL)) for client in both)
        assert private == pooled


@pytest.mark.parametrize("how", ["simple", "extended"])
@pytest.mark.parametrize(
    "text",
    [
        f"select name from {VIEW} where nonsense = 1",
        f"select nonsense from {VIEW}",
        f"select '\u00fc\u00fc' from {VIEW} p join {VIEW} q on p.name = q.name where \"\u00fc\" = 1",
        "execute s (1, nonsense)",
    ],
)
def test_an_error_points_at_its_place_in_the_clients_own_text(
    both: tuple[WireClient, WireClient], text: str, how: str
) -> None:
    private, pooled = (
        wire.error_fields(dict(client.query(text) if how == "simple" else client.ask(*extended(text)))["E"])
        for client in both
    )
    assert {field: private[field] for field in "CMP"} == {field: pooled.get(field) for field in "CMP"}


def test_an_older_server_has_fewer_columns(origin_16: Server) -> None:
    with running(origin_16.url(), pool_size=1) as near, WireClient.logged_in(near.port) as client:
        client.ask(wire.parse("select $1::int", "s"), wire.SYNC)
        assert wire.rows(client.query(ALL)) == [[b"s", b"select $1::int", b"{integer}", b"{integer}", b"f"]]


def test_a_view_over_the_view_is_left_alone(both: tuple[WireClient, WireClient]) -> None:
    """What is stored is not changed: such a view shows the connection, as documented."""
    _, pooled = both
    pooled.query(f"create view over_it as select * from {VIEW}")
    try:
        (definition,) = wire.rows(pooled.query("select pg_get_viewdef('over_it')"))[0]
        assert definition is not None
        assert b"VALUES" not in definition
    finally:
        pooled.query("drop view over_it")
