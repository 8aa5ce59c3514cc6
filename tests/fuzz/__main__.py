"""`python -m tests.fuzz`: the long run, and the replay of one script.

Differences that are found are made small and written, one script a file, to the directory of --failures.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.fuzz import known, referee
from tests.fuzz.actions import GROUPS, all_groups
from tests.fuzz.referee import Difference, Unfit
from tests.fuzz.rig import Rig, rig
from tests.fuzz.script import Script
from tests.fuzz.search import Found, Search


def main() -> int:
    options = _options()
    if options.groups:
        all_groups()
        print(*sorted(GROUPS), sep="\n")
        return 0
    with rig(options.postgres) as both:
        return _replay(both, options.replay) if options.replay else _search(both, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--duration", type=float, default=300.0, help="seconds (300)")
    add("--seed", type=int, help="of the first round; printed, random where not given")
    add("--without", type=_names, default=[], help="groups of actions to leave out: listen,temp")
    add("--only", type=_names, default=[], help="only these groups")
    add("--groups", action="store_true", help="list the groups and end")
    add("--all", action="store_true", help="with what known.py has switched off or tolerates")
    add("--tolerate", type=_names, default=[], help="signatures of differences to pass over, * for anything")
    add("--steps", type=int, default=30, help="of a script, at most (30)")
    add("--shrink", type=float, default=60.0, help="seconds that making one script small may take (60)")
    add("--postgres", type=int, choices=(16, 18), default=18, help="major version (18)")
    add("--failures", type=Path, default=Path("fuzz-failures"), help="where scripts that fail go")
    add("--keep-going", action="store_true", help="collect differences until the time is up")
    add("--replay", type=Path, help="run this script once and say what differs")
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
    tolerated = [] if options.all else known.tolerated()
    tolerated += [(signature, frozenset()) for signature in options.tolerate]
    search = Search(both, groups, tolerated, steps=options.steps, shrinks_within=options.shrink)
    first = options.seed if options.seed is not None else random.randrange(1 << 30)
    begun = time.monotonic()
    found: list[Found] = []
    rounds = 0
    while time.monotonic() - begun < options.duration and (options.keep_going or not found):
        one = search.round(first + rounds, begun + options.duration)
        rounds += 1
        if one is not None:
            found.append(one)
            search.tolerated.append(one.known)
            path = one.save(options.failures)
            print(f"{one.text()}# replay: python -m tests.fuzz --replay {path}\n", flush=True)
    counts = search.counts
    print(
        f"{counts['scripts']} scripts, {counts['steps']} steps ({counts['left out']} left out), "
        f"{counts['unfit']} unfit, {counts['tolerated']} differences tolerated, in {time.monotonic() - begun:.0f} s; "
        f"seeds {first} to {first + rounds - 1}\n"
        f"groups: {', '.join(groups)}\noff: {', '.join(off) or 'none'}\n"
        f"{f'{len(found)} kinds of difference' if found else 'no difference'}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
