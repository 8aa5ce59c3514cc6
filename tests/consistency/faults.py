"""What is broken while the workload runs: the stream, connections, the whole origin; and the pool that is too small.

Each fault happens again and again at random moments until the run ends.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import psycopg

from tests.support.postgres import Server

FAULTS: dict[str, Callable[[Server], object]] = {
    "walsender": lambda server: server.execute("select pg_terminate_backend(pid) from pg_stat_replication"),
    "backend": lambda server: server.execute(
        "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where backend_type = 'client backend' "
        "and pid <> pg_backend_pid() order by random() limit 1) one"
    ),
    "cancel": lambda server: server.execute(
        "select pg_cancel_backend(pid) from pg_stat_activity where backend_type = 'client backend' "
        "and pid <> pg_backend_pid() and state = 'active' limit 1"
    ),
}


def restart(server: Server) -> None:
    """The origin dies at once and comes back."""
    server.crash()
    server.restart()


FAULTS["restart"] = restart


class Faults:
    """A thread that breaks things.

    Args:
      kinds: of `FAULTS`. every: seconds between two, on average.
    """

    def __init__(self, server: Server, kinds: list[str], every: float, seed: int) -> None:
        self.server = server
        self.kinds = kinds
        self.every = every
        self.happened: dict[str, int] = dict.fromkeys(kinds, 0)
        self.problem: BaseException | None = None
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Faults:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while self.kinds and not self._stop.wait(self._chance.uniform(0.5, 1.5) * self.every):
            kind = self._chance.choice(self.kinds)
            try:
                FAULTS[kind](self.server)
            except psycopg.Error:
                continue  # the fault before is not over
            except BaseException as error:
                self.problem = error
                return
            self.happened[kind] += 1
