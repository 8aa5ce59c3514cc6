"""Transports that are only waited for: their peers were told why they end, and have a moment to read it.

A plain close while the peer still sends makes the kernel reset the connection, and the last words are lost.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pooler.transport import Transport

LINGER_SECONDS = 2.0
"""How long a peer has to read our last words."""

MOST_LINGERING = 1000
"""So many peers at most have that time: a flood that is turned away must not take all descriptors."""

DISCARDED_BYTES = 65536
"""What the peer still says is dropped, so much at once."""

_lingering: deque[tuple[float, Transport]] = deque()


class Lingering:
    """Handler of such a transport: sends the rest, discards what comes."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def readable(self) -> None:
        try:
            if self._transport.sock.recv(DISCARDED_BYTES) == b"":
                self._transport.close()
        except BlockingIOError:
            pass
        except OSError:
            self._transport.close()

    def writable(self) -> None:
        self._transport.end_output()

    def crashed(self, error: Exception) -> None:
        self._transport.close()


def remember(transport: Transport) -> None:
    """Its time begins; whose began first makes room."""
    while len(_lingering) >= MOST_LINGERING:
        _lingering.popleft()[1].close()
    _lingering.append((monotonic() + LINGER_SECONDS, transport))


def end_lingering(now: float) -> None:
    """Close those whose time is up; called several times a second with the monotonic clock."""
    while _lingering and _lingering[0][0] < now:
        _lingering.popleft()[1].close()
