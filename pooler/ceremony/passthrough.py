"""Replication connections: each has an origin connection of its own, and what passes between the two is not read.

Lives here: the choice of the origin, the limit, the dedicated connection, the relay of bytes both ways and its end.
Not here: the client's login (`ceremony.login`), cancel requests (`ceremony.cancel`). A relay knows only where one frame
ends and the next begins, so that pgnear's last words never stand inside a frame of somebody else's. Source: PostgreSQL
documentation, "Streaming Replication Protocol".
"""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest
from time import monotonic
from typing import TYPE_CHECKING

import trio

from pooler.ceremony.connect import Connected
from pooler.ceremony.greeting import first_words, new_key
from pooler.logs import get_logger
from pooler.settings import Reports
from pooler.transport import Transport, TransportClosed
from protocol import errors
from protocol.framing import HEADER_BYTES, TERMINATE_FRAME, length_at
from protocol.responses import PgError
from protocol.startup import StartupMessage

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

LOGICAL = "database"
"""The value of `replication` that asks for a walsender in a database, which takes SQL as well."""

_NO = ("", "0", "of", "off", *("false"[:size] for size in range(1, 6)), "n", "no")
_ANY_DATABASE = "replication"
"""What pg_receivewal and pg_basebackup ask for: physical replication is of no database, and libpq wants a name."""

_COMMAND_COMPLETE, _READY = b"CZ"
_NEVER = 1 << 62


def wants_replication(parameters: Mapping[str, str]) -> bool:
    """Whether a startup packet asks for a replication connection. What is neither yes nor no the origin refuses."""
    return parameters.get("replication", "").lower() not in _NO


async def pass_through(
    service: Service, transport: Transport, request: StartupMessage, wanted: dict[str, str], received: bytes
) -> None:
    """Give an authenticated client an origin connection of its own, greet it, and hand both to the reactor.

    Args:
      wanted: the settings in the startup packet.
      received: what the client has sent behind its login.

    Raises:
      PgError: the database is not served, there are too many, the origin cannot be reached; or what the origin said
        when it refused.
      TransportClosed: the client left.
    """
    pool = _pool_for(service, request.parameters)
    limit = service.config.max_replication_connections
    if not limit:
        raise errors.replication_disabled()
    if service.replication_connections >= limit:
        raise errors.too_many_replication_connections(limit)
    relay = Relay(service, pool, transport, request)
    service.relays[relay.key[0]] = relay
    service.count_relays()
    try:
        connected = await _connect(service, pool, wanted | {"replication": request.parameters["replication"]})
        try:
            if service.draining:
                raise errors.admin_shutdown()
            await transport.send_all(first_words(request, Reports.of(connected.parameters), relay.key))
        except BaseException:
            connected.transport.close()
            raise
    except BaseException:
        service.relays.pop(relay.key[0], None)
        service.count_relays()
        raise
    relay.begin(connected, received)


def _pool_for(service: Service, parameters: Mapping[str, str]) -> Pool:
    """The pool whose origin is meant.

    Raises:
      PgError: 3D000, pgnear does not serve the database.
    """
    user = parameters.get("user", "")
    database = parameters.get("database") or user
    pool = service.pools.get(database)
    if pool is None and parameters["replication"] != LOGICAL and database in (user, _ANY_DATABASE):
        return next(iter(service.pools.values()))
    if pool is None:
        raise errors.unknown_database(database)
    return pool


async def _connect(service: Service, pool: Pool, parameters: dict[str, str]) -> Connected:
    """An origin connection outside the pool.

    Raises:
      PgError: as `ceremony.connect.connect` does, and 08001 where it takes longer than `origin_connect_timeout`.
    """
    timeout = pool.limits.origin_connect_timeout
    try:
        try:
            connected = await service.rotations[pool.name].connect(parameters)
        except trio.TooSlowError:
            service.stats.expired("origin_connect_timeout")
            raise errors.origin_unreachable(f"no answer within {timeout:g} s (origin_connect_timeout)") from None
        service.stats.origin_connections_opened += 1
        return connected
    except PgError:
        service.stats.origin_connect_failures += 1
        raise


class Frames:
    """Where a byte stream stands: between two frames, or within one.

    Attributes:
      completions: how many CommandComplete and ReadyForQuery frames have begun, where the stream is the origin's.
    """

    __slots__ = ("_head", "_left", "completions")

    def __init__(self) -> None:
        self._head = b""  # of a frame whose length has not come whole
        self._left = 0  # bytes until the frame under way ends
        self.completions = 0

    @property
    def between(self) -> bool:
        """Whether the last frame is whole and no other has begun."""
        return not self._head and not self._left

    def follow(self, data: bytes) -> int:
        """Follow the stream over `data`; the last position in it where a frame ends, negative if there is none."""
        known = len(self._head)
        if known:
            data = self._head + data
        size = len(data)
        position = self._left
        boundary = -1
        self._head = b""
        while position <= size:
            boundary = position - known
            if position + HEADER_BYTES > size:
                self._head = data[position:]
                position = size
                break
            if data[position] in (_COMMAND_COMPLETE, _READY):
                self.completions += 1
            length = length_at(data, position + 1)[0]
            position += 1 + length if length >= 4 else _NEVER  # no frame: whoever gets it will say so and close
        self._left = position - size
        return boundary


class _End:
    """One of the two sockets of a relay; the reactor's handler for it."""

    __slots__ = ("frames", "name", "relay", "transport")

    def __init__(self, relay: Relay, name: str, transport: Transport) -> None:
        self.relay = relay
        self.name = name
        self.transport = transport
        self.frames = Frames()

    def readable(self) -> None:
        try:
            data = self.transport.receive()
        except TransportClosed as error:
            self.relay.end(f"the {self.name}'s connection broke: {error}")
            return
        if data:
            self.relay.pass_on(self, data)
        elif data is not None:
            self.relay.end(f"the {self.name} closed the connection")

    def writable(self) -> None:
        try:
            self.transport.flush()
        except TransportClosed as error:
            self.relay.broken(self, error)
            return
        if self.transport.pending <= self.relay.pool.high_water // 2:
            self.relay.other(self).transport.resume()

    def crashed(self, error: Exception) -> None:
        self.relay.end(f"internal error: {type(error).__name__}")


class Relay:
    """A replication client and its origin connection.

    Attributes:
      key: what the client was given to cancel with. origin_pid, origin_secret: what the origin gave pgnear.
      target: the host that it was connected to.
    """

    def __init__(self, service: Service, pool: Pool, transport: Transport, request: StartupMessage) -> None:
        self.service = service
        self.pool = pool
        self.user = request.parameters["user"]
        self.logical = request.parameters["replication"] == LOGICAL
        self.key = new_key(request.minor)
        self.origin_pid = 0
        self.target = pool.target
        self.origin_secret = b""
        self._client = _End(self, "client", transport)
        self._origin: _End | None = None
        self._began = monotonic()
        self._completions = 0
        self._leaving = False
        self._ended = False

    def has_key(self, secret: bytes) -> bool:
        """Whether `secret` is the one this client was given to cancel with."""
        return compare_digest(self.key[1], secret)

    @property
    def connected(self) -> bool:
        """Whether the origin has let it in."""
        return self._origin is not None

    def begin(self, connected: Connected, received: bytes) -> None:
        """Relay from now on, beginning with what both sides have said already."""
        self.origin_pid, self.origin_secret = connected.pid, connected.secret
        self.target = connected.target
        self._origin = _End(self, "origin", connected.transport)
        log.info("replication_connected", **self._who(), tls=self._client.transport.tls is not None)
        for end in (self._client, self._origin):
            end.transport.register(end)
        if connected.rest:
            self.pass_on(self._origin, connected.rest)
        if received and not self._ended:
            self.pass_on(self._client, received)

    def _who(self) -> dict[str, object]:
        return {
            "client": self._client.transport.peer,
            "user": self.user,
            "pool": self.pool.name,
            "kind": "logical" if self.logical else "physical",
            "origin_pid": self.origin_pid,
        }

    # ---- traffic -----------------------------------------------------------------------------------------------------

    def other(self, end: _End) -> _End:
        assert self._origin is not None
        return self._origin if end is self._client else self._client

    def pass_on(self, source: _End, data: bytes) -> None:
        """Send what came from `source` to the other end."""
        boundary = source.frames.follow(data)
        if source is self._origin:
            self._note_completions(source)
            if self._leaving and boundary >= 0:
                self._say_goodbye(data[:boundary])
                return
        sink = self.other(source)
        try:
            sink.transport.send(data)
        except TransportClosed as error:
            self.broken(sink, error)
            return
        if sink.transport.pending > self.pool.high_water:
            source.transport.pause()

    def _note_completions(self, origin: _End) -> None:
        """A walsender in a database runs SQL: what it has completed may be a write, or DDL."""
        if self.logical and origin.frames.completions != self._completions:
            self._completions = origin.frames.completions
            self._forget()

    def _forget(self) -> None:
        if self.service.cache is not None:
            self.service.cache.invalidate_database(self.pool.name)
        self.service.catalog_changed(self.pool)

    # ---- its end -----------------------------------------------------------------------------------------------------

    def broken(self, end: _End, error: TransportClosed) -> None:
        """A write to `end` failed. What an origin said before it went is there to be read, and the client's."""
        if end is self._origin:
            try:
                while not self._ended and (data := end.transport.receive()):
                    self.pass_on(end, data)
            except TransportClosed:
                pass
        self.end(f"the {end.name}'s connection broke: {error}")

    def shutdown(self) -> None:
        """The process ends: tell the client, at once or when the frame that it is being sent is whole."""
        self._leaving = True
        if self._origin is not None and self._origin.frames.between:
            self._say_goodbye(b"")

    def _say_goodbye(self, last: bytes) -> None:
        assert self._origin is not None
        try:
            self._client.transport.send(last + errors.admin_shutdown().fatal().response())
            if self._client.frames.between:
                self._origin.transport.send(TERMINATE_FRAME)
        except TransportClosed:
            pass  # one of them went first
        self.end("pgnear is shutting down")

    def end(self, reason: str) -> None:
        """Close both ends, each once it has had time to read what was sent to it."""
        if self._ended or not self.connected:
            return
        self._ended = True
        self.service.relays.pop(self.key[0], None)
        self.service.count_relays()
        if self.logical:
            self._forget()  # a write's completion may have been on its way
        for end in (self._client, self.other(self._client)):
            end.transport.linger()
        log.info("replication_ended", **self._who(), reason=reason, seconds=round(monotonic() - self._began, 3))
