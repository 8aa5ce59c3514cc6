"""The servers that are compared: each is started on a free loopback port with settings of its own, and stopped by the
id of the process we started. No load is made here.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil

from bench.compiled import compiled
from pooler import __version__
from pooler.ceremony.tls import make_certificate
from pooler.embedded import EmbeddedPostgres, free_port

PASSWORD = "bench"
STARTS_WITHIN_SECONDS = 60

ROOM = 5000
"""Clients that every rig has room for at least."""

NAMES = (
    "direct", "pgbouncer", "odyssey", "pgpool", "pgnear", "pgnear+cache", "pgnear-c", "pgnear-c+cache", "pgnear-2",
    "pgnear-2+cache", "pgnear+defer",
)  # fmt: skip
NEAR = NAMES[:-1]
"""Rigs that are compared where nothing is far: without the one whose gain is a round trip (cache and `defer_begin`)."""

POOLERS = ("pgbouncer", "pgnear", "pgnear+cache", "pgnear-c", "pgnear-2")
"""Rigs that know every `Manner`."""

COMPILED = ("pgnear-c", "pgnear-c+cache")
"""pgnear with its hot path compiled (`bench.compiled`); left out where that cannot be done."""

BINARIES = ("pgbouncer", "odyssey", "pgpool")
"""Rigs that are left out where the program of that name is not installed."""


@dataclass(frozen=True)
class Manner:
    """How a pooler of POOLERS is set up.

    Attributes:
      password: whether clients must log in with SCRAM-SHA-256; if not they are trusted.
      tls: whether it offers TLS to clients. Its certificate has a P-256 key, at every rig.
      origin_port: where it finds PostgreSQL, if that is not the server's own port.
      origin_tls: whether it encrypts there.
      pgnear: more settings of pgnear by name, like `cache__max_bytes`.
    """

    password: bool = False
    tls: bool = False
    origin_port: int | None = None
    origin_tls: bool = False
    pgnear: Mapping[str, str] = field(default_factory=dict)


PLAIN = Manner()


@dataclass(frozen=True)
class Rig:
    """Something that pgbench can be pointed at.

    Attributes:
      pid: the pooler's process, or None where there is none.
      about: version and settings, in one line for the reader of the results.
    """

    name: str
    port: int
    pid: int | None = None
    about: str = ""

    def cpu_seconds(self) -> float:
        """CPU that the pooler and its child processes have used so far, user and system."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(each.user + each.system for each in times))

    def memory_bytes(self) -> int:
        """Resident memory of the pooler and its child processes; what they share is counted for each."""
        return sum(int(process.memory_info().rss) for process in self._processes())

    def forget_peak(self) -> None:
        """Let `peak_memory_bytes` begin anew."""
        for process in self._processes():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int:
        """The most memory that was resident since `forget_peak`; Linux only."""
        words = [Path(f"/proc/{process.pid}/status").read_text().split() for process in self._processes()]
        return sum(int(each[each.index("VmHWM:") + 1]) * 1024 for each in words)

    def _processes(self) -> list[psutil.Process]:
        if self.pid is None:
            return []
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]


def system_postgres() -> Path | None:
    """The newest PostgreSQL installed by the system's packages, if there is one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent.parent if found else None


@contextmanager
def origin(*, tls: bool = True) -> Iterator[EmbeddedPostgres]:
    """The system's PostgreSQL, or the wheel's; with TLS on offer where it is wanted and the server is built with it."""
    installation = system_postgres()
    with _home() as (home, user):
        settings = {}
        if tls and installation is not None:
            certificate, key = _certificate(home, user)
            settings = {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
        with EmbeddedPostgres(password=PASSWORD, installation=installation, settings=settings) as postgres:
            yield postgres


def _certificate(home: Path, user: str | None) -> tuple[Path, Path]:
    """Files in `home`, which `user` may read: a self-signed certificate for localhost, and its P-256 key."""
    paths = home / "certificate.pem", home / "key.pem"
    for path, pem in zip(paths, make_certificate(), strict=True):
        path.touch(mode=0o600)
        path.write_bytes(pem)
        if user is not None:
            shutil.chown(path, user)
    return paths


@contextmanager
def running(
    names: list[str] | tuple[str, ...], postgres: EmbeddedPostgres, clients: int, manner: Manner = PLAIN
) -> Iterator[list[Rig]]:
    """The rigs called `names` that this machine has, in that order; each has room for `clients` at once.

    Raises:
      ValueError: there is no rig of that name.
      RuntimeError: a rig does not start.
    """
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"no rig is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    with ExitStack() as stack:
        rigs = []
        for name in names:
            if name in BINARIES and _binary(name) is None:
                print(f"{name} is not installed: its column is left out.", file=sys.stderr)
            elif name == "direct":
                rigs.append(Rig("direct", postgres.port))
            elif name == "pgbouncer":
                rigs.append(stack.enter_context(_pgbouncer(postgres, clients, manner)))
            elif name == "odyssey":
                rigs.append(stack.enter_context(_odyssey(postgres)))
            elif name == "pgpool":
                rigs.append(stack.enter_context(_pgpool(postgres, clients)))
            elif name not in COMPILED or compiled() is not None:
                rigs.append(stack.enter_context(_pgnear(postgres, clients, manner, name)))
        yield rigs


@contextmanager
def _process(
    command: list[str],
    port: int,
    *,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
    environment: dict[str, str] | None = None,
    place: Path | None = None,
) -> Iterator[int]:
    """Its id, once somebody listens on `port`. At the end neither it nor a child of it is left."""
    process = subprocess.Popen(
        command,
        cwd=place,
        user=user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
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
        _end(process, stop)


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.send_signal(stop)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()
    psutil.wait_procs(children, timeout=5)


@contextmanager
def _pgnear(postgres: EmbeddedPostgres, clients: int, manner: Manner, name: str) -> Iterator[Rig]:
    port = free_port()
    place = compiled() if name in COMPILED else None
    origin_port = manner.origin_port or postgres.port
    said = {
        "auth": "scram-sha-256" if manner.password else "trust",
        "tls": "allow" if manner.tls else "disable",
        "cache__enabled": "true" if name.endswith(("+cache", "+defer")) else "false",
        **({"defer_begin": "true"} if name.endswith("+defer") else {}),
        **({"workers": "2"} if name.startswith("pgnear-2") else {}),
        **({"cache__invalidation": "writes"} if manner.origin_port else {}),  # a stream has round trips of its own
        **({"max_client_connections": str(clients + 100)} if clients > ROOM else {}),
        **manner.pgnear,
    }
    settings = {
        "PGNEAR_ORIGIN": f"postgresql://postgres:{postgres.password}@127.0.0.1:{origin_port}/postgres"
        f"?sslmode={'require' if manner.origin_tls else 'disable'}",
        "PGNEAR_LISTEN": f"127.0.0.1:{port}",
        "PGNEAR_LOG__LEVEL": "error",
        **{f"PGNEAR_{key.upper()}": value for key, value in said.items()},
        **({"PYTHONPATH": str(place)} if place is not None else {}),
    }
    with _process([sys.executable, "-m", "pooler", "serve"], port, environment=settings, place=place) as pid:
        python = f"Python {platform.python_version()}{', compiled' if place is not None else ''}"
        yield Rig(name, port, pid, f"pgnear {__version__}, {python}: {_words(said)}, pool_size 20 (default)")


@contextmanager
def _home() -> Iterator[tuple[Path, str | None]]:
    """A temporary directory, and the user (None for ours) that owns it and that servers unwilling to be root run as."""
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pgnear-bench-") as directory:
        if user is not None:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        yield Path(directory), user


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o644)  # the directory above is closed to others


@contextmanager
def _pgbouncer(postgres: EmbeddedPostgres, clients: int, manner: Manner) -> Iterator[Rig]:
    port = free_port()
    settings = {
        "auth_type": "scram-sha-256" if manner.password else "trust",
        "pool_mode": "transaction",
        "default_pool_size": "20",
        "max_client_conn": str(max(clients + 100, ROOM)),
    }
    if _pgbouncer_prepares():
        settings["max_prepared_statements"] = "200"
    if manner.tls:
        settings["client_tls_sslmode"] = "allow"
    if manner.origin_tls:
        settings["server_tls_sslmode"] = "require"
    with _home() as (home, user):
        files = {"auth_file": home / "users", "logfile": home / "log"}
        if manner.tls:
            files["client_tls_cert_file"], files["client_tls_key_file"] = _certificate(home, user)
        # The secret as PostgreSQL keeps it: from a password in plain, PgBouncer would derive it anew at each login.
        _write(home / "users", [f'"postgres" "{_secret(postgres) if manner.password else postgres.password}"'])
        lines = [
            "[databases]",
            f"postgres = host=127.0.0.1 port={manner.origin_port or postgres.port} dbname=postgres",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            *(f"{name} = {value}" for name, value in {**files, **settings}.items()),
        ]
        _write(home / "pgbouncer.ini", lines)
        with _process([_binary("pgbouncer") or "", "-q", str(home / "pgbouncer.ini")], port, user=user) as pid:
            yield Rig("pgbouncer", port, pid, f"PgBouncer {version('pgbouncer')}: {_words(settings)}")


@contextmanager
def _odyssey(postgres: EmbeddedPostgres) -> Iterator[Rig]:
    """With one worker: its threads would take turns with the origin and the load, as pgnear's workers do."""
    port = free_port()
    general = {"workers": "1"}
    route = {
        "pool": "transaction",
        "pool_size": "20",
        "pool_discard": "no",
        "pool_reserve_prepared_statement": "yes",
    }

    def words(settings: dict[str, str]) -> list[str]:
        bare = re.compile(r"yes|no|\d+")
        return [f"{name} {value}" if bare.fullmatch(value) else f'{name} "{value}"' for name, value in settings.items()]

    with _home() as (home, user):
        places = {
            "unix_socket_dir": str(home), "locks_dir": str(home), "daemonize": "no", "log_to_stdout": "no",
            "log_stats": "no", "log_session": "no",
        }  # fmt: skip
        origin = {
            "authentication": "none", "storage": "origin", "storage_db": "postgres", "storage_user": "postgres",
            "storage_password": postgres.password,
        }  # fmt: skip
        lines = [
            *words(places | general),
            'unix_socket_mode "0644"',
            'log_format "%p %t %l [%i %s] (%c) %m\\n"',
            "listen {", *words({"host": "127.0.0.1", "port": str(port)}), "}",
            'storage "origin" {', *words({"type": "remote", "host": "127.0.0.1", "port": str(postgres.port)}), "}",
            "database default {", "user default {", *words(origin | route), "}", "}",
        ]  # fmt: skip
        _write(home / "odyssey.conf", lines)
        with _process([_binary("odyssey") or "", str(home / "odyssey.conf")], port, user=user) as pid:
            yield Rig("odyssey", port, pid, f"Odyssey {version('odyssey')}: {_words(general | route)}")


@contextmanager
def _pgpool(postgres: EmbeddedPostgres, clients: int) -> Iterator[Rig]:
    """Pgpool-II keeps one process per client, and a connection to PostgreSQL in each. What it could do for a cluster
    of servers is off.
    """
    port = free_port()
    settings = {
        "memory_cache_enabled": "on",
        "memqcache_method": "shmem",
        "memqcache_expire": "0",
        "memqcache_auto_cache_invalidation": "on",
        "num_init_children": str(clients + 4),
        "max_pool": "1",
        "child_life_time": "0",
        "load_balance_mode": "off",
        "health_check_period": "0",
        "sr_check_period": "0",
        "failover_on_backend_error": "off",
    }
    with _home() as (home, user):
        places = {
            "backend_clustering_mode": "streaming_replication",
            "backend_hostname0": "127.0.0.1",
            "backend_port0": str(postgres.port),
            "backend_flag0": "ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER",
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "socket_dir": str(home),
            "pcp_listen_addresses": "",
            "pcp_port": str(free_port()),
            "pcp_socket_dir": str(home),
            "wd_ipc_socket_dir": str(home),
            "pid_file_name": str(home / "pid"),
            "logdir": str(home),
            "memqcache_oiddir": str(home / "oids"),
            "enable_pool_hba": "on",
            "pool_passwd": str(home / "pool_passwd"),
        }
        (home / "oids").mkdir()
        if user is not None:
            os.chown(home / "oids", pwd.getpwnam(user).pw_uid, -1)
        # Clients are trusted, as at every rig; PostgreSQL asks for SCRAM, so the password must be there in plain.
        _write(home / "hba", ["host all all 127.0.0.1/32 trust"])
        _write(home / "pool_passwd", [f"postgres:TEXT{postgres.password}"])
        _write(home / "pcp", [])
        _write(home / "pgpool.conf", [f"{name} = '{value}'" for name, value in (places | settings).items()])
        files = ["-f", str(home / "pgpool.conf"), "-a", str(home / "hba"), "-F", str(home / "pcp")]
        command = [_binary("pgpool") or "", "-n", "-D", *files]
        with _process(command, port, user=user, stop=signal.SIGINT) as pid:  # SIGTERM would wait for clients
            yield Rig("pgpool", port, pid, f"Pgpool-II {version('pgpool')}: {_words(settings)}")


def _secret(postgres: EmbeddedPostgres) -> str:
    """The superuser's SCRAM secret."""
    query = "select rolpassword from pg_authid where rolname = 'postgres'"
    where = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres", "postgres"]
    env = {**os.environ, "PGPASSWORD": postgres.password}
    command = [str(postgres.bin / "psql"), "-qAtX", "-c", query, *where]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def _words(settings: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _binary(name: str) -> str | None:
    """A program of the system, or the one that an environment variable names: PGBOUNCER=/opt/pgbouncer."""
    return os.environ.get(name.upper()) or shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@lru_cache
def version(name: str) -> str:
    """Of an installed pooler, like 1.18.0; empty where it is not installed."""
    binary = _binary(name)
    if binary is None:
        return ""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)  # pgpool writes it to standard error
    return found[0] if found else "of unknown version"


def _pgbouncer_prepares() -> bool:
    numbers = re.findall(r"\d+", version("pgbouncer"))
    return [int(number) for number in numbers[:2]] >= [1, 21]


def why_not(rig: Rig, mode: str) -> str:
    """Why `rig` cannot be measured in pgbench's query mode `mode`; empty where it can."""
    if mode == "prepared" and rig.name == "pgbouncer" and not _pgbouncer_prepares():
        return (
            f"PgBouncer {version('pgbouncer')} has no prepared statements in transaction mode (1.21 brought them): "
            "it is not measured in mode prepared."
        )
    return ""
