"""When which table of a database was last invalidated, on the store's clock.

Lives here: the clocks of one database and the question whether an answer is from before one. Not here: the clock itself
and the entries (`store`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import islice

MAX_TABLES = 20000
"""Tables of a database whose invalidation is remembered one by one; older ones share one clock."""

NEVER = -1
UNCAPPED = float("inf")


class Epochs:
    """What a database's entries are judged by.

    Attributes:
      name: the database's.
      everything: clock of the last invalidation of it all. tables: those of single tables, the earliest first.
      floor: no table that is not in `tables` was invalidated after it.
      latest: clock of the last invalidation of anything.
      barrier: entries stamped at it or later need no closer look; infinite while a cap asks for one.
      cap: seconds after which no entry is served.
      uncovered: tables whose changes past pgnear are not told; what is read from them lives for
        `uncovered_cap` seconds.
    """

    __slots__ = ("barrier", "cap", "everything", "floor", "latest", "name", "tables", "uncovered", "uncovered_cap")

    def __init__(self, name: str) -> None:
        self.name = name
        self.everything = NEVER
        self.floor = NEVER
        self.latest = NEVER
        self.barrier: float = float(NEVER)
        self.cap = UNCAPPED
        self.tables: dict[Hashable, int] = {}
        self.uncovered: frozenset[Hashable] = frozenset()
        self.uncovered_cap = UNCAPPED

    def invalidate_tables(self, tables: Iterable[Hashable], clock: int) -> int:
        """What was read from `tables` before `clock` is dead. Returns how many they are."""
        clocks = self.tables
        count = 0
        for table in tables:
            clocks.pop(table, None)  # so that the earliest stays first
            clocks[table] = clock
            count += 1
        if len(clocks) > MAX_TABLES:  # forget the earlier half; its last stands for all that are not there
            for table in list(islice(clocks, len(clocks) // 2)):
                self.floor = clocks.pop(table)
        self._changed(clock)
        return count

    def invalidate_everything(self, clock: int) -> None:
        self.everything = clock
        self.tables.clear()
        self._changed(clock)

    def limit(self, cap: float | None) -> None:
        """Set the cap, in seconds, or take it off."""
        self.cap = UNCAPPED if cap is None else cap
        self._changed(self.latest)

    def _changed(self, clock: int) -> None:
        self.latest = clock
        self.barrier = float(clock) if self.cap == UNCAPPED else float("inf")

    def unchanged_since(self, stamp: int, tables: tuple[Hashable, ...]) -> bool:
        if self.everything > stamp:
            return False
        clocks, floor = self.tables, self.floor
        for table in tables:  # noqa: SIM110 (a generator costs more than the loop)
            if clocks.get(table, floor) > stamp:
                return False
        return True
