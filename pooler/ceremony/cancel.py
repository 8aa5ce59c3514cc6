"""Where a cancel goes: from a client's CancelRequest to the origin connection that works for that client, or nowhere.

The origin connection counts the cancels that are on their way to it and is not handed to another client until they
have arrived: a late cancel never hits the next client's query. Source: PostgreSQL documentation, "Message Flow",
section "Canceling Requests in Progress".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from config import Target
from pooler.ceremony.connect import open_transport
from pooler.ceremony.greeting import worker_of
from pooler.logs import get_logger
from pooler.transport import Transport, TransportClosed
from protocol import startup
from protocol.framing import TERMINATE_FRAME
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.service import Service
    from pooler.session import Session

log = get_logger(__name__)

CANCEL_AGAIN_SECONDS = 0.5
CALM_SECONDS = 0.02
MOST_CANCELS = 8
"""Requests on their way to one origin connection at once; more would tell it nothing new."""


async def cancel_for_client(service: Service, pid: int, secret: bytes) -> None:
    """A client asked, with the key it was given, for its query to be cancelled. A wrong key changes nothing."""
    if (peers := service.peers) is not None and (owner := worker_of(pid)) != peers.index:
        await peers.ask_one(owner, "cancel", {"pid": pid, "secret": secret.hex()})
        return
    service.stats.cancels_received += 1
    relay = service.relay_by_key(pid, secret)
    if relay is not None and relay.connected:
        await _ask_to_cancel(service, relay.pool, relay.target, relay.origin_pid, relay.origin_secret)
        return
    if service.console.cancel(pid, secret):
        return
    session = service.session_by_key(pid, secret)
    if session is not None:
        await cancel_work(service, session)


async def cancel_work(service: Service, session: Session) -> None:
    """Cancel what is done for `session` now, if anything is; returns when the request has arrived."""
    if session.cancel_waiting():
        return
    origin = session.origin
    if origin is None or origin.cancels >= MOST_CANCELS:
        return
    if any(not unit.swallow for unit in origin.units):
        await cancel_origin(service, origin)


async def cancel_origin(service: Service, origin: Origin) -> None:
    """Ask the origin to cancel what `origin` works on; returns when the request has arrived."""
    origin.cancels += 1
    try:
        await _ask_to_cancel(service, origin.pool, origin.target, origin.pid, origin.secret)
    finally:
        origin.pool.cancel_done(origin)


async def _ask_to_cancel(service: Service, pool: Pool, target: Target, pid: int, secret: bytes) -> None:
    service.stats.cancels_forwarded += 1
    try:
        with trio.move_on_after(pool.limits.cancel_wait_timeout) as deadline:
            transport = await open_transport(target, service.reactor)
            try:
                await transport.send_all(startup.cancel_request(pid, secret))
                while await transport.receive_some():  # the origin closes once it has delivered the signal
                    pass
            finally:
                transport.close()
        if deadline.cancelled_caught:
            service.stats.expired("cancel_wait_timeout")
            log.warning("cancel_failed", pool=pool.name, origin_pid=pid, reason="cancel_wait_timeout passed")
    except (PgError, TransportClosed) as error:
        log.warning("cancel_failed", pool=pool.name, origin_pid=pid, reason=str(error))


async def end_abandoned(service: Service, origin: Origin, within_message: bool) -> None:
    """Stop what `origin` does for a client that vanished, and close it; nobody else is given it meanwhile.

    A cancel that arrives before its query has begun is lost, and a backend at work does not see that its connection is
    closed: it would work on, with all its locks, and then on what was pipelined behind. So the cancel is repeated, for
    each answer that comes and while none does, until the backend has gone. Where it has not been given all of a
    message, nothing more can be said to it, and it learns of the end by reading on.
    """
    transport = origin.transport
    mute = within_message or transport.pending > 0
    told = False
    try:
        with trio.move_on_after(origin.pool.limits.cancel_wait_timeout):
            while not origin.closed:
                await cancel_origin(service, origin)
                if within_message:
                    break
                with trio.move_on_after(CANCEL_AGAIN_SECONDS) as silence:
                    if not (mute or told):
                        told = True
                        await transport.send_all(TERMINATE_FRAME)
                    if not await _hear(transport):
                        break
                if mute and silence.cancelled_caught:
                    break
    except TransportClosed:
        pass
    finally:
        origin.close()


async def _hear(transport: Transport) -> bool:
    """Wait until something has come, and then nothing for a moment; False at the end."""
    if not await transport.receive_some():
        return False
    with trio.move_on_after(CALM_SECONDS):
        while await transport.receive_some():
            pass
        return False
    return True
