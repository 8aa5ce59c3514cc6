"""What `protocol.messages` declares with: the specification's data types as constructs, and `Message` itself.

Types are called what the specification calls them (Int16, String, Byte1, ByteN), with three additions for what it says
in prose: `UInt16` to `UInt64` for ids and versions, `Value` for "a length, -1 for NULL, then so many bytes", and
`counted` for "a number, then so many of the following". Which messages exist is not said here.

Source: PostgreSQL documentation, "Message Data Types".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from construct import (
    Bytes,
    Const,
    Construct,
    ConstructError,
    ExprAdapter,
    ExprValidator,
    GreedyBytes,
    If,
    Int8sb,
    Int16sb,
    Int16ub,
    Int32sb,
    Int32ub,
    Int64sb,
    Int64ub,
    PrefixedArray,
    Renamed,
    RepeatUntil,
    StreamError,
    Struct,
    Terminated,
    ValidationError,
    this,
)

from protocol.errors import malformed_message

Int8, Int16, Int32, Int64 = Int8sb, Int16sb, Int32sb, Int64sb
UInt16, UInt32, UInt64 = Int16ub, Int32ub, Int64ub
ByteN = GreedyBytes
"""Everything up to the message's end."""


class _String(Construct):  # type: ignore[misc]
    """Bytes up to a NUL, as str.

    Their encoding is the session's, which a message does not tell: what is no UTF-8 is kept as surrogates, so that
    every string survives the way to str and back. (construct's own NullTerminated reads byte by byte, in quadratic
    time.)
    """

    def _parse(self, stream: Any, context: Any, path: str) -> str:
        start = stream.tell()
        end = stream.getvalue().find(b"\0", start)
        if end < 0:
            raise StreamError("a string without its terminating NUL", path=path)
        text: str = stream.read(end - start).decode("utf-8", "surrogateescape")
        stream.read(1)
        return text

    def _build(self, obj: str, stream: Any, context: Any, path: str) -> str:
        raw = obj.encode("utf-8", "surrogateescape")
        if b"\0" in raw:
            raise ConstructError("a string with a NUL in it", path=path)
        stream.write(raw + b"\0")
        return obj


String = _String()


def byte1(letters: str = "") -> Any:
    """Byte1: one character; one of `letters`, where they are given."""
    letter = ExprAdapter(Bytes(1), lambda raw, _: raw.decode("latin-1"), lambda text, _: text.encode("latin-1"))
    if not letters:
        return letter
    return ExprValidator(letter, lambda text, _: len(text) == 1 and text in letters)


def is_byte1(kind: Any) -> bool:
    """Whether a type is a `byte1`."""
    kind = kind.subcon if isinstance(kind, ExprValidator) else kind
    return isinstance(kind, ExprAdapter) and isinstance(kind.subcon, Bytes)


def one_of(number: Any, *values: int) -> Any:
    """An integer that the specification gives few values to."""
    return ExprValidator(number, lambda value, _: value in values)


def limited(least: int, most: int) -> Any:
    """ByteN of `least` to `most` bytes."""
    return ExprValidator(GreedyBytes, lambda raw, _: least <= len(raw) <= most)


Value = ExprAdapter(
    Struct(
        "length" / ExprValidator(Int32sb, lambda length, _: length >= -1),
        "data" / If(this.length >= 0, Bytes(this.length)),
    ),
    lambda value, _: value.data,
    lambda data, _: {"length": -1 if data is None else len(data), "data": data},
)
"""A length and so many bytes; None where the length is -1."""


def counted(element: Any, count: Any = Int16ub) -> Any:
    """A number of elements, then the elements."""
    array = PrefixedArray(count, element)
    array.element = element  # for who reads the declaration (trace, tests)
    return array


def until_empty(element: Any, is_end: Any, end: Any) -> Any:
    """Elements up to `end`, which is not among them."""

    def with_end(elements: Any, _: Any) -> Any:
        if any(is_end(each) for each in elements):
            raise ConstructError("an element that means the list's end")
        return [*elements, end]

    items = ExprAdapter(
        RepeatUntil(lambda each, _list, _context: is_end(each), element),
        lambda elements, _: elements[:-1],
        with_end,
    )
    items.element = element
    return items


def is_terminated(kind: Any) -> bool:
    """Whether a type is an `until_empty`: its elements have an end behind them, no count before them."""
    return isinstance(kind, ExprAdapter) and isinstance(kind.subcon, RepeatUntil)


Direction = Literal["F", "B", "FB"]
"""Who sends a message: the frontend, the backend, either."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Message:
    """One message of the protocol.

    Attributes:
      name: the specification's.
      direction: who sends it.
      kind: its type byte; empty for what comes before the first message that has one.
      code: the number that tells it from others of its kind (Authentication*, startup packets), or None.
      body: what follows the length and the code.
      secrets: fields that a log must not show.
      has_length: whether its length follows the type byte; not so for what is inside CopyData.
    """

    name: str
    direction: Direction
    kind: bytes
    body: Any
    code: int | None
    secrets: frozenset[str] = frozenset()
    has_length: bool = True

    def __repr__(self) -> str:
        return self.name

    @property
    def fields(self) -> dict[str, Any]:
        """The construct of each field, in order."""
        return {each.name: unnamed(each) for each in self.body.subcons if each.name}

    def decode(self, body: bytes) -> dict[str, Any]:
        """The fields of a message's body (what follows its length).

        Raises:
          MalformedMessage: `body` is too short, too long, or holds a value that the field cannot have.
        """
        try:
            fields = plain(self.body.parse(body))
        except ConstructError as error:
            raise malformed_message(self.name, _reason(error)) from None
        assert isinstance(fields, dict)
        return fields

    def encode(self, **fields: Any) -> bytes:
        """The whole message: type byte, length, body; without the length for what is inside CopyData.

        Raises:
          ValueError: a field is missing, unknown or out of range.
        """
        expected = self.fields
        for what, names in (("lacks", expected.keys() - fields.keys()), ("has no", fields.keys() - expected.keys())):
            if names:
                raise ValueError(f"{self.name} {what} {', '.join(sorted(names))}")
        try:
            body: bytes = self.body.build(fields)
        except (ConstructError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.name}: {_reason(error)}") from None
        return self.kind + ((len(body) + 4).to_bytes(4, "big") if self.has_length else b"") + body


def message(
    name: str,
    direction: Direction,
    kind: bytes,
    *fields: Any,
    code: int | None = None,
    secrets: tuple[str, ...] = (),
    has_length: bool = True,
) -> Message:
    """Declare a message: `"name" / Type` for each field."""
    head = () if code is None else (Const(code, Int32ub),)
    return Message(name, direction, kind, Struct(*head, *fields, Terminated), code, frozenset(secrets), has_length)


def unnamed(construct: Any) -> Any:
    """A field's type, without its name."""
    return construct.subcon if isinstance(construct, Renamed) else construct


def plain(parsed: Any) -> Any:
    """What construct parsed, as dicts and lists."""
    if isinstance(parsed, Mapping):
        return {name: plain(value) for name, value in parsed.items() if name != "_io"}
    if isinstance(parsed, list):
        return [plain(value) for value in parsed]
    return parsed


def _reason(error: Exception) -> str:
    """One line: the field's path, then what is wrong."""
    path = getattr(error, "path", None) or ""
    steps = [step for step in path.removeprefix("(parsing)").removeprefix("(building)").split(" -> ") if step]
    text = str(error).rpartition("\n")[2] or type(error).__name__
    if isinstance(error, ValidationError):  # construct's text has the value, which may be a secret
        text = "not a value that it can have"
    return f"{'.'.join(steps)}: {text}" if steps else text
