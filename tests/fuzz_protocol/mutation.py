"""Inputs from the corpus, changed at random by a seed: what atheris does, without knowing what was reached.

Also here: the corpus itself, and running one input within limits of time and memory.
"""

from __future__ import annotations

import hashlib
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

HANG_SECONDS = 5.0
"""No input takes longer; one that does is a finding."""

MOST_MEMORY_BYTES = 1 << 30
"""Nor does one take more memory."""

LARGEST = 800


class Hang(Exception):
    """An input took too long."""


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for `target`, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def name_of(data: bytes) -> str:
    """What a kept input's file is called."""
    return hashlib.sha256(data).hexdigest()[:16]


def inputs(target: str, seed: int) -> Iterator[bytes]:
    """Inputs without end; the same for the same seed and corpus."""
    chance = random.Random(seed)
    kept = corpus(target) or [b""]
    while True:
        data = bytearray(chance.choice(kept) if chance.random() < 0.8 else chance.randbytes(chance.randrange(200)))
        for _ in range(chance.randrange(1, 8)):
            _change(data, chance, kept)
        yield bytes(data[:LARGEST])


def _change(data: bytearray, chance: random.Random, kept: list[bytes]) -> None:
    place = chance.randrange(len(data) + 1)
    what = chance.randrange(6)
    if what == 0:
        data[place:place] = chance.randbytes(chance.randrange(1, 9))
    elif what == 1:
        del data[place : place + chance.randrange(1, 9)]
    elif what == 2:
        data[place : place + 1] = chance.randbytes(1)
    elif what == 3:
        data[place : place + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\4"))
    elif what == 4:
        other = chance.choice(kept)
        data[place:] = other[chance.randrange(len(other) + 1) :]
    else:
        data[place:place] = data[place : place + chance.randrange(1, 40)]


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` when the block takes longer than `HANG_SECONDS`, MemoryError when it takes too much of that."""

    def too_late(number: int, frame: object) -> None:
        raise Hang(f"longer than {HANG_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, too_late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
