"""Single flight: of many who miss the same key at the same time, one asks the origin and all are served.

Lives here: who leads, who waits, what becomes of them. Not here: asking, and serving, which waiters do themselves when
they are called. Nothing here waits: whoever drives it calls `expire` now and then.

    join    -> the first asker of a key leads: it asks the origin. Others wait.
    landed  -> the leader's answer is there: every waiter gets it.
    failed  -> it has none: the waiter at the head leads. After `MAX_FAILURES` in a row, everybody asks for himself.
    disperse-> it has none that could ever be shared: everybody asks for himself.
    expire  -> whoever has waited too long asks for himself.
    leave   -> a waiter is gone; if it was the leader, as in failed.

**Who may be served.** An answer is as old as the query that read it. A waiter that came after a write to its tables
must not get an answer from before it, so a flight that was overtaken by a write takes no more waiters: the next asker
leads a new one. Those that were waiting when the write came asked before it, and may be served even though the answer
is not stored.

Callbacks may call back in. A waiter is called once, unless it joins again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

from pooler.cache.entry import Entry
from pooler.cache.store import Store

MAX_FAILURES = 3
"""Leaders of one flight that fail before all its waiters are sent to ask for themselves."""


class Waiter(Protocol):
    """Who waits for an answer. Must be hashable, by identity."""

    def land(self, entry: Entry) -> None:
        """Here is the answer."""

    def lead(self, flight: Flight | None) -> None:
        """Ask the origin: as the leader of `flight`, or for yourself alone where there is none."""


class Flight:
    """One key that somebody asks the origin for.

    Attributes:
      leader: who asks now; None when the flight is over. stamp: from before it asked.
      waiting: who waits, in order, and until when (seconds).
    """

    __slots__ = ("database", "failures", "key", "leader", "stamp", "tables", "waiting")

    def __init__(self, key: Any, leader: Waiter, stamp: int, database: str, tables: tuple[Hashable, ...]) -> None:
        self.key = key
        self.leader: Waiter | None = leader
        self.stamp = stamp
        self.database = database
        self.tables = tables
        self.failures = 0
        self.waiting: dict[Waiter, float] = {}

    def __repr__(self) -> str:
        return f"<Flight with {len(self.waiting)} waiting, {self.failures} failures>"


class Flights:
    """All flights of the process.

    Args:
      store: says whether a flight has been overtaken by a write.
      wait: seconds after which a waiter asks for itself.

    Attributes:
      led, joined, served, expired: how many flights began; how many waited, were served, or waited too long.
    """

    def __init__(self, store: Store, wait: float) -> None:
        self.wait = wait
        self.led = self.joined = self.served = self.expired = 0
        self._store = store
        self._flights: dict[Any, Flight] = {}
        self._deadlines: deque[tuple[float, Flight, Waiter]] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        return sum(len(flight.waiting) for flight in self._flights.values())

    def join(self, key: Any, waiter: Waiter, now: float, database: str, tables: tuple[Hashable, ...]) -> Flight:
        """The flight for `key`. Where its `leader` is `waiter`, ask the origin; otherwise wait to be called.

        Args:
          tables: ids of what the answer is read from.
        """
        flight = self._flights.get(key)
        if flight is None or not self._store.is_current(flight.database, flight.tables, flight.stamp):
            flight = self._flights[key] = Flight(key, waiter, self._store.begin(), database, tables)
            self.led += 1
            return flight
        deadline = flight.waiting[waiter] = now + self.wait
        self._deadlines.append((deadline, flight, waiter))
        self.joined += 1
        return flight

    def departed(self, flight: Flight) -> None:
        """The leader's query is sent only now: its answer will have all writes up to here."""
        flight.stamp = self._store.begin()

    def landed(self, flight: Flight, entry: Entry) -> None:
        """The leader's answer, stored or not."""
        self._end(flight)
        for waiter in list(flight.waiting):  # each is taken out first: what it is told may make others leave
            if flight.waiting.pop(waiter, None) is not None:
                self.served += 1
                waiter.land(entry)

    def failed(self, flight: Flight) -> None:
        """The leader has no answer to share: an error, its end, or a state in which nothing is stored."""
        flight.failures += 1
        if flight.failures >= MAX_FAILURES:
            self.disperse(flight)
            return
        heir = next(iter(flight.waiting), None)
        if heir is None:
            self._end(flight)
            return
        del flight.waiting[heir]
        flight.leader = heir
        # Not begun anew for those who wait: they asked before now. Who comes later may join the new query.
        flight.stamp = self._store.begin()
        heir.lead(flight)

    def disperse(self, flight: Flight) -> None:
        """Nobody can be served by another: the answer is too large, or not for the cache after all."""
        self._end(flight)
        for waiter in list(flight.waiting):
            if flight.waiting.pop(waiter, None) is not None:
                waiter.lead(None)

    def leave(self, flight: Flight, waiter: Waiter) -> None:
        """`waiter` does not want its answer any more. Leaving twice, or after the landing, does nothing."""
        if flight.leader is waiter:
            self.failed(flight)
        else:
            flight.waiting.pop(waiter, None)

    def expire(self, now: float) -> None:
        """Send whoever has waited too long to ask for itself."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            deadline, flight, waiter = deadlines.popleft()
            if flight.waiting.get(waiter) == deadline:
                del flight.waiting[waiter]
                self.expired += 1
                waiter.lead(None)

    def _end(self, flight: Flight) -> None:
        flight.leader = None
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
