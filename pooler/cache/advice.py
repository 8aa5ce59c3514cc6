"""What caching would save: bounded statistics of the reads that the origin has answered, and of what is written when.

Lives here: counting, for SHOW CACHE ADVICE. Not here: who calls (`caching`), what is made of the numbers
(`admin.advice`). It works with the cache off, too: its numbers are what somebody decides by whether to switch it on.

A `Study` is what is known of one fingerprint. Every call is counted; of a shape with many calls a minute, only those
whose key falls into a sample of keys are looked at more closely, another sample in each window of `WINDOW_SECONDS`. How
many different keys a window had is told by a bitmap (linear counting) times what the sample stands for: so calls, less
different keys, are the calls that a cache would have answered.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import islice
from math import log as logarithm
from random import getrandbits

from pooler.sql.parser import fingerprint
from pooler.sql.statement import Statement

WINDOW_SECONDS = 60.0
"""A key that comes again within one window would have been answered by a cache with a TTL of about that."""

MARKS = 4096
"""Bits of a window's map of keys."""

OBSERVED = 2000
"""About so many calls of a shape are looked at in a window."""

LONGEST_TEXT = 4096
"""Bytes of a statement that are kept to be shown."""

TOGETHER_SECONDS = 0.25
"""Writes to a table within so long count as one: a transaction's, or one that is told of twice."""

MAX_TABLES = 10000
MAX_REACHES = 8

Reach = frozenset[int] | None
"""Tables (OIDs) that a write may have changed; None: any."""


class Study:
    """One shape of reads that the origin has answered.

    Attributes:
      statement, text, user: of its first call. fingerprint: what they all have in common.
      calls: how many. mask, sample: a call is looked at where `mark & mask == sample`.
      observed: calls that were looked at. seconds, bytes: how long those took from arrival to completion, how large
        their answers were. blocked: those in a transaction that had written, locked or wanted one snapshot, which no
        cache could have answered.
      behind: how many calls came directly behind a write of the same client, by what that write reached.
      hits: answers that the cache gave from entries that are gone.
    """

    __slots__ = (
        "_bits", "_calls_before", "_different", "behind", "blocked", "bytes", "calls", "fingerprint", "hits", "mask",
        "observed", "sample", "seconds", "statement", "text", "user",
    )  # fmt: skip

    def __init__(self, statement: Statement, text: bytes, user: str, mark: str) -> None:
        self.statement = statement
        self.text = text[:LONGEST_TEXT]
        self.user = user
        self.fingerprint = mark
        self.calls = self.observed = self.bytes = self.hits = self.blocked = 0
        self.mask = self.sample = 0
        self.seconds = 0.0
        self.behind: dict[Reach, int] = {}
        self._bits = bytearray(MARKS // 8)
        self._calls_before = 0
        self._different = 0.0  # keys, in windows that are over

    def add(self, mark: int, seconds: float, size: int) -> None:
        """One call of the sample has been answered; `mark` is a hash of all that its answer depends on."""
        self.observed += 1
        self.seconds += seconds
        self.bytes += size
        self._bits[mark >> 35 & (MARKS // 8 - 1)] |= 1 << (mark >> 32 & 7)

    def add_behind(self, reach: Reach) -> None:
        """One call is on its way directly behind its client's write."""
        if reach in self.behind or len(self.behind) < MAX_REACHES:
            self.behind[reach] = self.behind.get(reach, 0) + 1

    def turn(self) -> None:
        """A window is over."""
        self._different += self._different_now()
        in_window, self._calls_before = self.calls - self._calls_before, self.calls
        self.mask = (1 << (in_window // OBSERVED).bit_length()) - 1
        self.sample = getrandbits(32) & self.mask
        if in_window:
            self._bits = bytearray(MARKS // 8)

    @property
    def all_seconds(self) -> float:
        """What all calls took."""
        return self.mean_seconds * self.calls

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.observed if self.observed else 0.0

    @property
    def different(self) -> float:
        """Calls whose key was new in its window."""
        return min(self._different + self._different_now(), float(self.calls))

    def _different_now(self) -> float:
        in_window = self.calls - self._calls_before
        zeros = MARKS - int.from_bytes(self._bits, "big").bit_count()
        different = MARKS * logarithm(MARKS / max(zeros, 0.5)) * (self.mask + 1)
        return min(max(different, 1.0), float(in_window)) if in_window else 0.0

    def __repr__(self) -> str:
        return f"<Study {self.fingerprint}: {self.calls} calls, {self.all_seconds:.3f} s>"


class Updates:
    """When tables were written, as far as pgnear has seen: through it, and past it where there is a stream.

    Attributes:
      since: seconds, when it began to look. seen: by table (None: by writes of unknown reach), how many times, and when
      last.
    """

    def __init__(self, now: float) -> None:
        self.since = now
        self.seen: dict[int | None, tuple[int, float]] = {}

    def note(self, reach: Reach, now: float) -> None:
        """These tables are written now."""
        tables: Iterable[int | None] = (None,) if reach is None else reach
        for table in tables:
            count, last = self.seen.pop(table, (0, 0.0))
            self.seen[table] = (count + (now - last > TOGETHER_SECONDS), now)
        if len(self.seen) > MAX_TABLES:
            for table in list(islice(self.seen, MAX_TABLES // 2)):
                del self.seen[table]

    def interval(self, tables: Iterable[int], now: float) -> float | None:
        """Seconds between two writes to any of `tables`, on average; None where none was seen."""
        counts = [self.seen[table][0] for table in (*tables, None) if table in self.seen]
        return (now - self.since) / sum(counts) if counts else None


class Advice:
    """The studies of one database.

    Args:
      max_shapes: how many; where there are more, the half that has cost least is forgotten.

    Attributes:
      by_statement: where calls of a statement are counted; None: nowhere, it is no read.
      updates: of its tables. window_end: seconds.
      forgotten: how many studies. forgotten_seconds: what their calls had taken.
    """

    def __init__(self, max_shapes: int, now: float) -> None:
        self.max_shapes = max_shapes
        self.updates = Updates(now)
        self.window_end = now + WINDOW_SECONDS
        self.forgotten = 0
        self.forgotten_seconds = 0.0
        self._by_fingerprint: dict[str, Study] = {}
        self.by_statement: dict[Statement, Study | None] = {}

    def begin(self, statement: Statement, text: bytes, user: str) -> Study | None:
        """Where calls of `statement`, which is new, are counted; None for what is no read."""
        if len(self.by_statement) >= 20 * self.max_shapes:
            self.by_statement.clear()
        study = None
        if statement.selects:
            mark = fingerprint(text)
            study = self._by_fingerprint.get(mark)
            if study is None:
                if len(self._by_fingerprint) >= self.max_shapes:
                    self._forget_half()
                study = self._by_fingerprint[mark] = Study(statement, text, user, mark)
        self.by_statement[statement] = study
        return study

    def _forget_half(self) -> None:
        by_cost = sorted(self._by_fingerprint.values(), key=lambda study: study.all_seconds)
        for study in by_cost[: (len(by_cost) + 1) // 2]:
            del self._by_fingerprint[study.fingerprint]
            self.forgotten += 1
            self.forgotten_seconds += study.all_seconds
        self.by_statement.clear()

    def tick(self, now: float) -> None:
        """Called now and then: begins another window when it is time."""
        if now >= self.window_end:
            self.window_end = now + WINDOW_SECONDS
            for study in self._by_fingerprint.values():
                study.turn()

    def gone(self, mark: Hashable, hits: int) -> None:
        """An entry of the fingerprint `mark` has left the cache."""
        study = self._by_fingerprint.get(mark)  # type: ignore[call-overload]
        if study is not None:
            study.hits += hits

    @property
    def studies(self) -> list[Study]:
        return list(self._by_fingerprint.values())
