"""Which deadlines hold for whom: the general ones, and overrides by database and user.

Not here: the settings themselves (`model`, `overrides`), and who watches them (`pooler.ceremony.deadlines`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from config.overrides import Override


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The settings of these names, in seconds, that hold for one database and user. 0 is off, where 0 is allowed."""

    query_timeout: float
    transaction_timeout: float
    idle_in_transaction_timeout: float
    client_idle_timeout: float
    pool_wait_timeout: float
    pause_timeout: float
    origin_connect_timeout: float
    origin_idle_timeout: float
    origin_lifetime: float
    cancel_wait_timeout: float


NAMES = tuple(field.name for field in fields(Deadlines))


def deadlines_of(general: object, overrides: Iterable[Override], database: str, user: str | None) -> Deadlines:
    """For each deadline, that of the first override that is for `user` in `database` and has it, else the general one.

    An override for some users is for no `user` of None.
    """
    meant = [
        override
        for override in overrides
        if (not override.database or database in override.database) and (not override.user or user in override.user)
    ]
    values = {}
    for name in NAMES:
        own = (value for override in meant if (value := getattr(override, name)) is not None)
        values[name] = next(own, getattr(general, name))
    return Deadlines(**values)
