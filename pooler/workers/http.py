"""HTTP where there are several workers: their parent serves it, and asks them.

Lives here: what /metrics and /readyz are made of. Not here: the pages and their server (`admin.http`), adding up
(`merged`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette

from pooler.admin import http
from pooler.workers.merged import Part, Totals

ANSWER_SECONDS = 3.0
"""A worker that does not answer within so long is told of, and not waited for."""

_PARENT = -1


class Workers(Protocol):
    """What is asked of the parent: how many workers there should be and are, how often one was started again."""

    @property
    def count(self) -> int: ...
    @property
    def alive(self) -> int: ...
    @property
    def restarts(self) -> int: ...

    async def ask_all(self, what: str, data: Any = None, *, within: float = ...) -> list[Any]:
        """What each answers that is there and answers within so many seconds."""
        ...


def application(workers: Workers) -> Starlette:
    """The pages of all workers together."""
    totals = Totals()
    own = CollectorRegistry()
    ProcessCollector(registry=own)

    async def reasons() -> list[str]:
        replies = await _replies(workers, "ready")
        return [*_missing(workers, replies), *dict.fromkeys(each for reply in replies for each in reply["reasons"])]

    async def exposition() -> Collector:
        replies = await _replies(workers, "metrics")
        parts = [Part(reply["worker"], reply["pid"], reply["text"]) for reply in replies]
        parts.append(Part(_PARENT, _PARENT, generate_latest(own).decode()))
        return _Families([*totals.merge(parts), *_own_metrics(workers, len(replies))])

    return http.application(reasons, exposition)


async def _replies(workers: Workers, what: str) -> list[dict[str, Any]]:
    """Of those who answer; a worker that has failed to says None."""
    return [reply for reply in await workers.ask_all(what, within=ANSWER_SECONDS) if reply is not None]


def _missing(workers: Workers, replies: list[dict[str, Any]]) -> Iterator[str]:
    there = {reply["worker"] for reply in replies}
    for worker in range(workers.count):
        if worker not in there:
            yield f"worker {worker}: no answer"


def _own_metrics(workers: Workers, answered: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("pgnear_workers", "Worker processes that there should be.", workers.count)
    yield GaugeMetricFamily("pgnear_workers_alive", "Worker processes that serve clients.", workers.alive)
    yield GaugeMetricFamily(
        "pgnear_workers_silent",
        "Worker processes that are not part of this answer, for they gave none.",
        workers.count - answered,
    )
    yield CounterMetricFamily(
        "pgnear_worker_restarts", "Times a worker had ended and was started again.", workers.restarts
    )


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
