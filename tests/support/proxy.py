"""A TCP proxy between pgnear and its origin that can be told to freeze, cut and refuse: a network having a bad day."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from struct import pack


class Proxy:
    """Passes bytes both ways between its `port` and `target_port`, in a thread, until told otherwise.

    `freeze` stops passing bytes (connections stay open), `thaw` goes on; `cut_after` closes every connection to the
    client side once it has passed so many more bytes from the origin; `cut` closes them now; `refuse` closes new ones
    at once. `lag` delays every piece, `throttle` passes so many bytes a second; `reset` ends connections by RST;
    `vanish` makes the far side disappear without a word: what is sent then is swallowed, and nothing ever comes.
    """

    def __init__(self, target_port: int, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target_port = target_port
        self._listener = socket.create_server((host, port))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self.passed_from_origin = 0
        self.behind_login = b""  # what the next connection's first ReadyForQuery is followed by, in the same write
        self._lock = threading.RLock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._budget: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lag = 0.0
        self._rate: float | None = None
        self._vanished: set[tuple[socket.socket, socket.socket]] = set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, user: str, password: str, database: str = "postgres") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def refuse(self, refusing: bool = True) -> None:
        self._refusing = refusing

    def cut_after(self, size: int) -> None:
        self._budget = size

    def cut(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def lag(self, seconds: float) -> None:
        self._lag = seconds

    def throttle(self, bytes_a_second: float | None) -> None:
        self._rate = bytes_a_second

    def reset(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for client, origin in pairs:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
            self._end((client, origin), shut=False)

    def vanish(self) -> None:
        """The origin's ends are closed, the clients' ends are kept, and nobody reads them any more."""
        with self._lock:
            pairs = list(self._pairs)
            self._vanished |= set(pairs)
        for _, origin in pairs:
            try:
                origin.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._refusing:
                _reset(client)
                continue
            try:
                origin = socket.create_connection(("127.0.0.1", self._target_port), timeout=10)
            except OSError:
                _reset(client)
                continue
            for sock in (client, origin):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, origin)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._pass, args=(pair,), daemon=True).start()

    def _pass(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, origin = pair
        selector = selectors.DefaultSelector()
        try:
            selector.register(client, selectors.EVENT_READ, origin)
            selector.register(origin, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    self._flowing.wait()
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(65536 if self._rate is None else 1024)
                    if pair in self._vanished:
                        return
                    if self._lag:
                        time.sleep(self._lag)
                    if self._rate is not None:
                        time.sleep(len(data) / self._rate)
                    if not data:
                        return
                    if source is origin:
                        if self.behind_login and data.endswith(b"Z\0\0\0\5I"):
                            data += self.behind_login
                            self.behind_login = b""
                        data, last = self._allowed(data)
                        self.passed_from_origin += len(data)
                        key.data.sendall(data)
                        if last:
                            return
                    else:
                        key.data.sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            selector.close()
            if pair in self._vanished:
                pair[1].close()
            else:
                self._end(pair)

    def _allowed(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self._budget is None:
                return data, False
            part = data[: self._budget]
            self._budget -= len(part)
            last = not self._budget
            if last:
                self._budget = None
            return part, last

    def _end(self, pair: tuple[socket.socket, socket.socket], *, shut: bool = True) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for sock in pair:
            try:
                if shut:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
    sock.close()
