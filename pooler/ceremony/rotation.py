"""One pool's way to new credentials, or to another origin, without a failed query.

    read      the password's source (`config.passwords`): when its file has changed, at RELOAD, when the origin refuses
    verify    on a probe connection; where that fails the old credentials stay, and it is tried again
    take over new connections have the new ones; the old connections are closed as they become idle

Not here: RELOAD itself (`reload`), and who of the clients may still use the old password (`verifiers`).
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import trio

from config import Target
from config.passwords import PasswordSource, PasswordUnavailable
from pooler import upkeep
from pooler.ceremony.connect import Connected, LoginRefused
from pooler.ceremony.opening import take_in
from pooler.ceremony.origins import connect
from pooler.logs import get_logger
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.pool import Pool
    from pooler.service import Service

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at a password file."""

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 30.0
"""Between two attempts with new credentials that do not work yet."""

REFUSED_SECONDS = 1.0
"""An origin that goes on refusing does not have the source read more often."""


class Rotation:
    """The credentials of one pool.

    Attributes:
      source: where its password is read; None where the URL has it.
      problem: why new credentials have not taken over, or None.
    """

    def __init__(self, service: Service, pool: Pool, source: PasswordSource | None) -> None:
        self.source = source
        self.problem: str | None = None
        self._service = service
        self._pool = pool
        self._turn = trio.Lock()
        self._stamp = source.stamp() if source is not None else None
        self._retry_at: float | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._refused_again_at = 0.0

    async def run(self) -> None:
        """Look at the source again and again, for as long as the process lives."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            stamp = self.source.stamp() if self.source is not None else None
            due = self._retry_at is not None and monotonic() >= self._retry_at
            if stamp != self._stamp or due:
                self._stamp = stamp
                await self.refresh()

    async def connect(self, parameters: dict[str, str] | None = None) -> Connected:
        """A connection with the credentials that hold; where they are refused, with newer ones if there are any.

        Args:
          parameters: as `ceremony.connect.connect` has them.

        Raises:
          PgError, trio.TooSlowError: as `ceremony.origins.connect` does.
        """
        target, reactor = self._pool.target, self._service.reactor
        limit = self._pool.limits.origin_connect_timeout
        try:
            return await connect(target, reactor, parameters, timeout=limit)
        except LoginRefused:
            if not await self._newer_than(target):
                raise
        return await connect(self._pool.target, reactor, parameters, timeout=limit)

    async def _newer_than(self, refused: Target) -> bool:
        async with self._turn:
            if self._pool.target is not refused:
                return True
            if self.source is None or monotonic() < self._refused_again_at:
                return False
            self._refused_again_at = monotonic() + REFUSED_SECONDS
            target = await self._read(refused)
            return target is not None and target.password != refused.password and await self._adopt(target)

    async def refresh(self) -> None:
        """Read the source, and change to what it gives."""
        async with self._turn:
            target = await self._read(self._pool.target)
            if target is not None:
                await self._adopt(target)

    async def change(self, target: Target, source: PasswordSource | None) -> None:
        """Change to another target; its password is that of `source`, where there is one."""
        async with self._turn:
            self.source = source
            self._stamp = source.stamp() if source is not None else None
            wanted = await self._read(target)
            if wanted is not None:
                await self._adopt(wanted)

    async def _read(self, target: Target) -> Target | None:
        """`target` with the source's password; None where it gives none."""
        source = self.source
        if source is None:
            return target
        try:
            with trio.fail_after(source.timeout + 1.0):  # a file may be on a file system that is gone
                password = await trio.to_thread.run_sync(source.read, abandon_on_cancel=True)
        except PasswordUnavailable as error:
            self._failed("unavailable", str(error))
        except trio.TooSlowError:
            self._failed("unavailable", f"its source did not answer within {source.timeout:g} s")
        else:
            return replace(target, password=password)
        return None

    async def _adopt(self, target: Target) -> bool:
        pool, service = self._pool, self._service
        if target == pool.target:
            self._settled()
            return True
        limit = pool.limits.origin_connect_timeout
        try:
            connected = await connect(target, service.reactor, timeout=limit)
        except trio.TooSlowError:
            problem = errors.origin_unreachable(f"no answer within {limit:g} s (origin_connect_timeout)")
            self._failed("rejected", problem.message)
            return False
        except PgError as error:
            self._failed("rejected", error.message)
            return False
        old, pool.target = pool.target, target
        self._settled()
        self._count("verified")
        log.info("credentials_rotated", pool=pool.name, user=target.user, host=target.host, port=target.port)
        upkeep.renew(pool)
        pool.connecting_count += 1
        take_in(pool, connected, monotonic())
        service.target_changed(pool, old)
        return True

    def _settled(self) -> None:
        self.problem = None
        self._retry_at = None
        self._retry_seconds = FIRST_RETRY_SECONDS

    def _failed(self, outcome: str, reason: str) -> None:
        self._count(outcome)
        if reason != self.problem:
            log.error("credentials_not_rotated", pool=self._pool.name, outcome=outcome, reason=reason)
        self.problem = reason
        self._retry_at = monotonic() + self._retry_seconds
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)

    def _count(self, outcome: str) -> None:
        counts = self._service.stats.rotations
        counts[outcome] = counts.get(outcome, 0) + 1
