"""`python -m tests.fuzz_protocol`: the long run over every target, and the replay of one input.

With atheris (the extra `fuzz`) it is guided by what each input reaches, one process for each target, and adds to the
corpus what reached something new; without, the corpus is changed at random. Behind that the corpus is played over and
over, to see whether a run leaves something behind (`growth`). An input that breaks a promise, hangs, takes too much
memory or leaves some behind is written to --failures, and the status is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz_protocol.growth import MAY_KEEP_BYTES, left_behind
from tests.fuzz_protocol.mutation import CORPUS, HANG_SECONDS, MOST_MEMORY_BYTES, corpus, inputs, limited, name_of

GROWTH_SHARE = 0.2
"""Of a target's time."""


def main() -> int:
    options = _options()
    if options.atheris_target:
        return _guided(options.atheris_target, options.atheris_arguments)
    from tests.fuzz_protocol.targets import TARGETS

    if options.replay:
        TARGETS[options.targets[0]](options.replay.read_bytes())
        return 0
    wanted = options.targets or list(TARGETS)
    share = options.duration / (len(wanted) + 2 * ("machine" in wanted))
    guided = importlib.util.find_spec("atheris") is not None and not options.without_atheris
    print("guided by atheris" if guided else "atheris is not here: the corpus, changed at random", flush=True)
    failed = False
    for target in wanted:
        seconds = share * (3 if target == "machine" else 1)  # most of what can go wrong is there
        run = _run_guided if guided else _run_random
        failed = not run(target, seconds * (1 - GROWTH_SHARE), options) or failed
        failed = not _leaves_nothing(target, seconds * GROWTH_SHARE, options) or failed
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_protocol", description=__doc__)
    add = parser.add_argument
    add(
        "targets",
        nargs="*",
        help="frames, startups, entries, scram_server, origin_login, changes, machine; all where none is given",
    )
    add("--duration", type=float, default=300.0, help="seconds, of all targets together (300)")
    add("--seed", type=int, default=random.randrange(1 << 31), help="for the run without atheris; printed")
    add("--failures", type=Path, default=Path("fuzz-failures"), help="where inputs that break something go")
    add("--without-atheris", action="store_true", help="change the corpus at random, even where atheris is installed")
    add("--replay", type=Path, help="run this input of the one target given")
    add("--atheris-target", help=argparse.SUPPRESS)
    add("--atheris-arguments", nargs=argparse.REMAINDER, default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_random(target: str, seconds: float, options: argparse.Namespace) -> bool:
    from tests.fuzz_protocol.targets import TARGETS

    end = time.monotonic() + seconds
    for count, data in enumerate(inputs(target, options.seed)):
        if time.monotonic() > end:
            print(f"{target}: {count} inputs in {seconds:.0f} s, seed {options.seed}", flush=True)
            return True
        try:
            with limited():
                TARGETS[target](data)
        except Exception:
            traceback.print_exc()
            print(f"{target}: broken by {_written(target, data, options)}", flush=True)
            return False
    raise AssertionError("inputs do not end")


def _leaves_nothing(target: str, seconds: float, options: argparse.Namespace) -> bool:
    """Whether the corpus can be played again and again in the memory that is there; some of it, for want of time."""
    from tests.fuzz_protocol.targets import AGAIN

    kept = corpus(target)
    random.Random(options.seed).shuffle(kept)
    end = time.monotonic() + seconds
    played, good = 0, True
    for data in kept:
        if time.monotonic() > end:
            break
        played += 1
        for run in AGAIN[target]:
            left = left_behind(run(data))
            if left > MAY_KEEP_BYTES:
                good = False
                path = _written(target, data, options)
                print(f"{target}: {left:.0f} bytes are left behind by each run of {path}", flush=True)
    print(f"{target}: {played} of {len(kept)} kept inputs played again and again", flush=True)
    return good


def _written(target: str, data: bytes, options: argparse.Namespace) -> Path:
    options.failures.mkdir(parents=True, exist_ok=True)
    path: Path = options.failures / f"{target}-{name_of(data)}"
    path.write_bytes(data)
    return path


def _run_guided(target: str, seconds: float, options: argparse.Namespace) -> bool:
    options.failures.mkdir(parents=True, exist_ok=True)
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz_protocol", "--atheris-target", target, "--atheris-arguments",
            str(CORPUS / target), f"-max_total_time={max(1, int(seconds))}", f"-timeout={HANG_SECONDS:.0f}",
            f"-rss_limit_mb={MOST_MEMORY_BYTES >> 20}", f"-artifact_prefix={options.failures}/{target}-",
            "-max_len=800", "-print_final_stats=1",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if "number_of_executed" in line or "DONE" in line]
    print(f"{target}: {' '.join(told)}", flush=True)
    if done.returncode:
        print(done.stderr[-4000:], done.stdout[-4000:], flush=True)  # a traceback is among the latter
    return done.returncode == 0


def _guided(target: str, arguments: list[str]) -> int:
    import atheris  # type: ignore[import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["protocol", "pooler", "scramp"]):
        from tests.fuzz_protocol.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
