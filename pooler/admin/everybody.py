"""One answer of all workers: each is asked the same, this process too.

Lives here: who is asked, for how long, and what becomes of those who fail or keep silent. Not here: what is asked for
(`workers.peers.ANSWERS`), how answers are joined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from pooler.workers.peers import ANSWERS
from protocol import errors
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service

ANSWER_SECONDS = 5.0
"""A worker that does not answer within so long is left out."""


class Replies(NamedTuple):
    """What was answered, by worker, in their order; and who has said nothing."""

    answers: dict[int, Any]
    silent: list[int]

    def check(self) -> None:
        """Raise where somebody has not done what all were told.

        Raises:
          PgError: 58000.
        """
        if self.silent:
            raise errors.workers_silent(self.silent)


async def ask_everybody(
    service: Service, what: str, data: Any = None, *, within: float | None = ANSWER_SECONDS
) -> Replies:
    """Ask every worker at once, and this one among them.

    Args:
      within: seconds that the others have; None: as long as it takes.

    Raises:
      PgError: some have failed; which ones, where others have not.
    """
    peers = service.peers
    if peers is None:
        return Replies({0: await ANSWERS[what](service, data)}, [])
    found: dict[int, Any] = {}
    failed: dict[int, PgError] = {}

    async def ask(worker: int) -> None:
        try:
            if worker == peers.index:
                found[worker] = await ANSWERS[what](service, data)
                return
            with trio.move_on_after(math.inf if within is None else within):
                answer = await peers.ask_one(worker, what, data)
                if answer is not None:
                    found[worker] = answer
        except PgError as error:
            failed[worker] = error

    async with trio.open_nursery() as nursery:
        for worker in range(peers.count):
            nursery.start_soon(ask, worker)
    if failed:
        cause = failed.get(peers.index) or failed[min(failed)]
        raise errors.failed_at_workers(cause, sorted(failed)) if found else cause
    answers = {worker: found[worker] for worker in sorted(found)}
    return Replies(answers, [worker for worker in range(peers.count) if worker not in found])
