"""A client's way from accepted socket to session, in the reactor.

Lives here: who may come in, and what becomes of whom. Not here: what comes when (`protocol.entry`), how many at once
and for how long (`doors`), what a client is told of the server (`greeting`).

A login waits for nobody but its client, so it is a handler like a session and no task: what a client sends is taken a
step further when it comes. What waits for somebody else goes on in a task, with deadlines of its own: a greeting that
nobody has asked for before, a cancel request, a replication connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from config.model import CONSOLE
from pooler import logs
from pooler.ceremony.cancel import cancel_for_client
from pooler.ceremony.greeting import ask_for_welcome, known_welcome, new_key, wanted_settings, words_from_key
from pooler.ceremony.passthrough import pass_through, wants_replication
from pooler.ceremony.tls import ALPN
from pooler.greetings import Welcome
from pooler.logs import get_logger
from pooler.pool import Pool
from pooler.session import Session
from pooler.transport import Transport, TransportClosed
from protocol import errors, startup
from protocol.auth import ScramServer
from protocol.entry import Entry, Step
from protocol.responses import NotAStartup, PgError

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)


class Login:
    """One client on its way in: its transport's handler until it is a session, something else, or gone.

    Attributes:
      unsent: the end of authentication, which travels with whatever comes behind it, as a server sends it.
    """

    __slots__ = ("_asks", "_entry", "_session", "_tls", "service", "transport", "unsent", "user")

    def __init__(self, service: Service, transport: Transport) -> None:
        self.service = service
        self.transport = transport
        self.unsent = b""
        self.user = ""
        self._tls = service.certificate.tls  # of now: the handshake and SCRAM must mean the same certificate
        self._entry = Entry(self._tls is not None)
        self._session: Session | None = None
        self._asks = False

    def begin(self) -> None:
        """Take what the client has said already, and wait for the rest in the reactor."""
        self.transport.register(self)
        self.readable()

    # ---- from the reactor --------------------------------------------------------------------------------------------

    def readable(self) -> None:
        try:
            data = self.transport.receive()
            while data is not None:
                if not data:
                    raise TransportClosed("the client closed the connection during login")
                data = self._take(data)
        except PgError as error:
            self._refuse(error)
        except TransportClosed as error:
            self._broken(error)

    def writable(self) -> None:
        try:
            self.transport.flush()
        except TransportClosed as error:
            self._broken(error)

    def crashed(self, error: Exception) -> None:
        if self._session is not None:
            self._session.crashed(error)
        else:
            self.end()

    def expire(self) -> None:
        """The client took too long."""
        self.service.stats.expired("client_login_timeout")
        self._refuse(errors.login_timeout(self.service.config.client_login_timeout))

    def shutdown(self) -> None:
        """The process ends: who is in and waits for the origin is told; others are in the middle of proving it."""
        if self._asks:
            self._refuse(errors.admin_shutdown())
        else:
            self.end()

    def end(self) -> None:
        """Close without a word."""
        self.transport.close()
        self.service.doors.left(self)

    # ---- step by step ------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> bytes | None:
        """Go on with `data`; what came through TLS meanwhile, or None.

        Raises:
          PgError, TransportClosed: the login is over.
        """
        entry = self._entry
        expected = entry.step
        if expected is Step.TLS:
            return self._shake(data)
        answer = entry.feed(data, self._admit)
        step = entry.step
        if step is Step.IN:
            self.unsent = answer
            self._let_in()
            return None
        if answer:
            self.transport.send(answer)
        if step is Step.TLS:
            assert self._tls is not None
            self.transport.begin_handshake(self._tls.context, server_side=True)
            return self._shake(entry.rest) if entry.rest else None
        if step is Step.CANCEL:
            self._go_on_in_task(self._cancel)
        return None

    def _shake(self, data: bytes) -> bytes | None:
        transport, entry = self.transport, self._entry
        if not transport.shake(data):
            return None
        assert transport.tls is not None
        if entry.direct and transport.tls.selected_alpn_protocol() != ALPN:
            raise errors.not_a_startup(
                "received direct SSL connection request without ALPN protocol negotiation extension"
            )
        entry.encrypted()
        return transport.receive()

    def _admit(self, request: startup.StartupMessage) -> ScramServer | None:
        """Turn away what cannot be served, whoever asks; what the others must prove.

        An unknown database is not among that: it is said only after authentication, so that names cannot be probed.

        Raises:
          PgError: why not.
        """
        service, transport = self.service, self.transport
        if request.major != 3:
            raise errors.unsupported_protocol(request.major, request.minor)
        user = self.user = request.parameters.get("user", "")
        if not user:
            raise errors.no_user()
        if service.config.tls == "require" and transport.tls is None and not transport.local:
            raise errors.tls_required()
        _has_room(service)
        if service.config.auth == "trust":
            return None
        binding = self._tls.channel_binding if self._tls is not None and transport.tls is not None else None
        return ScramServer(service.verifiers.of(user, time.monotonic()), user, binding)

    # ---- authenticated -----------------------------------------------------------------------------------------------

    @property
    def _request(self) -> startup.StartupMessage:
        request = self._entry.request
        assert isinstance(request, startup.StartupMessage)
        return request

    def _let_in(self) -> None:
        """The client is who it says: give it what it asks for.

        Raises:
          PgError, TransportClosed: it gets nothing.
        """
        service, request = self.service, self._request
        parameters = request.parameters
        service.doors.waits_no_more(self)
        if wants_replication(parameters):
            self._go_on_in_task(self._pass_through)
            return
        database = parameters.get("database") or self.user
        if database == CONSOLE:
            self._enter_console()
            return
        pool = service.pools.get(database)
        if pool is None:
            raise errors.unknown_database(database)
        if pool.disabled:
            raise errors.disabled(database)
        welcome = known_welcome(pool, self._entry.packet, request)
        if welcome is not None:
            self._greet(pool, welcome)
        else:
            self._go_on_in_task(partial(self._ask, pool))

    def _greet(self, pool: Pool, welcome: Welcome) -> None:
        """Tell the client what the origin would say, and make it a session while that is on its way."""
        service, transport = self.service, self.transport
        _has_room(service)  # others may have come in meanwhile
        settings, reports, words = welcome
        key = new_key(self._request.minor)
        self._send(words + words_from_key(key))
        session = Session(service, pool, transport, self.user, pool.name, settings, reports, key)
        service.remember(session)
        if logs.is_verbose():
            log.debug(
                "client_connected",
                client=transport.peer,
                user=self.user,
                database=pool.name,
                tls=transport.tls is not None,
            )
        self._session = session
        service.doors.left(self)
        session.start(self._entry.rest)

    def _enter_console(self) -> None:
        service, transport = self.service, self.transport
        service.console.check(self.user)
        _has_room(service)
        self._send(b"")
        transport.unregister()
        service.doors.left(self)
        service.console.welcome(transport, self._request, self._entry.rest)

    # ---- what waits for others ---------------------------------------------------------------------------------------

    def _go_on_in_task(self, ceremony: Callable[[], Awaitable[None]]) -> None:
        """Run `ceremony`, which may say by PgError or TransportClosed that the login is over."""
        self.transport.unregister()
        self.service.nursery.start_soon(self._run, ceremony)

    async def _run(self, ceremony: Callable[[], Awaitable[None]]) -> None:
        self.service.reactor.ceremonies += 1
        try:
            await ceremony()
        except PgError as error:
            self._refuse(error)
        except TransportClosed as error:
            self._broken(error)
        except Exception as error:  # a bug here costs one client its login, not everybody their connection
            log.exception("internal_error", where="login", error=str(error))
            self.end()
        except BaseException:
            self.end()
            raise
        finally:
            self.service.reactor.ceremonies -= 1

    async def _ask(self, pool: Pool) -> None:
        self._asks = True
        welcome = await ask_for_welcome(pool, self._entry.packet, self._request)
        self._asks = False
        self._greet(pool, welcome)

    async def _cancel(self) -> None:
        request = self._entry.request
        assert isinstance(request, startup.CancelRequest)
        with trio.move_on_after(self.service.config.client_login_timeout):
            await cancel_for_client(self.service, request.pid, request.secret)
        self.end()

    async def _pass_through(self) -> None:
        wanted = wanted_settings(self._request.parameters)
        self._send(b"")
        await pass_through(self.service, self.transport, self._request, wanted, self._entry.rest)
        self.service.doors.left(self)

    # ---- the end of it -----------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        """Send what is `unsent`, and `data`.

        Raises:
          TransportClosed: the client left.
        """
        data, self.unsent = self.unsent + data, b""
        if data:
            self.transport.send(data)

    def _refuse(self, error: PgError) -> None:
        """Tell the client why not, if it still listens and speaks our protocol, and close."""
        stats, transport = self.service.stats, self.transport
        if error.sqlstate == "28P01":
            stats.login_failures += 1
        stats.rejected(error.sqlstate)
        log.warning(
            "login_failed",
            client=transport.peer,
            user=self.user,
            sqlstate=error.sqlstate,
            reason=error.message,
        )
        self.service.doors.left(self)
        try:
            self._send(b"" if isinstance(error, NotAStartup) else error.fatal().response())
        except TransportClosed:
            transport.close()
        else:
            transport.linger()

    def _broken(self, error: TransportClosed) -> None:
        log.debug("login_broken", client=self.transport.peer, user=self.user, reason=str(error))
        self.end()


def _has_room(service: Service) -> None:
    if service.clients >= service.config.max_client_connections:
        raise errors.too_many_clients(service.config.max_client_connections)
