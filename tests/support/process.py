"""A pgnear process: start it, read its log as it comes, ask its metrics, stop it and see that it ended well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from tests.support.forked import Forked
from tests.support.postgres import PASSWORD
from tests.support.waiting import until


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """`{"cache": {"ttl": "1s"}}` as `{"PGNEAR_CACHE__ttl": "1s"}`."""

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{prefix}__{key}", inner)
        else:
            yield prefix, str(value)

    return {name: value for key, inner in settings.items() for name, value in flat(f"PGNEAR_{key.upper()}", inner)}


def command(*arguments: str) -> list[str]:
    """The command line of `pgnear` in this interpreter."""
    return [sys.executable, "-m", "pooler", *arguments]


def run(*arguments: str, within: float = 60.0, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A pgnear that is expected to end by itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PGNEAR_")}
    return subprocess.run(
        command(*arguments), env=env | environment(settings), capture_output=True, text=True, timeout=within
    )


def executed(
    arguments: Sequence[str], environment: Mapping[str, str], *, module: str = "pooler"
) -> subprocess.Popen[str]:
    """A `pgnear` started by its command line (`python -m module`); `Forked` is the same without the time that takes."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


Start = Callable[[Sequence[str], Mapping[str, str]], Forked | subprocess.Popen[str]]
"""How a `pgnear` with these arguments and this environment comes to be."""


class Pgnear:
    """A `pgnear serve` that listens.

    Args:
      start: `Forked` or `executed`.

    Attributes:
      process: the subprocess.
      addresses: where it listens, in the order of `listen`.
      log_lines: every line it has written to standard error, decoded; lines that are no JSON under `raw`.
    """

    def __init__(
        self,
        origin_url: str,
        settings: Mapping[str, Any],
        flags: tuple[str, ...] = (),
        start: Start = Forked,
    ) -> None:
        wanted: dict[str, Any] = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", **settings}
        env = {name: value for name, value in os.environ.items() if not name.startswith("PGNEAR_")}
        env |= environment({name: value for name, value in wanted.items() if value is not None})
        env["PGNEAR_LOG__format"] = env.get("PGNEAR_LOG__format", "json")
        self.log_lines: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self.process = start(["serve", "--origin", origin_url, *flags], env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http: str | None = None
        self.addresses: list[str] = []
        try:
            if wanted["http"] is not None:
                self.http = str(self.wait_for_log("http_listening")["address"])
            listening = str(wanted["listen"]).count(",") + 1
            self.wait_for_log("listening", count=listening)
            self.addresses = [line["address"] for line in self.log_lines if line.get("event") == "listening"]
        except BaseException:
            self.process.kill()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": None, "raw": line}
            with self._news:
                self.log_lines.append(event)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for_log(self, event: str, *, count: int = 1, within: float = 40.0, **fields: object) -> dict[str, Any]:
        """The `count`th line with this event and these fields, now or when it comes."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.log_lines
                if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
            ]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), within)
            lines = found()
            assert len(lines) >= count, f"no {event} {fields}: {self.log_lines[-10:]}"
            return lines[count - 1]

    @property
    def port(self) -> int:
        """The TCP port of its first address."""
        return int(self.addresses[0].rpartition(":")[2])

    def dsn(self, **more: object) -> str:
        """Keywords for libpq; the superuser of the origin, unless others are given. None leaves one out."""
        fields: dict[str, object] = {
            "host": "127.0.0.1", "port": self.port, "user": "postgres", "password": PASSWORD, "dbname": "postgres",
            "connect_timeout": 40, "sslmode": "disable", **more,
        }  # fmt: skip
        return psycopg.conninfo.make_conninfo(
            "", **{name: value for name, value in fields.items() if value is not None}
        )  # type: ignore[arg-type]

    def connect(self, *, autocommit: bool = True, dsn: Mapping[str, object] | None = None, **more: Any) -> Any:
        """A psycopg connection; `more` goes to psycopg.connect, `dsn` into the connection string."""
        return psycopg.connect(self.dsn(**(dsn or {})), autocommit=autocommit, **more)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP request."""
        assert self.http is not None
        try:
            with urlopen(f"http://{self.http}{path}", timeout=30) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> str:
        """The text of /metrics."""
        status, text = self.get("/metrics")
        assert status == 200
        return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `pgnear_<name>` that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == f"pgnear_{name}" and labels.items() <= sample.labels.items()
        )

    def wait_until_it_caches(self) -> None:
        """Until the origin's catalog has been read: before that nothing is stored."""
        with self.connect(dsn={"application_name": "waits for the cache"}) as connection:
            stored = self.metric("cache_stores_total")

            def stores() -> bool:
                connection.execute("select 'is anything stored yet'")
                return self.metric("cache_stores_total") > stored

            until(stores, what="the cache stores nothing")

    def peak_memory(self) -> int:
        """The most memory that it has had resident so far, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def stop(self, *, within: float = 40.0) -> None:
        """SIGTERM; it must end in time, with status 0 and without a traceback."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end within {within:g} s of SIGTERM: {self.log_lines[-10:]}") from None
        self._reader.join(10)
        text = json.dumps(self.log_lines)
        assert status == 0, f"exit status {status}: {self.log_lines[-10:]}"
        assert "Traceback" not in text, self.log_lines
        assert "internal_error" not in text, self.log_lines


@contextmanager
def running(origin_url: str, *flags: str, start: Start = Forked, **settings: Any) -> Iterator[Pgnear]:
    """A pgnear for the length of the block, stopped and checked at its end."""
    server = Pgnear(origin_url, settings, flags, start)
    try:
        yield server
    except BaseException:
        server.process.kill()
        server.process.wait()
        raise
    else:
        server.stop()
