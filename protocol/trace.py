"""Prints messages as libpq's PQtrace does: direction, length, name, fields, separated by tabs; one message, one line.

It differs from libpq in five things: secrets are `***`, control characters are escaped, Int8 and Int16 are signed
numbers, long values can be cut, and CopyData shows what it carries. Texts and values of statements are shown as they
are, but for `PASSWORD '...'`: a trace holds whatever the application sends.

Sans-I/O; the relay that feeds it is `pooler.ceremony.trace`.
Source: PostgreSQL documentation, "PQtrace".
"""

from __future__ import annotations

import re
from typing import Any

from construct import Struct

from protocol import fields as types
from protocol import messages
from protocol.fields import Message
from protocol.framing import FrameReader
from protocol.responses import FrameError, MalformedMessage

LARGEST_FRAME = 0x3FFFFFFF
"""PostgreSQL's own limit for a message, in bytes."""

HIDDEN = "***"
_PASSWORD = re.compile(
    r"(\bpassword\s+)(?:e?'(?:[^'\\]|''|\\.)*'?|\$(\w*)\$.*?(?:\$\2\$|\Z))", re.IGNORECASE | re.DOTALL
)
_TEXTS = {(messages.Query, "string"), (messages.Parse, "query")}
_HIDE_WHEN_MALFORMED = (b"p", b"K", b"")
_ENDS = {messages.ErrorResponse: r" \x00", messages.NoticeResponse: r" \x00", messages.AuthenticationSASL: ' ""'}
"""libpq shows the terminator of these lists."""


class Trace:
    """One connection's messages as lines of text.

    Args:
      limit: the most characters of one text or value that are shown; 0 shows all.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._request: Message | None = None
        self._replicating = False
        self._readers: dict[bool, FrameReader | None] = {
            from_frontend: FrameReader(LARGEST_FRAME) for from_frontend in (True, False)
        }

    def startup(self, packet: bytes) -> str:
        """The line for a packet without a type byte; its length is its first 4 bytes."""
        try:
            decoded = messages.decode_startup(packet)
        except MalformedMessage as error:
            return f"F\t{len(packet)}\t{_printable(error.message)}"
        return f"F\t{len(packet)}\t{self._shown(decoded)}"

    def encryption_refused(self, packet: bytes) -> str:
        """The line for the N that answers an SSLRequest or GSSENCRequest."""
        return f"B\t1\t{messages.decode_startup(packet).message.name.removesuffix('Request')}Response\t N"

    def feed(self, data: bytes, from_frontend: bool) -> list[str]:
        """The lines of the messages that are complete now; `data` is what comes behind the startup packet."""
        reader = self._readers[from_frontend]
        if reader is None:
            return []
        reader.feed(data)
        lines = []
        try:
            while (frame := reader.next()) is not None:
                lines.append(self._line(bytes([frame[0]]), frame[1], from_frontend))
        except FrameError as error:
            self._readers[from_frontend] = None
            lines.append(f"{_direction(from_frontend)}\t\t{error.message}; nothing behind it can be read")
        return lines

    def _line(self, kind: bytes, body: bytes, from_frontend: bool) -> str:
        head = f"{_direction(from_frontend)}\t{len(body) + 4}\t"
        try:
            decoded = messages.decode(kind, body, from_frontend, self._request)
        except MalformedMessage as error:
            content = HIDDEN if kind in _HIDE_WHEN_MALFORMED else self._bytes(body)
            return f"{head}{_printable(error.message)}\t {content}"
        if kind == b"R":
            self._request = decoded.message
        elif decoded.message is messages.CopyBothResponse:
            self._replicating = True
        elif decoded.message is messages.ReadyForQuery:
            self._replicating = False
        elif decoded.message is messages.CopyData and self._replicating:
            return head + self._replication(decoded, from_frontend)
        return head + self._shown(decoded)

    def _replication(self, decoded: messages.Decoded, from_frontend: bool) -> str:
        try:
            inner = messages.decode_replication(decoded.fields["data"], from_frontend)
        except MalformedMessage:
            return self._shown(decoded)
        return f"CopyData\t {self._shown(inner).replace(chr(9), '')}"

    def _shown(self, decoded: messages.Decoded) -> str:
        """Name, tab, fields; a message without fields is only its name."""
        message, values = decoded
        parts = []
        if not message.kind and message.code is not None:  # libpq: its two halves
            parts.append(f" {message.code >> 16} {message.code & 0xFFFF}")
        for name, kind in message.fields.items():
            if name in message.secrets:
                parts.append(f" {HIDDEN}")
            elif (message, name) in _TEXTS:
                parts.append(self._field(kind, _PASSWORD.sub(rf"\1'{HIDDEN}'", values[name])))
            else:
                parts.append(self._field(kind, values[name]))
        text = "".join(parts) + _ENDS.get(message, "")
        return f"{message.name}\t{text}" if text else message.name

    def _field(self, kind: Any, value: Any) -> str:
        kind = types.unnamed(kind)
        if isinstance(value, list):
            count = "" if types.is_terminated(kind) else f" {len(value)}"
            return count + "".join(self._field(kind.element, each) for each in value)
        if isinstance(value, dict):
            return "".join(self._field(each, value[each.name]) for each in _members(kind))
        if kind is types.Value:
            return " -1" if value is None else f" {len(value)} {self._bytes(value)}"
        if isinstance(value, bytes):
            return f" {self._bytes(value)}"
        if isinstance(value, str):
            return f" {_printable(value)}" if types.is_byte1(kind) else f' "{self._cut(_printable(value))}"'
        return f" {value}"

    def _bytes(self, raw: bytes) -> str:
        if self._limit and len(raw) > self._limit:
            return f"'{_escaped(raw[: self._limit])}'... ({len(raw)} bytes)"
        return f"'{_escaped(raw)}'"

    def _cut(self, text: str) -> str:
        return text if not self._limit or len(text) <= self._limit else f"{text[: self._limit]}... ({len(text)})"


def _members(kind: Any) -> list[Any]:
    assert isinstance(kind, Struct)
    return [each for each in kind.subcons if each.name]


def _direction(from_frontend: bool) -> str:
    return "F" if from_frontend else "B"


def _escaped(raw: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw)


def _printable(text: str) -> str:
    """`text` with what would move the cursor, or is no text, as escapes: a trace is read on a terminal."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
