"""What the suites are run against: a fresh PostgreSQL of the system's packages, alone or behind a pgnear."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear

DIRECT, POOLED = "direct", "pgnear"


@dataclass
class Rig:
    """Where a suite connects, and what became of pgnear.

    Attributes:
      bin: PostgreSQL's programs.
      trouble: of pgnear itself: it died, did not stop, or wrote a traceback. Empty after a direct run.
    """

    name: str
    port: int
    bin: Path
    server: Server
    trouble: list[str] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    def environment(self, database: str) -> dict[str, str]:
        """libpq's variables, beside the few of ours that programs need."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        return kept | {
            "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD,
            "PGDATABASE": database,
        }  # fmt: skip


@contextmanager
def running(
    name: str,
    installation: Path,
    databases: Sequence[str],
    *,
    setup: Sequence[str] = (),
    users: Mapping[str, str] | None = None,
    cache: bool,
    pool_size: int,
) -> Iterator[Rig]:
    """A new cluster where the superuser has run `setup`, and where POOLED a pgnear in front of it.

    Args:
      databases: what pgnear serves beside `postgres`.
      users: name -> password of those that may log in to pgnear beside `postgres`.
    """
    issued = Authority().issue("127.0.0.1", "localhost")
    settings = {
        "max_connections": "300",
        "max_prepared_transactions": "10",
        "wal_level": "logical",
        "ssl": "on",
        "ssl_cert_file": "{files}/server.crt",
        "ssl_key_file": "{files}/server.key",
    }
    files = {"server.crt": issued.certificate, "server.key": issued.key}
    with Server(installation=installation, settings=settings, files=files) as server:
        for statement in setup:
            server.execute(statement)
        if name == DIRECT:
            yield Rig(name, server.port, server.bin, server)
            return
        near = Pgnear(
            server.url(sslmode="disable"),
            {
                "pool_size": pool_size,
                "min_pool_size": 0,
                "cache": {"enabled": str(cache).lower()},
                "users": {
                    user: {"password": password} for user, password in {"postgres": PASSWORD, **(users or {})}.items()
                },
                "databases": {database: {"origin": server.url(database, sslmode="disable")} for database in databases},
            },
        )
        rig = Rig(name, near.port, server.bin, server, log=near.log_lines)
        try:
            yield rig
        finally:
            rig.trouble += _stop(near)


def _stop(near: Pgnear) -> list[str]:
    died = near.process.poll()
    try:
        near.stop()
    except AssertionError as error:
        raw = [str(line["raw"]) for line in near.log_lines if "raw" in line]
        words = [line.strip(" |+-\n") for line in raw]
        said = next((word for word in reversed(words) if word), str(error)[:500])
        when = "while it ran" if died is not None else "when it was told to stop"
        return [f"it ended {when} with status {near.process.returncode}: {said}"]
    return [f"it ended by itself with status {died}"] if died is not None else []
