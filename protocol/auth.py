"""Authentication as sans-I/O state machines: SCRAM-SHA-256 and -PLUS on both sides, md5 and cleartext towards an
origin.

The SCRAM arithmetic is scramp's; here is how it travels in PostgreSQL's messages. Source: PostgreSQL documentation,
"SASL Authentication"; RFC 5802, RFC 7677, RFC 5929 (tls-server-end-point).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from scramp import ScramClient, ScramException, ScramMechanism
from scramp.utils import saslprep

from protocol.errors import auth_failed, malformed_scram, origin_unreachable, protocol_violation
from protocol.scram_grammar import check_final, check_first

SCRAM = "SCRAM-SHA-256"
SCRAM_PLUS = "SCRAM-SHA-256-PLUS"
AUTHENTICATION_OK = b"R\0\0\0\x08\0\0\0\0"
SALT_BYTES = 16
"""PostgreSQL's own; the salt shown for a user who does not exist must look like any other."""
NONCE_BYTES = 18
"""PostgreSQL's own. scramp's is half as long again, and it looks at each letter several times."""

_MECHANISMS = {name: ScramMechanism(name) for name in (SCRAM, SCRAM_PLUS)}
_BINDING = "tls-server-end-point"
_OK, _CLEARTEXT, _MD5, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 10, 11, 12

LEAST_ITERATIONS, MOST_ITERATIONS = 4096, 10_000_000
"""What scramp takes: RFC 7677's least, and what is no denial of service yet."""

MOST_ROUNDS = 1_000_000
"""What an origin may ask of pgnear: clients wait while they are worked through, some tenths of a second for so many."""


def tls_server_end_point(certificate: bytes) -> bytes:
    """The channel binding data of a certificate in DER: its hash, SHA-256 where its own is MD5 or SHA-1 (RFC 5929)."""
    algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    name = algorithm.name if algorithm is not None else "sha256"
    return hashlib.new("sha256" if name in ("md5", "sha1") else name, certificate).digest()


class _Password:
    """A password's bytes as PostgreSQL and libpq take them: by SASLprep, or as they are where that refuses them."""

    def __init__(self, password: str) -> None:
        self._password = password

    def __bytes__(self) -> bytes:
        try:
            return bytes(saslprep(self._password), "utf-8") or self._password.encode()
        except ScramException:
            return self._password.encode()


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What a server keeps of a password: enough to check it, not enough to log in with."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def from_password(cls, password: str, iterations: int = 4096, *, salt: bytes | None = None) -> ScramVerifier:
        """What PostgreSQL would store for `password`, with a fresh salt unless one is given."""
        salt = salt or secrets.token_bytes(SALT_BYTES)
        salted = hashlib.pbkdf2_hmac("sha256", bytes(_Password(password)), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        return cls(iterations, salt, hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))

    @classmethod
    def parse(cls, text: str) -> ScramVerifier:
        """A verifier as PostgreSQL stores it in pg_authid: `SCRAM-SHA-256$<iterations>:<salt>$<stored>:<server>`.

        Raises:
          ValueError: it is something else.
        """
        try:
            mechanism, head, keys = text.split("$")
            count, salt = head.split(":")
            stored, server = keys.split(":")
            raw = [base64.b64decode(part, validate=True) for part in (salt, stored, server)]
        except ValueError:
            raise ValueError("not of the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>") from None
        if mechanism != SCRAM or not count.isdecimal() or len(raw[1]) != 32 or len(raw[2]) != 32:
            raise ValueError("not a SCRAM-SHA-256 verifier")
        if not LEAST_ITERATIONS <= int(count) <= MOST_ITERATIONS:
            raise ValueError(f"{count} iterations; {LEAST_ITERATIONS} to {MOST_ITERATIONS} are supported")
        return cls(int(count), *raw)

    @classmethod
    def doomed(cls, user: str) -> ScramVerifier:
        """For a user who does not exist: nothing matches it, and its salt is the same each time they ask."""
        salt = hmac.digest(_MOCK_SECRET, user.encode(), "sha256")[:SALT_BYTES]
        return cls(4096, salt, secrets.token_bytes(32), secrets.token_bytes(32))


_MOCK_SECRET = secrets.token_bytes(32)


def _authentication(code: int, data: bytes = b"") -> bytes:
    return b"R" + (8 + len(data)).to_bytes(4, "big") + code.to_bytes(4, "big") + data


def _nonce() -> str:
    """A server's part of a SCRAM exchange's nonce."""
    return base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode()


class ScramServer:
    """One client's SCRAM exchange.

    Args:
      verifiers: the user's, the current one first; former ones that will do as well behind it. Those with another
        salt or number of iterations are left out, for the client is told of one. None at all is a user who does not
        exist; that fails after the same work.
      channel_binding: the own certificate's `tls_server_end_point`, or None without TLS.
    """

    def __init__(
        self,
        verifiers: Sequence[ScramVerifier],
        user: str,
        channel_binding: bytes | None,
    ) -> None:
        self._known = bool(verifiers)
        first, *former = verifiers or (ScramVerifier.doomed(user),)
        alike = [each for each in former if (each.salt, each.iterations) == (first.salt, first.iterations)]
        self._verifiers = (first, *alike)
        self._user = user
        self._channel_binding = channel_binding
        self._servers: list[Any] = []
        self._flag = self._nonce = b""  # what the client's first message began with, and the nonce of both

    def start(self) -> bytes:
        """The AuthenticationSASL frame: the mechanisms on offer."""
        mechanisms = ([SCRAM_PLUS] if self._channel_binding is not None else []) + [SCRAM]
        return _authentication(_SASL, b"".join(name.encode() + b"\0" for name in mechanisms) + b"\0")

    def feed(self, payload: bytes) -> tuple[bytes, bool]:
        """Take a SASLInitialResponse or SASLResponse; (frame to send, authenticated?).

        Raises:
          PgError: 28P01 where the proof is wrong, 08P01 for a message that is no SCRAM.
        """
        if not self._servers:
            return self._first(payload), False
        return self._final(payload), True

    def _first(self, payload: bytes) -> bytes:
        name, separator, rest = payload.partition(b"\0")
        mechanism = name.decode("ascii", errors="replace")
        if not separator:
            raise protocol_violation("invalid string in message")
        if mechanism not in _MECHANISMS or (mechanism == SCRAM_PLUS and self._channel_binding is None):
            raise protocol_violation("client selected an invalid SASL authentication mechanism")
        length = int.from_bytes(rest[:4], "big", signed=True)
        if length == -1 and len(rest) == 4:
            raise protocol_violation("a SASLInitialResponse without SCRAM's first message")
        if len(rest) < 4 or not 0 <= length <= len(rest) - 4:
            raise protocol_violation("insufficient data left in message")
        if length < len(rest) - 4:
            raise protocol_violation("invalid message format")
        raw = rest[4:]
        check_first(raw, plus=mechanism == SCRAM_PLUS, can_bind=self._channel_binding is not None)
        message = self._text(raw)
        self._flag = raw[:1]
        nonce = _nonce()  # the client is told of one, and all of them must know it
        self._servers = [self._server(mechanism, verifier, nonce) for verifier in self._verifiers]
        try:
            for server in self._servers:
                self._set_client_first(server, message)
                first = server.get_server_first()
        except ScramException as error:
            raise malformed_scram(str(error)) from None
        self._nonce = first.removeprefix("r=").partition(",")[0].encode()
        return _authentication(_SASL_CONTINUE, first.encode())

    def _server(self, mechanism: str, verifier: ScramVerifier, nonce: str) -> Any:
        return _MECHANISMS[mechanism].make_server(
            lambda _user: (verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations),
            channel_binding=(_BINDING, self._channel_binding) if self._channel_binding is not None else None,
            s_nonce=nonce,
        )

    @staticmethod
    def _set_client_first(server: Any, message: str) -> None:
        """Give scramp the client's first message.

        libpq leaves the SCRAM user name empty, as the startup packet has it, and scramp refuses an empty name. So
        scramp reads a stand-in, and the text that both sides sign is put back.
        """
        header, separator, bare = message.partition(",n=,")
        if not separator:
            server.set_client_first(message)
            return
        server.set_client_first(f"{header},n=*,{bare}")
        server.client_first_bare = f"n=,{bare}"

    def _final(self, payload: bytes) -> bytes:
        check_final(payload, flag=self._flag, nonce=self._nonce)
        message = self._text(payload)
        final = ""
        for server in self._servers:  # each of them, whichever fits
            try:
                server.set_client_final(message)
                final = server.get_server_final()
            except ScramException:
                pass
        if not final or not self._known:
            raise auth_failed(self._user)
        return _authentication(_SASL_FINAL, final.encode())

    @staticmethod
    def _text(raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise malformed_scram("It is not UTF-8.") from None


def _bearable(server_first: str) -> None:
    """Raises PgError where the server's first message asks for more rounds than can be worked through meanwhile."""
    rounds = server_first.rpartition(",i=")[2]
    if rounds.isdecimal() and (len(rounds) > 9 or int(rounds) > MOST_ROUNDS):
        raise origin_unreachable(f"it asks for {rounds[:20]} rounds of SCRAM; {MOST_ROUNDS} are the most")


class OriginAuthenticator:
    """pgnear's side of logging in to an origin; fed with Authentication messages until AuthenticationOk.

    Args:
      channel_binding: the origin certificate's `tls_server_end_point`, or None without TLS.
      cleartext_allowed: whether a cleartext password may be sent: over TLS, or to this machine.
    """

    def __init__(self, user: str, password: str, *, channel_binding: bytes | None, cleartext_allowed: bool) -> None:
        self._user = user
        self._password = password
        self._channel_binding = channel_binding
        self._cleartext_allowed = cleartext_allowed
        self._client: Any = None
        self._verified = True

    def feed(self, payload: bytes) -> bytes | None:
        """Take an Authentication message's body; the answer to send, or None.

        Raises:
          PgError: the origin asks for what is not supported or not safe, or could not prove that it knows the password.
        """
        code, data = int.from_bytes(payload[:4], "big"), payload[4:]
        if code == _OK:
            if not self._verified:
                raise origin_unreachable("it said AuthenticationOk without finishing SCRAM")
            return None
        if code == _CLEARTEXT:
            if not self._cleartext_allowed:
                raise origin_unreachable("it asks for a cleartext password on an unencrypted connection")
            return self._response(self._password.encode() + b"\0")
        if code == _MD5:
            return self._response(self._md5(data[:4]) + b"\0")
        try:
            if code == _SASL:
                return self._start_scram(data)
            if code == _SASL_CONTINUE and self._client is not None:
                _bearable(data.decode())
                self._client.set_server_first(data.decode())
                return self._response(self._client.get_client_final().encode())
            if code == _SASL_FINAL and self._client is not None:
                self._client.set_server_final(data.decode())
                self._verified = True
                return None
        except (ScramException, UnicodeDecodeError) as error:
            raise origin_unreachable(f"SCRAM failed: {error}") from None
        raise origin_unreachable(f"it asks for authentication method {code}, which pgnear does not know")

    def _start_scram(self, data: bytes) -> bytes:
        offered = [name.decode("ascii", errors="replace") for name in data.split(b"\0") if name]
        plus = SCRAM_PLUS in offered and self._channel_binding is not None
        if not plus and SCRAM not in offered:
            raise origin_unreachable(f"it offers only {', '.join(offered) or 'no'} authentication")
        name = SCRAM_PLUS if plus else SCRAM
        # Without -PLUS in the offer the client says "y": it could bind. libpq does the same.
        binding = (_BINDING, self._channel_binding) if self._channel_binding is not None else None
        # The user is the startup packet's, so the name given here means nothing; and scramp refuses some passwords.
        self._client = ScramClient([name], "*", "", channel_binding=binding)
        self._client.password = _Password(self._password)
        self._verified = False
        first = self._client.get_client_first().encode()
        return self._response(name.encode() + b"\0" + len(first).to_bytes(4, "big") + first)

    def _md5(self, salt: bytes) -> bytes:
        inner = hashlib.md5((self._password + self._user).encode(), usedforsecurity=False).hexdigest()
        return b"md5" + hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode()

    @staticmethod
    def _response(data: bytes) -> bytes:
        return b"p" + (len(data) + 4).to_bytes(4, "big") + data
