"""`python -m bench`: one command, one table.

For each workload, query mode and number of clients the rigs take turns, several rounds over, so that a noisy machine
is noisy to all of them alike. Only ratios within one run of this command mean anything.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import report, rigs
from bench.report import Run
from bench.rigs import PASSWORD, Rig
from pooler.embedded import EmbeddedPostgres

SCRIPTS = {
    "hot": "\\set aid random(1, 100)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
    "select": "\\set aid random(1, 100000 * :scale)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
}
"""Workloads beside pgbench's own tpcb: 100 hot keys, and any key at all."""

_TPS = re.compile(r"tps = ([\d.]+)")
_DONE = re.compile(r"transactions actually processed: (\d+)")
_FAILED = re.compile(r"number of failed transactions: (\d+)")


def main() -> int:
    arguments = _arguments()
    installation = rigs.system_postgres()
    names = arguments.rigs.split(",")
    runs: list[Run] = []
    notes: list[str] = []
    with EmbeddedPostgres(password=PASSWORD, installation=installation) as postgres:
        _pgbench(postgres, postgres.port, ["-i", "-q", "-s", str(arguments.scale)])
        with rigs.running(names, postgres) as started, tempfile.TemporaryDirectory() as scripts:
            for name, text in SCRIPTS.items():
                Path(scripts, name).write_text(text)
            for workload in arguments.workloads.split(","):
                for clients in map(int, arguments.clients.split(",")):
                    for mode in arguments.modes.split(","):
                        for _ in range(arguments.rounds):
                            for rig in started:
                                if note := rigs.why_not(rig, mode):
                                    notes.append(note)
                                    continue
                                run = _measure(postgres, rig, workload, mode, clients, Path(scripts), arguments)
                                runs.append(run)
                                print(
                                    f"{workload:7} {mode:9} {clients:3} {rig.name:13} {run.tps:10,.0f} tps "
                                    f"{run.cpu_microseconds:6.1f} µs",
                                    flush=True,
                                )
        version = _pgbench(postgres, postgres.port, ["--version"], database=False).split()[2]
    seen = list(dict.fromkeys(run.rig for run in runs))
    print()
    about = report.machine(version, rigs.pgbouncer_version() if "pgbouncer" in seen else "")
    directory = Path(__file__).parent / "results"
    print(report.write(directory, arguments.name, runs, seen, about, list(dict.fromkeys(notes))))
    failed = sum(run.failed for run in runs)
    if failed:
        print(f"{failed} transactions failed", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is measured (default 3)")
    parser.add_argument("--seconds", type=int, default=5, help="how long one run takes (default 5)")
    parser.add_argument("--scale", type=int, default=10, help="pgbench's scale factor (default 10)")
    parser.add_argument("--clients", default="1,16", help="numbers of clients (default 1,16)")
    parser.add_argument("--modes", default="simple,extended,prepared", help="pgbench's query modes")
    parser.add_argument("--workloads", default="hot", help="of hot, select, tpcb (default hot)")
    parser.add_argument("--rigs", default="direct,pgbouncer,pgnear,pgnear+cache", help="what is compared")
    parser.add_argument("--name", default="latest", help="of the files in bench/results/")
    return parser.parse_args()


def _measure(
    postgres: EmbeddedPostgres,
    rig: Rig,
    workload: str,
    mode: str,
    clients: int,
    scripts: Path,
    arguments: argparse.Namespace,
) -> Run:
    before = rig.cpu_seconds()
    options = ["-n", "-M", mode, "-c", str(clients), "-T", str(arguments.seconds), "-D", f"scale={arguments.scale}"]
    if workload != "tpcb":
        options += ["-f", str(scripts / workload)]
    text = _pgbench(postgres, rig.port, options)
    done, tps, failed = _DONE.search(text), _TPS.search(text), _FAILED.search(text)
    if done is None or tps is None:
        raise RuntimeError(f"pgbench said nothing that could be read: {text}")
    count = max(int(done[1]), 1)
    return Run(
        workload, mode, clients, rig.name, float(tps[1]), (rig.cpu_seconds() - before) / count * 1e6,
        int(failed[1]) if failed else 0,
    )  # fmt: skip


def _pgbench(postgres: EmbeddedPostgres, port: int, options: list[str], *, database: bool = True) -> str:
    where = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres"] if database else []
    done = subprocess.run(
        [str(postgres.bin / "pgbench"), *options, *where],
        env={**os.environ, "PGPASSWORD": PASSWORD, "PGSSLMODE": "disable"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pgbench {' '.join(options)} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
