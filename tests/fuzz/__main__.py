"""`python -m tests.fuzz`: the long run, and the replay of one script.

Differences that are found are shrunk and written, one script a file, to the directory of --failures.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis.errors import Flaky

from tests.fuzz import known, referee
from tests.fuzz.actions import GROUPS, all_groups, scripts
from tests.fuzz.referee import Difference, Known, Unfit
from tests.fuzz.rig import Rig, rig
from tests.fuzz.script import Script

SCRIPTS_PER_ROUND = 200


def main() -> int:
    options = _options()
    all_groups()
    if options.groups:
        print(*sorted(GROUPS), sep="\n")
        return 0
    with rig(options.postgres) as both:
        if options.replay:
            return _replay(both, options.replay)
        return _search(both, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--duration", type=float, default=300.0, help="seconds (300)")
    parser.add_argument("--seed", type=int, help="of the first round; printed, random where not given")
    parser.add_argument("--without", type=_names, default=[], help="groups of actions to leave out: listen,temp")
    parser.add_argument("--only", type=_names, default=[], help="only these groups")
    parser.add_argument("--tolerate", type=lambda text: text.split(","), default=[], help="signatures to pass over")
    parser.add_argument("--groups", action="store_true", help="list the groups and end")
    parser.add_argument("--all", action="store_true", help="with the groups that known.py has switched off")
    parser.add_argument("--steps", type=int, default=30, help="of a script, at most (30)")
    parser.add_argument("--postgres", type=int, choices=(16, 18), default=18, help="major version (18)")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where shrunk scripts go")
    parser.add_argument(
        "--keep-going", action="store_true", help="collect every kind of difference until the time is up"
    )
    parser.add_argument("--replay", type=Path, help="run this script once and say what differs")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _replay(both: Rig, path: Path) -> int:
    try:
        referee.run(both, Script.read(path.read_text()))
    except (Difference, Unfit) as found:
        print(found)
        return 1
    print("no difference")
    return 0


def _search(both: Rig, options: argparse.Namespace) -> int:
    off = [] if options.all or options.only else list(known.OFF)
    groups = all_groups(without=[*options.without, *off], only=options.only)
    first = options.seed if options.seed is not None else random.randrange(1 << 30)
    counts: Counter[str] = Counter()
    found: dict[Known, tuple[Script, Difference]] = {}
    tolerated: list[Known] = [] if options.all else [(signature, frozenset()) for signature in known.TOLERATED]
    tolerated += [(signature, frozenset()) for signature in options.tolerate]
    begun = time.monotonic()
    round_seed = first
    while time.monotonic() - begun < options.duration and (options.keep_going or not found):
        for script, difference in _round(
            both, options, groups, round_seed, counts, begun + options.duration, tolerated
        ):
            key = difference.signature, frozenset(step.group for step in script.steps)
            found[key] = script, difference
            tolerated.append(key)
            print(f"{time.monotonic() - begun:.0f} s: {difference}\n{script.text()}", flush=True)
        round_seed += 1
    seconds = time.monotonic() - begun
    print(
        f"{counts['scripts']} scripts, {counts['steps']} steps ({counts['left out']} left out), "
        f"{counts['unfit']} unfit, in {seconds:.0f} s; seeds {first} to {round_seed - 1}; "
        f"groups {', '.join(groups)}; off {', '.join(off) or 'none'}"
    )
    for number, (script, difference) in enumerate(found.values()):
        path = _save(options.failures, number, script, difference)
        print(f"replay: python -m tests.fuzz --replay {path}")
    print(f"{len(found)} kinds of difference" if found else "no difference")
    return 1 if found else 0


def _save(directory: Path, number: int, script: Script, difference: Difference) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{number:02}-{''.join(c if c.isalnum() else '-' for c in difference.signature)[:80]}.script"
    remarks = "".join(f"# {line}\n" for line in str(difference).splitlines())
    path.write_text(remarks + script.text())
    return path


def _round(
    both: Rig,
    options: argparse.Namespace,
    groups: list[str],
    round_seed: int,
    counts: Counter[str],
    until: float,
    tolerated: list[Known],
) -> list[tuple[Script, Difference]]:
    """Some hundred scripts; the first kind of difference that is not known yet, shrunk."""
    smallest: dict[str, tuple[Script, Difference]] = {}

    @seed(round_seed)
    @settings(
        max_examples=SCRIPTS_PER_ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(scripts(groups, max_steps=options.steps))
    def one_round(script: Script) -> None:
        if time.monotonic() > until and not smallest:
            return
        try:
            referee.run(both, script, counts, tolerated)
        except Unfit:
            counts["unfit"] += 1
            reject()
        except Difference as difference:
            if smallest and difference.signature not in smallest:
                return  # one at a time: another kind is found in a later round
            smallest[difference.signature] = (script, difference)
            raise

    try:
        one_round()
    except Difference:
        pass
    except Flaky as flaky:
        for signature, (script, _) in smallest.items():
            print(f"not every time: {signature}\n{script.text()}{flaky}", file=sys.stderr)
    return list(smallest.values())


if __name__ == "__main__":
    sys.exit(main())
