"""What the running pooler counts: plain integers, bumped on the hot path and read at scrape time.

No metric object lives here: `pooler.admin.metrics` turns these numbers into Prometheus samples when somebody asks.
Every attribute is a total since the process started unless its comment says it is a gauge.
"""

from __future__ import annotations

from pooler.histogram import Histogram

certificate_reloads: dict[str, int] = {"used": 0, "kept": 0}
"""Changes of certificates, on both sides, by what became of them: the new ones used, or the old ones kept."""


class Stats:
    """The process's totals. One instance, shared by every session, pool and ceremony."""

    __slots__ = (
        "begins_deferred",
        "blocks_spared",
        "breaker_refusals",
        "bypass_latency",
        "bytes_from_clients",
        "bytes_to_clients",
        "cancels_forwarded",
        "cancels_received",
        "clients_accepted",
        "clients_rejected",
        "deadlines",
        "hit_latency",
        "login_failures",
        "miss_latency",
        "origin_connect_failures",
        "origin_connections_lost",
        "origin_connections_opened",
        "origin_connections_replaced",
        "origin_role_changes",
        "pins",
        "pool_refusals",
        "pool_timeouts",
        "query_errors",
        "reload_failures",
        "reloads",
        "replica_retries",
        "retries",
        "rotations",
        "settings_replayed",
        "signals",
        "stale_if_error_hits",
        "statements_kept",
        "statements_replayed",
        "transactions_rolled_back",
        "unauthenticated",
        "writes_unsure",
    )

    def __init__(self) -> None:
        self.bytes_from_clients = 0
        self.bytes_to_clients = 0
        self.cancels_forwarded = 0
        self.cancels_received = 0
        self.clients_accepted = 0
        self.clients_rejected: dict[str, int] = {}  # by reason
        self.deadlines: dict[str, int] = {}  # by the setting that was exceeded
        self.login_failures = 0
        self.unauthenticated = 0  # gauge: connections that have not logged in yet
        self.hit_latency = Histogram()  # answered from the cache
        self.miss_latency = Histogram()  # cacheable, answered by the origin
        self.bypass_latency = Histogram()  # never a candidate for the cache
        self.origin_connect_failures = 0
        self.origin_connections_lost = 0
        self.origin_connections_replaced = 0
        self.origin_connections_opened = 0
        self.origin_role_changes = 0  # a server was promoted or demoted, and its connections drained
        self.pins: dict[str, int] = {}  # by reason
        self.pool_timeouts = 0
        self.pool_refusals = 0  # refused before their time: the queue was full or too slow
        self.begins_deferred = 0  # transaction blocks that were opened without an origin, for the time being
        self.blocks_spared = 0  # those that ended so
        self.breaker_refusals = 0  # refused at once: the origin was not to be tried
        self.query_errors = 0  # ErrorResponses passed from an origin to a client
        self.reload_failures = 0
        self.reloads = 0
        self.replica_retries = 0  # requests that a replica failed with, and the primary was asked
        self.retries = 0
        self.rotations: dict[str, int] = {}  # attempts to change credentials, by outcome
        self.settings_replayed = 0
        self.signals: dict[str, int] = {}  # clients cancelled and terminated by SQL, by the function called
        self.stale_if_error_hits = 0  # served from the cache because the origin could not be reached
        self.statements_kept = 0  # asked again and again without a name, and so prepared by pgnear
        self.statements_replayed = 0
        self.transactions_rolled_back = 0
        self.writes_unsure = 0  # writes whose client or connection was lost before their end was seen

    def expired(self, deadline: str) -> None:
        """The setting `deadline` was exceeded."""
        self.deadlines[deadline] = self.deadlines.get(deadline, 0) + 1

    def rejected(self, sqlstate: str) -> None:
        """A client was not let in."""
        self.clients_rejected[sqlstate] = self.clients_rejected.get(sqlstate, 0) + 1
