"""The metrics of several workers, added up: pure."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from pooler.workers.merged import Part, Totals


def said(worker: int, pid: int, text: str) -> Part:
    return Part(worker, pid, text)


def samples(families: list[Metric]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def exposition(queries: int, waits: list[float], **gauges: float) -> str:
    registry = CollectorRegistry()
    Counter("pgnear_queries", "Queries.", ["pool"], registry=registry).labels("shop").inc(queries)
    histogram = Histogram("pgnear_wait_seconds", "Waits.", ["pool"], buckets=(0.1, 1.0), registry=registry)
    for seconds in waits:
        histogram.labels("shop").observe(seconds)
    for name, value in gauges.items():
        Gauge(name, "A gauge.", registry=registry).set(value)
    return "\n".join(line for line in generate_latest(registry).decode().split("\n") if "_created" not in line)


def test_counters_histograms_and_gauges_are_added_by_their_labels() -> None:
    merged = samples(
        Totals().merge(
            [
                said(0, 10, exposition(3, [0.05, 0.5], pgnear_clients=4)),
                said(1, 11, exposition(4, [5.0], pgnear_clients=6)),
            ]
        )
    )
    assert merged["pgnear_queries_total", ("shop",)] == 7
    assert merged["pgnear_wait_seconds_bucket", ("0.1", "shop")] == 1
    assert merged["pgnear_wait_seconds_bucket", ("1.0", "shop")] == 2
    assert merged["pgnear_wait_seconds_bucket", ("+Inf", "shop")] == 3
    assert merged["pgnear_wait_seconds_sum", ("shop",)] == pytest.approx(5.55)
    assert merged["pgnear_clients", ()] == 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgnear_draining", 5),
        ("pgnear_breaker_state", 5),
        ("pgnear_pool_oldest_wait_seconds", 5),
        ("pgnear_pool_ready", 2),
        ("process_start_time_seconds", 2),
        ("process_resident_memory_bytes", 7),
    ],
)
def test_what_cannot_be_added_is_the_worst_or_the_first_of_all(name: str, expected: float) -> None:
    parts = [said(0, 10, exposition(0, [], **{name: 2})), said(1, 11, exposition(0, [], **{name: 5}))]
    assert samples(Totals().merge(parts))[name, ()] == expected


def test_which_pgnear_runs_here_is_said_once() -> None:
    text = '# HELP pgnear_build_info What.\n# TYPE pgnear_build_info gauge\npgnear_build_info{version="1"} 1.0\n'
    merged = Totals().merge([said(0, 10, text), said(1, 11, text)])
    assert samples(merged) == {("pgnear_build_info", ("1",)): 1}


def test_a_counter_does_not_fall_when_a_worker_is_silent_or_another_process_takes_its_place() -> None:
    totals = Totals()

    def queries(*parts: Part) -> float:
        return samples(totals.merge(parts))["pgnear_queries_total", ("shop",)]

    first, second = said(0, 10, exposition(100, [])), said(1, 11, exposition(50, []))
    assert queries(first, second) == 150
    assert queries(first) == 150  # worker 1 is silent
    assert queries(said(0, 10, exposition(110, [])), said(1, 12, exposition(1, []))) == 161  # and is another one
    assert queries(said(0, 10, exposition(110, [])), said(1, 12, exposition(2, []))) == 162
    assert queries(said(0, 10, exposition(110, [])), said(1, 13, exposition(5, []))) == 167


def test_gauges_are_of_those_who_have_answered() -> None:
    totals = Totals()
    totals.merge([said(0, 10, exposition(0, [], pgnear_clients=4)), said(1, 11, exposition(0, [], pgnear_clients=6))])
    merged = samples(totals.merge([said(0, 10, exposition(0, [], pgnear_clients=4))]))
    assert merged["pgnear_clients", ()] == 4
