"""`pgnear demo`: an embedded PostgreSQL, some data worth a query, a pgnear in front, and a live line of what happens.

Lives here: the order of events, from the port that must be free to the last goodbye, and what is shown. Not here:
starting PostgreSQL (`embedded`), the sample's rows (`sample.sql`).
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

import config
from pooler import logs
from pooler.ceremony.listen import address_of, open_listener
from pooler.embedded import EmbeddedPostgres, PostgresFailed, installed
from pooler.histogram import LATENCY_BOUNDS
from pooler.service import Service
from pooler.serving import serve

USER = PASSWORD = DATABASE = "demo"
"""A role without privileges behind a loopback address: easy to type matters more than hard to guess.

The superuser can run programs, so its password is random and forgotten once the sample is loaded.
"""

MARK = "pgnear-demo"
"""A file in a data directory that was filled to the end; a directory that lacks it is not the demo's to open."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POOL_SIZE = 10
LIVE_SECONDS = 0.5
LIVE_WINDOW_SECONDS = 3.0
PLAIN_SECONDS = 5.0


class _CannotUse(Exception):
    """An argument cannot be used; the message is for the user."""


def run(port: int = 6432, data: Path | None = None, http: str | None = "127.0.0.1:9432") -> int:
    """Run the demo until SIGINT, SIGTERM or SIGHUP.

    Args:
      port: where pgnear listens on 127.0.0.1; 0 takes any free one.
      data: keeps the database in this directory; it is temporary where None.
      http: HOST:PORT for /metrics; another port where it is taken, nothing where None.

    Returns:
      The exit status: 0 after a signal, 1 where something cannot be started, 2 where an argument cannot be used.
    """
    logs.configure("auto", "warning")
    try:
        _run(port, data, http)
    except ModuleNotFoundError as error:
        return _complain(2, f"the demo needs {error.name}; install pgnear[demo]")
    except config.ConfigError as error:
        return _complain(2, *map(str, error.problems))
    except _CannotUse as error:
        return _complain(2, str(error))
    except KeyboardInterrupt:
        return 0
    except (OSError, PostgresFailed, BaseExceptionGroup) as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, OSError | PostgresFailed):
            raise
        return _complain(1, getattr(first, "strerror", None) or str(first))
    print("Stopped." if data is None else f"Stopped; the database is kept in {data}.")
    return 0


def _complain(status: int, *lines: str) -> int:
    for line in lines:
        print(f"pgnear: {line}", file=sys.stderr)
    return status


def _run(port: int, data: Path | None, http: str | None) -> None:
    installed()
    if data is not None and data.exists() and not data.is_dir():
        raise _CannotUse(f"--data: {data} is not a directory")
    if data is not None and data.exists() and any(data.iterdir()) and not (data / MARK).exists():
        raise _CannotUse(f"--data: {data} is not empty, and was not filled by the demo; choose another directory")
    for number in SIGNALS[1:]:
        signal.signal(number, signal.default_int_handler)
    listen = f"127.0.0.1:{port}"
    settings = _settings("postgresql://user:password@127.0.0.1/database", listen, http)  # are they usable at all?
    open_listener(listen).close()
    http = _free_address(settings.http)
    postgres = EmbeddedPostgres(
        data=data, password=secrets.token_urlsafe(24), settings={} if data is None else {"fsync": "on"}
    )
    try:
        trio.run(_serve, postgres, listen, http)
    finally:
        for number in SIGNALS:  # the rest is quick; a second Ctrl-C must not leave a server behind
            signal.signal(number, signal.SIG_IGN)
        postgres.stop()


def _settings(origin: str, listen: str, http: str | None) -> config.Config:
    """The configuration of the demo's pgnear; what is set in the environment is for the user's own."""
    flags = {
        "origin": origin,
        "listen": [listen],
        "http": http,
        "pool_size": POOL_SIZE,
        "drain_timeout": 0.5,
        "log.level": "warning",
    }
    return config.load(flags=flags, environ={})


def _free_address(address: str | None) -> str | None:
    """`address`, or a free port on the same host where that one is taken."""
    if address is None:
        return None
    try:
        open_listener(address).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        listener = open_listener(f"{address.rpartition(':')[0]}:0")
        other = address_of(listener)
        listener.close()
        print(f"{address} is taken; metrics are on {other}.", flush=True)
        return other
    return address


def _load_sample(postgres: EmbeddedPostgres, stopped: Callable[[], bool]) -> None:
    role = f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}';\nCREATE DATABASE {DATABASE} OWNER {USER};\n"
    sample = files("pooler").joinpath("sample.sql").read_text(encoding="utf-8")
    script = ("-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-")
    _client(postgres, "psql", *script, "postgres", user="postgres", password=postgres.password, stdin=role)
    if stopped():
        return
    _client(postgres, "pgbench", "-i", "-q", DATABASE)
    if stopped():
        return
    _client(postgres, "psql", *script, DATABASE, stdin=sample)
    (postgres.data / MARK).write_text("Filled by `pgnear demo`.\n", encoding="utf-8")


def _client(
    postgres: EmbeddedPostgres,
    program: str,
    *arguments: str,
    user: str = USER,
    password: str = PASSWORD,
    stdin: str = "",
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGUSER": user,
        "PGPASSWORD": password,
        "PGCLIENTENCODING": "UTF8",
    }
    done = subprocess.run(
        [str(postgres.bin / program), *arguments],
        env=inherited | environment,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise PostgresFailed(f"{program} cannot load the sample: {done.stderr.strip()}")


async def _serve(postgres: EmbeddedPostgres, listen: str, http: str | None) -> None:
    """Start, serve, and show what happens, until a signal. A second one cuts the goodbyes to clients short."""
    stop = trio.Event()
    console = Console(highlight=False)
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:

            def started(service: Service) -> None:
                _say_hello(service, postgres.bin, console)
                nursery.start_soon(_show_live if console.is_terminal else _show_lines, service, console)

            nursery.start_soon(_watch, signals, stop, nursery.cancel_scope)
            await _prepare(postgres, stop)
            if not stop.is_set():
                origin = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{postgres.port}/{DATABASE}"
                await serve(_settings(origin, listen, http), started=started, stop=stop)
            nursery.cancel_scope.cancel()


async def _prepare(postgres: EmbeddedPostgres, stop: trio.Event) -> None:
    """A PostgreSQL with the sample in it. Each step is carried to its end, lest a program is left behind.

    Raises:
      PostgresFailed: there is none, and that is not because of a signal, which Ctrl-C sends to initdb and psql, too.
    """
    try:
        print("Starting PostgreSQL ...", flush=True)
        if await trio.to_thread.run_sync(postgres.start) and not stop.is_set():
            print("Loading the sample ...", flush=True)
            await trio.to_thread.run_sync(_load_sample, postgres, stop.is_set)
    except PostgresFailed:
        await trio.sleep(0.1)  # the signal that ended a program came to us as well
        if not stop.is_set():
            raise


async def _watch(signals: AsyncIterator[int], stop: trio.Event, everything: trio.CancelScope) -> None:
    async for _ in signals:
        if stop.is_set():
            everything.cancel()
        stop.set()


# ---- what is shown --------------------------------------------------------------------------------------------------


def _say_hello(service: Service, programs: Path, console: Console) -> None:
    url = f"postgresql://{USER}:{PASSWORD}@{service.listen_addresses[0]}/{DATABASE}"
    # A machine without PostgreSQL's programs on its PATH has those of the embedded server.
    psql, pgbench = (name if shutil.which(name) else shlex.quote(str(programs / name)) for name in ("psql", "pgbench"))
    moons = "select name, planet, discovered from moon order by radius_km desc limit 5"
    peaks = "select name, height_m, note from mountain where country = 'France'"
    climb = "update mountain set note = 'climbed it at ' || now()::time(0) where name = 'Mont Blanc'"

    def say(text: str = "", style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)  # a line break within a command would be copied with it

    say()
    say("pgnear is ready:")
    say(f"    {url}", "bold green")
    say()
    say("Three things to try in another terminal:")
    say("  1. the same question twice: the second answer comes from the cache")
    say(f'     {psql} {url} -c "\\timing on" -c "{moons}" -c "{moons}"', "cyan")
    say("  2. a write, and the cache knows")
    say(f'     {psql} {url} -c "{peaks}" -c "{climb}" -c "{peaks}"', "cyan")
    say(f"  3. fifty busy clients on {service.config.pool_size} origin connections")
    say(f"     {pgbench} -n -S -M prepared -c 50 -T 20 {url}", "cyan")
    say()
    if service.http_address:
        say(f"Metrics: http://{service.http_address}/metrics")
    say("Ctrl-C ends everything.")
    say()


async def _show_live(service: Service, console: Console) -> NoReturn:
    """One line that changes in place; log lines go above it."""
    meter = Meter(service, LIVE_WINDOW_SECONDS)
    try:
        with Live(meter.line(trio.current_time()), console=console, auto_refresh=False) as live:
            logs.configure("auto", "warning")  # to the standard error that Live has put in the place of the real one
            while True:
                await trio.sleep(LIVE_SECONDS)
                live.update(meter.line(trio.current_time()), refresh=True)
    finally:
        logs.configure("auto", "warning")


async def _show_lines(service: Service, console: Console) -> NoReturn:
    meter = Meter(service, PLAIN_SECONDS)
    meter.line(trio.current_time())
    while True:
        await trio.sleep(PLAIN_SECONDS)
        console.print(meter.line(trio.current_time()), soft_wrap=True)


class Meter:
    """Turns the service's totals into the figures of the last `window` seconds."""

    def __init__(self, service: Service, window: float) -> None:
        self._service = service
        self._window = window
        self._samples: deque[tuple[float, list[list[int]]]] = deque()

    def line(self, now: float) -> Text:
        """The figures at `now`: seconds, on a clock that only goes forward. Call it at regular intervals."""
        stats = self._service.stats
        latest = [list(histogram.counts) for histogram in (stats.hit_latency, stats.miss_latency, stats.bypass_latency)]
        self._samples.append((now, latest))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        since, first = self._samples[0]
        recent = [[new - old for new, old in zip(*pair, strict=True)] for pair in zip(latest, first, strict=True)]
        hits, misses, _ = map(sum, recent)
        together = [sum(column) for column in zip(*recent, strict=True)]
        figures = (
            ("clients", str(len(self._service.sessions))),
            ("origin", str(sum(len(pool.origins) for pool in self._service.pools.values()))),
            ("queries/s", f"{sum(together) / (now - since):,.0f}" if now > since else "0"),
            ("cache hits", f"{hits / (hits + misses):.0%}" if hits + misses else "-"),
            ("p50", _duration(quantile(together, 0.5))),
            ("p99", _duration(quantile(together, 0.99))),
        )
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, (name, value) in enumerate(figures):
            text.append("  " if number else "").append(f"{name} ", "dim").append(value, "bold")
        return text


def quantile(counts: Sequence[int], part: float) -> float | None:
    """The `part` quantile of a histogram's counts (by `LATENCY_BOUNDS`), in seconds; None of an empty one.

    Observations count as evenly spread within their bucket, and beyond the last bound as that bound.
    """
    wanted = sum(counts) * part
    if not wanted:
        return None
    below = 0
    lower = 0.0
    for bound, count in zip(LATENCY_BOUNDS, counts, strict=False):
        if below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below += count
        lower = bound
    return lower


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2g} s"
