"""An origin that has let pgnear in honestly, and then says what no PostgreSQL would: frames exchanged at random."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import ExitStack
from struct import pack

from protocol.framing import FrameReader
from tests.support.wire import frame

LARGEST_FRAME = 1 << 24


def lies(kind: str, body: bytes) -> list[bytes]:
    """What may come in place of a frame."""
    return [
        frame(kind),
        frame(kind, body[: len(body) // 2]),
        frame(kind, body + b"more"),
        frame(kind, b"\xff" * len(body)),
        frame(kind, b"\0" * len(body)),
        frame(kind, pack("!H", 65535) + body[2:]),
        b"",
        frame(kind, body) * 3,
        frame("D", pack("!H", 0)),
        frame("D", pack("!Hi", 1, -1)),
        frame("D", pack("!Hi", 1, 3) + b"\xff\xfe\xfd"),
        frame("D", pack("!H", 12) + (pack("!i", 2) + b"no") * 12),
        frame("C"),
        frame("S", b"TimeZone\0"),
        frame("S", b"client_encoding\0EBCDIC\0"),
        frame("A", b"\0\0"),
        frame("N"),
        frame("W", b"\0\0\0"),
        frame("d", b"w" + b"\0" * 7),
        frame("Z", b"?"),
    ]


class Liar:
    """Passes bytes between pgnear and the server at `target_port`; while `share` > 0, that share of what comes from
    there after a login is a lie."""

    def __init__(self, target_port: int, seed: int) -> None:
        self.share = 0.0
        self.told = 0
        self._chance = random.Random(seed)
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(near)
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target_port)))
            back = threading.Thread(target=self._back, args=(server, near), daemon=True)
            back.start()
            try:
                while data := near.recv(65536):
                    server.sendall(data)
                server.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            back.join(5)

    def _back(self, server: socket.socket, near: socket.socket) -> None:
        reader = FrameReader(LARGEST_FRAME)
        logged_in = False
        try:
            while data := server.recv(65536):
                reader.feed(data)
                said = b""
                while (message := reader.next()) is not None:
                    kind, body = chr(message[0]), message[1]
                    said += self._said(kind, body) if logged_in else frame(kind, body)
                    logged_in = logged_in or kind == "Z"
                near.sendall(said)
            near.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _said(self, kind: str, body: bytes) -> bytes:
        if self._chance.random() >= self.share:
            return frame(kind, body)
        self.told += 1
        return self._chance.choice(lies(kind, body))
