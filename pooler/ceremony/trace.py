"""`pgnear trace`: a relay that stands between any client and a PostgreSQL server and prints every message.

It pools nothing and caches nothing. Requests for encryption are answered with no, so that the rest can be read; the
server must accept plaintext. Lines go to standard output, what concerns the relay itself to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime
from itertools import count

import trio

from pooler.ceremony.listen import address_of, open_listener
from protocol import errors, startup
from protocol.responses import PgError
from protocol.trace import Trace

CONNECT_SECONDS = 10.0
STARTUP_SECONDS = 60.0
_CHUNK_BYTES = 65536
_numbers = count(1)


def run(listen: str, target: str, limit: int = 0) -> int:
    """Relay and print until a signal ends it; the command's exit status.

    Args:
      listen, target: HOST:PORT or [IPv6]:PORT; where clients connect, and the server.
      limit: the most characters of a text or value that are shown; 0 shows all.
    """
    host, _, port = target.rpartition(":")
    try:
        return trio.run(_serve, listen, (host.strip("[]"), int(port)), limit)
    except OSError as error:
        _say(error.strerror or str(error))
        return 1


def _say(text: str) -> None:
    print(f"pgnear: {text}", file=sys.stderr, flush=True)


async def _serve(listen: str, target: tuple[str, int], limit: int) -> int:
    listener = open_listener(listen)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def accepted(stream: trio.SocketStream) -> None:
                await _Relay(stream, target, limit, nursery.cancel_scope).run()

            _say(f"tracing {address_of(listener)} -> {target[0]}:{target[1]}, unencrypted; Ctrl-C ends it")
            sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            nursery.start_soon(trio.serve_listeners, accepted, sockets)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    return 0


class _Relay:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(
        self, client: trio.SocketStream, target: tuple[str, int], limit: int, everything: trio.CancelScope
    ) -> None:
        self._client = client
        self._target = target
        self._trace = Trace(limit)
        self._number = next(_numbers)
        self._everything = everything

    async def run(self) -> None:
        self._print("# connected")
        try:
            async with self._client:
                await self._relay()
            self._print("# closed")
        except trio.BrokenResourceError as error:
            self._print(f"# broken: {error}")
        except EOFError:
            self._print("# closed before a startup packet")
        except trio.TooSlowError:
            self._print(f"# no startup packet within {STARTUP_SECONDS:g} s")

    def _print(self, *lines: str) -> None:
        now = datetime.now().isoformat(" ", "microseconds")
        try:
            sys.stdout.write("".join(f"{now}\t{self._number}\t{line}\n" for line in lines))
            sys.stdout.flush()
        except BrokenPipeError:  # who read it has gone (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._everything.cancel()

    async def _relay(self) -> None:
        try:
            with trio.fail_after(STARTUP_SECONDS):
                packet, rest = await self._startup()
            server = await self._connect()
        except PgError as error:
            refusal = error.fatal().response()
            self._print("# not from the server:", *Trace().feed(refusal, from_frontend=False))
            await self._client.send_all(refusal)
            return
        async with server:
            await server.send_all(packet)
            self._print(*self._trace.feed(rest, from_frontend=True))
            await server.send_all(rest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, self._client, server, True)
                await self._pass(server, self._client, False)
                nursery.cancel_scope.cancel()

    async def _startup(self) -> tuple[bytes, bytes]:
        """The packet to pass on, and what came behind it.

        Raises:
          EOFError: the client left. PgError: it sends no startup packet.
        """
        buffer = b""
        while True:
            while len(buffer) < 4 or len(buffer) < int.from_bytes(buffer[:4], "big"):
                if buffer[:1] not in (b"", b"\0"):
                    raise errors.protocol_violation("not a startup packet; TLS cannot be traced: use sslmode=disable")
                if int.from_bytes(buffer[:4].ljust(4, b"\0"), "big") > startup.MAX_STARTUP_BYTES:
                    raise errors.not_a_startup("invalid length of startup packet")
                data = await self._client.receive_some(_CHUNK_BYTES)
                if not data:
                    raise EOFError
                buffer += data
            length = max(4, int.from_bytes(buffer[:4], "big"))
            packet, buffer = buffer[:length], buffer[length:]
            self._print(self._trace.startup(packet))
            if not isinstance(startup.parse_startup(packet), startup.SSLRequest | startup.GSSENCRequest):
                return packet, buffer
            self._print(self._trace.encryption_refused(packet))
            await self._client.send_all(b"N")

    async def _connect(self) -> trio.SocketStream:
        try:
            with trio.fail_after(CONNECT_SECONDS):
                return await trio.open_tcp_stream(*self._target)
        except trio.TooSlowError:
            raise errors.origin_unreachable(f"no answer within {CONNECT_SECONDS:g} s") from None
        except OSError as error:
            raise errors.origin_unreachable(_innermost(error)) from None

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, from_frontend: bool) -> None:
        """Print and pass on until `source` ends."""
        try:
            while data := await source.receive_some(_CHUNK_BYTES):
                self._print(*self._trace.feed(data, from_frontend))
                await sink.send_all(data)
            await sink.send_eof()
        except trio.BrokenResourceError as error:
            self._print(f"# broken: {error.__cause__ or error}")


def _innermost(error: OSError) -> str:
    """What the operating system said: trio wraps one failure per address."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    number = getattr(cause, "errno", None)
    return os.strerror(number) if number is not None and number > 0 else getattr(cause, "strerror", None) or str(cause)
