"""`pgnear demo`: an embedded PostgreSQL, some data worth a query, a pgnear in front, and a live line of what happens.

Not here: starting PostgreSQL (`embedded`), the sample's rows (`sample.sql`).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path

import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

import config
from pooler import logs
from pooler.ceremony.listen import open_listener
from pooler.embedded import EmbeddedPostgres, PostgresFailed, free_port, installed
from pooler.service import Service, serve
from pooler.stats import LATENCY_BOUNDS, Histogram

PASSWORD = "demo"


def run(*, port: int, data: Path | None, http: str) -> int:
    """Run the demo until Ctrl-C or SIGTERM; the exit status."""
    try:
        installed()
        open_listener(f"127.0.0.1:{port}").close()
    except OSError as error:
        print(f"pgnear: {error.strerror}; choose another with --port", file=sys.stderr)
        return 1
    http = _free_address(http)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    postgres = EmbeddedPostgres(data=data, password=PASSWORD)
    try:
        print("Starting PostgreSQL ...", flush=True)
        if postgres.start():
            print("Loading the sample ...", flush=True)
            _load_sample(postgres)
        logs.configure("auto", "warning")
        settings = config.load(
            flags={"origin": postgres.url(), "listen": [f"127.0.0.1:{port}"], "http": http}, environ={}
        )
        trio.run(_show, settings)
    except KeyboardInterrupt:
        pass
    except (PostgresFailed, subprocess.CalledProcessError, OSError) as error:
        print(f"pgnear: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the rest is quick; a second Ctrl-C must not leave a server behind
        postgres.stop()
    print("Stopped." if data is None else f"Stopped; the database is kept in {data}.")
    return 0


def _free_address(address: str) -> str:
    """`address`, or a free port on the same host where that one is taken."""
    host, _, port = address.rpartition(":")
    try:
        open_listener(address).close()
    except OSError:
        other = f"{host}:{free_port()}"
        print(f"Port {port} is taken; metrics are on {other}.")
        return other
    return address


def _load_sample(postgres: EmbeddedPostgres) -> None:
    environment = {"PGPASSWORD": PASSWORD, "PATH": str(postgres.bin)}
    where = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres"]
    subprocess.run(
        [str(postgres.bin / "pgbench"), "-i", "-q", *where, "postgres"],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    with as_file(files("pooler").joinpath("sample.sql")) as sample:
        subprocess.run(
            [str(postgres.bin / "psql"), "-q", "-v", "ON_ERROR_STOP=1", *where, "-f", str(sample), "postgres"],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip


async def _show(settings: config.Config) -> None:
    """Serve, and show the live line, until SIGINT or SIGTERM."""
    stop = trio.Event()
    running: list[Service] = []
    up = trio.Event()

    def started(service: Service) -> None:
        running.append(service)
        up.set()

    async def serve_until_stopped() -> None:
        await serve(settings, started=started, stop=stop)
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_until_stopped)
            await up.wait()
            _say_hello(running[0])
            nursery.start_soon(_live_line, running[0])
            async for _ in signals:
                stop.set()
                break
            await trio.sleep_forever()


def _say_hello(service: Service) -> None:
    url = f"postgresql://postgres:{PASSWORD}@{service.listen_addresses[0]}/postgres"
    print(f"""
pgnear is ready:

    {url}

Three things to try in another terminal:

  1. the same question twice: the second answer comes from the cache
     psql '{url}' -c '\\timing on' -c 'select name, planet, discovered from moon order by radius_km desc limit 5' \\
          -c 'select name, planet, discovered from moon order by radius_km desc limit 5'
  2. a write, and the cache knows
     psql '{url}' -c "update mountain set note = 'climbed it' where name = 'Mont Blanc'" \\
          -c "select name, height_m, note from mountain where country = 'France'"
  3. forty clients on a few connections
     pgbench -n -S -c 40 -T 10 '{url}'

Metrics: http://{service.http_address}/metrics        Ctrl-C ends everything.
""", flush=True)  # fmt: skip


async def _live_line(service: Service) -> None:
    """Every second on a terminal, every five elsewhere."""
    console = Console()
    meter = _Meter(service)
    if not console.is_terminal:
        while True:
            await trio.sleep(5)
            print(meter.line(), flush=True)
    with Live(Text(""), console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(meter.line()), refresh=True)
            await trio.sleep(1)


class _Meter:
    """What changed since it was last asked."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._at = time.monotonic()
        self._counts = self._read()

    def _read(self) -> dict[str, list[int]]:
        stats = self._service.stats
        named: dict[str, Histogram] = {
            "hit": stats.hit_latency, "miss": stats.miss_latency, "bypass": stats.bypass_latency
        }  # fmt: skip
        return {name: list(histogram.counts) for name, histogram in named.items()}

    def line(self) -> str:
        now, counts = time.monotonic(), self._read()
        new = {
            name: [after - before for after, before in zip(counts[name], self._counts[name], strict=True)]
            for name in counts
        }
        seconds, self._at, self._counts = max(now - self._at, 0.001), now, counts
        together = [sum(column) for column in zip(*new.values(), strict=True)]
        queries = sum(together)
        lookups = sum(new["hit"]) + sum(new["miss"])
        rate = f"{100 * sum(new['hit']) / lookups:.0f} %" if lookups else "-"
        pools = self._service.pools.values()
        return (
            f"clients {len(self._service.sessions)}   "
            f"origin connections {sum(len(pool.origins) for pool in pools)}   "
            f"queries/s {queries / seconds:,.0f}   cache hit rate {rate}   "
            f"p50 {_quantile(together, 0.5)}   p99 {_quantile(together, 0.99)}"
        )


def _quantile(counts: list[int], part: float) -> str:
    """The bucket bound that `part` of the observations lie under."""
    total = sum(counts)
    if not total:
        return "-"
    below = 0
    for bound, count in zip(LATENCY_BOUNDS, counts, strict=False):
        below += count
        if below >= part * total:
            return f"<{bound * 1000:g} ms"
    return f">{LATENCY_BOUNDS[-1]:g} s"
