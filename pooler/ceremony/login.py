"""A client's way from accepted socket to session: SSLRequest, startup packet, authentication, greeting.

One deadline covers all of it. What waits in the pool's queue for the greeting has the pool's own deadline. Source:
PostgreSQL documentation, "Message Flow", sections "Start-up", "SSL Session Encryption" and "SASL Authentication".
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from config.model import CONSOLE
from pooler.ceremony.cancel import cancel_for_client
from pooler.ceremony.greeting import first_words, greeting, new_key
from pooler.ceremony.passthrough import pass_through, wants_replication
from pooler.ceremony.tls import ALPN
from pooler.logs import get_logger
from pooler.session import Session
from pooler.settings import from_startup
from pooler.transport import Transport, TransportClosed
from protocol import errors, startup
from protocol.auth import ScramServer
from protocol.framing import FrameReader
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

PASSWORD_FRAME_LIMIT = 65536
"""The largest authentication message of a client, in bytes."""

_NOT_SETTINGS = ("user", "database", "options", "replication")


class _Login:
    """One client's login.

    Attributes:
      buffer: bytes that came and no message took yet.
      unsent: the end of authentication, which travels with whatever comes behind it, as a server sends it.
    """

    def __init__(self, service: Service, transport: Transport) -> None:
        self.service = service
        self.transport = transport
        self.buffer = b""
        self.unsent = b""
        self.user = ""

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
          TransportClosed: the client left first.
        """
        while len(self.buffer) < size:
            data = await self.transport.receive_some()
            if not data:
                raise TransportClosed("the client closed the connection during login")
            self.buffer += data
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    async def packet(self) -> bytes:
        """The next startup-style packet, its length included."""
        head = await self.read(4)
        length = int.from_bytes(head, "big")
        if not 8 <= length <= startup.MAX_STARTUP_BYTES:
            raise errors.protocol_violation(f"invalid length of startup packet: {length}")
        return head + await self.read(length - 4)

    async def startup_message(self) -> startup.StartupMessage | startup.CancelRequest:
        """Everything up to the startup packet, encryption included."""
        service, transport = self.service, self.transport
        tls = service.tls
        head = await self.read(1)
        self.buffer = head + self.buffer
        if head == b"\x16" and tls is not None:  # a TLS ClientHello: direct TLS
            await self._encrypt()
            chosen = transport.tls.selected_alpn_protocol() if transport.tls else None
            if chosen != ALPN:
                raise errors.protocol_violation(
                    "received direct SSL connection request without ALPN protocol negotiation extension"
                )
        for _ in range(3):
            request = startup.parse_startup(await self.packet())
            if isinstance(request, startup.GSSENCRequest):
                self._nothing_behind()
                await transport.send_all(b"N")
            elif isinstance(request, startup.SSLRequest):
                if transport.tls is not None:
                    raise errors.protocol_violation("SSLRequest on a connection that is encrypted already")
                self._nothing_behind()
                if tls is None:
                    await transport.send_all(b"N")
                else:
                    await transport.send_all(b"S")
                    await self._encrypt()
            else:
                return request
        raise errors.protocol_violation("too many encryption requests")

    def _nothing_behind(self) -> None:
        """Bytes sent in plaintext behind an encryption request are an attacker's or a bug's (CVE-2021-23214)."""
        if self.buffer:
            raise errors.plaintext_after_ssl_request()

    async def _encrypt(self) -> None:
        assert self.service.tls is not None
        received, self.buffer = self.buffer, b""
        await self.transport.handshake(self.service.tls.context, server_side=True, received=received)

    async def authenticate(self, user: str) -> None:
        """SCRAM-SHA-256, with channel binding where there is TLS; or nothing, where trust was asked for.

        Raises:
          PgError: 28P01; an unknown user fails as late and as slowly as a wrong password.
        """
        service, transport = self.service, self.transport
        if service.config.auth == "trust":
            return
        binding = service.tls.channel_binding if service.tls is not None and transport.tls is not None else None
        server = ScramServer(service.verifiers.of(user, time.monotonic()), user, binding)
        await transport.send_all(server.start())
        reader = FrameReader(PASSWORD_FRAME_LIMIT)
        reader.feed(self.buffer)
        done = False
        while not done:
            message = reader.next()
            if message is None:
                data = await transport.receive_some()
                if not data:
                    raise TransportClosed("the client closed the connection during authentication")
                reader.feed(data)
                continue
            if message[0] != ord("p"):
                raise errors.protocol_violation(f"expected a SASL response, got message type {chr(message[0])!r}")
            reply, done = server.feed(message[1])
            if done:
                self.unsent = reply
            else:
                await transport.send_all(reply)
        self.buffer = reader.rest

    async def send(self, data: bytes = b"") -> None:
        """Send what is `unsent`, and `data`.

        Raises:
          TransportClosed: the client left.
        """
        unsent, self.unsent = self.unsent, b""
        await self.transport.send_all(unsent + data)


async def log_in(service: Service, transport: Transport) -> None:
    """Take an accepted connection to its session, or tell the client why not and close."""
    login = _Login(service, transport)
    try:
        with trio.move_on_after(service.config.client_login_timeout) as deadline:
            request = await login.startup_message()
            if isinstance(request, startup.CancelRequest):
                await cancel_for_client(service, request.pid, request.secret)
                transport.close()
                return
            login.user = request.parameters.get("user", "")
            _admit(service, transport, request)
            await login.authenticate(login.user)
        if deadline.cancelled_caught:
            service.stats.expired("client_login_timeout")
            raise errors.login_timeout(service.config.client_login_timeout)
        assert isinstance(request, startup.StartupMessage)
        if wants_replication(request.parameters):
            wanted = wanted_settings(request.parameters)
            await login.send()
            await pass_through(service, transport, request, wanted, login.buffer)
        else:
            await _welcome(service, login, request)
    except PgError as error:
        if error.sqlstate == "28P01":
            service.stats.login_failures += 1
        _rejected(service, error.sqlstate)
        log.warning(
            "login_failed",
            client=transport.peer,
            user=login.user,
            sqlstate=error.sqlstate,
            reason=error.message,
        )
        await _say(login, error)
    except TransportClosed as error:
        log.debug("login_broken", client=transport.peer, user=login.user, reason=str(error))
        transport.close()
    except BaseException:
        transport.close()
        raise


def _rejected(service: Service, sqlstate: str) -> None:
    rejected = service.stats.clients_rejected
    rejected[sqlstate] = rejected.get(sqlstate, 0) + 1


async def _say(login: _Login, error: PgError) -> None:
    """Tell the client, if it still listens, and close."""
    transport = login.transport
    with trio.move_on_after(1):
        try:
            await login.send(error.fatal().response())
            await transport.finish()
        except TransportClosed:
            pass
    transport.close()


def _admit(service: Service, transport: Transport, request: startup.StartupMessage) -> None:
    """Turn away what cannot be served, whoever asks.

    An unknown database is not among that: it is said only after authentication, so that names cannot be probed.

    Raises:
      PgError: why not.
    """
    parameters = request.parameters
    if request.major != 3:
        raise errors.unsupported_protocol(request.major, request.minor)
    user = parameters.get("user", "")
    if not user:
        raise errors.no_user()
    if service.config.tls == "require" and transport.tls is None and not transport.local:
        raise errors.tls_required()
    _has_room(service)


def _has_room(service: Service) -> None:
    if len(service.sessions) + len(service.console.conversations) >= service.config.max_client_connections:
        raise errors.too_many_clients(service.config.max_client_connections)


def wanted_settings(parameters: dict[str, str]) -> dict[str, str]:
    """The settings that a startup packet asks for: its parameters, and `-c` and `--` in its `options`.

    Raises:
      PgError: `options` cannot be read.
    """
    wanted: dict[str, str] = {}
    for name, value in startup.parse_options(parameters.get("options", "")):
        wanted[name.lower()] = value
    for name, value in parameters.items():
        if name not in _NOT_SETTINGS and not name.startswith("_pq_."):
            wanted[name.lower()] = value
    return wanted


async def _welcome(service: Service, login: _Login, request: startup.StartupMessage) -> None:
    """Greet the client with what the origin would say, and hand it to the reactor."""
    transport = login.transport
    database = request.parameters.get("database") or login.user
    if database == CONSOLE:
        service.console.check(login.user)
        _has_room(service)
        await login.send()
        service.console.welcome(transport, request, login.buffer)
        return
    pool = service.pools.get(database)
    if pool is None:
        raise errors.unknown_database(database)
    if pool.disabled:
        raise errors.disabled(database)
    wanted = wanted_settings(request.parameters)
    reports = await greeting(pool, wanted)
    _has_room(service)  # others may have come in meanwhile
    key = new_key(request.minor)
    session = Session(service, pool, transport, login.user, database, from_startup(wanted), reports, key)
    service.remember(session)
    try:
        await login.send(first_words(request, reports, key))
    except BaseException:
        service.forget(session)
        raise
    if session.closed:  # the process ends
        return
    log.debug(
        "client_connected",
        client=transport.peer,
        user=login.user,
        database=database,
        tls=transport.tls is not None,
    )
    session.start(login.buffer)
