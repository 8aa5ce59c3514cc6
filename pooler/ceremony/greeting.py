"""What a client is told at login: the ParameterStatus values its private connection would have reported.

The first client with a given set of startup settings has them tried on an origin connection, so that a bad one fails
the login with the origin's own words; the values are remembered for those who come after. An application_name is never
bad, and many clients have one of their own: a plain one is not tried but told as it is.
"""

from __future__ import annotations

import secrets
from itertools import count

from pooler.ceremony.borrow import borrowed
from pooler.pool import Pool
from pooler.settings import Reports, from_startup
from protocol import startup
from protocol.auth import AUTHENTICATION_OK
from protocol.framing import frame

REMEMBERED = 1000
"""How many sets of startup settings a pool remembers the values of."""

_NAME_BYTES = 63
"""What PostgreSQL keeps of an application_name (NAMEDATALEN - 1)."""

_pids = count(1)


def known_greeting(pool: Pool, wanted: dict[str, str]) -> Reports | None:
    """ParameterStatus values by name, as the origin reports them under the startup settings `wanted`, if it has been
    asked.
    """
    name, tried = _told_and_tried(wanted)
    known = pool.greetings.get(from_startup(tried))
    return known.with_value("application_name", name) if known is not None and name else known


async def ask_for_greeting(pool: Pool, wanted: dict[str, str]) -> Reports:
    """What `known_greeting` gives from now on.

    Raises:
      PgError: the origin cannot be reached, refuses one of the settings, or has no connection to spare in time.
    """
    name, tried = _told_and_tried(wanted)
    settings = from_startup(tried)
    greetings = pool.greetings
    async with borrowed(pool, settings) as origin:
        known = origin.reports
    while len(greetings) >= REMEMBERED:
        greetings.pop(next(iter(greetings)))
    greetings[settings] = known
    return known.with_value("application_name", name) if name else known


def _told_and_tried(wanted: dict[str, str]) -> tuple[str, dict[str, str]]:
    """A plain application_name, or "", and the other settings."""
    name = wanted.get("application_name", "")
    if name and len(name) <= _NAME_BYTES and name.isascii() and name.isprintable():
        return name, {key: value for key, value in wanted.items() if key != "application_name"}
    return "", wanted


def new_key(minor: int) -> tuple[int, bytes]:
    """A process id and a secret for a client of protocol 3.`minor` to cancel with: 4 bytes, 32 from 3.2 on."""
    return next(_pids) & 0x7FFFFFFF, secrets.token_bytes(32 if minor >= 2 else 4)


def first_words(request: startup.StartupMessage, reports: Reports, key: tuple[int, bytes]) -> bytes:
    """Everything from AuthenticationOk to ReadyForQuery, with what the server reports and the client's `key`."""
    minor = min(request.minor, 2)
    unknown = [name for name in request.parameters if name.startswith("_pq_.")]
    parts = []
    if request.minor > minor or unknown:
        parts.append(startup.negotiate_protocol_version(minor, unknown))
    parts.append(AUTHENTICATION_OK)
    parts.append(reports.frames)
    parts.append(frame(b"K", key[0].to_bytes(4, "big") + key[1]))
    parts.append(b"Z\0\0\0\5I")
    return b"".join(parts)
