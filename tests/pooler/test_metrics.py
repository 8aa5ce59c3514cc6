"""What /metrics says of a service: real pools, store and totals, without any connection."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import config
from pooler.addresses import Addresses
from pooler.admin.metrics import MAX_LABEL_VALUES, registry
from pooler.cache.policy import Policies
from pooler.cache.store import Store
from pooler.histogram import LATENCY_BOUNDS
from pooler.pool import Pool
from pooler.stats import Stats

SECRET = "s3cr3t-of-the-origin"


class _NoCeremonies:
    """A pool's helpers that never come to anything."""

    def connect(self, pool: Pool) -> None: ...

    def reset(self, pool: Pool, origin: object) -> None: ...

    def soon(self, function: object) -> None: ...


@pytest.fixture
def service() -> Any:
    """What the collector reads of a `Service`."""
    settings = config.load(flags={"origin": f"postgresql://app:{SECRET}@127.0.0.1/shop", "pool_size": 7}, environ={})
    stats = Stats()
    pools = {name: Pool(name, target, settings, stats, _NoCeremonies()) for name, target in settings.targets().items()}
    cache = Store(1 << 20, 1 << 16)
    return SimpleNamespace(
        config=settings,
        stats=stats,
        addresses=Addresses(),
        pools=pools,
        every_pool=list(pools.values()),
        cache=cache,
        sessions=set(),
        relays={},
        ears=None,
        flights=None,
        draining=False,
    )


def scrape(service: Any) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and label values."""
    text = generate_latest(registry(service)).decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_help_and_a_well_behaved_name(service: Any) -> None:
    families = list(text_string_to_metric_families(generate_latest(registry(service)).decode()))
    assert len(families) > 25
    for family in families:
        assert family.name.startswith(("pgnear_", "process_"))
        assert family.documentation.endswith("."), family.name


def test_a_latency_histogram_is_cumulative_by_outcome(service: Any) -> None:
    for seconds in (0.00004, 0.0002, 0.0002, 99.0):
        service.stats.miss_latency.observe(seconds)
    service.stats.hit_latency.observe(0.00001)
    samples = scrape(service)
    families = text_string_to_metric_families(generate_latest(registry(service)).decode())
    latency = next(family for family in families if family.name == "pgnear_query_seconds")
    misses = [
        sample.value
        for sample in latency.samples
        if sample.name.endswith("_bucket") and sample.labels["outcome"] == "miss"
    ]
    assert len(misses) == len(LATENCY_BOUNDS) + 1
    assert misses == sorted(misses)
    assert (misses[0], misses[2], misses[-2], misses[-1]) == (1, 3, 3, 4)
    assert samples["pgnear_query_seconds_count", ("miss",)] == 4
    assert samples["pgnear_query_seconds_sum", ("miss",)] == pytest.approx(99.00044)
    assert samples["pgnear_query_seconds_count", ("hit",)] == 1
    assert samples["pgnear_query_seconds_count", ("bypass",)] == 0


def test_a_scrape_reads_the_pool_as_it_is_now(service: Any) -> None:
    pool = service.pools["shop"]
    pool.open_one()
    pool.wait_histogram.observe(0.3)
    samples = scrape(service)
    assert samples["pgnear_pool_size", ("shop",)] == 7
    assert samples["pgnear_pool_connecting", ("shop",)] == 1
    assert samples["pgnear_pool_idle", ("shop",)] == samples["pgnear_pool_busy", ("shop",)] == 0
    assert samples["pgnear_pool_wait_seconds_count", ("shop",)] == 1
    assert samples["pgnear_pool_ready", ("shop",)] == 0


def test_a_failed_connection_is_not_a_failed_query(service: Any) -> None:
    service.stats.origin_connect_failures += 2
    service.stats.query_errors += 5
    samples = scrape(service)
    assert samples["pgnear_origin_connect_failures_total", ()] == 2
    assert samples["pgnear_query_errors_total", ()] == 5


def test_the_cache_shows_its_bytes_and_its_hits(service: Any) -> None:
    cache: Store = service.cache
    policy = Policies(service.config.cache, cache).default
    cache.put(cache.make(("shop", b"key"), [b"rows"], None, b"tag", database="shop", stamp=0, sent_at=0, policy=policy))
    cache.get(("shop", b"key"), 1.0, cache.default)
    cache.get(("shop", b"another"), 1.0, cache.default)
    samples = scrape(service)
    assert samples["pgnear_cache_entries", ()] == 1
    assert 0 < samples["pgnear_cache_bytes", ()] < samples["pgnear_cache_max_bytes", ()] == 1 << 20
    assert samples["pgnear_cache_hits_total", ()] == samples["pgnear_cache_misses_total", ()] == 1


def test_each_policy_has_its_own_counters(service: Any) -> None:
    cache: Store = service.cache
    catalogue = cache.namespace("catalogue")
    policy = replace(Policies(service.config.cache, cache).default, namespace=catalogue)
    cache.put(cache.make(("shop", b"key"), [b"rows"], None, b"tag", database="shop", stamp=0, sent_at=0, policy=policy))
    cache.get(("shop", b"key"), 1.0, catalogue)
    cache.get(("shop", b"another"), 1.0, cache.default)
    cache.purge(namespace="catalogue")
    samples = scrape(service)
    for name, ours, others in (
        ("hits_total", 1, 0),
        ("misses_total", 0, 1),
        ("stores_total", 1, 0),
        ("purged_total", 1, 0),
        ("entries", 0, 0),
        ("bytes", 0, 0),
    ):
        assert samples[f"pgnear_cache_namespace_{name}", ("catalogue",)] == ours, name
        assert samples[f"pgnear_cache_namespace_{name}", ("default",)] == others, name


def test_without_a_cache_there_are_no_cache_metrics(service: Any) -> None:
    service.cache = None
    assert not [name for name, _ in scrape(service) if "cache" in name]


def test_clients_cannot_make_labels_without_end(service: Any) -> None:
    """`SET app.anything FROM CURRENT` pins with a reason that holds the name, which the client chooses."""
    service.stats.pins.update({f"SET app.made_up_{number}": 1 for number in range(1000)})
    samples = scrape(service)
    pins = {labels[0]: value for (name, labels), value in samples.items() if name == "pgnear_pins_total"}
    assert len(pins) == MAX_LABEL_VALUES + 1
    assert pins["other"] == 1000 - MAX_LABEL_VALUES
    service.stats.pins["SET app.made_up_0"] += 1
    assert scrape(service)["pgnear_pins_total", ("SET app.made_up_0",)] == 2


def test_no_secret_is_in_the_metrics(service: Any) -> None:
    assert SECRET not in generate_latest(registry(service)).decode()
