"""Rows larger than a cached answer may be, among answers that pgnear itself asked for.

Found by the protocol fuzz: pgnear gave such a row up for the cache, looked at it again, gave it up again, and so on for
ever, while every client waited.
"""

from __future__ import annotations

from tests.conftest import Start
from tests.support.cached import keep
from tests.support.postgres import Server
from tests.support.waiting import until
from tests.support.wire import SYNC, WireClient, bind, execute, parse


def test_a_setting_of_half_a_megabyte_follows_its_client_and_stops_nobody(pgnear: Start) -> None:
    """set_config answers with the value: on another connection, that is a row of pgnear's own question."""
    near = pgnear(pool_size=2, min_pool_size=2, max_client_settings_bytes="1MB")
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as other:
        ask = parse("select set_config('app.large', $1, false)")
        client.ask(ask + bind(values=[b"x" * 500_000]) + execute() + SYNC)
        other.query("begin")  # takes the connection that the setting is on, or the other one
        assert client.one("select length(current_setting('app.large'))") == b"500000"
        with WireClient.logged_in(near.port) as third:
            assert third.one("select 1") == b"1"
        other.query("commit")
        other.query("set app.own to 1")
        assert client.one("select length(current_setting('app.large'))") == b"500000"


def test_an_answer_that_has_grown_too_large_to_keep_is_refreshed_in_vain_and_stops_nobody(
    pgnear: Start, origin: Server
) -> None:
    with origin.connect() as direct:
        direct.execute("create table grown (v text)")
        direct.execute("insert into grown values ('small')")
        near = pgnear(cache={"ttl": "1ms", "stale_while_revalidate": "1h", "invalidation": "writes"})
        with near.connect() as client:
            keep(near, client, "select v from grown")
            direct.execute("update grown set v = repeat('x', 3000000)")
            scans = "select seq_scan from pg_stat_user_tables where relname = 'grown'"
            before = origin.execute(scans)

            def refreshed() -> bool:
                client.execute("select v from grown")
                return origin.execute(scans) != before

            until(refreshed)
            with near.connect() as other:
                assert other.execute("select 1").fetchone() == (1,)
        direct.execute("drop table grown")
