"""TLS that no driver would speak: contexts that trust everybody, endings by hand, and somebody in the middle."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.wire import SSL_REQUEST, WireClient


def trusting(*, alpn: str | None = None) -> ssl.SSLContext:
    """A client's context that accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


class TlsByHand:
    """TLS by hand, so that a query and the close_notify travel in one segment."""

    def __init__(self, raw: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.raw = raw
        self.incoming = incoming
        self.outgoing = outgoing
        self.tls = trusting().wrap_bio(incoming, outgoing)
        self._until(self.tls.do_handshake)
        self.raw.sendall(outgoing.read())

    def _until(self, step: Callable[..., object], *arguments: object) -> object:
        while True:
            try:
                return step(*arguments)
            except ssl.SSLWantReadError:
                self.raw.sendall(self.outgoing.read())
                data = self.raw.recv(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            except ssl.SSLZeroReturnError:
                return b""

    def recv(self, size: int) -> object:
        return self._until(self.tls.read, size)

    def sendall(self, data: bytes) -> None:
        self.tls.write(data)
        self.raw.sendall(self.outgoing.read())

    def send_and_end(self, data: bytes) -> None:
        self.tls.write(data)
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.raw.sendall(self.outgoing.read())

    def close(self) -> None:
        self.raw.close()


@contextmanager
def answering(work: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a listener whose connections `work` serves, one after another, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            try:
                work(listener)
            except (OSError, EOFError, AssertionError):
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@contextmanager
def somebody_between(port: int, authority: Authority, tmp_path: Path) -> Iterator[int]:
    """Ends TLS with a certificate of his own, and passes on to `port` what is said; a login's turns are enough."""
    issued = authority.issue("localhost")
    (tmp_path / "pem").write_bytes(issued.certificate + issued.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    def work(listener: socket.socket) -> None:
        with listener.accept()[0] as raw:
            assert raw.recv(8) == SSL_REQUEST
            raw.sendall(b"S")
            with context.wrap_socket(raw, server_side=True) as client, WireClient(port) as server:
                server.encrypt(trusting())
                for source, sink in ((client, server.socket), (server.socket, client)) * 4:
                    data = source.recv(65536)
                    if not data:
                        return
                    sink.sendall(data)

    with answering(work) as between:
        yield between
