"""Whether an origin whose every connection is at work is alive: from what they say, and from probes beside them.

Lives here: the decision when to doubt it, and what a probe's outcome means. Not here: what is refused meanwhile
(`outage`), how a probe is made (`ceremony.opening`). Nothing here waits or reads a clock: `now` is seconds on any clock
that only goes forward.

An origin that is frozen, or whose host has vanished, looks like one with long queries on all its connections: nothing
comes. What tells the two apart is a new connection: it gets through to a living server, however slow its queries are.
So silence is only the reason to ask. Each probe that gets through doubles the silence that is the reason for the next
one, until something is heard.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

LONGEST_SILENCE = 60.0
"""However long the queries of a living origin take, it is probed this often, in seconds."""


class Pulse:
    """What is heard of one origin.

    Attributes:
      heard_at: when one of its connections said something last, or silence meant nothing.
      frozen: a probe has not got through, and nothing has been heard since.
    """

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.frozen = False
        self._marks: Mapping[Hashable, object] = {}
        self._probed_at = 0.0
        self._probing = False
        self._got_through = 0  # so many probes since something was heard

    def listen(self, marks: Mapping[Hashable, object], now: float) -> bool:
        """Whether one of the origin's connections has said something since this was asked last.

        Args:
          marks: of each connection, what changes when it says something; none while silence would mean nothing.
        """
        before, self._marks = self._marks, marks
        heard = any(each in before and before[each] != mark for each, mark in marks.items())
        if heard or not marks or not before:
            self.heard_at = now
            self._got_through = 0
        return heard

    def silent(self, now: float) -> float:
        """Seconds of silence."""
        return now - self.heard_at

    def doubtful(self, now: float, patience: float) -> bool:
        """Whether, after `patience` seconds of silence or a multiple of it, the origin is to be probed."""
        wait = max(patience, min(patience * 2.0**self._got_through, LONGEST_SILENCE))
        return not (self._probing or self.frozen) and now - max(self.heard_at, self._probed_at) >= wait

    def probe(self, now: float) -> None:
        """A probe begins."""
        self._probing, self._probed_at = True, now

    def alive(self, now: float) -> None:
        """There was another sign of life than those that `listen` is told of: a new connection."""
        self.frozen = False
        self.heard_at = now

    def got_through(self, now: float) -> None:
        """The probe did: the origin is alive, and silent all the same."""
        self._probing = self.frozen = False
        self._probed_at = now
        self._got_through += 1

    @property
    def has_been_silent(self) -> bool:
        """Whether nothing was heard since the last probe began."""
        return self.heard_at <= self._probed_at

    def did_not(self) -> bool:
        """The probe has failed; whether the origin is frozen, therefore: unless something was heard meanwhile."""
        self._probing = False
        self.frozen = self.has_been_silent
        return self.frozen
