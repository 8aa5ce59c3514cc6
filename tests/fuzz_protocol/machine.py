"""The session machine by itself: sessions, origin connections and their pool, without sockets, tasks or time.

A script is bytes. Each step is an opcode and its argument: a client says something, an origin answers (as it should, or
anything), somebody vanishes, a peer stops taking bytes. What must hold throughout:

    no handler raises: what the real reactor would log as an internal error is a finding
    a connection in the pool's hands is idle, owes nothing and has no session
    buffers stay within their bounds
    while origins answer as they should: each row goes to the client whose mark it bears, and each client that sent
    whole messages and was not cut off has, in the end, one ReadyForQuery for each that it is owed

Not here: what the clients and the origin say (`scripted`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from struct import unpack_from
from types import SimpleNamespace
from typing import Any

import structlog

import config
from pooler import ending
from pooler import service as service_module
from pooler.origin import IDLE, Origin
from pooler.pool import Pool
from pooler.service import Service
from pooler.session import Session
from pooler.settings import DEFAULTS, Reports, from_startup
from pooler.transport import CHUNK_BYTES, TransportClosed
from tests.fuzz_protocol.scripted import ANSWERS, BAD, GOOD, LARGEST_MESSAGE, MARK, Honest

MOST_STEPS = 400
HIGH_WATER = 16384
KERNEL_BYTES = 4096
"""What a peer takes before it is full, where it does not read."""

REPORTS = {"TimeZone": "UTC", "DateStyle": "ISO", "client_encoding": "UTF8", "application_name": ""}


_FATAL = b"\0VFATAL\0"
TURNS_TO_REST = 500
"""What a client has sent may come in pieces of two bytes, a turn each."""


class Broken(AssertionError):
    """A promise of the machine's did not hold."""


class _Reactor:
    """Runs nothing by itself: the machine turns it."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.ceremonies = 0

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)


class _Transport:
    """A transport of memory: `arriving` is what the peer sent, `taken` what it was sent."""

    def __init__(self, reactor: _Reactor, peer: str) -> None:
        self.reactor = reactor
        self.peer = peer
        self.tls = None
        self.local = True
        self.closed = False
        self.registered = False
        self.reading = True
        self.broken = False
        self.greedy = True  # the peer takes everything at once
        self.arriving: deque[bytes] = deque()
        self.taken = bytearray()
        self.waiting = bytearray()
        self.handler: Any = None
        self.on_close = None

    def register(self, handler: Any) -> None:
        self.handler, self.registered, self.reading = handler, True, True

    def unregister(self) -> None:
        self.registered = False

    def receive(self) -> bytes | None:
        if self.closed or self.broken:
            raise TransportClosed("broken")
        if not self.arriving:
            return None
        data = self.arriving.popleft()
        if len(data) > CHUNK_BYTES:
            self.arriving.appendleft(data[CHUNK_BYTES:])
        return data[:CHUNK_BYTES]

    def send(self, data: bytes) -> int:
        if self.closed or self.broken:
            raise TransportClosed("broken")
        self.waiting += data
        self._take()
        return len(self.waiting)

    def _take(self) -> None:
        size = len(self.waiting) if self.greedy else max(0, KERNEL_BYTES - len(self.taken))
        self.taken += self.waiting[:size]
        del self.waiting[:size]

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def flush(self) -> None:
        if self.broken:
            raise TransportClosed("broken")
        self._take()

    def pause(self, *, heed_end: bool = False) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def has_news(self) -> bool:
        return bool(self.arriving) or self.broken

    def close(self, *, farewell: bool = True) -> None:
        self.closed = True
        self.registered = False

    def linger(self) -> None:
        self._take()
        self.close()

    async def receive_some(self) -> bytes:
        raise TransportClosed("no ceremonies here")

    async def send_all(self, data: bytes) -> None:
        raise TransportClosed("no ceremonies here")


class _Service(Service):
    """The real one, whose ceremonies are steps of the machine."""

    machine: Machine

    def connect(self, pool: Pool) -> None:
        self.machine.later.append(self.machine.open_origin)

    def reset(self, pool: Pool, origin: Origin) -> None:
        def done() -> None:
            if origin.closed:
                return
            origin.status = IDLE
            origin.block_since = 0.0
            origin.settings = DEFAULTS
            origin.prepared.clear()
            origin.unnamed = None
            origin.outdated = False
            origin.draining = False
            self.machine.backends[origin] = Honest()
            origin.transport.register(origin)
            pool.release(origin)

        self.machine.later.append(done)

    def cancel_abandoned(self, origin: Origin, *, within_message: bool = False) -> None:
        origin.leave_reactor()
        self.machine.later.append(origin.close)

    def leave_later(self, session: Session) -> None:
        self.machine.later.append(lambda: ending.end(session, abrupt=True))


_SETTINGS = config.load(
    flags={"origin": "postgresql://postgres:secret@127.0.0.1:1/postgres"},
    environ={
        "PGNEAR_TLS": "disable",
        "PGNEAR_POOL_SIZE": "2",
        "PGNEAR_CACHE__INVALIDATION": "writes",
        "PGNEAR_BUFFER_HIGH_WATER": str(HIGH_WATER),
        "PGNEAR_MAX_MESSAGE_BYTES": str(LARGEST_MESSAGE),
        "PGNEAR_MAX_CLIENT_STATEMENTS": "3",
        "PGNEAR_MAX_PREPARED_STATEMENTS": "2",
    },
)


class _Client:
    def __init__(self, number: int, session: Session, transport: _Transport) -> None:
        self.number = number
        self.session = session
        self.transport = transport
        self.owed = 0  # ReadyForQuery messages, while it has sent nothing but whole ones that end by themselves
        self.countable = True
        self.in_batch = False  # has sent messages whose Sync is still to come


class Machine:
    """One pgnear without a world around it."""

    def __init__(self) -> None:
        self.reactor = _Reactor()
        self.later: deque[Callable[[], None]] = deque()
        self.backends: dict[Origin, Honest] = {}
        self.clients: list[_Client] = []
        self.honest = True
        self._pids = 0
        real, service_module.Reactor = service_module.Reactor, lambda: self.reactor  # type: ignore[assignment, misc]
        try:
            self.service = _Service(_SETTINGS, SimpleNamespace(start_soon=lambda *_: None))  # type: ignore[arg-type]
        finally:
            service_module.Reactor = real  # type: ignore[misc]
        self.service.machine = self
        self.pool = next(iter(self.service.pools.values()))

    # ---- steps -------------------------------------------------------------------------------------------------------

    def open_origin(self) -> None:
        self._pids += 1
        transport = _Transport(self.reactor, "origin")
        origin = Origin(transport, self.pool, self._pids, b"1234", Reports.of(dict(REPORTS)))  # type: ignore[arg-type]
        transport.register(origin)
        self.backends[origin] = Honest()
        self.pool.connected(origin)

    def open_client(self) -> None:
        if len(self.clients) < 6:
            self.clients.append(self.new_client(len(self.clients)))

    def new_client(self, number: int) -> _Client:
        transport = _Transport(self.reactor, f"client {number}")
        settings = from_startup({"application_name": f"client {number % 2}"})
        session = Session(
            self.service, self.pool, transport, "postgres", "postgres", settings, Reports.of(dict(REPORTS)),  # type: ignore[arg-type]
            (1000 + number, b"1234"),
        )  # fmt: skip
        self.service.remember(session)
        session.start(b"")
        return _Client(number, session, transport)

    def say(self, client: _Client, data: bytes, *, good: bool) -> None:
        if client.transport.closed:
            return
        if good:
            data = data.replace(b"mark-0", b"mark-%d" % client.number)
            self._owe(client, data)
        else:
            client.countable = False
        client.transport.arriving.append(data)

    def _owe(self, client: _Client, data: bytes) -> None:
        client.countable = client.countable and b"copy" not in data
        for kind, _ in _frames(data):
            client.owed += kind in "QSF"
            if kind in "dcf" or (kind in "QF" and client.in_batch):
                client.countable = False  # whether it is answered depends on what came before
            client.in_batch = kind in "PBDECH" or (client.in_batch and kind != "S")

    def turn(self) -> None:
        """What the reactor would do now, once."""
        for transport, handler in self._ready():
            if transport.registered and transport.handler is handler:
                if transport.arriving and transport.reading:
                    handler.readable()
                if transport.waiting and transport.registered:
                    handler.writable()
        soon, self.reactor.soon = self.reactor.soon, []
        for function in soon:
            function()
        self.check()

    def _ready(self) -> list[tuple[_Transport, Any]]:
        ends: list[Any] = [client.session for client in self.clients]
        ends += list(self.pool.origins)
        return [(end.transport, end) for end in ends if end.transport.registered]

    def origins_answer(self) -> None:
        for origin in list(self.pool.origins):
            transport: Any = origin.transport
            said, transport.taken = bytes(transport.taken), bytearray()
            backend = self.backends[origin]
            answer = backend.answer(said)
            if answer and not (transport.arriving and transport.arriving[-1] == b""):
                transport.arriving.append(answer)
                if _FATAL in answer:
                    transport.arriving.append(b"")  # a server that says FATAL closes

    def settle(self) -> None:
        """Let everything that is under way come to its end."""
        for _ in range(TURNS_TO_REST):
            busy = bool(self.later) or bool(self.reactor.soon)
            while self.later:
                self.later.popleft()()
            for client in self.clients:
                client.transport.greedy = True
            for origin in self.pool.origins:
                transport: Any = origin.transport
                transport.greedy = True
                busy = busy or bool(transport.taken)
            self.origins_answer()
            busy = busy or any((t.arriving and t.reading) or t.waiting for t, _ in self._ready())
            self.turn()
            if not busy:
                return
        raise Broken("it does not come to rest")

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        pool = self.pool
        for origin in pool.idle:
            if origin.closed or origin.units or origin.status != IDLE or origin.session is not None or origin.cancels:
                raise Broken(f"in the pool's hands: {origin!r}")
        if len(pool.origins) > pool.size:
            raise Broken("more connections than the pool may have")
        for origin in pool.origins:
            session = origin.session
            if session is not None and session.origin is not origin:
                raise Broken(f"{origin!r} works for {session!r}, which does not know it")
            if sum(map(len, origin._partial)) > LARGEST_MESSAGE + 2 * KERNEL_BYTES:
                raise Broken("a frame of an origin's is kept beyond max_message_bytes")
        for client in self.clients:
            session = client.session
            kept = len(session.inbox) + sum(map(len, session.chunks))
            if kept > 2 * LARGEST_MESSAGE + HIGH_WATER:
                raise Broken(f"{kept} bytes of a client's input are kept")
            if len(session.statements) > _SETTINGS.max_client_statements:
                raise Broken("more statements than a client may have")
            if session.closed and (session.origin is not None or session in self.service.sessions):
                raise Broken("a session that is closed still has something")

    def check_answers(self) -> None:
        """Origins have answered as they should: every row is its client's, and nobody is owed anything."""
        for client in self.clients:
            counted = 0
            for kind, body in _frames(bytes(client.transport.taken)):
                if kind == "D":
                    marks = {int(mark) for mark in MARK.findall(body)}
                    if marks - {client.number}:
                        raise Broken(f"client {client.number} was given the row of client {marks}")
                counted += kind == "Z"
            heard = client.countable and not client.transport.closed and not client.transport.broken
            if heard and counted != client.owed:
                raise Broken(f"client {client.number}: {counted} of {client.owed} ReadyForQuery; {client.session!r}")
        if self.pool.waiting:
            raise Broken("somebody waits, and nothing is under way")


def _frames(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    position = 0
    while len(data) - position >= 5:
        (length,) = unpack_from("!i", data, position + 1)
        if length < 4:
            raise Broken(f"a client was sent a frame of length {length}")
        found.append((chr(data[position]), data[position + 5 : position + 1 + length]))
        position += 1 + length
    return found


def play(data: bytes) -> None:
    """Run the script `data`.

    Raises:
      Broken, or whatever a handler raised: a finding.
    """
    machine = _quiet_machine()
    _act(machine, data)
    if machine.honest:
        _finish(machine)
    for client in machine.clients:
        ending.end(client.session, abrupt=True)
    machine.settle()
    if machine.service.sessions:
        raise Broken("sessions are remembered whose clients are gone")
    if machine.honest and machine.pool.busy_count:
        raise Broken(f"connections are held by nobody: {machine.pool.origins}")


class Treadmill:
    """The same script on one machine, over and over: what it still holds then grows with the time that it runs."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._machine = _quiet_machine()

    def round(self) -> None:
        """Once more. Clients whose sessions are at rest stay for the next round, the others leave."""
        machine = self._machine
        _act(machine, self._data)
        machine.settle()
        for client in machine.clients:
            session = client.session
            if session.origin is not None or session.inbox or session.chunks or session.waiting or session.missing:
                ending.end(session, abrupt=True)
            client.transport.taken.clear()
        if not machine.honest:  # such an origin keeps what pgnear was told it has not
            for origin in list(machine.pool.origins):
                origin.close()
            machine.honest = True
        machine.settle()
        for place, client in enumerate(machine.clients):
            if client.session.closed:
                machine.clients[place] = machine.new_client(place)
        machine.backends = {origin: machine.backends[origin] for origin in machine.pool.origins}


def _quiet_machine() -> Machine:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    machine = Machine()
    machine.open_client()
    return machine


def _act(machine: Machine, data: bytes) -> None:
    script = iter(data[:MOST_STEPS])
    for code in script:
        argument = next(script, 0)
        _step(machine, code, argument)
        machine.turn()


def _finish(machine: Machine) -> None:
    """Who cannot be counted leaves; batches without their Sync get it, blocks that somebody waits for end: then all is
    quiet."""
    machine.settle()
    for client in machine.clients:
        if client.countable:
            machine.say(client, b"S\0\0\0\4", good=True)
        else:
            ending.end(client.session, abrupt=True)
    machine.settle()
    for _ in range(len(machine.clients)):
        for client in machine.clients:
            if client.session.origin is not None or not machine.pool.waiting:
                machine.say(client, b"Q\0\0\0\rrollback\0", good=client.countable)
                if client.session.pinned:
                    client.transport.arriving.append(b"")
        machine.settle()
    machine.check_answers()


def _step(machine: Machine, code: int, argument: int) -> None:
    kind = code % 16
    client = machine.clients[(code // 16) % len(machine.clients)]
    if kind < 6:
        machine.say(client, GOOD[argument % len(GOOD)], good=True)
    elif kind == 6:
        machine.say(client, BAD[argument % len(BAD)], good=False)
    elif kind == 7:
        message = GOOD[argument % len(GOOD)]
        cut = 1 + argument % max(1, len(message) - 1)
        if client.transport.closed:
            return
        message = message.replace(b"mark-0", b"mark-%d" % client.number)
        machine.say(client, message, good=True)
        whole = client.transport.arriving.pop()
        client.transport.arriving += [whole[:cut], whole[cut:]] if whole[cut:] else [whole]
    elif kind == 8:
        machine.origins_answer()
    elif kind == 9:
        machine.settle()
    elif kind == 10:
        machine.open_client()
    elif kind == 11:
        client.transport.arriving.append(b"")
        client.countable = False
    elif kind == 12:
        client.transport.broken = argument % 2 == 0
        client.transport.greedy = not client.transport.greedy
        client.countable = False
    elif kind == 13 and machine.later:
        machine.later.popleft()()
    elif kind in (14, 15) and machine.pool.origins:
        _origin_misbehaves(machine, kind, argument)


def _origin_misbehaves(machine: Machine, kind: int, argument: int) -> None:
    origins = sorted(machine.pool.origins, key=lambda origin: origin.pid)
    origin = origins[argument // 64 % len(origins)]
    transport: Any = origin.transport
    machine.honest = False
    if kind == 14:
        transport.arriving.append(ANSWERS[argument % len(ANSWERS)])
    elif argument % 3 == 0:
        transport.arriving.append(b"")
    elif argument % 3 == 1:
        transport.broken = True
    else:
        transport.greedy = not transport.greedy
