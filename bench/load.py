"""pgbench: its scripts, how it is run, and what it says. What it is pointed at is in `bench.rigs`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.report import Run
from bench.rigs import Rig
from pooler.embedded import EmbeddedPostgres

SCRIPTS = {
    "hot": "\\set aid random(1, 100)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
    "rows": (
        "\\set first 100 * random(0, 19) + 1\n\\set last :first + 99\n"
        "SELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid BETWEEN :first AND :last ORDER BY aid;\n"
    ),
    # No min() and max() here: Pgpool-II 4.3 does not cache them, and would only forward.
    "aggregate": (
        "\\set first 1000 * random(0, 19) + 1\n\\set last :first + 4999\n"
        "SELECT count(*), sum(abalance), avg(abalance) FROM pgbench_accounts WHERE aid BETWEEN :first AND :last;\n"
    ),
    "select": "\\set aid random(1, 100000 * :scale)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
}
"""Workloads beside pgbench's own tpcb: 100 hot keys, 20 answers of 100 rows, 20 aggregates over 5,000 rows, any key."""

MODES = ("simple", "extended", "prepared")

_TPS = re.compile(r"tps = ([\d.]+)")
_DONE = re.compile(r"transactions actually processed: (\d+)")
_FAILED = re.compile(r"number of failed transactions: (\d+)")


class LoadFailed(Exception):
    """pgbench (or psql before it) ended with an error, or said nothing that could be read."""


def threads(clients: int) -> int:
    """pgbench's threads. One alone is slower than a cache that answers 16 clients; it is the same for every rig."""
    return 2 if clients >= 16 else 1


def initialize(postgres: EmbeddedPostgres, scale: int) -> None:
    """Make and fill pgbench's tables, 100,000 * `scale` accounts."""
    pgbench(postgres, postgres.port, ["-i", "-q", "-s", str(scale)])


def write_scripts(directory: Path) -> None:
    """A file for each of SCRIPTS, for `measure`."""
    for name, text in SCRIPTS.items():
        (directory / name).write_text(text)


def measure(
    postgres: EmbeddedPostgres, rig: Rig, workload: str, mode: str, clients: int, *, seconds: int, scale: int,
    scripts: Path, more: Sequence[str] = (), sslmode: str = "disable", name: str = "",
) -> Run:  # fmt: skip
    """One run of `seconds`, with `more` options of pgbench; it is called `name`, if not by its workload.

    Raises:
      LoadFailed: it did not come to an end.
    """
    if workload == "tpcb":
        _tidy(postgres)
    before = rig.cpu_seconds()
    options = ["-n", "-M", mode, "-c", str(clients), "-j", str(threads(clients)), "-T", str(seconds)]
    if workload != "tpcb":
        options += ["-f", str(scripts / workload), "-D", f"scale={scale}"]
    text = pgbench(postgres, rig.port, [*options, *more], sslmode)
    done, tps, failed = _DONE.search(text), _TPS.search(text), _FAILED.search(text)
    if done is None or tps is None:
        raise LoadFailed(f"pgbench said nothing that could be read: {text}")
    count = max(int(done[1]), 1)
    return Run(
        name or workload, mode, clients, rig.name, float(tps[1]), (rig.cpu_seconds() - before) / count * 1e6,
        int(failed[1]) if failed else 0,
    )  # fmt: skip


def _tidy(postgres: EmbeddedPostgres) -> None:
    """What pgbench does before tpcb, but past the rig: each run finds no dead rows of the one before."""
    _psql(postgres, "vacuum pgbench_branches, pgbench_tellers", "truncate pgbench_history")


def settings(postgres: EmbeddedPostgres) -> str:
    """What PostgreSQL was started with beside its defaults, in one line; not where it listens and keeps its data."""
    said = _psql(
        postgres,
        "select name || ' ' || setting from pg_settings where source = 'command line' and category !~ '^File' "
        "and name not in ('port', 'listen_addresses', 'unix_socket_directories', 'data_directory') "
        "and name !~ '^ssl_.*_file$' order by name",
    )
    return "PostgreSQL: " + ", ".join(said.splitlines())


def _psql(postgres: EmbeddedPostgres, *statements: str) -> str:
    options = [word for statement in statements for word in ("-c", statement)]
    return _run(postgres, "psql", ["-qAtX", *options, *_where(postgres.port)])


def version(postgres: EmbeddedPostgres) -> str:
    """Of pgbench and the PostgreSQL it came with, like 15.8."""
    return _run(postgres, "pgbench", ["--version"]).split()[2]


def pgbench(postgres: EmbeddedPostgres, port: int, options: list[str], sslmode: str = "disable") -> str:
    """Run it against what listens on loopback `port`; its standard output.

    Raises:
      LoadFailed: it ended with an error.
    """
    return _run(postgres, "pgbench", [*options, *_where(port)], sslmode)


def _where(port: int) -> list[str]:
    return ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres"]


def _run(postgres: EmbeddedPostgres, program: str, arguments: list[str], sslmode: str = "disable") -> str:
    done = subprocess.run(
        [str(postgres.bin / program), *arguments],
        env={**os.environ, "PGPASSWORD": postgres.password, "PGSSLMODE": sslmode},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise LoadFailed(f"{program}: {words[-1] if words else 'no word of why'}")
    return done.stdout
