"""What a client is told at login: the ParameterStatus values its private connection would have reported.

The first client with a given set of startup settings has them tried on an origin connection, so that a bad one fails
the login with the origin's own words; the values are remembered for those who come after. An application_name is never
bad, and many clients have one of their own: a plain one is not tried but told as it is. What a startup packet comes to
is remembered by its bytes, as clients of one program send the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from itertools import count
from typing import Final

from pooler.ceremony.borrow import borrowed
from pooler.greetings import Greetings, Welcome
from pooler.pool import Pool
from pooler.settings import Reports, from_startup
from protocol import startup
from protocol.auth import AUTHENTICATION_OK
from protocol.framing import READY_IDLE, frame
from protocol.responses import notice_response

_NAME_BYTES = 63
"""What PostgreSQL keeps of an application_name (NAMEDATALEN - 1)."""

_NOT_SETTINGS = ("user", "database", "options", "replication")

_ABOVE_ALL_PROCESSES: Final = 2**22
"""Linux numbers its processes below this: who terminates a process by an id of ours ends nobody's backend."""
_pids = count()
_step = 1

_COUNT: Final = 2**31 - _ABOVE_ALL_PROCESSES


def number_clients(worker: int, workers: int) -> None:
    """From now on clients get process ids that say whose they are: `worker_of`."""
    global _pids, _step
    _pids, _step = count(worker, workers), workers


def is_clients(pid: int) -> bool:
    """Whether `pid` is one that pgnear gives to clients, and no process of the origin's has."""
    return _ABOVE_ALL_PROCESSES <= pid < 2**31


def worker_of(pid: int) -> int:
    """Which worker has given its client the process id `pid`; 0 where there is one."""
    return (pid - _ABOVE_ALL_PROCESSES) % _step


def known_welcome(pool: Pool, packet: bytes, request: startup.StartupMessage) -> Welcome | None:
    """What a client with the startup packet `packet`, read as `request`, gets; None while the origin must be asked.

    Raises:
      PgError: its options cannot be read.
    """
    known = pool.greetings.welcome(packet)
    if known is not None:
        return known
    wanted = wanted_settings(request.parameters)
    reports = pool.greetings.reports(from_startup(_tried(wanted)))
    return _welcome(pool.greetings, packet, request, wanted, reports) if reports is not None else None


async def ask_for_welcome(pool: Pool, packet: bytes, request: startup.StartupMessage) -> Welcome:
    """What `known_welcome` gives from now on.

    Raises:
      PgError: the origin cannot be reached, refuses one of the settings, or has no connection to spare in time.
    """
    greetings, wanted = pool.greetings, wanted_settings(request.parameters)
    settings = from_startup(_tried(wanted))
    async with borrowed(pool, settings) as origin:
        reports = origin.reports
    greetings.add_reports(settings, reports)
    return _welcome(greetings, packet, request, wanted, reports)


def _welcome(
    greetings: Greetings, packet: bytes, request: startup.StartupMessage, wanted: dict[str, str], reports: Reports
) -> Welcome:
    if _has_plain_name(wanted):
        reports = reports.with_value("application_name", wanted["application_name"])
    welcome = Welcome(from_startup(wanted), reports, words_before_key(request, reports, _notices(wanted)))
    greetings.add_welcome(packet, welcome)
    return welcome


def _has_plain_name(wanted: dict[str, str]) -> bool:
    name = wanted.get("application_name", "")
    return bool(name) and len(name) <= _NAME_BYTES and name.isascii() and name.isprintable()


def _notices(wanted: dict[str, str]) -> bytes:
    """What PostgreSQL says of an application_name that it shortens."""
    name = wanted.get("application_name", "")
    kept = name.encode()[:_NAME_BYTES].decode(errors="ignore")
    if kept == name or wanted.get("client_min_messages", "").lower() in ("warning", "error"):
        return b""
    return notice_response("42622", f'identifier "{name}" will be truncated to "{kept}"')


def _tried(wanted: dict[str, str]) -> dict[str, str]:
    """The settings that the origin is asked about."""
    if _has_plain_name(wanted):
        return {key: value for key, value in wanted.items() if key != "application_name"}
    return wanted


def wanted_settings(parameters: Mapping[str, str]) -> dict[str, str]:
    """The settings that a startup packet asks for: its parameters, and `-c` and `--` in its `options`.

    Raises:
      PgError: `options` cannot be read.
    """
    wanted: dict[str, str] = {}
    for name, value in startup.parse_options(parameters.get("options", "")):
        wanted[name.lower()] = value
    for name, value in parameters.items():
        if name not in _NOT_SETTINGS and not name.startswith("_pq_."):
            wanted[name.lower()] = value
    return wanted


def new_key(minor: int) -> tuple[int, bytes]:
    """A process id and a secret for a client of protocol 3.`minor` to cancel with: 4 bytes, 32 from 3.2 on."""
    pid = _ABOVE_ALL_PROCESSES + next(_pids) % (_COUNT - _COUNT % _step)
    return pid, secrets.token_bytes(32 if minor >= 2 else 4)


def first_words(request: startup.StartupMessage, reports: Reports, key: tuple[int, bytes]) -> bytes:
    """Everything from AuthenticationOk to ReadyForQuery, with what the server reports and the client's `key`."""
    return words_before_key(request, reports) + words_from_key(key)


def words_before_key(request: startup.StartupMessage, reports: Reports, notices: bytes = b"") -> bytes:
    minor = min(request.minor, 2)
    unknown = [name for name in request.parameters if name.startswith("_pq_.")]
    parts = []
    if request.minor > minor or unknown:
        parts.append(startup.negotiate_protocol_version(minor, unknown))
    parts += [AUTHENTICATION_OK, notices, reports.frames]
    return b"".join(parts)


def words_from_key(key: tuple[int, bytes]) -> bytes:
    return frame(b"K", key[0].to_bytes(4, "big") + key[1]) + READY_IDLE
