"""What tests of the cache ask a pgnear: was that answer one of the cache's, has this one been kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.support.process import Pgnear
from tests.support.waiting import until

Client = Any
"""A psycopg connection."""


_COUNTED = re.compile(r"^pgnear_cache_(?:hits|stores)_total(?:\{.*\})? (\S+)", re.MULTILINE)
_HITS = re.compile(r"^pgnear_cache_hits_total(?:\{.*\})? (\S+)", re.MULTILINE)


def hits(near: Pgnear) -> int:
    """Answers that the cache has given so far. Read by sight: to parse all metrics takes longer."""
    return int(sum(map(float, _HITS.findall(near.metrics()))))


def hits_of(near: Pgnear, work: Callable[[], object]) -> int:
    """How many answers the cache gave while `work` was done, by whoever."""
    before = hits(near)
    work()
    return hits(near) - before


def answer(client: Client, query: str) -> Any:
    """The only column of the only row; None without one."""
    row = client.execute(query.encode()).fetchone()
    return row[0] if row else None


def is_hit(near: Pgnear, client: Client, query: str) -> bool:
    """Whether the answer to `query` comes from the cache now."""
    return hits_of(near, lambda: client.execute(query.encode())) == 1


def keep(near: Pgnear, client: Client, query: str) -> Any:
    """Have `query` in the cache, which takes a moment where the catalog is still to be read; its answer."""
    until(lambda: is_hit(near, client, query), what=f"not cached: {query}")
    return answer(client, query)


def never_kept(near: Pgnear, client: Client, query: str) -> bool:
    """Whether `query`, asked three times, is neither stored nor answered from the cache."""

    def counted() -> float:
        return sum(map(float, _COUNTED.findall(near.metrics())))

    before = counted()
    for _ in range(3):
        client.execute(query.encode())
    return counted() == before
