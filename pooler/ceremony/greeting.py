"""What a client is told at login: the ParameterStatus values its private connection would have reported.

The first client with a given set of startup settings has them tried on an origin connection, so that a bad one fails
the login with the origin's own words; the values are remembered for those who come after.
"""

from __future__ import annotations

from pooler.ceremony.borrow import borrowed
from pooler.pool import Pool
from pooler.settings import Reports, Settings

REMEMBERED = 1000
"""How many sets of startup settings a pool remembers the values of."""


async def greeting(pool: Pool, settings: Settings) -> Reports:
    """ParameterStatus values by name, as the origin reports them under `settings`.

    Raises:
      PgError: the origin cannot be reached, refuses one of the settings, or has no connection to spare in time.
    """
    known = pool.greetings.get(settings)
    if known is None:
        async with borrowed(pool, settings) as origin:
            known = origin.reports
        while len(pool.greetings) >= REMEMBERED:
            pool.greetings.pop(next(iter(pool.greetings)))
        pool.greetings[settings] = known
    return known
