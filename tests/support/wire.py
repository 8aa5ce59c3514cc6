"""A client that speaks the wire protocol message by message, for what no driver would send or show.

Independent of `protocol/`: what is tested does not check itself. Blocking socket, every read has a deadline.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import select
import socket
import ssl
from collections.abc import Sequence
from functools import lru_cache
from struct import pack, unpack

from tests.support.postgres import PASSWORD

Frame = tuple[str, bytes]
"""(message type, body)."""

SSL_REQUEST = pack("!II", 8, 80877103)
GSSENC_REQUEST = pack("!II", 8, 80877104)


def frame(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + pack("!I", len(body) + 4) + body


def startup(parameters: dict[str, str], *, minor: int = 0) -> bytes:
    body = pack("!I", 3 << 16 | minor)
    for name, value in parameters.items():
        body += name.encode() + b"\0" + value.encode() + b"\0"
    body += b"\0"
    return pack("!I", len(body) + 4) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    return pack("!III", 12 + len(secret), 80877102, pid) + secret


def query(text: str) -> bytes:
    return frame("Q", text.encode() + b"\0")


def parse(text: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    return frame("P", name.encode() + b"\0" + text.encode() + b"\0" + pack(f"!H{len(types)}I", len(types), *types))


def bind(
    name: str = "",
    values: Sequence[bytes | None] = (),
    *,
    portal: str = "",
    formats: Sequence[int] = (),
    result_formats: Sequence[int] = (),
) -> bytes:
    body = portal.encode() + b"\0" + name.encode() + b"\0" + pack(f"!H{len(formats)}H", len(formats), *formats)
    body += pack("!H", len(values))
    for value in values:
        body += pack("!i", -1) if value is None else pack("!i", len(value)) + value
    return frame("B", body + pack(f"!H{len(result_formats)}H", len(result_formats), *result_formats))


def describe(what: str = "P", name: str = "") -> bytes:
    return frame("D", what.encode() + name.encode() + b"\0")


def execute(portal: str = "", limit: int = 0) -> bytes:
    return frame("E", portal.encode() + b"\0" + pack("!I", limit))


def close(what: str = "S", name: str = "") -> bytes:
    return frame("C", what.encode() + name.encode() + b"\0")


SYNC = frame("S")
FLUSH = frame("H")
TERMINATE = frame("X")


def error_fields(body: bytes) -> dict[str, str]:
    """An ErrorResponse's fields by their letter."""
    return {chr(field[0]): field[1:].decode() for field in body.split(b"\0") if field}


def rows(frames: list[Frame]) -> list[list[bytes | None]]:
    """The columns of every DataRow in `frames`."""
    found = []
    for kind, body in frames:
        if kind != "D":
            continue
        columns: list[bytes | None] = []
        position = 2
        for _ in range(unpack("!H", body[:2])[0]):
            (length,) = unpack("!i", body[position : position + 4])
            position += 4
            columns.append(None if length < 0 else body[position : position + length])
            position += max(length, 0)
        found.append(columns)
    return found


class Refused(Exception):
    """The server said FATAL (or ERROR) during login. `fields` has its words."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields.get("M"))
        self.fields = fields
        self.sqlstate = fields.get("C")


class WireClient:
    """One connection.

    Attributes:
      pid, secret: its BackendKeyData. parameters: ParameterStatus values.
      greeting: every frame of the login but those of authentication.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", timeout: float = 40.0, source: str = "") -> None:
        self.socket: socket.socket = socket.create_connection((host, port), timeout=timeout, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.pid = 0
        self.secret = b""
        self.parameters: dict[str, str] = {}
        self.greeting: list[Frame] = []
        self.salt = b""
        self.iterations = 0

    @classmethod
    def logged_in(
        cls,
        port: int,
        *,
        user: str = "postgres",
        password: str = PASSWORD,
        database: str = "postgres",
        minor: int = 0,
        timeout: float = 40.0,
        **parameters: str,
    ) -> WireClient:
        client = cls(port, timeout=timeout)
        try:
            client.log_in(user, password, database, minor=minor, **parameters)
        except BaseException:
            client.hang_up()
            raise
        return client

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    # ---- bytes and frames --------------------------------------------------------------------------------------------

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
          EOFError: the server closed the connection. TimeoutError: nothing came in time.
        """
        parts = [self.buffer]
        have = len(self.buffer)
        while have < size:
            data = self.socket.recv(max(65536, size - have))
            if not data:
                self.buffer = b"".join(parts)
                raise EOFError("the server closed the connection")
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def receive(self) -> Frame:
        """The next frame."""
        head = self.read(5)
        (length,) = unpack("!I", head[1:])
        return chr(head[0]), self.read(length - 4)

    def receive_until(self, kinds: str = "Z") -> list[Frame]:
        """Frames up to and with the first whose type is one of `kinds`."""
        frames: list[Frame] = []
        while not frames or frames[-1][0] not in kinds:
            frames.append(self.receive())
        return frames

    def receive_all(self) -> list[Frame]:
        """Frames until the server closes the connection."""
        frames: list[Frame] = []
        while True:
            try:
                frames.append(self.receive())
            except (EOFError, ConnectionError):
                return frames

    def fatal(self) -> dict[str, str]:
        """The fields of the error that is the last thing the server says before it closes."""
        frames = self.receive_all()
        assert [kind for kind, _ in frames][-1:] == ["E"], frames
        fields = error_fields(frames[-1][1])
        assert fields["S"] == fields["V"] == "FATAL"
        return fields

    def has_failed(self) -> bool:
        """Whether an ErrorResponse waits to be received, or the server has closed the connection."""
        waiting = self.buffer
        if select.select([self.socket], [], [], 0)[0]:
            try:
                peeked = self.socket.recv(65536, socket.MSG_PEEK)
            except ConnectionError:
                return True
            if not peeked:
                return True
            waiting += peeked
        return b"SERROR\0V" in waiting or b"SFATAL\0V" in waiting

    def ask(self, *messages: bytes, syncs: int = 1) -> list[Frame]:
        """Send, and read up to the `syncs`th ReadyForQuery."""
        self.send(*messages)
        return [received for _ in range(syncs) for received in self.receive_until("Z")]

    def query(self, text: str) -> list[Frame]:
        return self.ask(query(text))

    def one(self, text: str) -> bytes | None:
        """The first column of the first row of a simple Query."""
        frames = self.query(text)
        errors = [error_fields(body) for kind, body in frames if kind == "E"]
        assert not errors, errors
        return rows(frames)[0][0]

    # ---- login -------------------------------------------------------------------------------------------------------

    def encrypt(self, context: ssl.SSLContext, *, host: str = "localhost") -> None:
        """SSLRequest, and TLS."""
        self.send(SSL_REQUEST)
        assert self.read(1) == b"S"
        self.socket = context.wrap_socket(self.socket, server_hostname=host)

    def log_in(self, user: str, password: str, database: str, *, minor: int = 0, **parameters: str) -> None:
        """The startup packet and everything up to ReadyForQuery.

        Raises:
          Refused: the server said no.
        """
        self.send(startup({"user": user, "database": database, **parameters}, minor=minor))
        self.log_in_from_here(password)

    def log_in_from_here(self, password: str) -> None:
        """What follows the startup packet, which was sent."""
        scram: _Scram | None = None
        while True:
            kind, body = self.receive()
            if kind == "E":
                raise Refused(error_fields(body))
            if kind == "R":
                (code,) = unpack("!I", body[:4])
                if code == 10:
                    scram = _Scram(password)
                    first = scram.first()
                    self.send(frame("p", b"SCRAM-SHA-256\0" + pack("!I", len(first)) + first))
                elif code == 11:
                    assert scram is not None
                    self.send(frame("p", scram.final(body[4:])))
                    self.salt, self.iterations = scram.salt, scram.iterations
                elif code == 12:
                    assert scram is not None
                    assert scram.accepts(body[4:]), "the server does not know the password"
                else:
                    assert code == 0, f"authentication request {code}"
                continue
            self.greeting.append((kind, body))
            if kind == "S":
                name, value = body[:-1].split(b"\0")
                self.parameters[name.decode()] = value.decode()
            elif kind == "K":
                self.pid = unpack("!I", body[:4])[0]
                self.secret = body[4:]
            elif kind == "Z":
                return

    # ---- the end -----------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Say goodbye and close."""
        self.send(TERMINATE)
        self.hang_up()

    def hang_up(self) -> None:
        """Close without a word."""
        self.socket.close()

    def reset(self) -> None:
        """Close so that the other side gets a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        self.socket.close()


class _Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802), without channel binding."""

    def __init__(self, password: str) -> None:
        self._password = password
        self._nonce = base64.b64encode(secrets.token_bytes(18)).decode()
        self._server_signature = b""
        self.salt = b""
        self.iterations = 0

    def first(self) -> bytes:
        return f"n,,n=,r={self._nonce}".encode()

    def final(self, server_first: bytes) -> bytes:
        fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
        assert fields["r"].startswith(self._nonce)
        self.salt, self.iterations = base64.b64decode(fields["s"]), int(fields["i"])
        salted = _salted(self._password, self.salt, self.iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={fields['r']}"
        message = f"n=,r={self._nonce},{server_first.decode()},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def accepts(self, server_final: bytes) -> bool:
        return server_final == b"v=" + base64.b64encode(self._server_signature)


@lru_cache(maxsize=64)
def _salted(password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
