"""The servers that are compared: each is started on a free loopback port, and stopped by the id of the process we
started.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from pooler.embedded import EmbeddedPostgres, free_port

PASSWORD = "bench"
STARTS_WITHIN_SECONDS = 20


@dataclass(frozen=True)
class Rig:
    """Something that pgbench can be pointed at.

    Attributes:
      pid: the pooler's process, or None where there is none.
    """

    name: str
    port: int
    pid: int | None = None

    def cpu_seconds(self) -> float:
        """CPU that the pooler has used so far, user and system."""
        if self.pid is None:
            return 0.0
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def memory_bytes(self) -> int:
        """Resident memory of the pooler."""
        return int(psutil.Process(self.pid).memory_info().rss) if self.pid is not None else 0


def system_postgres() -> Path | None:
    """The newest PostgreSQL installed by the system's packages, if there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent.parent if found else None


@contextmanager
def running(names: list[str], postgres: EmbeddedPostgres) -> Iterator[list[Rig]]:
    """The rigs called `names` that this machine has, in that order."""
    with ExitStack() as stack:
        rigs = []
        for name in names:
            if name == "direct":
                rigs.append(Rig("direct", postgres.port))
            elif name == "pgbouncer":
                if _pgbouncer_binary() is None:
                    print("PgBouncer is not installed: its column is left out.", file=sys.stderr)
                    continue
                rigs.append(stack.enter_context(_pgbouncer(postgres)))
            else:
                rigs.append(stack.enter_context(_pgnear(postgres, cache=name == "pgnear+cache")))
        yield rigs


@contextmanager
def _process(command: list[str], port: int, user: str | None = None, **environment: str) -> Iterator[int]:
    process = subprocess.Popen(
        command,
        user=user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not listen on port {port}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _pgnear(postgres: EmbeddedPostgres, *, cache: bool) -> Iterator[Rig]:
    port = free_port()
    settings = {
        "PGNEAR_ORIGIN": postgres.url() + "?sslmode=disable",
        "PGNEAR_LISTEN": f"127.0.0.1:{port}",
        "PGNEAR_CACHE__ENABLED": "true" if cache else "false",
        "PGNEAR_AUTH": "trust",
        "PGNEAR_LOG__LEVEL": "error",
    }
    with _process([sys.executable, "-m", "pooler", "serve"], port, **settings) as pid:
        yield Rig("pgnear+cache" if cache else "pgnear", port, pid)


@contextmanager
def _pgbouncer(postgres: EmbeddedPostgres) -> Iterator[Rig]:
    port = free_port()
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pgnear-bench-") as directory:
        home = Path(directory)
        if user is not None:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        users = home / "users"
        users.write_text(f'"postgres" "{PASSWORD}"\n')
        configuration = home / "pgbouncer.ini"
        lines = [
            "[databases]",
            f"postgres = host=127.0.0.1 port={postgres.port} dbname=postgres",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {users}",
            "pool_mode = transaction",
            "default_pool_size = 20",
            "max_client_conn = 5000",
            f"logfile = {home / 'log'}",
        ]
        if _pgbouncer_prepares():
            lines.append("max_prepared_statements = 200")
        configuration.write_text("\n".join(lines) + "\n")
        for path in (users, configuration):
            path.chmod(0o644)
        with _process([_pgbouncer_binary() or "pgbouncer", "-q", str(configuration)], port, user) as pid:
            yield Rig("pgbouncer", port, pid)


def _pgbouncer_binary() -> str | None:
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")


@lru_cache
def pgbouncer_version() -> str:
    """Of the installed PgBouncer, like 1.18.0; empty where there is none."""
    binary = _pgbouncer_binary()
    if binary is None:
        return ""
    return subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def _pgbouncer_prepares() -> bool:
    major, minor = pgbouncer_version().split(".")[:2]
    return (int(major), int(minor)) >= (1, 21)


def why_not(rig: Rig, mode: str) -> str:
    """Why `rig` cannot be measured in pgbench's query mode `mode`; empty where it can."""
    if mode == "prepared" and rig.name == "pgbouncer" and not _pgbouncer_prepares():
        return (
            f"PgBouncer {pgbouncer_version()} has no prepared statements in transaction mode (1.21 brought them): "
            "it is not measured in mode prepared."
        )
    return ""
