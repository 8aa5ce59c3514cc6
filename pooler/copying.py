"""COPY from the client: its data on the way to the origin.

Lives here: CopyData that comes in pieces, which passes without being put together, and when the origin waits for data.
Not here: frames (`session`), COPY to the client, which is an answer as any other (`origin`).

Source: PostgreSQL documentation, "Message Flow", section "COPY Operations".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.framing import TERMINATE_FRAME

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.session import Session
    from pooler.unit import Unit


def pass_stream(session: Session, data: bytes) -> int:
    """Pass on what `data` begins with: more of a CopyData that was cut. Returns how many bytes that is."""
    taken = min(session.stream_left, len(data))
    session.stream_left -= taken
    if session.stream_begun:
        # The origin has the frame's head: it must get the rest, even if the COPY has failed meanwhile.
        session.to_origin.append(data[:taken])
        if not session.stream_left:
            session.stream_begun = False
            session.flush_origin(b"")
            session.settled()
    return taken


def pass_on(session: Session, part: bytes) -> bool:
    """Pass a part of a COPY on; whether there is one. If not, it has failed, and the origin would ignore it too."""
    origin = session.origin
    if origin is None or not origin.units:
        return False
    session.to_origin.append(part)
    return True


def begin(session: Session, origin: Origin, unit: Unit) -> None:
    """The origin has said that it waits for COPY data, in `unit`."""
    session.copying = unit
    if not unit.simple and unit.synced:
        _ignore_sync(unit, origin)
    if session.leaving:
        origin.send_or_lose(TERMINATE_FRAME)


def is_open(session: Session) -> bool:
    """Whether the origin waits for COPY data that the client has not ended."""
    unit, origin = session.copying, session.origin
    if unit is None or origin is None or unit not in origin.units:
        session.copying = None
        return False
    return session.leaving or not unit.failed


def _ignore_sync(unit: Unit, origin: Origin) -> None:
    """An origin in COPY IN ignores the Sync that was sent along: `unit` ends with the next, which may be here."""
    unit.synced = False
    if len(origin.units) > 1 and not origin.units[1].simple and not origin.units[1].swallow:
        follower = origin.units[1]
        del origin.units[1]
        unit.synced = follower.synced
        if follower.steps:
            unit.script(list(follower.steps))
