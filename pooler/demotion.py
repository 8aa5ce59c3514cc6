"""Servers that change their role while connections lead to them: whether they are still what is wanted, and who goes.

Lives here: which connections drain, and when that is noticed. Not here: what target_session_attrs means (`roles`),
which host a new connection goes to (`ceremony.origins`), closing what becomes idle (`pool`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pooler.logs import get_logger
from pooler.roles import READ_ONLY, fits

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.pool import Pool

log = get_logger(__name__)


def reported(pool: Pool, origin: Origin, name: str) -> None:
    """A server was promoted or demoted. If it is not what is wanted any more, its connections drain."""
    wanted = pool.target.session_attrs
    promoted = name == "in_hot_standby" and origin.reports.values[name] == "off"
    if not (promoted and wanted == "prefer-standby") and fits(origin.reports.values, wanted) is not False:
        return
    place = origin.target.place
    leaving = [each for each in pool.origins if each.target.place == place and not each.retired]
    log.warning("origin_role_changed", pool=pool.name, host=place, wanted=wanted, connections=len(leaving))
    pool.stats.origin_role_changes += 1
    leave(pool, leaving)


def leave(pool: Pool, leaving: Iterable[Origin]) -> None:
    """These drain: they are closed when they are idle."""
    for each in leaving:
        each.retired = True
    for idle in (*pool.idle, *pool.reserve_idle):
        if idle.retired:
            idle.close()


def look(pool: Pool) -> None:
    """What came among the answers to pgnear's own questions is seen here, at the latest."""
    wanted = pool.target.session_attrs
    if wanted == "any":
        return
    for origin in pool.idle:
        if origin.settings.get(READ_ONLY) is None and fits(origin.reports.values, wanted) is False:
            reported(pool, origin, READ_ONLY)
            return


def found_read_only(origin: Origin) -> None:
    """A statement was refused as in a read-only transaction: before PostgreSQL 14 only that tells of a demotion."""
    wanted = origin.pool.target.session_attrs
    if wanted in ("read-write", "primary") and fits(origin.reports.values, "primary") is None:
        origin.retired = True
