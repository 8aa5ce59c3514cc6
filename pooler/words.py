"""What the origin says in pgnear's words, said in the client's: names of statements, places in a text, processes.

Not here: where frames pass (`origin`), the edits of a text that places are counted back through (`sql.views`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pooler.sql.views import place_before
from pooler.statements import ORIGIN_PREFIX
from protocol import framing

if TYPE_CHECKING:
    from pooler.session import Session
    from pooler.unit import Unit

_POSITION = re.compile(rb"\0P(\d+)\0")
_ORIGIN_NAME = re.compile(ORIGIN_PREFIX + rb"\d+")


def error(session: Session, frame: bytes, unit: Unit) -> bytes:
    """An ErrorResponse of the origin's with the client's names of statements, and places in the client's text."""
    names = {prepared.name: name for name, prepared in session.statements.items()}
    if session.bound in session.statements:  # of several names for one statement, the one that was used
        names[session.statements[session.bound].name] = session.bound
    body = _ORIGIN_NAME.sub(lambda found: names.get(found[0], session.bound or found[0]), frame[5:])
    if session.rewritten is not None and session.rewritten[0] is unit:
        _, said, edits = session.rewritten
        body = _POSITION.sub(lambda found: b"\0P%d\0" % place_before(said, edits, int(found[1])), body)
    return framing.frame(frame[:1], body)


def notification(session: Session, frame: bytes) -> bytes:
    """A NotificationResponse of the origin's with the sender's process id as clients know it."""
    pid = _client_pid(session, int.from_bytes(frame[5:9], "big"))
    return frame[:5] + pid.to_bytes(4, "big") + frame[9:]


def _client_pid(session: Session, origin_pid: int) -> int:
    """The process id that clients know the backend `origin_pid` of the session's database by: its last client's."""
    for origin in session.pool.origins:
        if origin.pid == origin_pid:
            return origin.client_pid or origin_pid
    return origin_pid
