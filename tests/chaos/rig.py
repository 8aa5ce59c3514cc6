"""What chaos happens to: PostgreSQL, a proxy before it, pgnear before that; all real, all on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from pooler.embedded import free_port, installed
from tests.chaos.bank import SCHEMA
from tests.support.postgres import Server
from tests.support.process import command, environment
from tests.support.proxy import Proxy
from tests.support.standby import Standby
from tests.support.waiting import until

ROLE, FIRST_PASSWORD = "clerk", "first"
TELLER_PASSWORD = "of the tellers"
BENT = Path(__file__).parent / "bent"


class Rig:
    """The whole of it.

    Attributes:
      server: the primary; after a failover, that which has become it.
      proxy: between pgnear and the origin. elsewhere: another one at the same port of 127.0.0.2, for a name that moves.
      standby: where there is one, the second host of the origin's list.
    """

    def __init__(
        self,
        server: Server,
        directory: Path,
        *,
        log: str | None = None,
        standby: Standby | None = None,
        workers: int = 1,
    ) -> None:
        self.server = server
        self.standby = standby
        self.workers = workers
        self.proxy = Proxy(server.port)
        self.elsewhere = Proxy(server.port, host="127.0.0.2", port=self.proxy.port)
        self._directory = directory
        self._log = log or str(directory / "log")
        self.port, self.http = free_port(), free_port()
        self.world(clock=0, names={"origin.test": "127.0.0.1"})
        self.password(FIRST_PASSWORD)
        self.start()

    # ---- pgnear ------------------------------------------------------------------------------------------------------

    def start(self, *, again: bool = False) -> None:
        """Start pgnear; `again`: and again, where another one still has its addresses."""
        hosts, attributes = f"origin.test:{self.proxy.port}", "any"
        if self.standby is not None:
            hosts, attributes = f"{hosts},127.0.0.1:{self.standby.port}", "read-write"
        settings = {
            "origin": f"postgresql://{ROLE}@{hosts}/postgres?sslmode=disable&target_session_attrs={attributes}",
            "password_file": str(self._directory / "password"),
            "allow_plaintext_origin": "true",
            "listen": f"127.0.0.1:{self.port}",
            "http": f"127.0.0.1:{self.http}",
            "pool_size": 4,
            "workers": self.workers,
            "pool_wait_timeout": "3s",
            "query_timeout": "2s",
            "cancel_wait_timeout": "2s",
            "origin_connect_timeout": "2s",
            "users": {"teller": {"password": TELLER_PASSWORD}, "manager": {"password": TELLER_PASSWORD}},
            "admin_users": "manager",
            "cache": {"invalidation": "writes"},
        }
        env = {name: value for name, value in os.environ.items() if not name.startswith("PGNEAR_")}
        env |= environment(settings) | {"PGNEAR_LOG__format": "json", "BENT_WORLD": str(self._world)}
        env["PYTHONPATH"] = f"{BENT}{os.pathsep}{env.get('PYTHONPATH', '')}"
        self._environment = env
        self._execute()
        until(partial(self._serves, again=again), within=40, what="pgnear does not serve")

    def _execute(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command("serve"), env=self._environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def _serves(self, *, again: bool) -> bool:
        if again and self.process.poll() is not None:
            self._execute()
        try:
            with self.connect() as connection:
                return bool(connection.execute("select true").fetchone())
        except psycopg.Error:
            assert self.process.poll() is None, f"pgnear has ended: {self.log()[-600:]}"
            return False

    def connect(self, *, user: str = "teller", database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=TELLER_PASSWORD, dbname=database,
            sslmode="disable", connect_timeout=5,
        )  # fmt: skip

    def command(self, text: str) -> None:
        """Say something on pgnear's console."""
        with self.connect(user="manager", database="pgnear") as console:
            console.autocommit = True
            console.execute(text.encode())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.proxy.close()
            self.elsewhere.close()
        assert status == 0, f"pgnear ended with status {status}"
        assert "internal_error" not in self.log(), "internal errors in pgnear's log"

    def log(self) -> str:
        return "" if self._log.startswith("/dev/") else Path(self._log).read_text()

    # ---- the world ---------------------------------------------------------------------------------------------------

    @property
    def _world(self) -> Path:
        return self._directory / "world.json"

    def world(self, **changes: object) -> None:
        """What pgnear's clock and resolver say from now on."""
        before = json.loads(self._world.read_text()) if self._world.exists() else {}
        _replace(self._world, json.dumps(before | changes))

    def password(self, text: str) -> None:
        """What pgnear is to log in with."""
        _replace(self._directory / "password", text)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """A question to the primary, past pgnear and the proxy."""
        return self.server.execute(query)


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


@contextmanager
def bank_server() -> Iterator[Server]:
    """A PostgreSQL with the bank's tables and the role that pgnear logs in as. It keeps its promises (fsync)."""
    with Server(installation=installed(18), settings={"max_connections": "50", "fsync": "on"}) as server:
        server.execute(f"create role {ROLE} login password '{FIRST_PASSWORD}'")
        for statement in SCHEMA.split(";"):
            if statement.strip():
                server.execute(statement)
        server.execute(f"grant all on account, transfer to {ROLE}")
        yield server


@contextmanager
def bank_standby(server: Server) -> Iterator[Standby]:
    """A standby of `server`, which acknowledges a commit only when that is on the standby's disk, too."""
    with Standby(server, settings={"max_connections": "50", "fsync": "on"}) as standby:
        until(lambda: server.execute("select true from pg_stat_replication where state = 'streaming'"))
        server.execute("alter system set synchronous_standby_names = '*'")
        server.execute("select pg_reload_conf()")
        until(lambda: server.execute("select true from pg_stat_replication where sync_state = 'sync'"))
        yield standby


@contextmanager
def rig(server: Server, *, log: str | None = None, standby: Standby | None = None, workers: int = 1) -> Iterator[Rig]:
    """A fresh pgnear and fresh proxies before `server`; at the end pgnear must stop as it should."""
    with tempfile.TemporaryDirectory(prefix="pgnear-chaos-") as directory:
        made = Rig(server, Path(directory), log=log, standby=standby, workers=workers)
        try:
            yield made
        except BaseException:
            made.process.kill()
            made.process.wait()
            print(made.log()[-3000:])
            raise
        made.stop()
