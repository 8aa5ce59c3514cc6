"""Clients that a worker has accepted and gives to another one, which has fewer.

The kernel shares connections out by chance: of 16, one worker of two may get 11, and each has but its share of the
pool. So who accepts one while another worker has fewer clients passes the socket on, before anything was read from it.
Lives here: to whom, and the way there. Not here: accepting (`doors`), the counts (`board`).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic

from pooler.workers.board import LOAD, Board

MEANS_NOTHING = 1
"""A difference in clients that nobody is passed on for."""

ARRIVES_WITHIN = 0.02
"""Seconds after which a client that was passed on is taken to be counted where it went."""


class Handover:
    """The ways to the other workers, and from them.

    Args:
      inbox: where sockets come that others pass on. outboxes: the other workers' inboxes, by their numbers.
    """

    def __init__(self, board: Board, inbox: socket.socket, outboxes: dict[int, socket.socket]) -> None:
        self.inbox = inbox
        self._board = board
        self._outboxes = outboxes
        self._on_their_way: deque[tuple[float, int]] = deque()

    def set_load(self, clients: int) -> None:
        """This worker has so many, those who are logging in included."""
        self._board.set_count(LOAD, clients + 1)  # nothing there means that nobody is

    def pass_on(self, client: socket.socket, clients: int) -> bool:
        """Give `client` to a worker with fewer, where this one has `clients`; False: it stays. Its socket is copied."""
        receiver = self._receiver(clients)
        if receiver is None:
            return False
        try:
            socket.send_fds(self._outboxes[receiver], [b"c"], [client.fileno()])
        except OSError:
            return False  # it has not taken in those it was given before
        self._on_their_way.append((monotonic(), receiver))
        return True

    def _receiver(self, clients: int) -> int | None:
        loads = self._loads()
        receiver = min(loads, key=lambda index: loads[index], default=None)
        return receiver if receiver is not None and loads[receiver] + MEANS_NOTHING < clients else None

    def _loads(self) -> dict[int, int]:
        counts: Sequence[int] = self._board.each(LOAD)
        loads = {index: counts[index] - 1 for index in self._outboxes if counts[index]}
        since = monotonic() - ARRIVES_WITHIN
        while self._on_their_way and self._on_their_way[0][0] < since:
            self._on_their_way.popleft()
        for _, index in self._on_their_way:
            if index in loads:
                loads[index] += 1
        return loads

    def take_in(self) -> tuple[socket.socket, object] | None:
        """A client that was passed on to this worker and who it is, as `socket.accept` says it; None: there is none.

        Raises:
          BlockingIOError: there are no more.
        """
        _, descriptors, _, _ = socket.recv_fds(self.inbox, 1, 1)
        if not descriptors:
            return None
        os.set_inheritable(descriptors[0], False)
        client = socket.socket(fileno=descriptors[0])
        client.setblocking(False)
        try:
            return client, client.getpeername()
        except OSError:  # gone already
            client.close()
            return None
