"""One socket, with TLS over memory BIOs where it is on, an output buffer, and two faces.

The async face (`receive_some`, `send_all`, `handshake`, `finish`) is for ceremony; the synchronous one (`receive`,
`send`) for traffic. A transport is used through one face at a time: whoever hands it to the reactor stops awaiting it.
Not here: frames (`protocol.framing`), whose bytes these are (`session`, `origin`), how long a peer has to read our last
words (`lingering`).
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from pooler import lingering
from pooler.lingering import Lingering
from pooler.reactor import Handler, Reactor

CHUNK_BYTES: Final = 65536
"""The most that one read takes from the kernel, and so the most plaintext one read can give."""

KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
"""Socket options, where the system has them, by which a peer that vanished without a word is noticed: a silent one
within two minutes (in seconds), one that acknowledges nothing likewise (in milliseconds)."""

INHERITS: Final = sys.platform == "linux"
"""Whether an accepted socket has the options of its listener, so that they need not be set for each."""


def keep_alive(sock: socket.socket) -> None:
    """Send small messages at once, and notice a peer that has vanished.

    Raises:
      OSError: some systems set no options of a socket whose peer is gone already.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TransportClosed(Exception):
    """The peer is gone: a read or write failed, or a TLS record could not be trusted."""


class Transport:
    """A non-blocking connected socket.

    Args:
      sock: connected (or accepted); becomes non-blocking and owned by the transport.
      reactor: where the transport is registered once traffic begins.
      tuned: the socket has its options (`keep_alive`) already.

    Attributes:
      reading: not paused. heeds_end: paused as it is, it is read once its peer has ended.
    """

    __slots__ = (
        "_awaited",
        "_handler",
        "_incoming",
        "_out",
        "_outgoing",
        "_primed",
        "_registered",
        "_shaking",
        "closed",
        "fd",
        "heeds_end",
        "on_close",
        "peer",
        "reactor",
        "reading",
        "sock",
        "tls",
    )

    def __init__(self, sock: socket.socket, reactor: Reactor, peer: str = "", *, tuned: bool = False) -> None:
        sock.setblocking(False)
        if not tuned:
            keep_alive(sock)
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.reactor = reactor
        self.tls: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self._shaking: ssl.SSLObject | None = None  # what `tls` will be once the handshake is over
        self._out = bytearray()
        self._primed = False  # there may be news inside TLS that the socket does not tell of
        self._handler: Handler | None = None
        self.reading = True
        self.heeds_end = False
        self._registered = False
        self._awaited = False  # trio has been asked about the socket
        self.closed = False
        self.on_close: Callable[[], None] | None = None

    # ---- traffic -----------------------------------------------------------------------------------------------------

    def register(self, handler: Handler) -> None:
        """Give the transport to the reactor, which calls `handler` from now on, and no longer the one before."""
        if self._registered:
            self.reactor.replace(self.fd, handler)
        else:
            self.reactor.add(self.fd, handler)
        self._handler = handler
        self._registered = True
        self.reading = True
        self.heeds_end = False
        if self._out:
            self.reactor.interest(self.fd, True, True)
        if self._primed:
            self.reactor.call_soon(self._read_again)

    def unregister(self) -> None:
        """Take the transport back from the reactor, for ceremony."""
        if self._registered:
            self._registered = False
            self._handler = None
            self.reactor.remove(self.fd)

    def receive(self) -> bytes | None:
        """What has arrived: plaintext bytes, b"" at the peer's end, None when there is nothing yet.

        Raises:
          TransportClosed: the connection broke.
        """
        if self._primed:
            self._primed = False
            return self._read_plaintext()
        try:
            data = self.sock.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise TransportClosed(error.strerror or str(error)) from None
        if self.tls is None:
            return data
        assert self._incoming is not None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return self._read_plaintext()

    def _read_plaintext(self) -> bytes | None:
        tls, incoming = self.tls, self._incoming
        assert tls is not None
        assert incoming is not None
        parts: list[bytes] = []
        try:
            while part := tls.read(CHUNK_BYTES):
                if not parts and not incoming.pending and not tls.pending():  # the usual case: all of it
                    self._flush_tls()
                    return part
                parts.append(part)
        except ssl.SSLWantReadError:
            self._flush_tls()  # answers to key updates, session tickets
            return b"".join(parts) if parts else None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            raise TransportClosed(f"TLS: {error.reason or error}") from None
        # The end of the stream: what came before it is given first, the next read reports the end again. The peer
        # may keep its socket open until it has our own close_notify, so nothing else would ask for that read.
        if parts:
            self._primed = True
            if self._registered:
                self.reactor.call_soon(self._read_again)
        return b"".join(parts)

    def _read_again(self) -> None:
        if self._handler is not None and self._primed:
            self._handler.readable()

    def send(self, data: bytes) -> int:
        """Send now what the kernel takes and keep the rest; how much waits now, in bytes.

        Raises:
          TransportClosed: the connection broke; nothing more will be sent.
        """
        if self.tls is not None:
            data = self._encrypt(data)
        if self._out:
            self._out += data
            return len(self._out)
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise TransportClosed(error.strerror or str(error)) from None
        if sent == len(data):
            return 0
        self._out += memoryview(data)[sent:]
        self.reactor.interest(self.fd, self.reading, True, self.heeds_end)
        return len(self._out)

    def _encrypt(self, data: bytes) -> bytes:
        assert self.tls is not None
        assert self._outgoing is not None
        try:
            if data:
                self.tls.write(data)
        except ssl.SSLError as error:
            raise TransportClosed(f"TLS: {error.reason or error}") from None
        return self._outgoing.read()

    def _flush_tls(self) -> None:
        assert self._outgoing is not None
        if self._outgoing.pending and self._registered:
            data = self._outgoing.read()
            tls, self.tls = self.tls, None
            try:
                self.send(data)
            finally:
                self.tls = tls

    def begin_handshake(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """What comes from now on is a TLS handshake's, for `shake`."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._shaking = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )

    def shake(self, data: bytes) -> bool:
        """Go on with the handshake, where `data` has come, and send what it says; True once TLS is on.

        Raises:
          TransportClosed: it failed; the message says why.
        """
        assert self._incoming is not None
        assert self._outgoing is not None
        self._incoming.write(data)
        try:
            done = self._shake()
        except TransportClosed:
            self._send_now(self._outgoing.read())
            raise
        said = self._outgoing.read()
        if said:
            self.send(said)
        if done:
            self._encrypted()
        return done

    def _shake(self) -> bool:
        """As far as what has come allows; what is to be sent for it, an alert perhaps, is in `_outgoing`."""
        assert self._shaking is not None
        try:
            self._shaking.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise TransportClosed(f"TLS certificate not accepted: {error.verify_message}") from None
        except (ssl.SSLError, ssl.CertificateError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise TransportClosed(f"TLS handshake failed: {reason}") from None
        return True

    def _encrypted(self) -> None:
        self.tls, self._shaking = self._shaking, None
        self._primed = True

    @property
    def pending(self) -> int:
        """Bytes that wait for the kernel to take them."""
        return len(self._out)

    def flush(self) -> None:
        """The socket is writable: send what waits.

        Raises:
          TransportClosed: the connection broke.
        """
        if self._out:
            try:
                sent = self.sock.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise TransportClosed(error.strerror or str(error)) from None
            del self._out[:sent]
        if not self._out:
            self.reactor.interest(self.fd, self.reading, False, self.heeds_end)

    def pause(self, *, heed_end: bool = False) -> None:
        """Stop reading: the other side of this stream is full.

        Args:
          heed_end: once the peer has ended, what it has sent is read all the same, up to that end. It cannot be more
            than the kernel has taken in.
        """
        if self.reading or heed_end is not self.heeds_end:
            self.reading = False
            self.heeds_end = heed_end
            self.reactor.interest(self.fd, False, bool(self._out), heed_end)

    def resume(self) -> None:
        if not self.reading:
            self.reading = True
            self.heeds_end = False
            self.reactor.interest(self.fd, True, bool(self._out))

    def close(self, *, farewell: bool = True) -> None:
        """Unregister and close, at once; safe to call twice. Bytes that the kernel has are still delivered.

        `farewell`: a TLS peer is told that this end is meant. One that has said Terminate does not listen for it.
        """
        if self.closed:
            return
        self.closed = True
        if farewell and self.tls is not None:
            self._send_close_notify()
        if self._registered:
            self._registered = False
            self._handler = None
            self.reactor.forget(self.fd)
        if self._awaited:
            trio.lowlevel.notify_closing(self.sock)
        self.sock.close()
        self._out.clear()
        if self.on_close is not None:
            self.on_close()

    def linger(self) -> None:
        """Close once the peer has had time to read what was sent: until it closes too, or its time is up (`lingering`).

        A plain close while the peer still sends makes the kernel reset the connection, and the last words are lost.
        """
        if self.closed:
            return
        self.unregister()
        self.register(Lingering(self))
        self._out += self._close_notify()
        lingering.remember(self)
        self.end_output()

    def end_output(self) -> None:
        """Send what waits, and then say that nothing more comes; where that fails, close."""
        try:
            self.flush()
            if not self._out:
                self.sock.shutdown(socket.SHUT_WR)
        except (TransportClosed, OSError):
            self.close()

    def _close_notify(self) -> bytes:
        """Tells a TLS peer that this end is meant: without it libpq takes a finished cancel for a broken one."""
        if self.tls is None:
            return b""
        assert self._outgoing is not None
        try:
            self.tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the usual case: the peer's own close_notify has not come
        return self._outgoing.read()

    def _send_close_notify(self) -> None:
        self._send_now(self._out + self._close_notify())

    def _send_now(self, data: bytes | bytearray) -> None:
        """Last words, if the kernel takes them."""
        try:
            self.sock.send(data)
        except OSError:
            pass

    @property
    def local(self) -> bool:
        """Whether the peer is on this machine, by unix socket: nothing crosses a network."""
        return self.sock.family == socket.AF_UNIX

    def has_news(self) -> bool:
        """Whether a read would give something now: bytes, the peer's end or an error."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    # ---- ceremony ----------------------------------------------------------------------------------------------------

    async def receive_some(self) -> bytes:
        """The next bytes, b"" at the peer's end.

        Raises:
          TransportClosed: the connection broke.
        """
        data = self.receive()
        if data is not None:
            await trio.lowlevel.checkpoint()
            return data
        while data is None:  # each wait is a checkpoint, and a second one would be another round of trio's loop
            await self._wait(trio.lowlevel.wait_readable)
            data = self.receive()
        return data

    async def send_all(self, data: bytes) -> None:
        """Send everything.

        Raises:
          TransportClosed: the connection broke.
        """
        if self.tls is not None:
            data = self._encrypt(data)
        await self._send_raw(data)

    async def _send_raw(self, data: bytes) -> None:
        if self._out:  # left by the other face
            data = bytes(self._out) + data
            self._out.clear()
        view = memoryview(data)
        while view:
            try:
                sent = self.sock.send(view)
            except (BlockingIOError, InterruptedError):
                await self._wait(trio.lowlevel.wait_writable)
            except OSError as error:
                raise TransportClosed(error.strerror or str(error)) from None
            else:
                view = view[sent:]
        # No checkpoint: whoever has sent goes on to wait for an answer, and that is one.

    async def finish(self) -> None:
        """Say that nothing more comes and wait for the peer's end: a close before that may cost it our last words.

        Raises:
          TransportClosed: the connection broke.
        """
        await self._send_raw(self._close_notify())
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise TransportClosed(error.strerror or str(error)) from None
        self.tls, self._primed = None, False  # what still comes is not looked at
        while await self.receive_some():
            pass

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        self._awaited = True
        try:
            await wait(self.sock)
        except trio.ClosedResourceError:  # by whoever ends the pool or the process, while a ceremony is under way
            raise TransportClosed("it was closed here") from None

    async def handshake(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        received: bytes = b"",
    ) -> None:
        """Turn TLS on. `received`: bytes of the peer's hello that were read already.

        Raises:
          TransportClosed: the handshake failed; the message says why.
        """
        self.begin_handshake(context, server_side=server_side, server_hostname=server_hostname)
        assert self._incoming is not None
        assert self._outgoing is not None
        if received:
            self._incoming.write(received)
        try:
            while not self._shake():
                await self._send_raw(self._outgoing.read())
                data = await self.receive_some()
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
        except TransportClosed:
            await self._try_send_alert()
            raise
        await self._send_raw(self._outgoing.read())
        self._encrypted()

    async def _try_send_alert(self) -> None:
        assert self._outgoing is not None
        try:
            await self._send_raw(self._outgoing.read())
        except TransportClosed:
            pass
