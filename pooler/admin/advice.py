"""SHOW CACHE ADVICE: what caching saves, would save or would cost, by statement shape; and why not, where it cannot.

Lives here: what is made of the numbers of `cache.advice`. The estimate of hits is that of a cache with a TTL of about a
minute: calls whose key had come before within the same minute, less those that a write in between would have ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pooler.admin.explain import search_path_of, table_names
from pooler.admin.rows import Column, Part, Row, Value
from pooler.cache.advice import WINDOW_SECONDS, Study
from pooler.cache.catalog import Verdict, parse_search_path
from pooler.sql.parser import normalized

if TYPE_CHECKING:
    from pooler.cache.advice import Advice
    from pooler.pool import Pool
    from pooler.service import Service

COLUMNS = (
    "database fingerprint verdict reason saves_seconds~ origin_seconds~ calls# mean_ms~ mean_bytes# repeats_percent~ "
    "hits# behind_writes_percent~ update_interval~ ttl~ tables statement"
)

STORE_SECONDS = 20e-6
"""What a miss costs beside the origin's time: to look, to store, and later to drop."""

NOISE_CALLS = 2.0
NOISE_PART = 0.02
"""Fewer repeats than so many, or than this part of the calls, may be the estimate's own error."""

LONGEST_TTL = 3600.0
SHORTEST_TTL = 1.0
LONGEST_STATEMENT = 400
"""Characters of a statement that are shown."""

_TEMPORAL = "its answer depends on the time"
_REMEDY = "compare with a value that the client rounds (to the minute, say) and gives as a parameter"


def advise(service: Service) -> Iterator[Row]:
    """One row for each shape, those first that save or would save most; then one for those that were forgotten."""
    for pool in service.pools.values():
        if pool.advice is None:
            continue
        hits: dict[object, int] = {}
        if service.cache is not None:
            for entry in service.cache.find(database=pool.name):
                hits[entry.fingerprint] = hits.get(entry.fingerprint, 0) + entry.hits
        rows = [
            _row(service, pool, pool.advice, study, hits.get(study.fingerprint, 0)) for study in pool.advice.studies
        ]
        yield from sorted(rows, key=_by_savings)
        if pool.advice.forgotten:
            yield _forgotten(pool.name, pool.advice.forgotten, pool.advice.forgotten_seconds)


def _by_savings(row: Row) -> tuple[float, float]:
    return -float(row[4] or 0.0), -float(row[5] or 0.0)


def _forgotten(database: Value, count: int, seconds: float) -> Row:
    reason = f"{count} cheaper shapes were forgotten (cache.max_advice_shapes)"
    return (database, None, "unknown", reason, 0.0, round(seconds, 3), *(None,) * 10)


class JoinedAdvice:
    """The same shapes of several workers as one; each has its own cache, so what they save adds up."""

    def columns(self, own: tuple[Column, ...]) -> tuple[Column, ...]:
        return own

    def rows(self, own: tuple[Column, ...], parts: Sequence[Part]) -> list[Row]:
        databases: dict[Value, dict[Value, list[Row]]] = {}
        for _, rows in parts:
            for row in rows:
                databases.setdefault(row[0], {}).setdefault(row[1], []).append(row)
        found: list[Row] = []
        for database, shapes in databases.items():
            forgotten = shapes.pop(None, [])
            found += sorted(map(_as_one, shapes.values()), key=_by_savings)
            if forgotten:
                counts = sum(int(str(row[3]).split()[0]) for row in forgotten)
                found.append(_forgotten(database, counts, sum(_number(row[5]) for row in forgotten)))
        return found


def _as_one(rows: list[Row]) -> Row:
    """One shape's rows: sums, means by calls, and the words of the worker whose numbers decide the sum."""
    if len(rows) == 1:
        return rows[0]
    saves = sum(_number(row[4]) for row in rows)
    calls = sum(int(_number(row[6])) for row in rows)
    hits = sum(int(_number(row[10])) for row in rows)

    def mean(place: int, digits: int) -> float:
        return round(sum(_number(row[place]) * _number(row[6]) for row in rows) / max(calls, 1), digits)

    def least(place: int) -> Value:
        return min((_number(row[place]) for row in rows if row[place] is not None), default=None)

    decides = max(rows, key=lambda row: _number(row[4]) if saves > 0 else -_number(row[4]))
    verdict = "cached" if decides[2] == "cache" and hits else decides[2]
    return (
        *rows[0][:2], verdict, decides[3], round(saves, 3), round(sum(_number(row[5]) for row in rows), 3), calls,
        mean(7, 3), int(mean(8, 0)), mean(9, 1), hits, mean(11, 1), least(12), least(13) if saves > 0 else None,
        *decides[14:],
    )  # fmt: skip


def _number(value: Value) -> float:
    return float(value or 0.0)


def _row(service: Service, pool: Pool, advice: Advice, study: Study, living_hits: int) -> Row:
    verdict = _verdict(pool, study)
    now = time.perf_counter()
    hits = study.hits + living_hits
    mean = study.mean_seconds
    different = study.different
    blocked = study.calls * study.blocked / max(study.observed, 1)
    behind = sum(
        count
        for reach, count in study.behind.items()
        if reach is None or not verdict.cacheable or reach & verdict.tables
    )
    interval = advice.updates.interval(verdict.tables, now) if verdict.cacheable else None
    possible = max(study.calls - different - blocked, 0.0) if verdict.cacheable else 0.0
    if interval is not None and interval < WINDOW_SECONDS:
        possible = min(possible, max(0.0, study.calls - blocked - different * WINDOW_SECONDS / interval))
    if possible < max(NOISE_CALLS, NOISE_PART * study.calls):
        possible = 0.0
    saved = 0.0
    if verdict.cacheable:
        saved = (hits + possible) * mean - (study.calls - possible) * STORE_SECONDS
    word, reason = _words(service, study, verdict, saved, hits, interval)
    return (
        pool.name, study.fingerprint, word, reason, round(saved, 3), round(study.all_seconds, 3), study.calls,
        round(mean * 1000, 3), study.bytes // max(study.observed, 1), _percent(study.calls - different, study),
        hits, _percent(behind, study), None if interval is None else round(interval, 3),
        _ttl(service, pool, verdict, interval, now - advice.updates.since) if saved > 0 else None,
        table_names(pool.catalog, verdict.tables), _shown(study.text),
    )  # fmt: skip


def _verdict(pool: Pool, study: Study) -> Verdict:
    if pool.catalog is None:
        return Verdict(False, study.statement.why_not or "the origin's catalog is not known now: see SHOW POOLS")
    path = search_path_of(pool)
    return pool.catalog.reads(study.statement, parse_search_path(path) if path is not None else None, pool.target.user)


def _words(
    service: Service, study: Study, verdict: Verdict, saved: float, hits: int, interval: float | None
) -> tuple[str, str]:
    """(verdict, reason) for a person."""
    if not verdict.cacheable:
        temporal = (
            verdict.reason.startswith(_TEMPORAL) or verdict.functions & _CLOCKS or _CLOCKS & study.statement.functions
        )
        return (
            "temporal" if temporal else "not cacheable",
            f"{verdict.reason}; {_REMEDY}" if temporal else verdict.reason,
        )
    notes = []
    if study.calls and sum(study.behind.values()) * 2 > study.calls:
        notes.append("most calls come directly behind a write of the same client")
    if study.blocked * 2 > study.observed:
        notes.append("most calls are in a transaction that has written, locked, or wants one snapshot")
    if interval is not None and interval < WINDOW_SECONDS:
        notes.append(f"its tables are written every {interval:.3g} s")
    if saved <= 0:
        notes.append("it costs more than it saves" if study.calls > 1 else "it was asked once")
        return ("write-then-read" if len(notes) > 1 else "leave"), "; ".join(notes)
    if service.cache is None:
        return "cache", "; ".join(["the cache is off (cache.enabled)", *notes])
    return ("cached" if hits else "cache"), "; ".join(notes)


_CLOCKS = frozenset("now clock_timestamp statement_timestamp transaction_timestamp timeofday".split())


def _ttl(service: Service, pool: Pool, verdict: Verdict, interval: float | None, watched: float) -> float:
    """A TTL to begin with, in seconds.

    Where every write is told of (a stream that covers the tables), the mean time between two writes: longer would not
    be used. Otherwise a tenth of it: if no write at all were seen, one answer in twenty would be old. Of tables that
    were not written, no longer than they were watched.
    """
    stream = service.ears.streams.get(pool.name) if service.ears is not None else None
    told = stream is not None and stream.connected and not verdict.tables & stream.uncovered
    ttl = watched if interval is None else interval
    return float(round(min(max(ttl if told else ttl / 10, SHORTEST_TTL), LONGEST_TTL)))


def _percent(part: float, study: Study) -> float:
    return round(100.0 * part / study.calls, 1) if study.calls else 0.0


def _shown(text: bytes) -> str:
    """A statement without its literals; "" where they cannot be taken out."""
    shown = " ".join(normalized(text).split())
    return shown if len(shown) <= LONGEST_STATEMENT else shown[: LONGEST_STATEMENT - 3] + "..."
