"""What is part of a cache key beside the session: the statement and how it was bound.

A simple Query and an extended statement without parameters, all results in text, have the same key.
"""

from __future__ import annotations

import re
from functools import lru_cache

ALL_TEXT = b"\0\0\0\0\0\0"
"""A Bind's tail with no parameter formats, no parameters and no result formats: what a simple Query means."""

_ONE_TEXT_RESULT_FORMAT = b"\0\0\0\0\0\1\0\0"
_TEMPORAL = re.compile(rb"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE)


def normal_tail(tail: bytes) -> bytes:
    """A Bind's tail (formats, values, result formats) in the form that equal meanings share."""
    return ALL_TEXT if tail == _ONE_TEXT_RESULT_FORMAT else tail


@lru_cache(maxsize=1000)
def in_formats(row_description: bytes, tail: bytes) -> bytes:
    """A RowDescription frame with the result formats that the Bind with `tail` asks for; `ALL_TEXT` asks for text."""
    codes = _result_formats(tail)
    count = int.from_bytes(row_description[5:7], "big")
    out = bytearray(row_description)
    position = 7
    for column in range(count):
        position = row_description.index(b"\0", position) + 19  # name, then 18 bytes, the last two of them its format
        code = codes[column] if len(codes) == count else codes[0] if codes else 0
        out[position - 2 : position] = code.to_bytes(2, "big")
    return bytes(out)


def _result_formats(tail: bytes) -> list[int]:
    position = 2 + 2 * int.from_bytes(tail[:2], "big")
    parameters = int.from_bytes(tail[position : position + 2], "big")
    position += 2
    for _ in range(parameters):
        position += 4 + max(int.from_bytes(tail[position : position + 4], "big", signed=True), 0)
    numbers = tail[position + 2 :]
    return [int.from_bytes(numbers[place : place + 2], "big") for place in range(0, len(numbers), 2)]


def without_parameters(tail: bytes) -> bool:
    """Whether a Bind's tail has neither parameters nor formats for them."""
    return tail.startswith(b"\0\0\0\0")


def has_temporal_parameter(tail: bytes) -> bool:
    """Whether a value may name the current time ('now'::timestamp); looks at the raw bytes and errs towards yes."""
    return _TEMPORAL.search(tail) is not None
