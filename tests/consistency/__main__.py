"""`python -m tests.consistency`: the long run, and its verdict: status 1 where an answer was older than it may be."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import dataclass

from pooler.embedded import installed
from tests.consistency.faults import FAULTS, Faults
from tests.consistency.workload import SCHEMA, Observed, Workload
from tests.support.postgres import Server
from tests.support.process import running

TTL_SECONDS = 1.0
"""Of the run without a stream: the bound that holds there."""

LOST_SECONDS = 5.0
"""The bound while the stream is lost: `cache.ttl_without_stream`."""

SCHEDULING_SECONDS = 1.0
"""What a busy machine may add to a bound before a run counts as a violation."""


@dataclass(frozen=True)
class Plan:
    """One phase of a run.

    Attributes:
      stream: whether the origin can tell of writes past pgnear.
      faults: kinds, one every `every` seconds.
    """

    name: str
    stream: bool
    seconds: float
    faults: tuple[str, ...] = ()
    every: float = 1.0
    pool_size: int = 10
    writers: int = 4
    readers: int = 4
    measures: int = 2
    version: int = 18
    workers: int = 1


def perform(plan: Plan, seed: int) -> tuple[Observed, dict[str, int]]:
    """One phase on servers of its own; what was seen, and how often each fault happened."""
    settings = {"max_connections": "150", "autovacuum": "off", "wal_level": "logical" if plan.stream else "replica"}
    cache = {"ttl": "60s" if plan.stream else f"{TTL_SECONDS}s", "stale_while_revalidate": "0s"}
    cache["ttl_without_stream"] = f"{LOST_SECONDS}s"
    with Server(installation=installed(plan.version), settings=settings) as server:
        with server.connect() as connection:
            connection.execute(SCHEMA.encode())
            if plan.stream:
                connection.execute(b"create publication pgnear for all tables")
        shape = {"workers": plan.workers, "pool_size": plan.pool_size, "pool_wait_timeout": "5s"}
        with running(server.url(), cache=cache, **shape) as near:
            if plan.stream:
                near.wait_for_log("cache_stream_connected")
            near.wait_until_it_caches()
            work = Workload(near, server, seed)
            with Faults(server, list(plan.faults), plan.every, seed) as faults:
                work.run(plan.seconds, writers=plan.writers, readers=plan.readers, measures=plan.measures)
            seen = work.seen
            seen.hits = int(near.metric("cache_hits_total"))
            if faults.problem is not None:
                seen.violations.append(f"a fault failed: {faults.problem!r}")
            _judge(plan, seen)
            return seen, faults.happened


def _judge(plan: Plan, seen: Observed) -> None:
    if not seen.hits or not seen.own_reads or not seen.other_reads:
        seen.violations.append("nothing was proven: no hits, or no reads")
    worst = max(seen.staleness, default=0.0)
    bound = (LOST_SECONDS if plan.faults else 0.0) if plan.stream else TTL_SECONDS
    if worst > bound + SCHEDULING_SECONDS:
        seen.violations.append(f"a write past pgnear was unseen for {worst:.2f} s, the bound is {bound:g} s")


def report(plan: Plan, seen: Observed, happened: dict[str, int]) -> str:
    """A phase in some lines."""
    lines = [
        f"{plan.name}: {seen.writes} writes, {seen.own_reads} reads of own writes, {seen.other_reads} reads of others, "
        f"{seen.hits} from the cache, {seen.failures} failed connections or statements",
        f"  faults: {', '.join(f'{kind} {count}' for kind, count in happened.items()) or 'none'}",
    ]
    if len(seen.staleness) > 1:
        cuts = statistics.quantiles(seen.staleness, n=100)
        lines.append(
            f"  past pgnear: {len(seen.staleness)} writes, unseen for p50 {cuts[49] * 1000:.1f} ms, "
            f"p99 {cuts[98] * 1000:.1f} ms, at most {max(seen.staleness) * 1000:.1f} ms"
        )
    lines += [f"  VIOLATION {text}" for text in seen.violations[:20]]
    if len(seen.violations) > 20:
        lines.append(f"  and {len(seen.violations) - 20} more")
    return "\n".join(lines)


def plans(seconds: float, pool_size: int, version: int, workers: int) -> list[Plan]:
    """The phases of a whole run, `seconds` together."""
    part = seconds / 5
    heavy = {"version": version, "workers": workers, "writers": 8, "readers": 8, "measures": 3}
    return [
        Plan("with the stream", True, part, pool_size=pool_size, **heavy),
        Plan("with the stream, which is cut", True, part, ("walsender",), 1.0, pool_size, **heavy),
        Plan("with lost connections and a small pool", True, part, ("backend", "cancel"), 0.3, 2 * workers, **heavy),
        Plan("with an origin that dies", True, part, ("restart", "walsender"), 5.0, pool_size, **heavy),
        Plan("without a stream", False, part, ("backend",), 1.0, pool_size, **heavy),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.consistency", description=__doc__)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds, all phases together (300)")
    parser.add_argument("--seed", type=int, help="printed, random where not given")
    parser.add_argument("--pool-size", type=int, default=10, help="of the phases with a pool that suffices (10)")
    parser.add_argument("--postgres", type=int, choices=(16, 18), default=18, help="major version (18)")
    parser.add_argument("--workers", type=int, default=1, help="processes that are one pgnear (1)")
    parser.add_argument("--only", help="phases whose name has this in it")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    print(f"seed {seed}, faults: {', '.join(FAULTS)}", flush=True)
    begun = time.monotonic()
    own = others = violations = 0
    for plan in plans(options.duration, options.pool_size, options.postgres, options.workers):
        if options.only and options.only not in plan.name:
            continue
        seen, happened = perform(plan, seed)
        print(report(plan, seen, happened), flush=True)
        own += seen.own_reads
        others += seen.other_reads
        violations += len(seen.violations)
    print(
        f"{violations} violations in {own} reads of own writes and {others} of others, {time.monotonic() - begun:.0f} s"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
