"""An origin that is too slow for what is asked of it: who is answered, who is refused, and when."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from threading import Event

from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.waiting import Background, until
from tests.support.wire import WireClient, error_fields, query


def outcome(client: WireClient) -> str:
    """`answered`, or the SQLSTATE of the refusal, as it comes."""
    frames = client.receive_until("Z")
    return next((error_fields(body)["C"] for kind, body in frames if kind == "E"), "answered")


def test_who_cannot_be_served_in_time_is_refused_long_before_that_time_and_a_calm_user_is_served(
    pgnear: Start, origin: Server
) -> None:
    """They all waited for the whole of pool_wait_timeout: until a hundred queries were done nobody knew the pace."""
    users = {name: {"password": name} for name in ("postgres", "flood")}
    near = pgnear(pool_size=2, pool_wait_timeout=2, cache={"enabled": False}, users=users)
    flood = [WireClient.logged_in(near.port, user="flood", password="flood") for _ in range(40)]
    for client in flood:
        client.send(query("select pg_sleep(0.4)"))
    with WireClient.logged_in(near.port, password="postgres") as calm:
        assert calm.one("select 'calm'") == b"calm"
    refused = near.wait_for_log("queue_too_slow")
    assert refused["refused"] > 2
    outcomes = Counter(outcome(client) for client in flood)
    assert set(outcomes) == {"answered", "53300"}
    assert outcomes["answered"] >= 5  # five a second, for two seconds
    assert near.metric("pool_refusals_total") > 2 * near.metric("pool_timeouts_total")
    for client in flood:
        client.hang_up()


WORK = """
create table if not exists weather (bad bool);
truncate weather;
insert into weather values (false);
create or replace function work() returns int volatile language plpgsql as $$
begin
    if (select bad from weather) then
        perform pg_advisory_xact_lock(4711);
        perform pg_sleep(0.01);
    end if;
    return 1;
end $$
"""
"""In bad weather all queries wait for one another: as many are finished, whatever is asked at once."""


def at_work(port: int, user: str, over: Event) -> int:
    """Ask for `work()` again and again until it is over; how often it was done."""
    done = 0
    with WireClient.logged_in(port, user=user, password=user) as client:
        while not over.is_set():
            client.send(query("select work()"))
            done += outcome(client) == "answered"
    return done


def test_an_origin_in_trouble_has_less_to_do_at_once_until_it_is_well_again(pgnear: Start, origin: Server) -> None:
    for statement in WORK.split(";\n", 3):
        origin.execute(statement)
    near = pgnear(
        pool_size=6,
        cache={"enabled": False},
        concurrency={"adaptive": "true"},
        users={name: {"password": name} for name in ("postgres", "flood", "calm")},
        admin_users="postgres",
    )
    over = Event()
    with ExitStack() as stack:
        stack.callback(over.set)
        flood = [Background(lambda: at_work(near.port, "flood", over)) for _ in range(12)]
        until(lambda: near.metric("query_seconds_count") > 500)
        until(lambda: near.metric("pool_usual_rate") > 250, what="the origin is too slow for this test")
        assert near.metric("pool_allowed") == 6
        origin.execute("update weather set bad = true")
        lowered = near.wait_for_log("concurrency_lowered", connections=3)
        assert lowered["finished_per_second"] < lowered["usual_per_second"] / 2
        calm = Background(lambda: at_work(near.port, "calm", over))
        until(lambda: near.metric("pool_busy") <= 3 and near.metric("pool_allowed") <= 4)
        origin.execute("update weather set bad = false")
        until(lambda: near.metric("pool_allowed") == 6)
        near.wait_for_log("concurrency_restored")
        over.set()
        counts = [int(str(each.result())) for each in flood]
        assert min(counts) > 0
        assert int(str(calm.result())) > 0
        assert near.metric("pool_timeouts_total") + near.metric("pool_refusals_total") == 0
