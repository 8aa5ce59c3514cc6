"""The pulse of servers that nobody asks anything: what role they have now, and whether they are there at all.

A server tells of a new role with its next answer only. So of each host whose connections have all been idle for a
while, one is asked nothing; what comes with the answer is judged by the pool (`demotion.reported`). And where
prefer-standby had to be content with a primary, it is tried whether a standby is back.

Not here: what target_session_attrs means (`roles`), which host a new connection goes to (`origins`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import trio

from pooler import demotion
from pooler.ceremony.borrow import ask_origin, give_back
from pooler.ceremony.origins import find_standby
from pooler.logs import get_logger
from pooler.roles import REPORTED, fits
from pooler.transport import TransportClosed
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two questions to one host."""

ANSWER_SECONDS = 5.0
"""A server that takes longer to answer nothing is not there."""

STANDBY_SECONDS = 3.0
"""Between two attempts to find a standby."""


async def keep_pulse(service: Service) -> None:
    """Look after every pool whose servers must have a role, for as long as the process lives."""
    async with trio.open_nursery() as nursery:
        for pool in service.every_pool:
            nursery.start_soon(_ask_idle_hosts, service, pool)
            nursery.start_soon(_prefer_standby, service, pool)


async def _ask_idle_hosts(service: Service, pool: Pool) -> None:
    while True:
        await trio.sleep(LOOK_SECONDS)
        if pool.target.session_attrs != "any":
            async with trio.open_nursery() as nursery:
                for origin in _of_quiet_hosts(pool, monotonic()):
                    nursery.start_soon(_ask, service, pool, origin)


def _of_quiet_hosts(pool: Pool, now: float) -> list[Origin]:
    """One idle connection of each host that nobody has heard of lately."""
    heard = {each.target.place for each in pool.idle if now - each.idle_since < LOOK_SECONDS}
    quiet = {each.target.place: each for each in reversed(pool.idle)}
    return [each for place, each in quiet.items() if place not in heard]


async def _ask(service: Service, pool: Pool, origin: Origin) -> None:
    """Ask `origin` nothing, and put it back where it was."""
    idle_since, before = origin.idle_since, origin.reports.values
    if not pool.take(origin):
        return
    service.reactor.ceremonies += 1
    origin.leave_reactor()
    try:
        with trio.fail_after(ANSWER_SECONDS):
            await ask_origin(origin, "")
    except (PgError, TransportClosed) as error:
        origin.lost(str(error))
        return
    except trio.TooSlowError:
        origin.lost(f"no answer within {ANSWER_SECONDS:g} s")
        return
    except BaseException:
        origin.close()
        raise
    finally:
        service.reactor.ceremonies -= 1
    give_back(pool, origin)
    if pool.take(origin):  # it was used by nobody, so it is no younger than before
        origin.idle_since = idle_since
        pool.idle.insert(0, origin)
    for name in REPORTED:
        if origin.reports.values.get(name) != before.get(name):
            demotion.reported(pool, origin, name)


async def _prefer_standby(service: Service, pool: Pool) -> None:
    """Where connections lead to a primary though a standby is preferred, look for one; they drain when it is there."""
    while True:
        await trio.sleep(STANDBY_SECONDS)
        if pool.target.session_attrs != "prefer-standby" or pool.held_since is not None or not _at_primaries(pool):
            continue
        host = await find_standby(pool.target, service.reactor, timeout=pool.limits.origin_connect_timeout)
        leaving = _at_primaries(pool)
        if host is not None and leaving:
            log.warning("standby_is_back", pool=pool.name, host=host.place, connections=len(leaving))
            pool.stats.origin_role_changes += 1
            demotion.leave(pool, leaving)


def _at_primaries(pool: Pool) -> list[Origin]:
    return [each for each in pool.origins if not each.retired and fits(each.reports.values, "standby") is False]
