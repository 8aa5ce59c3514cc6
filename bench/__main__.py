"""`python -m bench`: one command, every table of bench/RESULTS.md but that of `bench.far`.

For each workload, query mode and number of clients the rigs take turns, several rounds over, so that a noisy machine
is noisy to all of them alike. Only ratios within one run of this command mean anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import goals, growth, heavy, idle, load, rates, report, rigs
from bench.report import Run

CLIENTS = {"hot": (1, 16, 64), "rows": (16,), "aggregate": (16,), "select": (16,), "tpcb": (16,)}
"""Numbers of clients of each workload where none are asked for."""

FEWER = {"hot": (1, 16, 64), "tpcb": (16,)}
"""Of --goals: what the goals are about."""

SECTIONS = ("throughput", "heavy", "rates", "idle", "growth")

QUICK = {"hot": (16,), "rows": (16,), "aggregate": (16,), "tpcb": (16,)}
"""Of --quick, which makes one round of them, in less than 90 s."""


def main(argv: list[str] | None = None) -> int:
    """0, or 1 where a run or a transaction failed; the results are written then too."""
    arguments = _arguments(argv)
    errors = _throughput(arguments) if "throughput" in arguments.sections else []
    for section in SECTIONS[1:]:
        if section in arguments.sections:
            print(f"\n{section}:", flush=True)
            try:
                _SECTIONS[section](arguments)
            except (load.LoadFailed, RuntimeError) as error:  # the others are worth having
                errors.append(f"{section} failed: {error}")
                print(errors[-1], file=sys.stderr, flush=True)
    print(goals.write(arguments.results))
    return 1 if errors else 0


def _heavy(arguments: argparse.Namespace) -> None:
    heavy.main(["--rounds", str(arguments.rounds), "--results", str(arguments.results)])


def _rates(arguments: argparse.Namespace) -> None:
    rates.main(["--seconds", "2", "--results", str(arguments.results)])


def _idle(arguments: argparse.Namespace) -> None:
    fewer = ["--rigs", "pgbouncer,pgnear+cache"] if arguments.goals else []
    idle.main([*fewer, "--rounds", str(arguments.rounds), "--results", str(arguments.results)])


def _growth(arguments: argparse.Namespace) -> None:
    fewer = ["--entries", "1,1000,100000"] if arguments.goals else []
    growth.main([*fewer, "--results", str(arguments.results)])


_SECTIONS = {"heavy": _heavy, "rates": _rates, "idle": _idle, "growth": _growth}


def _throughput(arguments: argparse.Namespace) -> list[str]:
    """Measure it and write its section; what went wrong."""
    plan = list(_plan(arguments))
    runs: list[Run] = []
    notes: list[str] = []
    errors: list[str] = []
    most = max(clients for _, clients, _ in plan)
    with rigs.origin() as postgres:
        load.initialize(postgres, arguments.scale)
        with rigs.running(arguments.rigs, postgres, most) as started, tempfile.TemporaryDirectory() as scripts:
            load.write_scripts(Path(scripts))
            for workload, clients, mode in plan:
                for rig in started * arguments.rounds:
                    if note := rigs.why_not(rig, mode):
                        notes.append(note)
                        continue
                    try:
                        run = load.measure(
                            postgres, rig, workload, mode, clients,
                            seconds=arguments.seconds, scale=arguments.scale, scripts=Path(scripts),
                        )  # fmt: skip
                    except load.LoadFailed as error:
                        errors.append(f"{rig.name} failed at {workload}, {mode}, {clients} clients: {error}")
                        print(errors[-1], file=sys.stderr, flush=True)
                        continue
                    if run.failed:
                        errors.append(f"{rig.name} lost {run.failed} transactions of {workload}, {mode}.")
                    runs.append(run)
                    print(_line(run), flush=True)
            abouts = [load.settings(postgres), *(rig.about for rig in started if rig.about)]
        versions = {"postgresql": load.version(postgres)} | {name: rigs.version(name) for name in rigs.BINARIES}
    names = [rig.name for rig in started]
    print()
    notes = list(dict.fromkeys([*notes, *errors]))
    about = report.machine(versions) | {"rounds": str(arguments.rounds), "seconds": str(arguments.seconds)}
    print(report.write(arguments.results, arguments.name, runs, names, about, notes, abouts))
    return errors


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """What is measured: (workload, clients, mode)."""
    usual = FEWER if arguments.goals else QUICK if arguments.quick else CLIENTS
    for workload in arguments.workloads or usual:
        for clients in arguments.clients or usual.get(workload, CLIENTS[workload]):
            for mode in arguments.modes:
                if arguments.goals and mode != "simple" and (workload == "tpcb" or clients != 16):
                    continue
                yield workload, clients, mode


def _line(run: Run) -> str:
    return (
        f"{run.workload:9} {run.mode:8} {run.clients:3} {run.rig:14} {run.tps:9,.0f} tps {run.cpu_microseconds:6.1f} µs"
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    def among(*allowed: str) -> Callable[[str], list[str]]:
        def several(text: str) -> list[str]:
            for word in (words := text.split(",")):
                if word not in allowed:
                    raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
            return words

        return several

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of fewer workloads, in less than 90 s")
    parser.add_argument("--goals", action="store_true", help="what the table of goals needs, in some six minutes")
    parser.add_argument("--sections", type=among(*SECTIONS), help=f"of {', '.join(SECTIONS)} (default all)")
    parser.add_argument("--rounds", type=int, help="how often each figure is measured (default 3)")
    parser.add_argument("--seconds", type=int, default=1, help="how long one run takes (default 1)")
    parser.add_argument("--scale", type=int, default=10, help="pgbench's scale factor (default 10)")
    parser.add_argument("--clients", type=numbers, help="numbers of clients (default 16, for hot also 1)")
    parser.add_argument("--modes", type=among(*load.MODES), default=load.MODES, help="pgbench's query modes")
    parser.add_argument("--workloads", type=among(*CLIENTS), help=f"of {', '.join(CLIENTS)} (default all)")
    parser.add_argument("--rigs", type=among(*rigs.NAMES), default=rigs.NEAR, help="what is compared")
    parser.add_argument("--name", help="of the files that are written (default latest; quick of --quick)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where they go")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    # Whoever asks for a workload, or wants it quick, wants the first table.
    narrow = arguments.quick or arguments.workloads or arguments.clients or arguments.name
    arguments.sections = arguments.sections or (SECTIONS[:1] if narrow else SECTIONS)
    arguments.name = arguments.name or ("quick" if arguments.quick else "latest")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
