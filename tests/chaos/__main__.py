"""`python -m tests.chaos`: each fault in turn under the bank's load; the table goes to docs/chaos.md.

`--soak`: one pgnear, mixed load, faults at random for the whole duration; at the end memory, descriptors, tasks and
origin connections must be where they began. Status 1 where a promise did not hold.
"""

from __future__ import annotations

import argparse
import random
import sys

from tests.chaos import report
from tests.chaos.matrix import FAULTS, run_fault
from tests.chaos.rig import bank_server
from tests.chaos.soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    add = parser.add_argument
    add("faults", nargs="*", help=f"{', '.join(FAULTS)}; all where none is given")
    add("--tellers", type=int, default=8, help="clients that transfer (8)")
    add("--report", help="write the table to this file (the make target: docs/chaos.md)")
    add("--soak", action="store_true", help="faults at random, one pgnear")
    add("--duration", type=float, default=600.0, help="seconds of a soak (600)")
    add("--seed", type=int, default=random.randrange(1 << 31), help="of a soak; printed")
    options = parser.parse_args()
    if options.soak:
        with bank_server() as server:
            return int(bool(soak(server, options.duration, options.tellers, options.seed)))
    wrong = False
    outcomes = []
    for name in options.faults or FAULTS:
        with bank_server() as server:
            outcome = run_fault(server, name, options.tellers)
        outcomes.append(outcome)
        print(report.line(outcome), flush=True)
        wrong = wrong or bool(outcome.wrong)
    if options.report:
        report.write(options.report, outcomes, options.tellers)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
