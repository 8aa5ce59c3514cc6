"""Splits a byte stream into frames: one type byte, a length that counts itself, a body.

Only headers are looked at; what a body means is in `protocol.messages`. Two faces of one rule: `frame_end` for the
walkers on the hot path, which keep their own buffers, and `FrameReader` for ceremony, which wants whole messages.

Source: PostgreSQL documentation, "Frontend/Backend Protocol", sections "Message Formats" and "Messaging Overview".
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from protocol.errors import invalid_message_length, malformed_message, message_too_large
from protocol.responses import FrameError

HEADER_BYTES = 5
"""Type byte and length of every message after the startup packet."""

length_at: Final = Struct("!i").unpack_from
"""`length_at(data, position)[0]`: the length field; it counts its own 4 bytes, not the type byte."""


def bad_length(kind: int, length: int, limit: int) -> FrameError:
    """The error for a frame of type `kind` whose length field says `length` bytes where `limit` are allowed."""
    return invalid_message_length(kind, length) if length < 4 else message_too_large(kind, length, limit)


def frame_end(data: bytes, position: int, limit: int) -> int:
    """The position behind the frame that begins at `position`, which may lie behind the end of `data`.

    `data` must hold the frame's 5 header bytes.

    Raises:
      FrameError: the length is under 4 or over `limit` bytes.
    """
    length: int = length_at(data, position + 1)[0]
    if 4 <= length <= limit:
        return position + 1 + length
    raise bad_length(data[position], length, limit)


SYNC_FRAME = b"S\0\0\0\4"
FLUSH_FRAME = b"H\0\0\0\4"
TERMINATE_FRAME = b"X\0\0\0\4"
READY_IDLE = b"Z\0\0\0\5I"
READY_IN_BLOCK = b"Z\0\0\0\5T"
PARSE_COMPLETE: Final = b"1\0\0\0\4"
BIND_COMPLETE: Final = b"2\0\0\0\4"
CLOSE_COMPLETE: Final = b"3\0\0\0\4"
BEGUN_FRAMES: Final = PARSE_COMPLETE + BIND_COMPLETE + b"C\0\0\0\x0aBEGIN\0"
"""Whole frames that are always the same. READY_IDLE is the ReadyForQuery outside a transaction; BEGUN_FRAMES the answer
to BEGIN in the extended protocol.
"""


class FrameReader:
    """Collects bytes and gives whole frames, in order, as (type, body).

    Args:
      limit: the largest length field that is accepted, in bytes.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """The next whole frame as (type byte, body), or None until more bytes have come.

        Raises:
          FrameError: the frame's length is impossible or over the limit.
        """
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        end = frame_end(bytes(buffer[:HEADER_BYTES]), 0, self._limit)
        if end > len(buffer):
            return None
        frame = (buffer[0], bytes(buffer[HEADER_BYTES:end]))
        del buffer[:end]
        return frame

    @property
    def rest(self) -> bytes:
        """The bytes that no frame has taken yet."""
        return bytes(self._buffer)


def frame(kind: bytes, body: bytes) -> bytes:
    """One frame: `kind` (one byte), the length, `body`."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def query(text: str | bytes) -> bytes:
    """A Query frame with `text`, which must hold no NUL."""
    raw = text.encode() if isinstance(text, str) else text
    return frame(b"Q", raw + b"\0")


def command_complete(tag: bytes) -> bytes:
    """A CommandComplete frame with `tag`."""
    return frame(b"C", tag + b"\0")


def parameter_status(body: bytes) -> tuple[str, str]:
    """Name and value in a ParameterStatus's body.

    Raises:
      MalformedMessage: they are not there.
    """
    fields = body.split(b"\0")
    if len(fields) != 3 or fields[2]:
        raise malformed_message("ParameterStatus", "it is not a name and a value")
    return fields[0].decode(errors="replace"), fields[1].decode(errors="replace")


def data_row(body: bytes) -> list[bytes | None]:
    """The columns of a DataRow's body; None is NULL.

    Raises:
      MalformedMessage: there are fewer than it says.
    """
    values: list[bytes | None] = []
    position = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        begin = position + 4
        size = int.from_bytes(body[position:begin], "big", signed=True)
        position = begin + max(size, 0)
        if position > len(body):
            raise malformed_message("DataRow", "it ends before its last column")
        values.append(None if size < 0 else body[begin:position])
    return values
