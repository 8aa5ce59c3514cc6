"""A real PostgreSQL and a real pgnear process for the tests of this folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.request import urlopen

import pytest

from pooler.embedded import EmbeddedPostgres


@dataclass
class Pgnear:
    """A running `pgnear serve`."""

    process: subprocess.Popen[str]
    address: str
    http: str
    password: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def dsn(self, **more: str) -> str:
        fields = {
            "host": "127.0.0.1", "port": str(self.port), "user": "postgres", "dbname": "postgres",
            "password": self.password, "connect_timeout": "10", **more,
        }  # fmt: skip
        return " ".join(f"{name}='{value}'" for name, value in fields.items())

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels."""
        with urlopen(f"http://{self.http}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@pytest.fixture(scope="session")
def origin() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(password="secret") as server:
        yield server


@pytest.fixture
def pgnear(origin: EmbeddedPostgres) -> Iterator[Callable[..., Pgnear]]:
    """Start pgnear with settings as keyword arguments (`cache__ttl="1s"`); stopped, and checked, at the end."""
    running: list[Pgnear] = []

    def start(url: str | None = None, **settings: str) -> Pgnear:
        environment = {**os.environ, **{f"PGNEAR_{name.upper()}": value for name, value in settings.items()}}
        environment |= {"PGNEAR_ORIGIN": url or origin.url(), "PGNEAR_LOG__FORMAT": "json"}
        environment.setdefault("PGNEAR_LISTEN", "127.0.0.1:0")
        environment.setdefault("PGNEAR_HTTP", "127.0.0.1:0")
        process = subprocess.Popen(
            [sys.executable, "-m", "pooler", "serve"], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        addresses: dict[str, str] = {}
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] in ("listening", "http_listening"):
                addresses[event["event"]] = event["address"]
            if len(addresses) == 2:
                break
        else:
            raise AssertionError(f"pgnear ended with status {process.wait()} before it listened")
        running.append(Pgnear(process, addresses["listening"], addresses["http_listening"], origin.password))
        return running[-1]

    yield start
    for server in running:
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=20)
        assert server.process.returncode == 0, errors
        assert "Traceback" not in errors, errors
        assert "internal_error" not in errors, errors
