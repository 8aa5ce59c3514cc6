"""PostgreSQL servers for tests: those of the wheel (16 and 18), and the system's, which speaks TLS.

A `Server` adds to `EmbeddedPostgres` what only tests do: more roles, its own pg_hba.conf, crashes and restarts.
"""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg

from pooler.embedded import EmbeddedPostgres

PASSWORD = "s3cret of the origin"
"""The superuser's; has spaces, so that what forgets to quote it fails."""


_clusters: dict[str, Path] = {}
"""A data directory as initdb has made it, by the name of the installation."""


class Server(EmbeddedPostgres):
    """A running PostgreSQL on loopback; clients log in with SCRAM unless `hba` says otherwise.

    Args:
      hba: lines that pg_hba.conf begins with.
      files: copied beside the data directory, readable to the server; `{files}` in a setting is where.
    """

    def __init__(
        self,
        *,
        installation: Path | None = None,
        settings: dict[str, str] | None = None,
        hba: str = "",
        files: dict[str, bytes] | None = None,
    ) -> None:
        super().__init__(password=PASSWORD, installation=installation, settings=settings)
        self._hba = hba
        self._files = files or {}

    def url(
        self, database: str = "postgres", *, user: str = "postgres", password: str | None = None, **query: str
    ) -> str:
        """A connection URL; `query` adds parameters (sslmode, application_name)."""
        secret = quote(PASSWORD if password is None else password, safe="")
        more = f"?{urlencode(query)}" if query else ""
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}{more}"

    def connect(self, **more: object) -> psycopg.Connection:
        """A direct connection of the superuser, autocommit; closed by the caller."""
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=40, **more)  # type: ignore[arg-type]

    def execute(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        """Run one statement on a connection of its own; its rows."""
        with self.connect() as connection:
            cursor = connection.execute(query.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def role(self, name: str) -> str:
        """Make a superuser role that no other test uses; the URL to log in as it."""
        with self.connect() as connection:
            connection.execute(f"create role {name} superuser login password '{PASSWORD}'".encode())
        return self.url(user=name)

    def backends(self, role: str) -> int:
        """How many connections `role` has now."""
        query = "select count(*) from pg_stat_activity where usename = %s and backend_type = 'client backend'"
        count = self.execute(query, role)[0][0]
        assert isinstance(count, int)
        return count

    def crash(self) -> None:
        """Kill every process of the server at once, as a lost machine does; the data stays."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)  # immediate shutdown: no goodbye to clients' transactions
        self.process.wait(40)

    def restart(self) -> None:
        """Start it again on the same port with the same data."""
        self._launch()

    def _initdb(self) -> None:
        """As the first server of its installation, or by copying that one's, which is some ten times quicker."""
        made = _clusters.get(self._installation.name)
        if made is None:
            super()._initdb()
            made = Path(tempfile.mkdtemp(prefix="pgnear-initdb-"))
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            subprocess.run(["cp", "-a", f"{self.data}/.", str(made)], check=True)
            _clusters[self._installation.name] = made
        else:
            subprocess.run(["cp", "-a", f"{made}/.", str(self.data)], check=True)

    def _launch(self) -> None:
        if self._hba:
            path = self.data / "pg_hba.conf"
            kept = path.read_text()
            if not kept.startswith(self._hba):
                path.write_text(self._hba + "\n" + kept)
        for name, content in self._files.items():
            path = self._scratch / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._user:
                shutil.chown(path, self._user)
        self.settings = {name: value.replace("{files}", str(self._scratch)) for name, value in self.settings.items()}
        super()._launch()


def system_installation() -> Path | None:
    """The newest installation of the system's packages (built with OpenSSL), where there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent.parent if found else None
