"""A physical standby of another server, on the same machine."""

from __future__ import annotations

import os
import subprocess

from pooler.embedded import PostgresFailed
from tests.support.postgres import PASSWORD, Server
from tests.support.waiting import until


class Standby(Server):
    """Streams from `primary`, which must be running when it starts for the first time; `promote` ends that.

    Raises:
      PostgresFailed: `pg_basebackup` fails.
    """

    def __init__(self, primary: Server, *, settings: dict[str, str] | None = None) -> None:
        super().__init__(installation=primary.bin.parent, settings=settings)
        self._primary = primary

    def _initdb(self) -> None:
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres dbname=postgres"
        command = [
            str(self.bin / "pg_basebackup"), "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast",
            "--no-sync",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            user=self._user,
            cwd=self._scratch,
            capture_output=True,
            text=True,
            env={**os.environ, "PGPASSWORD": PASSWORD},
        )
        if done.returncode:
            raise PostgresFailed(f"pg_basebackup failed: {done.stderr.strip()}")

    def promote(self) -> None:
        """Make it a primary; returns when it is one."""
        (done,) = self.execute("select pg_promote(true, 30)")
        assert done == (True,)


def follow(old: Server, new: Server) -> None:
    """Start `old`, a primary that was stopped, as a standby of `new`; returns when it streams."""
    source = f"host=127.0.0.1 port={new.port} user=postgres password='{PASSWORD}' application_name=follower"
    old.settings |= {"primary_conninfo": source, "synchronous_standby_names": ""}
    (old.data / "standby.signal").touch()
    old.restart()
    until(lambda: new.execute("select true from pg_stat_replication where application_name = 'follower'"))
