"""`python -m bench.heavy`: a result of 100 MB, TLS to clients, and clients that connect for each transaction."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench import load, page, report, rigs
from bench.report import Run, machine, markdown
from bench.rigs import POOLERS, Manner, Rig
from pooler.embedded import EmbeddedPostgres
from tests.support.wire import WireClient, query

MB = 1 << 20
ROWS = 100_000
BIG = f"select repeat('x', 1000) from generate_series(1, {ROWS}) as n"
BIG_BYTES = ROWS * 1000

CAPTION_BIG = """\
One client reads a result of 100,000 rows of 1,000 bytes: MB/s; the most that the process grew by meanwhile, in MB; and
its CPU for each MB, ms."""

CAPTION_RUNS = """\
tls: 16 clients, hot, over TLS. tls -C: 16 clients that connect anew, over TLS, for each transaction. storm: 64 clients
that do so without TLS and log in with SCRAM-SHA-256, whose cost is the client's for the greater part: libpq derives the
key from the password each time, and pgbench shares the machine."""


@dataclass(frozen=True)
class Load:
    """A pgbench run of these tables."""

    name: str
    manner: Manner
    mode: str
    clients: int
    more: tuple[str, ...] = ()

    @property
    def sslmode(self) -> str:
        return "require" if self.manner.tls else "disable"


@dataclass(frozen=True)
class Big:
    """One reading of the big result. Bytes and seconds."""

    rig: str
    seconds: float
    growth: int
    cpu: float


def loads() -> list[Load]:
    """What is run, in a mode that every pooler can do."""
    prepared = "prepared" if not rigs.why_not(Rig("pgbouncer", 0), "prepared") else "extended"
    return [
        Load("tls", Manner(tls=True), prepared, 16),
        Load("tls -C", Manner(tls=True), "simple", 16, ("-C",)),
        Load("storm", Manner(password=True), "simple", 64, ("-C",)),
    ]


def run_loads(postgres: EmbeddedPostgres, *, rounds: int, seconds: int) -> tuple[list[Run], list[str]]:
    """Every load on every pooler, in turns; and the poolers' settings."""
    runs: list[Run] = []
    abouts: list[str] = []
    with tempfile.TemporaryDirectory() as scripts:
        load.write_scripts(Path(scripts))
        for each in loads():
            with rigs.running(POOLERS, postgres, each.clients, each.manner) as started:
                for rig in started * rounds:
                    runs.append(
                        load.measure(
                            postgres, rig, "hot", each.mode, each.clients, seconds=seconds, scale=1,
                            scripts=Path(scripts), more=each.more, sslmode=each.sslmode, name=each.name,
                        )
                    )  # fmt: skip
                abouts += [rig.about for rig in started]
    return runs, abouts


def read_big(rig: Rig, buffer: bytearray) -> Big:
    """Ask `rig` for the big result and forget it."""
    with WireClient.logged_in(rig.port, password=rigs.PASSWORD) as client:
        client.query("select 1")
        rig.forget_peak()
        before, spent, began = rig.memory_bytes(), rig.cpu_seconds(), time.perf_counter()
        client.send(query(BIG))
        received, last = 0, b""
        while not last.endswith(b"Z\0\0\0\5I"):
            size = client.socket.recv_into(buffer)
            if not size:
                raise EOFError(f"{rig.name} closed the connection")
            received += size
            last = (last + bytes(buffer[max(size - 6, 0) : size]))[-6:]
        seconds = time.perf_counter() - began
        assert received > BIG_BYTES
        return Big(rig.name, seconds, max(rig.peak_memory_bytes() - before, 0), rig.cpu_seconds() - spent)


def run_big(postgres: EmbeddedPostgres, *, rounds: int) -> list[Big]:
    """The big result through every pooler and past them, in turns."""
    buffer = bytearray(MB)
    with rigs.running(("direct", *POOLERS), postgres, 16) as started:
        return [read_big(rig, buffer) for rig in started * rounds]


def render(bigs: list[Big], runs: list[Run]) -> str:
    rows = report.rows(runs)
    shown = [name for name in POOLERS if any(name in row.tps for row in rows)]
    table = report.table(rows, shown)
    cpu = report.cpu_table(rows, shown)
    return "\n\n".join(
        [CAPTION_BIG, _big_table(bigs), CAPTION_RUNS, table, "CPU of the pooler per transaction, µs:", cpu]
    )


def _big_table(bigs: list[Big]) -> str:
    def lines() -> Iterator[list[str]]:
        for name in dict.fromkeys(each.rig for each in bigs):
            mine = [each for each in bigs if each.rig == name]
            speed = BIG_BYTES / MB / median(each.seconds for each in mine)
            cpu = median(each.cpu for each in mine) * 1000 / (BIG_BYTES / MB)
            growth = max(each.growth for each in mine) / MB
            yield [name, f"{speed:,.0f}", "-" if name == "direct" else f"{growth:.1f}", f"{cpu:.2f}"]

    return markdown(["rig", "MB/s", "growth", "CPU"], lines())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.heavy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is measured (default 3)")
    parser.add_argument("--seconds", type=int, default=1, help="how long one run takes (default 1)")
    parser.add_argument("--results", type=Path, default=page.RESULTS, help="where the results go")
    arguments = parser.parse_args(argv)
    with rigs.origin() as postgres:
        load.initialize(postgres, 1)
        bigs = run_big(postgres, rounds=arguments.rounds)
        runs, abouts = run_loads(postgres, rounds=arguments.rounds, seconds=arguments.seconds)
        about = machine({"postgresql": load.version(postgres), "pgbouncer": rigs.version("pgbouncer")})
        abouts = list(dict.fromkeys([load.settings(postgres), *abouts]))
    text = render(bigs, runs)
    page.write(arguments.results, "heavy", text, about, abouts, [asdict(each) for each in (*bigs, *runs)])
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
