"""Turns the running service's plain integers into Prometheus samples, when somebody asks.

Labels are pool names, outcomes, SQLSTATEs and pin reasons: from closed lists or the configuration, and limited in
number where a client has a say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pooler import __version__, logs
from pooler.breaker import State
from pooler.histogram import LATENCY_BOUNDS, Histogram
from pooler.stats import certificate_reloads
from pooler.workers.peers import answers

if TYPE_CHECKING:
    from pooler.cache.entry import Namespace
    from pooler.cache.store import Store
    from pooler.ceremony.notify import Listener
    from pooler.ceremony.stream import Stream
    from pooler.pool import Pool
    from pooler.service import Service


MAX_LABEL_VALUES = 32
"""A counter has no more samples than this and one named `other`: some pin reasons hold a name that a client made up."""


def registry(service: Service) -> CollectorRegistry:
    """A registry with everything there is to know about `service`."""
    made = CollectorRegistry()
    made.register(ServiceCollector(service))
    ProcessCollector(registry=made)
    return made


@answers("metrics")
async def _metrics(service: Service, data: Any) -> dict[str, Any]:
    """This worker's part, for who adds them up (`workers.merged`)."""
    return {
        "worker": service.peers.index if service.peers is not None else 0,
        "pid": os.getpid(),
        "text": generate_latest(registry(service)).decode(),
    }


class ServiceCollector(Collector):
    """Reads the service at scrape time."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not read a service that is still being built

    def collect(self) -> Iterator[Metric]:
        service = self._service
        yield InfoMetricFamily("pgnear_build", "What runs here.", value={"version": __version__})
        yield _gauge("draining", "Whether a shutdown has begun.", int(service.draining))
        yield _counter("log_lines_lost", "Lines that standard error did not take.", logs.output.lost)
        yield from _tasks()
        yield from _clients(service)
        yield from _queries(service)
        yield from _pools(service.every_pool)
        yield from _replicas(service)
        yield from _origins(service)
        if service.cache is not None:
            yield from _cache(service.cache)
            yield _counter(
                "cache_writes_unsure",
                "Writes whose client or connection was lost before their end was seen: followed until it has come.",
                service.stats.writes_unsure,
            )
        if service.flights is not None:
            flights = service.flights
            yield _counter("cache_flights_led", "Misses asked of the origin for all who want them.", flights.led)
            yield _counter("cache_flights_joined", "Misses that waited for somebody else's answer.", flights.joined)
        if service.ears is not None and service.ears.streams:
            yield from _streams(service.ears.streams)
        if service.ears is not None and service.ears.listeners:
            yield from _listeners(service.ears.listeners)


def _tasks() -> Iterator[Metric]:
    try:
        living = trio.lowlevel.current_statistics().tasks_living
    except RuntimeError:  # asked from outside of the process's event loop
        return
    yield _gauge("tasks", "Tasks that are alive: logins, connects, and a few that always are.", living)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pgnear_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pgnear_{name}", text, value=value)


def _by_label(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"pgnear_{name}", text, labels=[label])
    items = list(values.items())  # in the order of their first appearance: who has a sample keeps it
    for key, value in items[:MAX_LABEL_VALUES]:
        family.add_metric([key], value)
    if rest := items[MAX_LABEL_VALUES:]:
        family.add_metric(["other"], sum(value for _, value in rest))
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _clients(service: Service) -> Iterator[Metric]:
    stats = service.stats
    yield _gauge("clients", "Clients that are logged in.", len(service.sessions))
    pinned = sum(1 for session in service.sessions if session.pinned)
    yield _gauge("clients_pinned", "Clients that keep their origin connection because of session state.", pinned)
    linked = sum(1 for session in service.sessions if session.origin is not None)
    yield _gauge("clients_linked", "Clients that an origin connection works for or is kept for.", linked)
    waiting = sum(1 for session in service.sessions if session.waiting)
    yield _gauge("clients_waiting", "Clients that wait for an origin connection.", waiting)
    yield _gauge("replication_connections", "Replication connections passed through, unpooled.", len(service.relays))
    yield _gauge("clients_unauthenticated", "Connections that have not logged in yet.", stats.unauthenticated)
    yield _counter("clients_accepted", "Connections accepted from clients.", stats.clients_accepted)
    yield _gauge("client_addresses", "Source addresses that have connections open.", len(service.addresses.open))
    yield _counter(
        "address_limit_refusals",
        "Connections turned away because of max_connections_per_address.",
        service.addresses.refused,
    )
    yield _counter(
        "login_failures", "Logins that failed for a wrong password or an unknown user.", stats.login_failures
    )
    yield _by_label("clients_rejected", "Connections turned away, by SQLSTATE.", "sqlstate", stats.clients_rejected)
    yield _by_label(
        "deadlines_exceeded", "Times a deadline passed, by the setting's name.", "deadline", stats.deadlines
    )
    yield _by_label("pins", "Times a client was pinned to its origin connection, by reason.", "reason", stats.pins)


def _queries(service: Service) -> Iterator[Metric]:
    stats = service.stats
    latency = HistogramMetricFamily(
        "pgnear_query_seconds",
        "Time from a query's arrival to its ReadyForQuery: from the cache (hit), cacheable but fetched (miss), "
        "never a candidate (bypass).",
        labels=["outcome"],
    )
    for outcome, histogram in (
        ("hit", stats.hit_latency),
        ("miss", stats.miss_latency),
        ("bypass", stats.bypass_latency),
    ):
        latency.add_metric([outcome], _buckets(histogram), histogram.total)
    yield latency
    yield _counter("query_errors", "ErrorResponses that the origin gave to clients' queries.", stats.query_errors)
    yield _counter("cancels_received", "CancelRequests from clients.", stats.cancels_received)
    yield _counter("cancels_forwarded", "Cancel requests sent to the origin.", stats.cancels_forwarded)
    yield _by_label(
        "signals",
        "Clients whose work another client cancelled by SQL, or that it terminated, by the function called.",
        "function",
        stats.signals,
    )
    yield _counter(
        "settings_replayed",
        "Times a session's settings were made on another connection.",
        stats.settings_replayed,
    )
    yield _counter(
        "begins_deferred",
        "Transaction blocks that were opened without an origin (defer_begin), which hears of them with what needs it.",
        stats.begins_deferred,
    )
    yield _counter(
        "blocks_spared",
        "Transaction blocks that ended before an origin had to hear of them.",
        stats.blocks_spared,
    )
    yield _counter(
        "statements_kept",
        "Statements that came again and again without a name, and that a connection keeps prepared from then on.",
        stats.statements_kept,
    )
    yield _counter(
        "statements_replayed",
        "Prepared statements that were prepared again on another connection.",
        stats.statements_replayed,
    )


def _pools(pools: list[Pool]) -> Iterator[Metric]:
    now = time.monotonic()
    gauges = (
        ("pool_size", "Origin connections the pool may have.", lambda pool: pool.size),
        (
            "pool_allowed",
            "Origin connections it may have now: fewer than its size while its origin is slow (concurrency.adaptive).",
            lambda pool: pool.allowed,
        ),
        (
            "pool_usual_rate",
            "Transactions a second that the origin finishes when it is well, as far as is known.",
            lambda pool: pool.limit.usual,
        ),
        ("pool_idle", "Origin connections that wait for work.", lambda pool: pool.idle_count),
        (
            "pool_busy",
            "Origin connections that work for a client or are being reset.",
            lambda pool: pool.busy_count,
        ),
        ("pool_connecting", "Origin connections that are being opened.", lambda pool: pool.connecting_count),
        ("pool_waiting", "Clients that wait for an origin connection.", lambda pool: pool.waiting_count),
        (
            "pool_oldest_wait_seconds",
            "How long the client at the head of the queue has waited.",
            lambda pool: pool.oldest_wait_seconds(now),
        ),
        (
            "pool_paused",
            "Whether an operator holds the pool's clients back.",
            lambda pool: int(pool.held_since is not None),
        ),
        (
            "pool_ready",
            "Whether the last attempt to connect to the origin succeeded.",
            lambda pool: int(pool.ready),
        ),
        (
            "breaker_state",
            "The origin's circuit breaker: 0 closed, 1 half-open, 2 open.",
            lambda pool: {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}[pool.breaker.state],
        ),
        (
            "origin_frozen",
            "Whether nothing comes on any of the pool's connections, and no new one gets through.",
            lambda pool: int(pool.pulse.frozen),
        ),
    )
    for name, text, read in gauges:
        family = GaugeMetricFamily(f"pgnear_{name}", text, labels=["pool"])
        for pool in pools:
            family.add_metric([pool.name], read(pool))
        yield family
    opened = CounterMetricFamily("pgnear_breaker_opened", "Times the breaker has opened.", labels=["pool"])
    for pool in pools:
        opened.add_metric([pool.name], pool.breaker.opened)
    yield opened
    waits = HistogramMetricFamily(
        "pgnear_pool_wait_seconds",
        "How long clients that had to wait for a connection waited.",
        labels=["pool"],
    )
    for pool in pools:
        waits.add_metric([pool.name], _buckets(pool.wait_histogram), pool.wait_histogram.total)
    yield waits


def _replicas(service: Service) -> Iterator[Metric]:
    replicas = [replica for pool in service.pools.values() if pool.replicas for replica in pool.replicas.all]
    if not replicas:
        return
    now = time.perf_counter()
    lag = GaugeMetricFamily(
        "pgnear_replica_lag_seconds", "What was committed before that is surely there.", labels=["pool"]
    )
    usable = GaugeMetricFamily("pgnear_replica_usable", "Whether reads may go to it.", labels=["pool"])
    bytes_behind = GaugeMetricFamily(
        "pgnear_replica_lag_bytes", "Bytes of the primary's log that it has not replayed.", labels=["pool"]
    )
    reads = CounterMetricFamily("pgnear_replica_reads", "Reads that it was given.", labels=["pool"])
    blocks = CounterMetricFamily("pgnear_replica_transactions", "READ ONLY transactions begun there.", labels=["pool"])
    for replica in replicas:
        if replica.known is not None:
            lag.add_metric([replica.pool.name], now - replica.known.at)
        usable.add_metric([replica.pool.name], int(replica.usable(now)))
        if replica.lag_bytes is not None:
            bytes_behind.add_metric([replica.pool.name], replica.lag_bytes)
        reads.add_metric([replica.pool.name], replica.reads)
        blocks.add_metric([replica.pool.name], replica.blocks)
    yield from (lag, bytes_behind, usable, reads, blocks)
    yield _counter(
        "replica_retries",
        "Requests that a replica failed with and the primary was asked.",
        service.stats.replica_retries,
    )


def _origins(service: Service) -> Iterator[Metric]:
    stats = service.stats
    yield _by_label(
        "credential_rotations",
        "Attempts to change an origin's credentials: verified, rejected by the origin, or unavailable.",
        "outcome",
        stats.rotations,
    )
    yield _counter("reloads", "Configurations that were reloaded.", stats.reloads)
    yield _counter("reload_failures", "Configurations that could not be used.", stats.reload_failures)
    yield _by_label(
        "tls_reloads",
        "Certificates that have changed, on either side: used, or the old ones kept.",
        "outcome",
        certificate_reloads,
    )
    yield _counter("pool_timeouts", "Queries that found no connection within pool_wait_timeout.", stats.pool_timeouts)
    yield _counter(
        "pool_refusals",
        "Queries refused before their time because the queue was full or too slow.",
        stats.pool_refusals,
    )
    yield _counter(
        "breaker_refusals", "Queries refused at once because the origin cannot be reached.", stats.breaker_refusals
    )
    yield _counter(
        "stale_if_error_answers",
        "Answers served beyond their time because the origin could not be reached.",
        stats.stale_if_error_hits,
    )
    yield _counter("origin_connections_opened", "Connections opened to the origin.", stats.origin_connections_opened)
    yield _counter(
        "origin_connect_failures",
        "Connections to the origin that could not be made.",
        stats.origin_connect_failures,
    )
    yield _counter(
        "origin_role_changes",
        "Servers that were promoted or demoted, so that their connections drained.",
        stats.origin_role_changes,
    )
    yield _counter("origin_connections_lost", "Connections to the origin that broke.", stats.origin_connections_lost)
    yield _counter(
        "origin_connections_replaced",
        "Connections to the origin closed because of what other clients had left on them for good.",
        stats.origin_connections_replaced,
    )
    yield _counter("retries", "Queries sent on another connection because theirs was dead already.", stats.retries)
    yield _counter(
        "transactions_rolled_back",
        "Transactions rolled back because their client left.",
        stats.transactions_rolled_back,
    )


def _cache(cache: Store) -> Iterator[Metric]:
    yield _gauge("cache_entries", "Answers in the cache.", cache.entries)
    yield _gauge("cache_bytes", "Bytes the cache is accounted with.", cache.bytes)
    yield _gauge("cache_max_bytes", "Bytes it may have (cache.max_bytes).", cache.max_bytes)
    yield _counter("cache_hits", "Look-ups that found an answer.", cache.hits)
    yield _counter("cache_misses", "Look-ups that found none.", cache.misses)
    yield _counter("cache_stores", "Answers stored.", cache.stores)
    yield _counter("cache_evictions", "Answers dropped to make room.", cache.evictions)
    yield _counter("cache_expired", "Answers dropped because of their age or an invalidation.", cache.expired)
    yield _counter(
        "cache_invalidations",
        "Tables and whole databases whose answers were ended by writes, through pgnear or told by the origin.",
        cache.invalidations,
    )
    yield from _namespaces(cache.namespaces)


def _namespaces(namespaces: list[Namespace]) -> Iterator[Metric]:
    gauges = (
        ("entries", "Answers in the cache, by policy (default: those without one)."),
        ("bytes", "Bytes of these answers alone, without what they share."),
    )
    counters = (
        ("hits", "Look-ups that found an answer, by policy."),
        ("stale_hits", "Those of them that were past their ttl."),
        ("misses", "Look-ups that found none."),
        ("stores", "Answers stored."),
        ("evictions", "Answers dropped to make room."),
        ("expired", "Answers dropped because of their age."),
        ("invalidated", "Answers dropped because of a write."),
        ("purged", "Answers dropped by hand."),
    )
    families: list[GaugeMetricFamily | CounterMetricFamily] = []
    for name, text in gauges:
        families.append(GaugeMetricFamily(f"pgnear_cache_namespace_{name}", text, labels=["namespace"]))
    for name, text in counters:
        families.append(CounterMetricFamily(f"pgnear_cache_namespace_{name}", text, labels=["namespace"]))
    for family, (name, _) in zip(families, gauges + counters, strict=True):
        for namespace in namespaces:
            family.add_metric([namespace.name], getattr(namespace, name))
        yield family


def _listeners(listeners: dict[str, Listener]) -> Iterator[Metric]:
    heard = GaugeMetricFamily(
        "pgnear_cache_notify_connected",
        "Whether the origin's NOTIFYs are heard (cache.notify_channel).",
        labels=["pool"],
    )
    for pool, listener in listeners.items():
        heard.add_metric([pool], int(listener.connected))
    yield heard
    for name, text in (
        ("received", "NOTIFYs that arrived."),
        ("rejected", "Those of them that were not understood, or named what does not exist."),
        ("losses", "Times the listening connection was lost."),
    ):
        counter = CounterMetricFamily(f"pgnear_cache_notify_{name}", text, labels=["pool"])
        for pool, listener in listeners.items():
            counter.add_metric([pool], getattr(listener, name))
        yield counter


def _streams(streams: dict[str, Stream]) -> Iterator[Metric]:
    now = time.monotonic()
    gauges = (
        (
            "connected",
            "Whether every commit at the origin is told of, whoever made it.",
            lambda stream: int(stream.connected),
        ),
        (
            "lag_seconds",
            "From the last commit to its being sent, on the origin's clock.",
            lambda stream: stream.lag_seconds,
        ),
        (
            "silent_seconds",
            "How long ago something last arrived, where the stream is connected.",
            lambda stream: now - stream.heard_at if stream.connected else 0.0,
        ),
        (
            "uncovered_tables",
            "Tables that can be read and whose changes the stream does not tell.",
            lambda stream: len(stream.uncovered),
        ),
    )
    for name, text, read in gauges:
        gauge = GaugeMetricFamily(f"pgnear_cache_stream_{name}", text, labels=["pool"])
        for pool, stream in streams.items():
            gauge.add_metric([pool], read(stream))
        yield gauge
    counters = (
        ("messages", "Messages of changes that arrived.", lambda stream: stream.messages),
        ("transactions", "Commits that were told of.", lambda stream: stream.transactions),
        ("losses", "Times a stream was lost, and with it the cache.", lambda stream: stream.losses),
    )
    for name, text, read in counters:
        counter = CounterMetricFamily(f"pgnear_cache_stream_{name}", text, labels=["pool"])
        for pool, stream in streams.items():
            counter.add_metric([pool], read(stream))
        yield counter
