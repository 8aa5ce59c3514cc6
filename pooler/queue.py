"""Who waits for a connection, and whose turn is next.

Lives here: the order, and how long a wait may be expected to take. Not here: connections, limits and refusals (`pool`).
Nothing here reads a clock: `now` is seconds on any clock that only goes forward.

Users take turns, so that one who asks for much does not keep the others waiting; the waiters of one user are served
first in, first out. Each operation takes the same time however many wait, but for `oldest`, which looks once at each
user.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

LEAST_GRANTS = 20
"""Before so many waiters in a row were served there is no telling how long the next ones will wait."""


class Queued(Hashable, Protocol):
    """Somebody who waits."""

    @property
    def user(self) -> str: ...


Waiter = TypeVar("Waiter", bound=Queued)


class WaitQueue(Generic[Waiter]):
    """Waiters by user.

    Args:
      servers: how many connections serve it at most.

    Attributes:
      users: of each user who waits, the waiters and when they began; the user whose turn it is first. Empty: nobody.
    """

    def __init__(self, servers: int) -> None:
        self.users: OrderedDict[str, OrderedDict[Waiter, float]] = OrderedDict()
        self._count = 0
        self._trusted = max(LEAST_GRANTS, 5 * servers)
        self._grants = 0  # since `_since`, while somebody was waiting all the time
        self._since = 0.0

    def __len__(self) -> int:
        return self._count

    def push(self, waiter: Waiter, now: float) -> None:
        if not self._count:
            self._grants = 0
        mine = self.users.get(waiter.user)
        if mine is None:
            mine = self.users[waiter.user] = OrderedDict()
        mine[waiter] = now
        self._count += 1

    def head(self, users: Collection[str] | None = None) -> Waiter | None:
        """Whose turn it is, among `users` where they are given; None where nobody waits."""
        user = next(iter(self.users) if users is None else (user for user in users if user in self.users), None)
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

    def expected_wait(self, user: str, now: float) -> float:
        """Seconds until one more of `user` would be served, by the pace since the queue formed; 0 while it is unknown.

        A standstill counts: the pace is what was served over all the time until `now`.
        """
        if self._grants < self._trusted:
            return 0.0
        mine = len(self.users.get(user, ())) + 1
        others = len(self.users) - (user in self.users)
        ahead = min(self._count + 1, mine * (1 + others))
        return ahead * (now - self._since) / self._grants
