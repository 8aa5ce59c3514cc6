"""The pages that a parent serves: of fake workers, over real sockets; and of two live ones."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pooler.admin.http import serve_http
from pooler.workers import http
from tests.conftest import Start
from tests.pooler.test_http import ask
from tests.support.waiting import until
from tests.workers.test_workers import clients, processes


class Workers:
    """Two, of which `answers` has what each says: None where it keeps silent."""

    count, alive, restarts = 2, 2, 3

    def __init__(self) -> None:
        self.reasons: list[list[str] | None] = [[], []]

    async def ask_all(self, what: str, data: Any = None, *, within: float = 0.0) -> list[Any]:
        assert 0 < within < 10
        return [
            {"worker": worker, "reasons": reasons, "pid": worker + 10, "text": "# TYPE a_total counter\na_total 2.0\n"}
            for worker, reasons in enumerate(self.reasons)
            if reasons is not None
        ]


@pytest.fixture
def workers() -> Workers:
    return Workers()


async def test_ready_are_all_workers_or_none(workers: Workers) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, http.application(workers), "127.0.0.1:0")
        assert (await ask(address, "/readyz"))[0] == 200
        workers.reasons = [["draining", "pool a: down"], ["draining"]]
        status, _, body = await ask(address, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["draining", "pool a: down"])
        workers.reasons = [[], None]
        status, _, body = await ask(address, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["worker 1: no answer"])
        assert (await ask(address, "/healthz"))[0] == 200
        nursery.cancel_scope.cancel()


async def test_who_is_missing_in_the_metrics_is_said(workers: Workers) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, http.application(workers), "127.0.0.1:0")

        async def scraped() -> dict[str, float]:
            families = text_string_to_metric_families((await ask(address, "/metrics"))[2].decode())
            return {sample.name: sample.value for family in families for sample in family.samples}

        found = await scraped()
        assert (found["pgnear_workers"], found["pgnear_workers_silent"]) == (2, 0)
        assert (found["pgnear_workers_alive"], found["pgnear_worker_restarts_total"], found["a_total"]) == (2, 3, 4)
        assert found["process_cpu_seconds_total"] > 0
        workers.reasons = [[], None]
        found = await scraped()
        assert (found["pgnear_workers_silent"], found["a_total"]) == (1, 4)
        _, kind, body = await ask(address, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        nursery.cancel_scope.cancel()


def test_the_metrics_of_two_workers_are_those_of_one_pgnear(pgnear: Start) -> None:
    near = pgnear(workers=2, pool_size=7)
    until(lambda: near.get("/readyz")[0] == 200)
    with clients(near) as connected:
        for client in connected:
            client.execute("select 1")
        assert near.metric("clients") == len(connected)
        assert near.metric("pool_size") == 7
        assert near.metric("query_seconds_count") == len(connected)
        assert (near.metric("workers"), near.metric("workers_alive"), near.metric("workers_silent")) == (2, 2, 0)
        assert near.metric("build_info") == 1
        names = [family.name for family in text_string_to_metric_families(near.metrics())]
        assert len(names) == len(set(names))
        assert all(family.documentation.endswith(".") for family in text_string_to_metric_families(near.metrics()))


def test_a_stuck_worker_is_said_to_be_silent_and_costs_nobody_else_an_answer(pgnear: Start) -> None:
    near = pgnear(workers=2)
    until(lambda: near.get("/readyz")[0] == 200)
    stuck = processes(near)[1]
    os.kill(stuck, signal.SIGSTOP)
    try:
        status, body = near.get("/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["worker 1: no answer"])
        assert near.metric("workers_silent") == 1
        assert near.get("/healthz")[0] == 200
    finally:
        os.kill(stuck, signal.SIGCONT)
    until(lambda: near.get("/readyz")[0] == 200)


def test_what_a_worker_had_counted_is_not_lost_with_it(pgnear: Start) -> None:
    near = pgnear(workers=2)
    with clients(near) as connected:
        for client in connected:
            client.execute("select 1")
        counted = near.metric("clients_accepted_total")
        assert counted >= len(connected)
        os.kill(processes(near)[0], signal.SIGKILL)
        near.wait_for_log("worker_ended", worker=0)
        assert near.metric("clients_accepted_total") == counted
        until(lambda: (near.metric("worker_restarts_total"), near.metric("workers_alive")) == (1, 2))
        assert near.metric("clients_accepted_total") >= counted
