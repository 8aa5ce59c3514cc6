"""An origin that says nothing: frozen, cut off by its network, or only slow. Who waits, who is told, who goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.freezing import stopped
from tests.support.postgres import PASSWORD, Server
from tests.support.proxy import Proxy
from tests.support.waiting import Background, until
from tests.support.wire import WireClient, error_fields, query, rows

IMPATIENT = {
    "pool_size": 2, "pool_wait_timeout": 60, "origin_connect_timeout": "1s", "cache": {"enabled": False},
    "breaker": {"silence": "300ms", "retry_after": "200ms", "retry_at_most": "400ms"},
}  # fmt: skip


@pytest.fixture(scope="module")
def fragile() -> Iterator[Server]:
    """A PostgreSQL of this file's own, to be frozen."""
    with Server(installation=installed(18)) as server:
        yield server


@contextmanager
def cut_off(proxy: Proxy) -> Iterator[None]:
    """The network passes nothing; connections are accepted all the same."""
    proxy.freeze()
    try:
        yield
    finally:
        proxy.thaw()


def refusal(client: WireClient) -> dict[str, str]:
    """What an answer that is nothing but an error says."""
    frames = client.receive_until("Z")
    assert [kind for kind, _ in frames] == ["E", "Z"], frames  # and the session goes on
    return error_fields(frames[0][1])


@pytest.mark.parametrize("how", ["stopped", "cut off"])
def test_who_waits_for_a_frozen_origin_is_told_and_whoever_is_being_answered_goes_on(
    pgnear: Start, fragile: Server, how: str
) -> None:
    with Proxy(fragile.port) as proxy:
        near = pgnear(url=proxy.url("postgres", PASSWORD), **IMPATIENT)
        with (
            WireClient.logged_in(near.port) as first,
            WireClient.logged_in(near.port) as second,
            WireClient.logged_in(near.port) as third,
        ):
            for client in (first, second):
                client.query("begin")
            frozen: AbstractContextManager[None] = stopped(fragile) if how == "stopped" else cut_off(proxy)
            with frozen:
                for number, client in enumerate((first, second)):
                    client.send(query(f"select {number}"))
                third.send(query("select 'waits'"))
                fields = refusal(third)
                assert fields["C"] == "57P03"
                assert "no answer within 1 s" in fields["M"]
                assert "breaker.silence" in fields["D"]
                opened = near.wait_for_log("origin_breaker_open")
                assert opened["frozen"] is True
                assert near.get("/readyz")[0] == 503
                started = time.monotonic()
                for _ in range(10):
                    third.send(query("select 'waits no longer'"))
                    assert refusal(third)["C"] == "57P03"
                assert time.monotonic() - started < 5
            near.wait_for_log("origin_breaker_closed")
            for number, client in enumerate((first, second)):
                assert rows(client.receive_until("Z")) == [[str(number).encode()]]  # nothing was ended
                client.query("commit")
            assert third.one("select 'after'") == b"after"
            assert near.get("/readyz")[0] == 200
        assert near.metric("origin_connections_lost_total") == 0


def both_wait(server: Server) -> bool:
    """Whether two queries wait for a lock."""
    return server.execute("select count(*) from pg_locks where not granted") == [(2,)]


def test_an_origin_with_long_queries_on_all_connections_is_not_taken_for_frozen(pgnear: Start, fragile: Server) -> None:
    near = pgnear(url=fragile.url(), **IMPATIENT | {"origin_connect_timeout": 10})
    fragile.execute("create table if not exists contested (a int)")
    with fragile.connect() as holder, near.connect() as first, near.connect() as second, near.connect() as third:
        holder.execute("begin; lock table contested")
        slow = [Background(lambda each=each: each.execute("table contested").fetchall()) for each in (first, second)]
        until(lambda: both_wait(fragile))
        waits = Background(lambda: third.execute("select 'in the end'").fetchone())
        near.wait_for_log("origin_silent", count=2)  # the first probe got through, or there would be no second
        assert waits.running
        holder.execute("commit")
        assert waits.result() == ("in the end",)
        assert [each.result() for each in slow] == [[], []]
    assert not [line for line in near.log_lines if line.get("event") == "origin_breaker_open"]
    assert near.metric("breaker_refusals_total") == 0


def test_when_the_origins_server_is_gone_and_another_one_is_there_the_pool_moves_and_is_not_left_full(
    pgnear: Start, fragile: Server
) -> None:
    """A failover without a word: the old server's connections stay open, and for two minutes TCP says nothing."""
    with Proxy(fragile.port) as old, Proxy(fragile.port) as new:
        url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{old.port},127.0.0.1:{new.port}/postgres"
        near = pgnear(url=url, **IMPATIENT)
        with WireClient.logged_in(near.port) as first, WireClient.logged_in(near.port) as second:
            for client in (first, second):
                client.query("begin")
            with near.connect(prepare_threshold=None) as third, cut_off(old):
                for client in (first, second):
                    client.send(query("select 1"))
                assert third.execute("select 'at the new one'").fetchone() == ("at the new one",)
                for client in (first, second):
                    fields = client.fatal()
                    assert fields["C"] == "08006"
                    assert "does not answer" in fields["D"]
        assert near.metric("breaker_refusals_total") == 0


def test_queries_that_take_long_on_one_server_are_not_lost_because_new_connections_lead_to_another(
    pgnear: Start, fragile: Server
) -> None:
    """A machine that refuses connections is there, and so are the processes whose connections it has not closed."""
    with Proxy(fragile.port) as old, Proxy(fragile.port) as new:
        url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{old.port},127.0.0.1:{new.port}/postgres"
        near = pgnear(url=url, **IMPATIENT | {"origin_connect_timeout": 10})
        fragile.execute("create table if not exists contested (a int)")
        with fragile.connect() as holder, near.connect() as first, near.connect() as second, near.connect() as third:
            holder.execute("begin; lock table contested")
            slow = [
                Background(lambda each=each: each.execute("table contested").fetchall()) for each in (first, second)
            ]
            until(lambda: both_wait(fragile))
            old.refuse()
            waits = Background(lambda: third.execute("select 'in the end'").fetchone())
            near.wait_for_log("origin_silent", count=2)  # the first probe found another server, and this one refusing
            holder.execute("commit")
            assert waits.result() == ("in the end",)
            assert [each.result() for each in slow] == [[], []]
