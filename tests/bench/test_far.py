"""The geography tax, counted: round trips that pooling saves a connection, and the cache a query."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import far, load, rigs
from bench.drivers import Psql, Psycopg
from bench.far import Seat

pytestmark = pytest.mark.skipif(rigs.system_postgres() is None, reason="needs a PostgreSQL with TLS")

MILLISECONDS = 30
TIMES = 2
"""A machine that is busy may tear apart what travels together: the best of so many counts."""


@pytest.fixture(scope="module")
def seats() -> Iterator[dict[str, Seat]]:
    with rigs.origin() as postgres:
        load.initialize(postgres, 1)
        with far.seats(("direct", "pgnear+cache"), postgres) as made:
            yield {seat.rig.name: seat for seat in made}


def trips(seat: Seat, kind: type[far.Driver], leg: str) -> dict[str, int]:
    """Round trips of each step on one leg, which is the far one."""
    counted: dict[str, int] = {}
    for _ in range(TIMES):
        for waited in far.measure(seat, kind, leg, MILLISECONDS):
            count = waited.client_trips if leg == "client" else waited.origin_trips
            counted[waited.step] = min(count, counted.get(waited.step, count))
    return counted


def test_direct_a_cold_connection_and_its_query_cost_seven_round_trips(seats: dict[str, Seat]) -> None:
    """TCP, SSLRequest, TLS, startup packet, two of SCRAM, the query; one more where TLS's guess at a group fails."""
    counted = trips(seats["direct"], Psycopg, "client")
    assert counted["cold connect + query"] in (7, 8)
    assert counted["warm query"] == 1
    assert counted["BEGIN; SELECT; COMMIT"] == 3


@pytest.mark.parametrize("kind", [Psycopg, Psql])
def test_pooled_it_costs_one_at_the_origin_and_cached_none(seats: dict[str, Seat], kind: type[far.Driver]) -> None:
    seat = seats["pgnear+cache"]
    far.warm_up(seat, kind)
    counted = trips(seat, kind, "origin")
    assert counted["cold connect + query"] == 1
    assert counted["warm query"] == 1
    assert counted["cached query"] == 0
    assert counted["BEGIN; SELECT; COMMIT"] <= 3
    assert counted["the same, cached"] <= 2
    assert counted["prepared, second use"] == 1


def test_towards_its_clients_pgnear_has_no_more_round_trips_than_a_server(seats: dict[str, Seat]) -> None:
    counted = trips(seats["pgnear+cache"], Psycopg, "client")
    assert counted["cold connect + query"] == 7
    assert counted["warm query"] == counted["cached query"] == 1
