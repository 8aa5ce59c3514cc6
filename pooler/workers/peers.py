"""A worker's way to the others: what it asks them, and what it answers them.

Lives here: who is asked, and the table of what can be asked (`ANSWERS`). Not here: the messages (`line`), who passes
them on (`parent`), the answers themselves: each has its module and registers with `answers`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pooler.workers.line import Line, LineLost

if TYPE_CHECKING:
    from config import Config
    from pooler.service import Service

Answer = Callable[["Service", Any], Awaitable[Any]]
"""Answers a request of another worker or of the parent; what it is given and gives is made of what JSON has."""

ANSWERS: dict[str, Answer] = {}


def answers(what: str) -> Callable[[Answer], Answer]:
    """Registers a function as the answer to the request `what`."""

    def register(function: Answer) -> Answer:
        ANSWERS[what] = function
        return function

    return register


class Peers:
    """The other workers.

    Attributes:
      index: this worker's number, from 0. count: how many there are.
      whole: the configuration, of which this worker has its share.
    """

    def __init__(self, index: int, count: int, line: Line) -> None:
        self.index = index
        self.count = count
        self.line = line
        self.whole: Config | None = None

    async def ask_others(self, what: str, data: Any = None) -> list[Any]:
        """What each other worker answers that is there.

        Raises:
          PgError: one of them has failed.
        """
        try:
            found: list[Any] = await self.line.ask("others", {"what": what, "data": data})
        except LineLost:
            return []  # and so will be this worker
        return found

    async def ask_one(self, index: int, what: str, data: Any = None) -> Any:
        """What the worker `index` answers; None where it is not there."""
        try:
            return await self.line.ask("one", {"index": index, "what": what, "data": data})
        except LineLost:
            return None

    def tell_others(self, what: str, data: Any = None) -> None:
        """Tell all other workers, who hear it in the order of calls; safe where nothing may wait."""
        self.line.tell("pass_on", {"what": what, "data": data})
