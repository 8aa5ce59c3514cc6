"""What clients leave on a connection for good (custom settings, temporary schemas) is not shown to others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.wire import WireClient

IS_UNKNOWN = "select current_setting('app.tenant', true) is null"


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=1) as pgnear:
        yield pgnear


@pytest.fixture
def tenant(near: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(near.port) as it:
        it.query("set app.tenant to 'a'; create temp table scratch (); drop table scratch")
        yield it


@pytest.fixture
def stranger(near: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(near.port) as it:
        yield it


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_a_custom_setting_that_only_others_have_set_is_unknown(
    tenant: WireClient, stranger: WireClient, how: str
) -> None:
    def ask(text: str) -> list[wire.Frame]:
        tenant.one("select 1")  # it has had the connection last
        messages = [wire.parse(text), wire.bind(), wire.execute(), wire.SYNC]
        return stranger.query(text) if how == "simple" else stranger.ask(*messages)

    assert wire.rows(ask(IS_UNKNOWN)) == [[b"t"]]
    assert wire.error_fields(dict(ask("show app.tenant"))["E"])["C"] == "42704"
    assert wire.error_fields(dict(ask("select current_setting('app.tenant')"))["E"])["C"] == "42704"
    assert wire.rows(ask("select current_schemas(true)")) == [[b"{pg_catalog,public}"]]
    assert wire.rows(ask("select pg_my_temp_schema()")) == [[b"0"]]


def test_what_a_client_has_once_set_is_known_to_it_wherever_it_is(near: Pgnear, stranger: WireClient) -> None:
    with WireClient.logged_in(near.port) as client:
        client.query("begin; set local app.tenant to 'a'; commit")
        assert client.one(IS_UNKNOWN) == b"f"
        assert stranger.one(IS_UNKNOWN) == b"t"  # on another connection, since pgnear has only one
        assert client.one(IS_UNKNOWN) == b"f"
        assert client.one("select current_setting('app.tenant')") == b""


def test_who_does_not_ask_for_custom_settings_takes_the_connection_as_it_is(
    near: Pgnear, tenant: WireClient, stranger: WireClient
) -> None:
    tenant.one("select 1")
    replaced = near.metric("origin_connections_replaced_total")
    for text in ("select current_setting('timezone')", "show timezone", "select 'app.tenant'", "begin", "commit"):
        stranger.query(text)
    assert near.metric("origin_connections_replaced_total") == replaced


def test_clients_with_custom_settings_and_without_keep_to_connections_of_their_own(pgnear: Start) -> None:
    near = pgnear(pool_size=2, min_pool_size=2)
    with WireClient.logged_in(near.port) as tenant, WireClient.logged_in(near.port) as stranger:
        stranger.query("begin")
        tenant.query("begin")
        tenant.query("set app.tenant to 'a'")
        stranger.query("commit")
        tenant.query("commit")
        mine, theirs = set(), set()
        for _ in range(5):
            mine.add(tenant.one("select pg_backend_pid()"))
            theirs.add(stranger.one("select pg_backend_pid()"))
            assert stranger.one(IS_UNKNOWN) == b"t"
        assert len(mine) == len(theirs) == 1
        assert near.metric("origin_connections_replaced_total") == 0


def test_with_strict_custom_settings_nobody_sees_traces_of_others_in_any_way(pgnear: Start) -> None:
    near = pgnear(pool_size=1, strict_custom_settings="true")
    with WireClient.logged_in(near.port) as tenant, WireClient.logged_in(near.port) as stranger:
        tenant.query("set app.tenant to 'a'")
        stranger.query("begin")
        hidden = "select current_setting('app.' || 'tenant', true)"
        assert wire.rows(stranger.query(hidden)) == [[None]]
        stranger.query("commit")
        assert near.metric("origin_connections_replaced_total") == 1
        assert tenant.one("select current_setting('app.tenant')") == b"a"


def test_a_connection_is_not_closed_for_its_traces_while_the_pool_has_room_for_another(pgnear: Start) -> None:
    near = pgnear(pool_size=4, min_pool_size=1)
    with WireClient.logged_in(near.port) as tenant, WireClient.logged_in(near.port) as stranger:
        tenant.query("set app.tenant to 'a'")
        mine = tenant.one("select pg_backend_pid()")
        assert stranger.one(IS_UNKNOWN) == b"t"
        assert tenant.one("select pg_backend_pid()") == mine
        assert near.metric("origin_connections_replaced_total") == 0


@pytest.mark.parametrize("how", ["simple", "extended"])
def test_who_has_made_a_temporary_schema_has_one_on_whatever_connection_it_looks(pgnear: Start, how: str) -> None:
    """It is made there, in front of the statement that looks; what is not there is a table, and not the schema."""
    near = pgnear(pool_size=2, min_pool_size=2)

    def said(client: WireClient, text: str) -> str:
        messages = [wire.parse(text), wire.bind(), wire.execute(), wire.SYNC]
        frames = dict(client.query(text) if how == "simple" else client.ask(*messages))
        return wire.error_fields(frames["E"])["C"] if "E" in frames else "ok"

    with (
        WireClient.logged_in(near.port) as client,
        WireClient.logged_in(near.port) as second,
        WireClient.logged_in(near.port) as third,
    ):
        assert said(client, "drop table pg_temp.nothing") == "3F000"
        client.query("begin; create temp table scratch (); rollback")
        assert said(client, "drop table pg_temp.nothing") == "3F000"
        client.query("create temp table scratch (); drop table scratch")
        assert said(client, "drop table pg_temp.nothing") == "42P01"
        home = client.one("select pg_backend_pid()")
        second.query("begin")
        third.query("begin")
        at_home, away = (second, third) if second.one("select pg_backend_pid()") == home else (third, second)
        away.query("commit")
        assert said(client, "drop table pg_temp.nothing") == "42P01"
        assert said(client, "select from pg_temp.nothing") == "42P01"
        assert client.one("select pg_my_temp_schema() <> 0") == b"t"
        assert client.one("select pg_backend_pid()") != home
        at_home.query("commit")
        assert near.metric("origin_connections_replaced_total") == 0
