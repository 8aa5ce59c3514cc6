"""`python -m bench.profile` (or `make profile`): where pgnear's time goes under a named load, as a flame graph.

pgbench makes the load; py-spy, of the extra `bench`, looks at pgnear's stack 400 times a second and writes an SVG. It
needs the right to look into another process (ptrace), and says so where it has none.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import load, rigs
from bench.report import Run
from bench.rigs import PASSWORD, Rig
from pooler.embedded import EmbeddedPostgres

RIGS = {"hot": "pgnear+cache", "forward": "pgnear"}
"""The loads: hot keys answered from the cache, and the same ones forwarded to the origin."""

SAMPLES_PER_SECOND = 400

_NO_PTRACE = """\
py-spy may not look into another process here (ptrace is not allowed). It may as root; in a container, where that is
started with --cap-add SYS_PTRACE; for other users of Linux, where kernel.yama.ptrace_scope is 0.
It said: """

_REFUSALS = ("permission denied", "operation not permitted", "elevated permissions", "must be root", "run as root")


class ProfileFailed(Exception):
    """There is no flame graph; the message says why and what to do."""


def main(argv: list[str] | None = None) -> int:
    """0, or 1 where there is no flame graph."""
    arguments = _arguments(argv)
    output = arguments.output or Path("build", f"profile-{arguments.load}-{arguments.mode}.svg")
    try:
        program = find_py_spy()
        output.parent.mkdir(parents=True, exist_ok=True)
        with EmbeddedPostgres(password=PASSWORD, installation=rigs.system_postgres()) as postgres:
            load.initialize(postgres, 1)
            with (
                rigs.running([RIGS[arguments.load]], postgres, arguments.clients) as [rig],
                tempfile.TemporaryDirectory() as scripts,
            ):
                load.write_scripts(Path(scripts))
                run = _record(program, postgres, rig, Path(scripts), output, arguments)
    except (ProfileFailed, load.LoadFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{run.tps:,.0f} transactions/s, {run.cpu_microseconds:.1f} µs of CPU each; the flame graph is {output}")
    return 0


def find_py_spy() -> str:
    """Beside this interpreter, or on the PATH.

    Raises:
      ProfileFailed: it is in neither place.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which("py-spy", path=beside) or shutil.which("py-spy")
    if found is None:
        raise ProfileFailed("py-spy is not installed: pip install 'pgnear[bench]'")
    return found


def explain(words: str) -> str:
    """What py-spy's complaint means to the reader, without its own stack trace."""
    words = words.partition("Stack backtrace:")[0].strip()
    if any(refusal in words.lower() for refusal in _REFUSALS):
        return _NO_PTRACE + words
    return f"py-spy failed: {words}"


def _record(
    program: str, postgres: EmbeddedPostgres, rig: Rig, scripts: Path, output: Path, arguments: argparse.Namespace
) -> Run:
    """pgbench runs a second longer than py-spy, which must first read pgnear's symbols."""
    command = [
        program, "record", "--pid", str(rig.pid), "--rate", str(SAMPLES_PER_SECOND), "--duration",
        str(arguments.seconds), "--format", "flamegraph", "--output", str(output),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        spy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            run = load.measure(
                postgres, rig, "hot", arguments.mode, arguments.clients,
                seconds=arguments.seconds + 1, scale=1, scripts=scripts,
            )  # fmt: skip
            status = spy.wait(30)
        except subprocess.TimeoutExpired:
            raise ProfileFailed("py-spy does not come to an end") from None
        finally:
            if spy.poll() is None:
                spy.kill()
                spy.wait()
        said.seek(0)
        words = said.read().strip()
    if status != 0 or not output.exists():
        raise ProfileFailed(explain(words))
    return run


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--load", choices=sorted(RIGS), default="hot", help="from the cache, or forwarded")
    parser.add_argument("--mode", choices=load.MODES, default="simple", help="pgbench's query mode (default simple)")
    parser.add_argument("--clients", type=int, default=16, help="of pgbench (default 16)")
    parser.add_argument("--seconds", type=int, default=10, help="how long (default 10)")
    parser.add_argument("--output", type=Path, help="the SVG (default build/profile-LOAD-MODE.svg)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
