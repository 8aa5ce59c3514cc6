"""The one task that moves traffic: waits for an epoll descriptor in trio, then dispatches every ready socket in a
batch.

Lives here: registration of sockets, dispatch, the turn-taking between traffic and trio. Not here: what the bytes mean
(`session`, `origin`), buffers and TLS (`transport`), anything that waits (`ceremony`).

After a batch with work in it the reactor polls on for a bounded time before it goes back to trio: under load that
saves one pass through trio's scheduler a batch, and an idle process still sleeps in trio. While a ceremony is under
way the poll does not block, so a ceremony never waits for traffic by more than one batch. Who connects and logs in does
so here as well.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

from pooler.logs import get_logger

log = get_logger(__name__)

TURN_SECONDS: Final = 0.004
"""How long the reactor keeps the thread before trio's other tasks get their turn."""

LINGER_SECONDS: Final = 0.001
"""How long it waits in epoll for the next batch before it goes to sleep in trio."""

LOGIN_LINGER_SECONDS: Final = 0.004
"""The same while somebody logs in: libpq takes some milliseconds to work out its key, and then says the next thing."""


class Handler(Protocol):
    """What the reactor drives: one end of one socket. None of these may await or raise."""

    def readable(self) -> None: ...

    def writable(self) -> None: ...

    def crashed(self, error: Exception) -> None:
        """A bug was caught while this handler ran: give up this connection, and only this one."""


class _Epoll:
    """Linux: level-triggered epoll."""

    READ = 1
    WRITE = 4
    END = 0x2000  # EPOLLRDHUP: the peer sends no more, though what it has sent is not read yet

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.poll = self._epoll.poll
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close


class _Kqueue:
    """macOS and the BSDs: the same face over kqueue."""

    READ = 1
    WRITE = 4
    END = 0  # it cannot be asked for alone

    def __init__(self) -> None:
        self._kqueue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
        self._masks: dict[int, int] = {}
        self.fileno = self._kqueue.fileno
        self.close = self._kqueue.close

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = 0
        self.modify(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        before = self._masks[fd]
        changes = []
        for bit, kind in ((self.READ, select.KQ_FILTER_READ), (self.WRITE, select.KQ_FILTER_WRITE)):  # type: ignore[attr-defined,unused-ignore]
            if (before ^ mask) & bit:
                flag = select.KQ_EV_ADD if mask & bit else select.KQ_EV_DELETE  # type: ignore[attr-defined,unused-ignore]
                changes.append(select.kevent(fd, kind, flag))  # type: ignore[attr-defined,unused-ignore]
        self._masks[fd] = mask
        if changes:
            self._kqueue.control(changes, 0)

    def unregister(self, fd: int) -> None:
        self.modify(fd, 0)
        del self._masks[fd]

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        write = select.KQ_FILTER_WRITE  # type: ignore[attr-defined,unused-ignore]
        return [
            (event.ident, self.WRITE if event.filter == write else self.READ)
            for event in self._kqueue.control(None, 256, timeout)
        ]


class Reactor:
    """Registers handlers by file descriptor and calls them when their sockets are ready."""

    def __init__(self) -> None:
        self._poller = _Epoll() if sys.platform == "linux" else _Kqueue()
        self._handlers: dict[int, Handler] = {}
        self._soon: list[Callable[[], None]] = []
        self._wakeup = trio.Event()
        self.ceremonies = 0
        """How many ceremonies are under way; while there are any, polling does not block."""
        self.logins = 0
        """How many clients are logging in."""

    def add(self, fd: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, self._poller.READ)

    def replace(self, fd: int, handler: Handler) -> None:
        """`fd`, which is registered, is `handler`'s from now on."""
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def forget(self, fd: int) -> None:
        """`fd` is about to be closed, which ends the kernel's interest in it without being told."""
        self._handlers.pop(fd, None)

    def interest(self, fd: int, read: bool, write: bool, end: bool = False) -> None:
        """Wait for `fd` to be readable and/or writable from now on; an unregistered `fd` is left alone.

        `end`: to be read once its peer sends no more; all that it has sent before is then read, too.
        """
        if fd in self._handlers:
            self._poller.modify(fd, (1 if read else 0) | (4 if write else 0) | (self._poller.END if end else 0))

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` in the reactor's next turn: for work that must not run inside its caller's frame."""
        self._soon.append(function)
        self._wakeup.set()

    async def run(self) -> None:
        """Dispatch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_soon)
            poller = self._poller
            while True:
                await trio.lowlevel.wait_readable(poller.fileno())
                events = poller.poll(0)
                turn_ends = time.monotonic() + TURN_SECONDS
                while events:
                    self._dispatch(events)
                    if self._soon:
                        self._run_soon()
                    if time.monotonic() > turn_ends:
                        break
                    linger = LOGIN_LINGER_SECONDS if self.logins else LINGER_SECONDS
                    events = poller.poll(0 if self.ceremonies else linger)

    async def _wait_soon(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            self._run_soon()

    def _run_soon(self) -> None:
        while self._soon:
            batch, self._soon = self._soon, []
            for function in batch:
                try:
                    function()
                except Exception as error:
                    log.exception("internal_error", where="call_soon", error=str(error))

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is None:  # closed earlier in this batch
                continue
            try:
                if mask & ~4:  # readable, hung up or in error: reading tells which
                    handler.readable()
                if mask & 4 and handlers.get(fd) is handler:
                    handler.writable()
            except Exception as error:
                log.exception("internal_error", where=type(handler).__name__, error=str(error))
                handler.crashed(error)
