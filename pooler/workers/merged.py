"""The metrics of several workers as those of one pgnear.

Lives here: adding up what each says in Prometheus' text format, and which samples are not added. Not here: asking for
it (`http`), what is measured (`admin.metrics`).

A counter must never fall, or whoever scrapes it takes the whole of it for new: what a worker had counted stays in the
sum when it does not answer, and when it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

LARGEST = frozenset((
    "pgnear_breaker_state",
    "pgnear_build_info",
    "pgnear_cache_stream_lag_seconds",
    "pgnear_cache_stream_silent_seconds",
    "pgnear_cache_stream_uncovered_tables",
    "pgnear_client_addresses",
    "pgnear_draining",
    "pgnear_origin_frozen",
    "pgnear_pool_oldest_wait_seconds",
    "pgnear_pool_paused",
    "pgnear_replica_lag_bytes",
    "pgnear_replica_lag_seconds",
))  # fmt: skip
"""Gauges of which the largest holds: states (the worst one), ages, and what all workers see of the same thing."""

SMALLEST = frozenset((
    "pgnear_cache_notify_connected",
    "pgnear_cache_stream_connected",
    "pgnear_pool_ready",
    "pgnear_replica_usable",
    "process_start_time_seconds",
))  # fmt: skip
"""Gauges that are 1 only where they are for all; and since when there is any."""

_CUMULATIVE = frozenset(("counter", "histogram"))

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, str, Labels], float]
"""By family, sample and labels."""


class Part(NamedTuple):
    """What the process `pid` of a worker says; `worker` is its place, which another process may take."""

    worker: int
    pid: int
    text: str


class Totals:
    """The counters of all workers that there were, as of their last answers."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[int, Values]] = {}
        self._gone: Values = {}

    def merge(self, parts: Iterable[Part]) -> list[Metric]:
        """One set of families. Gauges are of those who have answered now."""
        families: dict[str, Metric] = {}
        gauges: Values = {}
        for part in parts:
            counted: Values = {}
            for family in text_string_to_metric_families(part.text):
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                cumulative = family.type in _CUMULATIVE
                for sample in family.samples:
                    key = family.name, sample.name, tuple(sample.labels.items())
                    if cumulative:
                        counted[key] = sample.value
                    else:
                        known = gauges.get(key)
                        gauges[key] = sample.value if known is None else _rule(family.name)(known, sample.value)
            self._count(part, counted)
        return _filled(families, self._sums(), gauges)

    def _count(self, part: Part, counted: Values) -> None:
        pid, before = self._latest.get(part.worker, (part.pid, {}))
        if pid != part.pid:
            _add(self._gone, before)
        self._latest[part.worker] = part.pid, counted

    def _sums(self) -> Values:
        sums: Values = {}
        for _, counted in self._latest.values():
            _add(sums, counted)
        _add(sums, self._gone)
        return sums


def _rule(family: str) -> Callable[[float, float], float]:
    return max if family in LARGEST else min if family in SMALLEST else float.__add__


def _add(sums: Values, more: Mapping[tuple[str, str, Labels], float]) -> None:
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + value


def _filled(families: dict[str, Metric], *several: Values) -> list[Metric]:
    for values in several:
        for (family, sample, labels), value in values.items():
            if family in families:
                families[family].add_sample(sample, dict(labels), value)
    return list(families.values())
