"""The end of a process: nobody is refused, transactions finish, and each client is told goodbye between two of them.

Lives here: the order of the end. Not here: the sockets (`listen`), a session's own end (`ending`).

Clients that do nothing are told at once; those at work when their transaction is over (`Session.settled`), or after
`drain_timeout`. Who connects in the last moment, or has just done so, is served once: its first query is on the way,
and nobody else may have been there to take it.
"""

from __future__ import annotations

import socket
from time import time
from typing import TYPE_CHECKING

import trio

from pooler import ending
from pooler.ceremony import supervisor
from pooler.ceremony.listen import close_listener, steer_away
from pooler.logs import get_logger
from protocol import errors

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

LOOK_SECONDS = 0.02
STEER_SECONDS = 0.5
"""How long connections that were being made to this process when its successor took over may take to be there."""

LATE_SECONDS = 1.0
"""How long a client that came during the drain, or so long before it, may take until its first transaction."""

PARTING_SECONDS = 0.3
"""How long a client that asks for nothing more is waited for."""

FAREWELL_SECONDS = 2.0
"""How long a shutdown waits for the end of frames that replication clients are being sent."""


async def begin(service: Service, listeners: list[socket.socket]) -> None:
    """Begin the drain while still listening: a successor on the same addresses takes who comes from now on."""
    service.draining = True
    if service.handover is not None:
        service.handover.leave()
    supervisor.stopping()
    if service.config.reuse_port:
        for listener in listeners:
            steer_away(listener, service.peers.count if service.peers is not None else 1)
        with trio.move_on_after(min(STEER_SECONDS, service.config.drain_timeout)):
            while True:
                _dismiss_idle(service)
                await trio.sleep(LOOK_SECONDS)


def stop_listening(service: Service, listeners: list[socket.socket]) -> None:
    """Close the sockets; who has connected already is taken in."""
    service.doors.close()
    if service.handover is not None:
        service.doors.take_in(service.handover)
    for listener in listeners:
        if not service.listens_for_others:
            service.doors.accept_rest(listener)
        close_listener(listener)


async def drain(service: Service) -> None:
    """Let transactions finish for `drain_timeout`, and say goodbye to every client."""
    service.draining = True
    timeout = service.config.drain_timeout
    logins_until = trio.current_time() + LATE_SECONDS
    with trio.move_on_after(timeout) as deadline:
        while (  # noqa: ASYNC110 (neither are tasks)
            _dismiss_idle(service) or (service.stats.unauthenticated and trio.current_time() < logins_until)
        ):
            await trio.sleep(LOOK_SECONDS)
    error = None
    if deadline.cancelled_caught and service.sessions:
        error = errors.drain_timeout(timeout)
        service.stats.expired("drain_timeout")
        log.warning("drain_timeout", seconds=timeout, clients=len(service.sessions))
    for session in list(service.sessions):
        ending.shutdown(session, error if session.busy else None)
    for relay in list(service.relays.values()):
        relay.shutdown()
    service.console.shutdown()
    with trio.move_on_after(FAREWELL_SECONDS):
        while service.relays or service.console.conversations:  # noqa: ASYNC110 (neither are tasks)
            await trio.sleep(LOOK_SECONDS)
    for relay in list(service.relays.values()):
        relay.end("pgnear is shutting down")


def send_away(service: Service) -> None:
    """The process ends now: every client hears so, whatever it is doing."""
    for session in list(service.sessions):
        ending.shutdown(session)


def _dismiss_idle(service: Service) -> bool:
    """Tell clients that do nothing to go, a moment after they were found so; whether any are left."""
    now = trio.current_time()
    for session in list(service.sessions):
        if not session.busy:
            until = service.stays_until.get(session)
            if until is None and time() - session.began < LATE_SECONDS:
                service.stays_until[session] = now + LATE_SECONDS
            elif until is None or (now >= until and not session.holding):
                ending.depart(session)
            elif now >= until:
                ending.shutdown(session)
    return bool(service.sessions)
