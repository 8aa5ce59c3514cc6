"""The process that is started where there are several workers: it starts them, and is what the system sees of pgnear.

Lives here: the listening sockets, which outlive a worker; starting workers, again where one has died; signals; passing
on what workers ask of each other. Not here: any traffic, what a worker does (`worker`), HTTP (`http`).
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from config import Config
from pooler.admin.http import serve_http
from pooler.ceremony import supervisor
from pooler.ceremony.listen import address_of, close_listener, open_listener
from pooler.logs import get_logger
from pooler.serving import first_reason, raise_file_limit, say_where
from pooler.workers import board
from pooler.workers.board import LOAD
from pooler.workers.handover import BY_THE_PARENT
from pooler.workers.http import application
from pooler.workers.line import Line, LineLost
from protocol.responses import PgError

log = get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a worker that has ended is started again; twice as long each time, while it does not last."""

LASTS_SECONDS = 10.0


class CannotStart(Exception):
    """A worker has ended before it served anybody; it has said why."""


class Member:
    """The place of one worker.

    Attributes:
      process, line: the present one's; line is None while there is none.
      listeners: the sockets that it accepts from, and that the next one in its place will. inbox, outbox: by which it
        is given clients that others have accepted.
      started: one has served clients in this place. serves: the present one does. vacancy: how long others are given
        those who connect to it, while none does.
    """

    def __init__(self, index: int, listeners: list[socket.socket]) -> None:
        self.index = index
        self.listeners = listeners
        self.inbox, self.outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.outbox.setblocking(False)
        self.process: trio.Process | None = None
        self.line: Line | None = None
        self.started = trio.Event()
        self.serves = False
        self.vacancy: trio.CancelScope | None = None

    @property
    def own_listeners(self) -> list[socket.socket]:
        """Those that no other worker accepts from."""
        return [each for each in self.listeners if each.family != socket.AF_UNIX]


class Parent:
    """All workers.

    Args:
      file, flags: where their configuration comes from, beside the environment.

    Attributes:
      count: how many there should be. restarts: how often one was started again.
    """

    def __init__(self, config: Config, file: Path | None, flags: Mapping[str, Any]) -> None:
        self.config = config
        self.count = config.workers
        self.restarts = 0
        self._orders = {"file": str(file.absolute()) if file else None, "flags": dict(flags)}
        self._outlived = False
        self._board_fd = board.create(self.count)
        self.board = board.Board.open(self._board_fd, self.count, self.count)
        self.members: list[Member] = []
        self.stopping = trio.Event()

    @property
    def alive(self) -> int:
        """How many workers serve clients."""
        return sum(member.serves for member in self.members)

    async def ask_all(self, what: str, data: Any = None, *, within: float = math.inf) -> list[Any]:
        """What each worker answers that is there and does so within so many seconds.

        Raises:
          PgError: one of them has failed.
        """
        return await self._ask(what, data, [member.index for member in self.members], within)

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGINT or SIGTERM; then the workers drain. A second signal ends them at once.

        Raises:
          OSError: an address cannot be had. CannotStart: a worker has ended at the start.
        """
        sockets = self._open()
        try:
            self.members = [Member(index, listeners) for index, listeners in enumerate(sockets)]
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._follow_signals, signals, nursery)
                    if (http := self._http or self.config.http) is not None:
                        pages = application(self)
                        address = await nursery.start(serve_http, pages, http, self.config.reuse_port)
                        log.info("http_listening", address=address)
                    async with trio.open_nursery() as workers:
                        for member in self.members:
                            workers.start_soon(self._keep, member)
                        for member in self.members:
                            await member.started.wait()
                        if not self.stopping.is_set():
                            self._say_where()
                            supervisor.ready()
                    nursery.cancel_scope.cancel()
        finally:
            self._close()
            for member in self.members:
                member.inbox.close()
                member.outbox.close()
            os.close(self._board_fd)

    def _open(self) -> list[list[socket.socket]]:
        """The listening sockets of each worker: of TCP ones each has its own, so that the kernel shares clients out."""
        inherited = supervisor.inherited_sockets()
        self._http = next(iter(inherited.pop("http", [])), None)
        shared = [each for sockets in inherited.values() for each in sockets]
        if shared:
            self._outlived = True
            return [shared for _ in range(self.count)]
        own: list[list[socket.socket]] = [[] for _ in range(self.count)]
        try:
            for address in self.config.listen:
                if address.startswith(("unix:", "/")):
                    listener = open_listener(address, reuse_port=self.config.reuse_port)
                    for listeners in own:
                        listeners.append(listener)
                    continue
                if not self.config.reuse_port:
                    open_listener(address).close()  # somebody else who listens there is not found out by what follows
                for listeners in own:
                    listener = open_listener(address, reuse_port=True)
                    listeners.append(listener)
                    address = address_of(listener)  # of port 0, the others get the same
        except BaseException:
            for listeners in own:
                for listener in listeners:
                    close_listener(listener)
            raise
        return own

    def _say_where(self) -> None:
        addresses = dict.fromkeys(address_of(listener) for listener in self.members[0].listeners)
        say_where(self.config, addresses, workers=self.count)

    def _close(self) -> None:
        for member in self.members:
            for listener in member.listeners:
                close_listener(listener)

    # ---- one worker --------------------------------------------------------------------------------------------------

    async def _keep(self, member: Member) -> None:
        """Have a worker in this place until all are to stop."""
        pause = FIRST_PAUSE
        while True:
            began = trio.current_time()
            status = await self._live(member)
            backends = self.board.worker_lost(member.index)
            if self.stopping.is_set():
                return
            if not member.started.is_set():
                raise CannotStart
            self._vacate(member)
            self.restarts += 1
            log.error("worker_ended", worker=member.index, status=status, again_in=pause)
            for other in self.members:
                if other.line is not None:
                    other.line.tell("worker_lost", {"index": member.index, "backends": backends})
            if trio.current_time() - began > LASTS_SECONDS:
                pause = FIRST_PAUSE
            with trio.move_on_after(pause):
                await self.stopping.wait()
                return
            pause = min(pause * 2, LONGEST_PAUSE)

    def _vacate(self, member: Member) -> None:
        """Nobody accepts in this place any more: who connects there is given to the others until somebody does."""
        member.serves = False
        if member.vacancy is None and not self.stopping.is_set() and not self._outlived:
            member.vacancy = trio.CancelScope()
            self._nursery.start_soon(self._stand_in, member)

    async def _stand_in(self, member: Member) -> None:
        assert member.vacancy is not None
        with member.vacancy:
            async with trio.open_nursery() as nursery:
                for listener in member.own_listeners:
                    nursery.start_soon(self._redirect, listener)
        member.vacancy = None

    async def _redirect(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            loads = self.board.each(LOAD)
            receiver = min(
                (other for other in self.members if other.serves), key=lambda other: loads[other.index], default=None
            )
            if receiver is None:
                await trio.sleep(FIRST_PAUSE)
                continue
            await trio.lowlevel.wait_writable(receiver.outbox)
            with suppress(OSError):  # somebody has given up
                client, _ = listener.accept()
                with client:
                    socket.send_fds(receiver.outbox, [BY_THE_PARENT], [client.fileno()])

    async def _live(self, member: Member) -> int:
        """One worker's life; its exit status."""
        ours, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), self._board_fd]
        passed = [*descriptors, *self._sockets_of(member)]
        process = await trio.lowlevel.open_process(
            [
                sys.executable, "-m", "pooler.workers", str(member.index), str(self.count), *map(str, descriptors),
            ],
            pass_fds=passed,
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which tells them
        )  # fmt: skip
        theirs.close()
        member.process = process
        line = Line(ours, partial(self._answer, member))
        member.line = line
        log.info("worker_started", worker=member.index, pid=process.pid)
        try:
            await line.run()
            return await process.wait()
        finally:
            member.line = member.process = None
            member.serves = False
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    def _sockets_of(self, member: Member) -> Iterator[int]:
        for listener in member.listeners:
            yield listener.fileno()
        yield member.inbox.fileno()
        for other in self.members:
            if other is not member:
                yield other.outbox.fileno()

    async def _answer(self, member: Member, what: str, data: Any) -> Any:
        if what == "begin":
            return {
                **self._orders,
                "listeners": [listener.fileno() for listener in member.listeners],
                "outlived": self._outlived,
                "inbox": member.inbox.fileno(),
                "outboxes": {other.index: other.outbox.fileno() for other in self.members if other is not member},
            }
        if what == "started":
            member.started.set()
            member.serves = True
            if member.vacancy is not None:
                member.vacancy.cancel()
            return None
        if what == "leaving":
            self._vacate(member)
            return None
        if what == "one":
            return next(iter(await self._ask(data["what"], data["data"], [data["index"]])), None)
        if what == "pass_on":
            for other in self.members:
                if other is not member and other.line is not None:
                    other.line.tell(data["what"], data["data"])
            return None
        if what == "others":
            others = [other.index for other in self.members if other is not member]
            return await self._ask(data["what"], data["data"], others)
        raise ValueError(what)

    async def _ask(self, what: str, data: Any, indexes: list[int], within: float = math.inf) -> list[Any]:
        found: dict[int, Any] = {}
        failures: list[PgError] = []

        async def ask(member: Member, line: Line) -> None:
            try:
                with trio.move_on_after(within):
                    found[member.index] = await line.ask(what, data)
            except LineLost:
                pass
            except PgError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for index in indexes:
                member = self.members[index]
                if member.line is not None and member.started.is_set():
                    nursery.start_soon(ask, member, member.line)
        if failures:
            raise failures[0]
        return [found[index] for index in sorted(found)]

    # ---- signals -----------------------------------------------------------------------------------------------------

    async def _follow_signals(self, signals: Any, nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                nursery.start_soon(self._reload)
                continue
            log.info("stopping", signal=signal.Signals(number).name)
            if not self.stopping.is_set():
                self.stopping.set()
                for member in self.members:
                    if member.vacancy is not None:
                        member.vacancy.cancel()
                supervisor.stopping()
                self._close()  # they have the sockets, too, and take in who has connected
            for process in self._processes():
                process.send_signal(signal.SIGTERM)
            for member in self.members:
                member.started.set()  # nobody waits for it any more

    def _processes(self) -> Iterator[trio.Process]:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                yield member.process

    async def _reload(self) -> None:
        supervisor.reloading()
        try:
            await self.ask_all("command", {"word": "RELOAD", "database": None})
        except PgError:
            pass  # it is in the log
        finally:
            supervisor.ready()


def run(config: Config, file: Path | None, flags: Mapping[str, Any]) -> int:
    """Serve until SIGINT or SIGTERM; the exit status."""
    raise_file_limit()
    status = 0
    try:
        trio.run(Parent(config, file, flags).run)
    except* CannotStart:
        status = 1
    except* OSError as group:
        log.error("cannot_start", reason=first_reason(group))
        status = 1
    else:
        log.info("stopped")
    return status
