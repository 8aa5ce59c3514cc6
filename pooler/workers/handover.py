"""Clients that a worker has accepted and gives to another one, which has fewer.

The kernel shares connections out by chance: of 16, one worker of two may get 11, and each has but its share of the
pool. So who accepts one while another worker has fewer clients passes the socket on, before anything was read from it.
Lives here: to whom, and the way there. Not here: accepting (`doors`), the counts (`board`).
"""

from __future__ import annotations

import socket

from pooler.ceremony.listen import adopted
from pooler.workers.board import GIVEN, LOAD, TAKEN, Board

MEANS_NOTHING = 1
"""A difference in clients that nobody is passed on for."""

BY_A_WORKER, BY_THE_PARENT = b"w", b"p"
"""What comes with a socket: only workers count those on their way."""


class Handover:
    """The ways to the other workers, and from them.

    Args:
      inbox: where sockets come that others pass on. outboxes: the other workers' inboxes, by their numbers.
    """

    def __init__(self, board: Board, inbox: socket.socket, outboxes: dict[int, socket.socket]) -> None:
        self.inbox = inbox
        self._board = board
        self._outboxes = outboxes
        self._leaving = False

    def set_load(self, clients: int) -> None:
        """This worker has so many, those who are logging in included."""
        if not self._leaving:
            self._board.set_count(LOAD, clients + 1)  # nothing there means that nobody is

    def leave(self) -> None:
        """This worker is to be given nobody any more."""
        self._leaving = True
        self._board.set_count(LOAD, 0)

    def pass_on(self, client: socket.socket, clients: int) -> bool:
        """Give `client` to a worker with fewer, where this one has `clients`; False: it stays. Its socket is copied."""
        receiver = self._receiver(clients)
        if receiver is None:
            return False
        try:
            socket.send_fds(self._outboxes[receiver], [BY_A_WORKER], [client.fileno()])
        except OSError:
            return False  # it has not taken in those it was given before
        self._board.add(GIVEN + receiver)
        return True

    def _receiver(self, clients: int) -> int | None:
        loads = self._loads()
        receiver = min(loads, key=lambda index: loads[index], default=None)
        return receiver if receiver is not None and loads[receiver] + MEANS_NOTHING < clients else None

    def _loads(self) -> dict[int, int]:
        """How many clients each other worker has, those on their way to it included."""
        counts, taken = self._board.each(LOAD), self._board.each(TAKEN)
        return {
            index: counts[index] - 1 + max(0, sum(self._board.each(GIVEN + index)) - taken[index])
            for index in self._outboxes
            if counts[index]
        }

    def take_in(self) -> tuple[socket.socket, object] | None:
        """A client that was passed on to this worker and who it is, as `socket.accept` says it; None: there is none.

        Raises:
          BlockingIOError: there are no more.
        """
        sender, descriptors, _, _ = socket.recv_fds(self.inbox, 1, 1)
        if not descriptors:
            return None
        if sender == BY_A_WORKER:
            self._board.add(TAKEN)
        client = adopted(descriptors[0])
        try:
            return client, client.getpeername()
        except OSError:  # gone already
            client.close()
            return None
