"""Connecting to the origin: TCP or unix socket, TLS, startup packet, authentication, first ReadyForQuery.

Used for pool and replication connections (`connect_to`; to which host, `origins` says) and, without authentication, for
cancel requests (`ceremony.cancel`). The deadline is the caller's. Source: PostgreSQL documentation, "Message Flow",
sections "Start-up" and "SSL Session Encryption".
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass

import trio

from config import Target
from pooler.ceremony.tls import CertificateUnusable, origin_context, trial
from pooler.reactor import Reactor
from pooler.transport import Transport, TransportClosed
from protocol import errors, startup
from protocol.auth import OriginAuthenticator, tls_server_end_point
from protocol.errors import malformed_message
from protocol.framing import FrameReader, data_row, frame, parameter_status
from protocol.responses import FrameError, MalformedMessage, PgError

LOGIN_FRAME_LIMIT = 1 << 20
"""No message of an origin's login is larger, in bytes, nor all of them together."""

ANSWER_BYTES = 64 << 20
"""No answer to a question of pgnear's own is larger."""


@dataclass(slots=True)
class Connected:
    """An authenticated origin connection, not yet registered with the reactor.

    Attributes:
      target: where it leads: one host, at one address. A cancel must go there, too.
    """

    transport: Transport
    pid: int
    secret: bytes
    parameters: dict[str, str]
    target: Target
    rest: bytes = b""
    """What came behind ReadyForQuery."""


class LoginRefused(PgError):
    """The origin does not let this user in with this password."""


class _TlsFailed(PgError):
    """TLS was offered and came to nothing; `prefer` goes on without."""


async def open_transport(
    target: Target, reactor: Reactor, *, encrypt: bool | None = None, context: ssl.SSLContext | None = None
) -> Transport:
    """A transport to the origin, encrypted as the target's sslmode says, or as `encrypt` where that is given.

    Raises:
      PgError: 08001, with the reason in words.
    """
    if encrypt is None:
        encrypt = _encryptions(target)[0]
    try:
        if target.host.startswith("/"):
            stream = await trio.open_unix_socket(f"{target.host}/.s.PGSQL.{target.port}")
            sock = _detach(stream.socket)
        else:
            tcp = await trio.open_tcp_stream(target.address or target.host, target.port)
            sock = _detach(tcp.socket)
    except OSError as error:
        raise errors.origin_unreachable(_reason(error)) from None
    transport = Transport(sock, reactor, f"{target.host}:{target.port}")
    try:
        if encrypt:
            await _encrypt(transport, target, context)
    except BaseException:
        transport.close()
        raise
    return transport


def _encryptions(target: Target) -> list[bool]:
    """Whether to encrypt, first try and second, as libpq's sslmode words have it."""
    if target.host.startswith("/"):
        return [False]
    return {"disable": [False], "allow": [False, True], "prefer": [True, False]}.get(target.sslmode, [True])


def _detach(trio_socket: trio.socket.SocketType) -> socket.socket:
    return socket.socket(fileno=trio_socket.detach())


def _reason(error: OSError) -> str:
    inner: BaseException = error.__cause__ or error
    while isinstance(inner, BaseExceptionGroup):  # trio wraps one failure for each address
        inner = inner.exceptions[0]
    if isinstance(inner, OSError) and (inner.errno or 0) > 0:  # trio's own words repeat the address
        return os.strerror(inner.errno or 0)
    return getattr(inner, "strerror", None) or str(inner)


async def _encrypt(transport: Transport, target: Target, context: ssl.SSLContext | None) -> None:
    try:
        await transport.send_all(startup.ssl_request())
        answer = await transport.receive_some()
        if answer == b"S":
            try:
                await transport.handshake(
                    context or origin_context(target), server_side=False, server_hostname=target.host
                )
            except TransportClosed as error:
                raise _TlsFailed("08001", errors.origin_unreachable(str(error)).message) from None
        elif answer == b"N" and target.sslmode == "prefer":
            return
        elif answer == b"N":
            raise errors.origin_unreachable(f"it does not offer TLS, and sslmode is {target.sslmode}")
        elif answer[:1] == b"S":
            raise errors.origin_unreachable("it sent plaintext behind its answer to SSLRequest")
        else:
            raise errors.origin_unreachable("it does not speak PostgreSQL's protocol")
    except TransportClosed as error:
        raise errors.origin_unreachable(str(error)) from None
    except CertificateUnusable as error:
        raise errors.origin_unreachable(str(error)) from None


async def connect_to(target: Target, reactor: Reactor, parameters: dict[str, str] | None = None) -> Connected:
    """Open, encrypt and authenticate one connection to the target's (first) host.

    `parameters` are in its startup packet besides the target's own.

    With `allow` and `prefer` a connection that the origin's pg_hba.conf does not admit (28000), or whose TLS fails, is
    tried the other way once.

    Raises:
      PgError: 08001 where the origin cannot be reached or trusted; what the origin itself said where it refused.
    """
    first, *others = _encryptions(target)
    try:
        try:
            return await _connect(target, reactor, parameters or {}, encrypt=first)
        except PgError as error:
            if not others or not (error.sqlstate == "28000" or isinstance(error, _TlsFailed)):
                raise
            return await _connect(target, reactor, parameters or {}, encrypt=others[0])
    except PgError as error:
        if error.sqlstate[:2] == "28":  # said to a client as it is, it would be about the client's own password
            refused = errors.origin_unreachable(f"it refuses pgnear's login: {error.message}")
            raise LoginRefused(refused.sqlstate, refused.message) from None
        raise


async def _connect(target: Target, reactor: Reactor, parameters: dict[str, str], *, encrypt: bool) -> Connected:
    """One attempt; where certificates have changed, with the new ones first. They take over if they work."""
    new = trial(target) if encrypt else None
    if new is None:
        return await _connect_with(None, target, reactor, parameters, encrypt=encrypt)
    try:
        connected = await _connect_with(new.context, target, reactor, parameters, encrypt=True)
    except PgError as error:
        connected = await _connect_with(None, target, reactor, parameters, encrypt=True)
        new.failed(error.message)
    else:
        new.succeeded()
    return connected


async def _connect_with(
    context: ssl.SSLContext | None, target: Target, reactor: Reactor, parameters: dict[str, str], *, encrypt: bool
) -> Connected:
    transport = await open_transport(target, reactor, encrypt=encrypt, context=context)
    try:
        return await _log_in(transport, target, parameters)
    except TransportClosed as error:
        transport.close()
        raise errors.origin_unreachable(f"the connection broke during login: {error}") from None
    except (FrameError, MalformedMessage) as error:
        transport.close()
        raise errors.origin_unreachable(f"it breaks the protocol: {error}") from None
    except BaseException:
        transport.close()
        raise


async def _log_in(transport: Transport, target: Target, parameters: dict[str, str]) -> Connected:
    login = {"user": target.user, "database": target.dbname}  # last: nothing that a client wants takes their place
    await transport.send_all(startup.startup_message({**target.options, **parameters, **login}))
    encrypted = transport.tls is not None
    binding = None
    if transport.tls is not None:
        certificate = transport.tls.getpeercert(binary_form=True)
        binding = tls_server_end_point(certificate) if certificate else None
    authenticator = OriginAuthenticator(
        target.user,
        target.password,
        channel_binding=binding,
        cleartext_allowed=encrypted or target.is_local,
    )
    reader = FrameReader(LOGIN_FRAME_LIMIT)
    connected = Connected(transport, 0, b"", {}, _found(target, transport))
    room = LOGIN_FRAME_LIMIT
    while True:
        while (message := reader.next()) is not None:
            kind, body = message
            if kind == ord("R"):
                reply = authenticator.feed(body)
                if reply is not None:
                    await transport.send_all(reply)
            elif kind == ord("E"):
                raise PgError.from_payload(body)
            elif kind == ord("S"):
                name, value = parameter_status(body)
                connected.parameters[name] = value
            elif kind == ord("K"):
                connected.pid = int.from_bytes(body[:4], "big")
                connected.secret = body[4:]
            elif kind == ord("Z"):
                connected.rest = reader.rest
                return connected
            elif kind not in b"Nv":
                raise errors.origin_unreachable(f"unexpected message of type {chr(kind)!r} during login")
        data = await transport.receive_some()
        if not data:
            raise TransportClosed("the origin closed it")
        room -= len(data)
        if room < 0:
            raise TransportClosed("it does not come to an end")
        reader.feed(data)


def _found(target: Target, transport: Transport) -> Target:
    """`target` at the address where it was found: its name may lead somewhere else the next time."""
    if target.host.startswith("/"):
        return target
    try:
        return target.at(transport.sock.getpeername()[0])
    except OSError as error:
        raise TransportClosed(str(error)) from None


async def ask(transport: Transport, text: str) -> list[tuple[int, bytes]]:
    """Send a simple Query on a connection that is in ceremony; the frames of its answer, ReadyForQuery last.

    Raises:
      TransportClosed: the connection broke, or its answer does not end.
      PgError: the origin answered with an error.
    """
    await transport.send_all(frame(b"Q", text.encode() + b"\0"))
    reader = FrameReader(ANSWER_BYTES)
    frames: list[tuple[int, bytes]] = []
    failure: PgError | None = None
    room = ANSWER_BYTES
    while True:
        while (message := reader.next()) is not None:
            frames.append(message)
            if message[0] == ord("E"):
                failure = PgError.from_payload(message[1])
            elif message[0] == ord("Z"):
                if failure is not None:
                    raise failure
                return frames
        data = await transport.receive_some()
        if not data:
            raise failure or TransportClosed("the origin closed the connection")
        room -= len(data)
        if room < 0:
            raise failure or TransportClosed(f"an answer of more than {ANSWER_BYTES >> 20} MB")
        reader.feed(data)


def rows_of(frames: list[tuple[int, bytes]], columns: int) -> list[list[bytes | None]]:
    """The rows of an answer to `ask`; None is NULL.

    Raises:
      MalformedMessage: one has not so many columns: whoever answered is no PostgreSQL.
    """
    rows = [data_row(body) for kind, body in frames if kind == ord("D")]
    for row in rows:
        if len(row) != columns:
            raise malformed_message("DataRow", f"it has {len(row)} columns where {columns} were asked for")
    return rows


def text_rows(frames: list[tuple[int, bytes]], columns: int) -> list[tuple[str, ...]]:
    """The rows of an answer to `ask`, each column as text; NULL is the empty text.

    Raises:
      MalformedMessage: as `rows_of` does, or a column is no UTF-8.
    """
    try:
        return [tuple((value or b"").decode() for value in row) for row in rows_of(frames, columns)]
    except UnicodeDecodeError:
        raise malformed_message("DataRow", "it is no UTF-8") from None


def text_row(frames: list[tuple[int, bytes]], columns: int) -> tuple[str, ...]:
    """The one row of an answer to `ask`.

    Raises:
      MalformedMessage: as `text_rows` does, or there is another number of rows.
    """
    rows = text_rows(frames, columns)
    if len(rows) != 1:
        raise malformed_message("answer", f"it has {len(rows)} rows where one was asked for")
    return rows[0]


def number(text: str) -> int:
    """A column that must be an integer.

    Raises:
      MalformedMessage: it is none.
    """
    try:
        return int(text)
    except ValueError:
        raise malformed_message("DataRow", "a column that is a number holds none") from None
