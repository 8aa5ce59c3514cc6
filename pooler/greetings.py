"""What clients of a pool are told at login, remembered.

Lives here: memory. Not here: asking an origin, and the words (`ceremony.greeting`).
"""

from __future__ import annotations

from typing import NamedTuple

from pooler.settings import Reports, Settings

MOST_SETTINGS, SETTINGS_BYTES = 1000, 4096
"""How many sets of startup settings a pool remembers the values of, and of what size at most."""

MOST_PACKETS, PACKET_BYTES = 256, 1024
"""How many startup packets it remembers the outcome of, and of what size at most. Clients that are made by the same
program send the same ones."""


class Welcome(NamedTuple):
    """What a startup packet comes to: the settings that it asks for, what is told of them, and the frames in which.

    `words` are everything from AuthenticationOk up to the client's key.
    """

    settings: Settings
    reports: Reports
    words: bytes


class Greetings:
    """A pool's. A new one is made when its connections begin with something else; who is just asking for a greeting
    may still add to the old one."""

    def __init__(self) -> None:
        self._reports: dict[Settings, Reports] = {}
        self._welcomes: dict[bytes, Welcome] = {}

    def reports(self, settings: Settings) -> Reports | None:
        """What the origin reports under these startup settings, if it has been asked."""
        return self._reports.get(settings)

    def add_reports(self, settings: Settings, reports: Reports) -> None:
        if settings.size > SETTINGS_BYTES:
            return
        while len(self._reports) >= MOST_SETTINGS:
            self._reports.pop(next(iter(self._reports)))
        self._reports[settings] = reports

    def welcome(self, packet: bytes) -> Welcome | None:
        """What this very startup packet came to."""
        return self._welcomes.get(packet)

    def add_welcome(self, packet: bytes, welcome: Welcome) -> None:
        if len(packet) > PACKET_BYTES:
            return
        while len(self._welcomes) >= MOST_PACKETS:
            self._welcomes.pop(next(iter(self._welcomes)))
        self._welcomes[packet] = welcome
