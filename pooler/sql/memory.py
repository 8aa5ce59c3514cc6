"""Texts and what is known of them, within a number of entries and of bytes: the oldest are forgotten for new ones.

Lives here: counting. Not here: what is remembered (`classifier`), nor how large it is (`Statement.weight`).
"""

from __future__ import annotations

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Memory(Generic[Value]):
    """What is known by text.

    Attributes:
      known: to be looked at, never changed.
      size: bytes that it takes, about.
    """

    ENTRY_BYTES = 200
    """What an entry takes beside its text and its value."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.known: dict[bytes, Value] = {}
        self.size = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._sizes: dict[bytes, int] = {}

    def keep(self, text: bytes, value: Value, weight: int) -> None:
        """Remember `value`, which takes `weight` bytes."""
        size = self.ENTRY_BYTES + len(text) + weight
        if size > self._max_bytes // 10:
            return
        if len(self.known) >= self._max_entries or self.size + size > self._max_bytes:
            self._make_room()
        sizes = self._sizes
        self.size += size - sizes.get(text, 0)
        sizes[text] = size
        self.known[text] = value

    def _make_room(self) -> None:
        """Forget the oldest tenth."""
        entries, size = self._max_entries * 9 // 10, self._max_bytes * 9 // 10
        for text in list(self.known):
            if len(self.known) <= entries and self.size <= size:
                return
            del self.known[text]
            self.size -= self._sizes.pop(text)

    def clear(self) -> None:
        self.known.clear()
        self._sizes.clear()
        self.size = 0
