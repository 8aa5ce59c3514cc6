"""What comes before the first message with a type byte: encryption requests, cancel requests, the startup packet.

Source: PostgreSQL documentation, "Message Formats" (SSLRequest, GSSENCRequest, CancelRequest, StartupMessage,
NegotiateProtocolVersion).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.errors import (
    not_a_startup,
    protocol_violation,
    startup_encoding,
    startup_option_without_value,
    unknown_startup_option,
)

MAX_STARTUP_BYTES = 10004
"""The largest startup packet PostgreSQL accepts: MAX_STARTUP_PACKET_LENGTH and the length field."""

_SSL_REQUEST = 80877103
_GSSENC_REQUEST = 80877104
_CANCEL_REQUEST = 80877102


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The client would like TLS."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The client would like GSSAPI encryption."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel what the connection with this key works on. `secret`: 4 bytes, up to 256 with protocol 3.2."""

    pid: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """Protocol version and parameters, `user` among them."""

    major: int
    minor: int
    parameters: Mapping[str, str]


def parse_startup(packet: bytes) -> SSLRequest | GSSENCRequest | CancelRequest | StartupMessage:
    """Read one packet, its length field included.

    Raises:
      PgError: 08P01 for a packet that is not what it says.
    """
    if len(packet) < 8 or len(packet) > MAX_STARTUP_BYTES or int.from_bytes(packet[:4], "big") != len(packet):
        raise not_a_startup("invalid length of startup packet")
    code = int.from_bytes(packet[4:8], "big")
    if code == _SSL_REQUEST and len(packet) == 8:
        return SSLRequest()
    if code == _GSSENC_REQUEST and len(packet) == 8:
        return GSSENCRequest()
    if code == _CANCEL_REQUEST:
        if not 16 <= len(packet) <= 12 + 256:
            raise not_a_startup("invalid length of query cancel packet")
        return CancelRequest(int.from_bytes(packet[8:12], "big"), packet[12:])
    major, minor = code >> 16, code & 0xFFFF
    parameters = _parameters(packet[8:]) if major == 3 else {}
    return StartupMessage(major, minor, parameters)


def _parameters(body: bytes) -> dict[str, str]:
    """Name/value pairs up to the empty name that must be the last byte."""
    fields = body.split(b"\0")
    if len(fields) < 2 or fields[-1] or fields[-2] or len(fields) % 2:
        raise protocol_violation("invalid startup packet layout: expected terminator as last byte")
    try:
        texts = [field.decode() for field in fields[:-2]]
    except UnicodeDecodeError:
        raise startup_encoding() from None
    names = texts[::2]
    if not all(names):
        raise protocol_violation("invalid startup packet layout: expected terminator as last byte")
    return dict(zip(names, texts[1::2], strict=True))


def parse_options(options: str) -> list[tuple[str, str]]:
    """The settings in a startup packet's `options`: `-c name=value`, `-cname=value` and `--name=value`.

    A backslash quotes the next character, as in PostgreSQL's `pg_split_opts`.

    Raises:
      PgError: 42601 for anything else, as PostgreSQL says.
    """
    words = _split_options(options)
    settings = []
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            assignment = words.pop(0)
        elif word.startswith(("-c", "--")):
            assignment = word[2:]
        else:
            raise unknown_startup_option(word)
        name, equals, value = assignment.partition("=")
        if not name or not equals:
            raise startup_option_without_value(assignment)
        settings.append((name.replace("-", "_"), value))
    return settings


def _split_options(options: str) -> list[str]:
    words: list[str] = []
    word: list[str] | None = None
    characters = iter(options)
    for character in characters:
        if character.isspace():
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        if character == "\\":
            character = next(characters, "")
        word = [*(word or ()), character]
    if word is not None:
        words.append("".join(word))
    return words


def startup_message(parameters: dict[str, str], version: tuple[int, int] = (3, 0)) -> bytes:
    """A StartupMessage. Raises ValueError for a NUL in a name or value."""
    body = bytearray((version[0] << 16 | version[1]).to_bytes(4, "big"))
    for name, value in parameters.items():
        if "\0" in name or "\0" in value:
            raise ValueError(f"NUL in startup parameter {name!r}")
        body += name.encode() + b"\0" + value.encode() + b"\0"
    body += b"\0"
    return (len(body) + 4).to_bytes(4, "big") + bytes(body)


def ssl_request() -> bytes:
    """An SSLRequest."""
    return (8).to_bytes(4, "big") + _SSL_REQUEST.to_bytes(4, "big")


def cancel_request(pid: int, secret: bytes) -> bytes:
    """A CancelRequest for the connection whose BackendKeyData held `pid` and `secret`."""
    body = _CANCEL_REQUEST.to_bytes(4, "big") + pid.to_bytes(4, "big") + secret
    return (len(body) + 4).to_bytes(4, "big") + body


def negotiate_protocol_version(minor: int, unknown_options: list[str]) -> bytes:
    """A NegotiateProtocolVersion frame: the newest minor version that is supported, the options that are not."""
    body = (3 << 16 | minor).to_bytes(4, "big") + len(unknown_options).to_bytes(4, "big")
    body += b"".join(option.encode() + b"\0" for option in unknown_options)
    return b"v" + (len(body) + 4).to_bytes(4, "big") + body
