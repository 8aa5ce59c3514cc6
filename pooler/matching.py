"""Which of several idle connections suits a session best. Whether it gets one at all is decided in `pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.settings import Settings

MATCH_DEPTH: Final = 8
"""How many idle connections are compared with the session's settings before the latest one is taken."""


def take_idle(idle: list[Origin], settings: Settings, traces: frozenset[str]) -> Origin:
    """Take the latest one out of `idle`, or one that has the same settings; before both, one with the same traces.

    So clients with custom settings and clients without them keep to connections of their own, where there are enough.

    Args:
      idle: the latest last; not empty.
    """
    last = len(idle) - 1
    if idle[last].settings is not settings or idle[last].traces != traces:
        second = last
        found = 1 if idle[last].traces <= traces else 0
        for index in range(last, max(-1, last - MATCH_DEPTH), -1):
            origin = idle[index]
            if origin.traces == traces:
                if origin.settings is settings:
                    return idle.pop(index)
                fits = 3
            else:
                fits = 2 if origin.settings is settings and origin.traces <= traces else 0
            if fits > found:
                second, found = index, fits
        return idle.pop(second)
    return idle.pop()
