"""A client's way in as a sans-I/O state machine: encryption requests, the startup packet, SCRAM.

Lives here: what may come when, and what it is answered with. Not here: sockets, the TLS handshake, deadlines, who may
come in (`pooler.ceremony.login`). Source: PostgreSQL documentation, "Message Flow", sections "Start-up", "SSL Session
Encryption" and "SASL Authentication".

    step     what the client's next bytes are          goes on to
    PACKET   a packet without a type byte              PACKET (asked to go on in plaintext), TLS, PROOF, CANCEL, IN
    TLS      a handshake's; whoever does it says so    PACKET (`encrypted`)
             when it is done
    PROOF    SASL responses                            PROOF, IN
    CANCEL   nothing: `request` says what to cancel
    IN       what comes behind a login: `rest`

Anything else is a PgError, and the end.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import lru_cache

from protocol import startup
from protocol.auth import ScramServer
from protocol.errors import not_a_startup, plaintext_after_ssl_request, protocol_violation
from protocol.framing import HEADER_BYTES, frame_end

PASSWORD_FRAME_LIMIT = 65536
"""The largest authentication message of a client, in bytes."""

MOST_PACKETS = 3
"""GSSENCRequest, SSLRequest, and then it must be the startup packet or a CancelRequest."""

_CLIENT_HELLO = 0x16
"""The first byte of a TLS handshake. A startup packet of such a length would not be accepted."""

_SASL_RESPONSE = ord("p")


Admit = Callable[[startup.StartupMessage], ScramServer | None]
"""Given a startup packet, the SCRAM exchange that it must pass, or None where it need not. Raises PgError."""

REMEMBERED_BYTES = 1024
"""The largest packet of which is remembered how it reads. Clients that are made by the same program send the same."""

_read = lru_cache(256)(startup.parse_startup)


class Step(Enum):
    """Where a client stands: see the table above."""

    PACKET = auto()
    TLS = auto()
    PROOF = auto()
    CANCEL = auto()
    IN = auto()


class Entry:
    """One client's way in.

    Args:
      offers_tls: whether an SSLRequest is answered with yes.

    Attributes:
      direct: the client began with TLS, without asking. is_encrypted: the handshake is over.
      request: the startup packet or CancelRequest, once it is there. packet: its bytes.
      rest: bytes that came and no message took.
    """

    __slots__ = ("_offers_tls", "_packets", "_scram", "direct", "is_encrypted", "packet", "request", "rest", "step")

    def __init__(self, offers_tls: bool) -> None:
        self._offers_tls = offers_tls
        self._scram: ScramServer | None = None
        self._packets = 0
        self.step = Step.PACKET
        self.direct = False
        self.is_encrypted = False
        self.request: startup.StartupMessage | startup.CancelRequest | None = None
        self.packet = b""
        self.rest = b""

    def feed(self, data: bytes, admit: Admit) -> bytes:
        """Take what the client has sent, in PACKET or PROOF; what to answer, which may be nothing yet.

        Where that ends in IN, the answer is the end of authentication and travels with whatever comes behind it, as a
        server sends it. Where it ends in TLS, `rest` is the handshake's.

        Raises:
          PgError: it is refused; 28P01 for a wrong password, and for an unknown user as late and as slowly.
        """
        self.rest = self.rest + data if self.rest else data
        out = b""
        while True:
            step = self.step
            if step is Step.PACKET:
                answer = self._packet(admit)
            elif step is Step.PROOF:
                answer = self._proof()
            else:
                return out
            if answer is None:
                return out
            out += answer

    def encrypted(self) -> None:
        """The handshake is done: what comes now comes through TLS."""
        self.is_encrypted = True
        self.step = Step.PACKET
        self.rest = b""

    def _packet(self, admit: Admit) -> bytes | None:
        """Take one startup-style packet, if it is there whole; its answer."""
        rest = self.rest
        if not rest:
            return None
        if rest[0] == _CLIENT_HELLO and self._offers_tls and not self._packets and not self.is_encrypted:
            self.direct = True
            self.step = Step.TLS
            return b""
        if len(rest) < 4:
            return None
        length = int.from_bytes(rest[:4], "big")
        if not 8 <= length <= startup.MAX_STARTUP_BYTES:
            raise not_a_startup(f"invalid length of startup packet: {length}")
        if len(rest) < length:
            return None
        packet, self.rest = rest[:length], rest[length:]
        self.packet = packet
        request = _read(packet) if length <= REMEMBERED_BYTES else startup.parse_startup(packet)
        self._packets += 1
        if isinstance(request, startup.StartupMessage):
            self.request = request
            self._scram = admit(request)
            if self._scram is None:
                self.step = Step.IN
                return b""
            self.step = Step.PROOF
            return self._scram.start()
        if isinstance(request, startup.CancelRequest):
            self.request = request
            self.step = Step.CANCEL
            return b""
        return self._encryption(isinstance(request, startup.SSLRequest))

    def _encryption(self, wants_tls: bool) -> bytes:
        """An encryption request's answer. With GSSAPI there is none here."""
        if wants_tls and self.is_encrypted:
            raise protocol_violation("SSLRequest on a connection that is encrypted already")
        if self.rest:  # sent in plaintext behind it: an attacker's or a bug's (CVE-2021-23214)
            raise plaintext_after_ssl_request()
        if self._packets >= MOST_PACKETS:
            raise protocol_violation("too many encryption requests")
        if not wants_tls or not self._offers_tls:
            return b"N"
        self.step = Step.TLS
        return b"S"

    def _proof(self) -> bytes | None:
        """Take one SASL response, if it is there whole; its answer."""
        assert self._scram is not None
        rest = self.rest
        if len(rest) < HEADER_BYTES:
            return None
        end = frame_end(rest, 0, PASSWORD_FRAME_LIMIT)
        if end > len(rest):
            return None
        if rest[0] != _SASL_RESPONSE:
            raise protocol_violation(f"expected a SASL response, got message type {chr(rest[0])!r}")
        self.rest = rest[end:]
        answer, done = self._scram.feed(rest[HEADER_BYTES:end])
        if done:
            self.step = Step.IN
        return answer
