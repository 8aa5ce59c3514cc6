"""Looks for scripts on which the two sides differ: hypothesis makes them up, `reduction` makes small what fails.

One kind of difference is shrunk at a time. After that it is tolerated, so that the next rounds find others.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import referee
from tests.fuzz.actions import scripts
from tests.fuzz.reduction import reduce
from tests.fuzz.referee import Difference, Known, Unfit
from tests.fuzz.rig import Rig
from tests.fuzz.script import Script

SCRIPTS_PER_ROUND = 300


@dataclass(frozen=True)
class Found:
    """A difference, and the smallest script that was seen to make it; `always`: whenever it was run."""

    script: Script
    difference: Difference
    always: bool

    @property
    def known(self) -> Known:
        """What tolerates it: its signature in scripts of the groups that it takes."""
        return _literal(self.difference.signature), frozenset(step.group for step in self.script.steps)

    def text(self) -> str:
        """The difference as remarks, then the script."""
        doubt = "" if self.always else "# not every time\n"
        remarks = "".join(f"# {line}\n" for line in str(self.difference).splitlines())
        return remarks + doubt + self.script.text()

    def save(self, directory: Path) -> Path:
        """Write `text` to a file named after the difference; which file."""
        directory.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.difference.signature)[:60]
        number = len(list(directory.glob("*.script")))
        path = directory / f"{number:02}-{name}.script"
        path.write_text(self.text())
        return path


def _literal(signature: str) -> str:
    return signature.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


class Search:
    """Rounds of scripts.

    Args:
      steps: of a script, at most.
      shrinks_within: seconds that making one script small may take.
    """

    def __init__(
        self, rig: Rig, groups: list[str], tolerated: list[Known], *, steps: int, shrinks_within: float
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.tolerated = tolerated
        self._rig = rig
        self._scripts = scripts(groups, max_steps=steps)
        self._shrinks_within = shrinks_within

    def round(self, round_seed: int, until: float) -> Found | None:
        """Some hundred scripts, or as many as there are `until` (monotonic); the first difference, made small."""
        first: list[tuple[Script, Difference]] = []

        @seed(round_seed)
        @settings(
            max_examples=SCRIPTS_PER_ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(self._scripts)
        def one_round(script: Script) -> None:
            if first or time.monotonic() > until:
                return
            difference = self._run(script)
            if difference is not None:
                first.append((script, difference))

        one_round()
        if not first:
            return None
        script, difference = reduce(*first[0], self._run, time.monotonic() + self._shrinks_within)
        again = self._run(script)
        return Found(script, difference, always=again is not None and again.signature == difference.signature)

    def _run(self, script: Script) -> Difference | None:
        try:
            referee.run(self._rig, script, self.counts, self.tolerated)
        except Difference as difference:
            return difference
        except Unfit:
            self.counts["unfit"] += 1
        return None
