"""The way in: listening sockets in the reactor, and who is logging in.

Lives here: accepting, the limits for those who are not in yet, their deadline. Not here: opening and closing listening
sockets (`listen`), a login (`login`).

With as many logins under way as there may be, the doors are shut and those who come wait in the kernel's queue: a crowd
that arrives at once gets in, a few at a time. If no login ends within `PATIENCE_SECONDS` somebody holds them, and who
comes is refused.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from pooler.addresses import source_of
from pooler.ceremony.login import Login
from pooler.logs import get_logger
from pooler.transport import INHERITS, Transport, keep_alive
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service
    from pooler.workers.handover import Handover

log = get_logger(__name__)

PATIENCE_SECONDS = 1.0

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Doors:
    """All the listening sockets, and those who came through them and are not in yet."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._doors: list[_Door] = []
        self._deadlines: dict[Login, float] = {}  # since when; the oldest first
        self._under_way: set[Login] = set()
        self._shut_since: float | None = None
        self._exhausted = False  # and that is why they are shut
        self._patient = True

    def open(self, listeners: Iterable[socket.socket]) -> None:
        """Let people in from now on."""
        for listener in listeners:
            keep_alive(listener)  # for those who come through it
            self._add(_Door(self, listener))
        if (handover := self._service.handover) is not None:
            self._add(_Inbox(self, handover))
            self.tell_load()

    def _add(self, door: _Door) -> None:
        self._doors.append(door)
        self._service.reactor.add(door.listener.fileno(), door)

    def close(self) -> None:
        """Accept nobody any more. The sockets stay open."""
        for door in self._doors:
            self._service.reactor.remove(door.listener.fileno())
        self._doors.clear()

    def end(self) -> None:
        """The process ends: so do the logins that are under way."""
        for login in list(self._under_way):
            login.shutdown()

    # ---- those who come ----------------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take in one of those who wait there, if there is room. The next batch tells of the others: to try for them
        now would mean to try in vain, mostly."""
        if not self._is_full:
            self._patient = True
        elif self._patient:
            self._shut()
            return
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                log.error("accept_failed", reason=error.strerror, open_clients=len(self._service.sessions))
                self._exhausted = True
                self._shut()
            return
        handover = self._service.handover
        if handover is not None and not self._service.draining and handover.pass_on(sock, self._load):
            sock.close()
            return
        self._welcome(sock, peer)

    def take_in(self, handover: Handover) -> None:
        """Take in those whom other workers have passed on to this one; there are few at a time."""
        with suppress(BlockingIOError):
            while True:
                if (arrived := handover.take_in()) is not None:
                    self._welcome(*arrived)

    @property
    def _load(self) -> int:
        return len(self._service.sessions) + len(self._under_way)

    def tell_load(self) -> None:
        """Tell the other workers, if there are any, how many clients are here."""
        if self._service.handover is not None:
            self._service.handover.set_load(self._load)

    def accept_rest(self, listener: socket.socket) -> None:
        """Take in who has connected already: they would be reset when the listener closes."""
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            self._welcome(sock, peer)

    def _welcome(self, sock: socket.socket, peer: object) -> None:
        service = self._service
        where = "unix" if sock.family == socket.AF_UNIX else str(peer[0])  # type: ignore[index]
        service.stats.clients_accepted += 1
        try:
            transport = Transport(sock, service.reactor, where, tuned=INHERITS)
        except OSError:  # gone already: some systems then refuse to set options
            sock.close()
            return
        if not transport.local and not self._admit(transport):
            self._turn_away(transport, errors.too_many_from_address(service.config.max_connections_per_address))
            return
        if self._is_full:
            self._turn_away(transport, errors.too_many_logins(service.config.max_unauthenticated_connections))
            return
        login = Login(service, transport)
        self._under_way.add(login)
        self._deadlines[login] = monotonic()
        service.reactor.logins += 1
        service.stats.unauthenticated += 1
        if service.handover is not None:
            self.tell_load()
        try:
            login.begin()
        except Exception as error:  # a bug here costs one client its login, not everybody the door
            log.exception("internal_error", where="login", error=str(error))
            login.crashed(error)

    def _admit(self, transport: Transport) -> bool:
        """Whether the transport's source may have one more connection; it counts until the transport is closed."""
        addresses, source = self._service.addresses, source_of(transport.peer)
        if not addresses.admit(source, self._service.config.max_connections_per_address):
            return False
        transport.on_close = lambda: addresses.leave(source)
        return True

    def _turn_away(self, transport: Transport, error: PgError) -> None:
        self._service.stats.rejected(error.sqlstate)
        try:
            transport.sock.send(error.fatal().response())
        except OSError:
            pass
        transport.linger()

    # ---- those who are logging in ------------------------------------------------------------------------------------

    def waits_no_more(self, login: Login) -> None:
        """Its client has done its part: what it still waits for has a deadline of its own."""
        self._deadlines.pop(login, None)

    def left(self, login: Login) -> None:
        """It has come to an end, one way or another; safe to call twice."""
        if login in self._under_way:
            self._under_way.discard(login)
            self._deadlines.pop(login, None)
            self._service.reactor.logins -= 1
            self._service.stats.unauthenticated -= 1
            if self._service.handover is not None:
                self.tell_load()
            if self._shut_since is not None and not self._exhausted:
                self._reopen()

    def look(self) -> None:
        """Whose time is up? Called several times a second."""
        now = monotonic()
        timeout = self._service.config.client_login_timeout
        for login, since in list(self._deadlines.items()):
            if now - since < timeout:
                break
            login.expire()
        if self._shut_since is None:
            return
        if self._exhausted or not self._is_full:
            self._exhausted = False
            self._reopen()
        elif now - self._shut_since > PATIENCE_SECONDS:
            self._patient = False
            self._reopen()

    # ---- open and shut -----------------------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return len(self._under_way) >= self._service.config.max_unauthenticated_connections

    def _shut(self) -> None:
        if self._shut_since is None:
            self._shut_since = monotonic()
            for door in self._doors:
                self._service.reactor.interest(door.listener.fileno(), False, False)

    def _reopen(self) -> None:
        self._shut_since = None
        for door in self._doors:
            self._service.reactor.interest(door.listener.fileno(), True, False)


class _Door:
    """One listening socket; the reactor's handler for it."""

    def __init__(self, doors: Doors, listener: socket.socket) -> None:
        self.listener = listener
        self._doors = doors

    def readable(self) -> None:
        self._doors.accept(self.listener)

    def writable(self) -> None:
        pass

    def crashed(self, error: Exception) -> None:
        pass  # that was somebody's login; the door stays open


class _Inbox(_Door):
    """Where clients come that other workers have accepted."""

    def __init__(self, doors: Doors, handover: Handover) -> None:
        super().__init__(doors, handover.inbox)
        self._handover = handover

    def readable(self) -> None:
        self._doors.take_in(self._handover)
