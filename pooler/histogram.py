"""How long things take, counted: what the hot path does for each query, and no more.

Not here: which histograms there are (`stats`, `pool`), their form for Prometheus (`admin.metrics`).
"""

from __future__ import annotations

from bisect import bisect_left

LATENCY_BOUNDS: tuple[float, ...] = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds in seconds of the latency buckets; one more bucket, without a bound, follows them."""


class Histogram:
    """Counts of observations in seconds, by `LATENCY_BOUNDS`; not cumulative until it is read."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)
