"""A worker process, from its start to its end.

Lives here: asking the parent what to do, being told to stop, the answers that are no other module's. Not here: serving
clients (`serving`).
"""

from __future__ import annotations

import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import trio

import config
from pooler import logs
from pooler.ceremony.cancel import cancel_for_client
from pooler.ceremony.greeting import number_clients
from pooler.ceremony.listen import adopted
from pooler.logs import get_logger
from pooler.service import Service
from pooler.serving import first_reason, serve_until_stopped
from pooler.workers.board import Board
from pooler.workers.handover import Handover
from pooler.workers.line import Line, LineLost
from pooler.workers.peers import ANSWERS, Peers, answers
from pooler.workers.share import share

log = get_logger(__name__)


class Worker:
    """What this process is: made once.

    Attributes:
      line: to the parent. peers: to the others.
    """

    def __init__(self, index: int, count: int, line: int, board: int) -> None:
        self.line = Line(socket.socket(fileno=line), self._answer)
        self.peers = Peers(index, count, self.line)
        self.board = Board.open(board, index, count)
        self._service: Service | None = None
        self._begun = trio.Event()

    async def run(self) -> None:
        """Serve until the parent says otherwise, or is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.line.run)
            orders = await self.line.ask("begin")
            file = Path(orders["file"]) if orders["file"] else None
            settings = self._load(file, orders["flags"])
            logs.configure(settings.log.format, settings.log.level, worker=self.peers.index)
            number_clients(self.peers.index, self.peers.count)
            await serve_until_stopped(
                settings,
                load=partial(self._load, file, orders["flags"]),
                started=self._started,
                stopped_by=self.line.lost,
                listeners=[adopted(number) for number in orders["listeners"]],
                outlived=orders["outlived"],
                peers=self.peers,
                board=self.board,
                handover=Handover(
                    self.board,
                    adopted(orders["inbox"]),
                    {int(index): adopted(number) for index, number in orders["outboxes"].items()},
                ),
            )
            nursery.cancel_scope.cancel()

    def _load(self, file: Path | None, flags: dict[str, Any]) -> config.Config:
        self.peers.whole = config.load(file=file, flags=flags)
        return share(self.peers.whole, self.peers.index, self.peers.count)

    def _started(self, service: Service) -> None:
        self._service = service
        self._begun.set()
        self.line.tell("started")

    async def _answer(self, what: str, data: Any) -> Any:
        await self._begun.wait()
        assert self._service is not None
        return await ANSWERS[what](self._service, data)


def run(index: int, count: int, line: int, board: int) -> int:
    """Be a worker; the exit status."""
    logs.configure()  # until it is known how
    status = 0
    try:
        trio.run(Worker(index, count, line, board).run)
    except* LineLost:
        pass  # the parent was gone before it said what to do
    except* (config.ConfigError, OSError, ssl.SSLError, ValueError) as group:
        log.error("cannot_start", reason=first_reason(group))
        status = 1
    return status


@answers("cancel")
async def _cancel(service: Service, data: Any) -> None:
    """A cancel request for one of this worker's clients has come to another one."""
    await cancel_for_client(service, data["pid"], bytes.fromhex(data["secret"]))
