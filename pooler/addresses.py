"""Where connections come from, and how many of them: the limit for each source address.

Lives here: counting and saying no. Not here: accepting (`ceremony.listen`). A connection counts from its acceptance to
its close, logged in or not. An IPv6 source is its /64: whoever has one address of it has all of them.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from time import monotonic
from typing import TYPE_CHECKING

from pooler.logs import get_logger

if TYPE_CHECKING:
    from pooler.workers.board import Board

log = get_logger(__name__)

QUIET_SECONDS = 10.0
"""A source that is refused again and again is logged once in so long: a flood of connections is none of lines."""


class Addresses:
    """Open connections by source. Unix sockets have none and are never given to it.

    Attributes:
      open: by source; only those that have any, so it is as small as the number of connections.
      refused: how many connections were turned away, in total.

    Args:
      board: where there are several workers: the limit is for all of them together, what is kept here is this one's.
    """

    def __init__(self, board: Board | None = None) -> None:
        self._board = board
        self.open: dict[str, int] = {}
        self.refused = 0
        self._untold = 0
        self._told_at = -QUIET_SECONDS

    def admit(self, source: str, limit: int) -> bool:
        """Count one more connection of `source`; False where it has `limit` already (0: no limit)."""
        count = self.open.get(source, 0)
        before = count if self._board is None else self._board.enter(source) - 1
        if limit and before >= limit:
            if self._board is not None:
                self._board.leave(source)
            self._refuse(source, limit)
            return False
        self.open[source] = count + 1
        return True

    def leave(self, source: str) -> None:
        """A connection that was admitted is closed."""
        if self._board is not None:
            self._board.leave(source)
        count = self.open[source] - 1
        if count:
            self.open[source] = count
        else:
            del self.open[source]

    def _refuse(self, source: str, limit: int) -> None:
        self.refused += 1
        self._untold += 1
        now = monotonic()
        if now - self._told_at >= QUIET_SECONDS:
            log.warning("address_limit", client=source, limit=limit, refused=self._untold)
            self._untold, self._told_at = 0, now


def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address itself, of an IPv6 address its /64."""
    if ":" not in address:
        return address
    packed = IPv6Address(address.partition("%")[0]).packed
    return f"{IPv6Address(packed[:8] + bytes(8))}/64"
