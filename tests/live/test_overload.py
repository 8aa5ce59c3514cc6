"""An origin that is too slow for what is asked of it: who is answered, who is refused, and when."""

from __future__ import annotations

from collections import Counter

from tests.conftest import Start
from tests.support.postgres import Server
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
