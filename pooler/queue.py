"""Who waits for a connection, and whose turn is next.

Lives here: the order, and how long a wait may be expected to take. Not here: connections, limits and refusals (`pool`).
Nothing here reads a clock: `now` is seconds on any clock that only goes forward.

Users take turns, so that one who asks for much does not keep the others waiting; the waiters of one user are served
first in, first out. Each operation takes the same time however many wait, but for those that look once at each user.

How long a wait will be follows from the pace at which waiters were served, once that is known: after several times as
many as there are connections. An origin that has slowed down may not get there before everybody's time is over. So a
queue that has stood for a good part of somebody's patience is judged by the best pace that it may have: as if each
connection were to become free at this moment, and somewhat luckier than that. Who could not be served in time even so
need not wait. A burst, or a standstill that is short beside what clients put up with, makes nobody leave.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from itertools import accumulate
from math import sqrt
from typing import Generic, Protocol, TypeVar

LEAST_GRANTS = 20
"""Before so many waiters in a row were served, nobody knows the pace."""

PART_OF_PATIENCE = 0.25
"""A queue whose pace is not known is judged once it has stood for this part of somebody's patience."""


class Queued(Hashable, Protocol):
    """Somebody who waits."""

    @property
    def user(self) -> str: ...

    @property
    def patience(self) -> float:
        """How long it waits, in seconds."""


Waiter = TypeVar("Waiter", bound=Queued)


class WaitQueue(Generic[Waiter]):
    """Waiters by user.

    Args:
      servers: how many connections serve it at most.

    Attributes:
      servers: as above.
      users: of each user who waits, the waiters and when they began; the user whose turn it is first. Empty: nobody.
    """

    def __init__(self, servers: int) -> None:
        self.users: OrderedDict[str, OrderedDict[Waiter, float]] = OrderedDict()
        self._count = 0
        self.limit(servers)
        self._formed = 0.0  # since when somebody has been waiting all the time, and could be served
        self._grants = 0  # since `_since`, which is after `_formed`
        self._since = 0.0

    def limit(self, servers: int) -> None:
        """So many connections serve it at most, from now on."""
        self.servers = servers
        self._trusted = max(LEAST_GRANTS, 5 * servers)  # so many grants make a pace

    def __len__(self) -> int:
        return self._count

    def push(self, waiter: Waiter, now: float) -> None:
        if not self._count:
            self.start_over(now)
        mine = self.users.get(waiter.user)
        if mine is None:
            mine = self.users[waiter.user] = OrderedDict()
        mine[waiter] = now
        self._count += 1

    def start_over(self, now: float) -> None:
        """What was before tells nothing of the pace: nobody could be served."""
        self._grants = 0
        self._formed = now

    def head(self, users: Collection[str] | None = None) -> Waiter | None:
        """Whose turn it is, among `users` where they are given; None where nobody waits."""
        if users is None:
            for theirs in self.users.values():
                return next(iter(theirs))
            return None
        user = next((user for user in users if user in self.users), None)
        return next(iter(self.users[user])) if user is not None else None

    def serve(self, waiter: Waiter, now: float) -> float:
        """`waiter`, one of the heads, gets a connection now; since when it waited."""
        user = waiter.user
        mine = self.users[user]
        since = mine.pop(waiter)
        self._left(user)
        if mine:
            self.users.move_to_end(user)
        if not self._grants:
            self._since = now
        self._grants += 1
        if self._grants > 2 * self._trusted:  # what was long ago matters less and less
            self._grants //= 2
            self._since += (now - self._since) / 2
        return since

    def _left(self, user: str) -> None:
        self._count -= 1
        if not self.users[user]:
            del self.users[user]

    def withdraw(self, waiter: Waiter) -> bool:
        """`waiter` waits no longer; whether it did."""
        mine = self.users.get(waiter.user)
        if mine is None or mine.pop(waiter, None) is None:
            return False
        self._left(waiter.user)
        return True

    def __iter__(self) -> Iterator[tuple[float, Waiter]]:
        """(since when it waits, waiter) of everybody, in no order."""
        for mine in self.users.values():
            for waiter, since in mine.items():
                yield since, waiter

    def clear(self) -> list[Waiter]:
        """Take out everybody."""
        everybody = [waiter for mine in self.users.values() for waiter in mine]
        self.users.clear()
        self._count = 0
        return everybody

    def oldest(self) -> float | None:
        """Since when the one who has waited longest has."""
        return min((next(iter(mine.values())) for mine in self.users.values()), default=None)

    # ---- how long it takes ------------------------------------------------------------------------------------------

    def is_short(self, now: float, patience: float) -> bool:
        """Whether anybody with that much patience, or more, surely has `expected_wait` within it."""
        if self._grants >= self._trusted:
            return (self._count + 1) * (now - self._since) <= patience * self._grants
        return now - self._formed < PART_OF_PATIENCE * patience

    def expected_wait(self, user: str, now: float, patience: float) -> float:
        """Seconds until one more of `user`, with that much patience, would be served; 0 while there is no telling.

        A standstill counts: the pace is what was served over all the time until `now`. What is within the patience is
        rather too much than exact.
        """
        place = len(self.users.get(user, ())) + 1
        users = len(self.users) + (user not in self.users)
        expected = self._until(min(self._count + 1, place * users), now, patience)
        if expected <= patience:
            return expected
        others = (len(theirs) for name, theirs in self.users.items() if name != user)
        return self._until(place + sum(min(place, each) for each in others), now, patience)

    def _until(self, ahead: int, now: float, patience: float) -> float:
        """Seconds until so many are served, at the pace, or where it is not known, at best."""
        if self._grants >= self._trusted:
            return ahead * (now - self._since) / self._grants
        return self._at_best(ahead, now, patience)

    def hopeless(self, now: float, free_since: float = 0.0) -> list[tuple[Waiter, float, float]]:
        """Those who will not be served in time, of each user the last ones: (waiter, since when, seconds to come).

        Where some have less patience than others, only they: once they have left, the others may be served in time.
        `free_since`: waiting before that does not count.
        """
        found: list[tuple[Waiter, float, float]] = []
        lengths = sorted(map(len, self.users.values()))
        sums = [0, *accumulate(lengths)]
        for mine in sorted(self.users.values(), key=lambda mine: next(reversed(mine)).patience):
            place = len(mine)
            for waiter, since in reversed(mine.items()):
                patience = waiter.patience
                if found and patience > found[0][0].patience:
                    return found
                shorter = bisect_left(lengths, place)
                ahead = sums[shorter] + place * (len(lengths) - shorter)
                to_come = self._at_best(ahead, now, patience)
                if to_come <= max(0.0, patience - (now - max(since, free_since))):
                    break
                found.append((waiter, since, to_come))
                place -= 1
        return found

    def _at_best(self, ahead: int, now: float, patience: float) -> float:
        """Seconds until so many have been served, if every connection becomes free at this moment; 0: no telling."""
        known = self._grants >= self._trusted
        if not known and now - self._formed < PART_OF_PATIENCE * patience:
            return 0.0
        grants = self._grants + self.servers
        seconds = now - (self._since if known else self._formed)
        return max(0, ahead - self.servers) * seconds / (grants + 2 * sqrt(grants))
