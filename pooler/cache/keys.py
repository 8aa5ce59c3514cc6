"""What is part of a cache key beside the session: the statement and how it was bound.

A simple Query and an extended statement without parameters, all results in text, have the same key.
"""

from __future__ import annotations

import re

ALL_TEXT = b"\0\0\0\0\0\0"
"""A Bind's tail with no parameter formats, no parameters and no result formats: what a simple Query means."""

_ONE_TEXT_RESULT_FORMAT = b"\0\0\0\0\0\1\0\0"
_TEMPORAL = re.compile(rb"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE)


def normal_tail(tail: bytes) -> bytes:
    """A Bind's tail (formats, values, result formats) in the form that equal meanings share."""
    return ALL_TEXT if tail == _ONE_TEXT_RESULT_FORMAT else tail


def has_temporal_parameter(tail: bytes) -> bool:
    """Whether a value may name the current time ('now'::timestamp); looks at the raw bytes and errs towards yes."""
    return _TEMPORAL.search(tail) is not None
