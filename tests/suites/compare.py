"""Two runs of one suite, the reasons that are known for what differs, and the table of it.

A reason explains one test, and only the lines that it names: a known difference that grows is unknown again.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What became of one test. `detail`: why it failed: a diff, or a traceback."""

    status: str
    detail: str = ""


@dataclass(frozen=True)
class Difference:
    """A test that ended otherwise through pgnear than directly."""

    test: str
    direct: Outcome
    pooled: Outcome
    reason: str | None = None


@dataclass(frozen=True)
class Reason:
    """Why a test may fail through pgnear.

    Attributes:
      test: its name, or a pattern with * and ?.
      lines: regular expressions; each line of a diff that begins with + or -, or what pytest says of the first
        exception, or why the test was skipped, has to match one of them.
    """

    test: str
    reason: str
    lines: tuple[str, ...]

    def explains(self, test: str, outcome: Outcome) -> bool:
        if not fnmatch.fnmatchcase(test, self.test):
            return False
        lines = [line for line in outcome.detail.splitlines() if line.strip()]
        if lines and lines[0].startswith("diff "):
            telling = [line for line in lines if re.match(r"[+-](?!\+\+ |-- )", line)]
        else:
            telling = [line for line in lines if line.startswith("E ")][:1] or lines[-1:]
        return all(any(re.search(pattern, line) for pattern in self.lines) for line in telling)


def read_reasons(file: Path, table: str) -> list[Reason]:
    """The reasons under `[[table]]`."""
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    return [Reason(one["test"], one["reason"], tuple(one["lines"])) for one in data.get(table, [])]


def differences(
    direct: Mapping[str, Outcome], pooled: Mapping[str, Outcome], reasons: Iterable[Reason]
) -> list[Difference]:
    """The tests that passed directly and not through pgnear, or that were skipped in only one of the runs.

    A test that one run lacks failed there. One that fails only directly says nothing against pgnear.
    """
    known = list(reasons)
    lacking = Outcome(FAILED, "the test did not run")
    found = []
    for test in sorted(direct.keys() | pooled.keys()):
        one, other = direct.get(test, lacking), pooled.get(test, lacking)
        if one.status != other.status and one.status != FAILED:
            reason = next((item.reason for item in known if item.explains(test, other)), None)
            found.append(Difference(test, one, other, reason))
    return found


def failed_directly(direct: Mapping[str, Outcome]) -> list[str]:
    """Lines for a report: tests that fail without pgnear, and so say nothing about it."""
    return [
        f"- fails directly, and so says nothing about pgnear: `{test}`"
        for test in sorted(direct)
        if direct[test].status == FAILED
    ]


def counts(outcomes: Mapping[str, Outcome]) -> str:
    """`210 passed, 2 failed, 0 skipped`."""
    words = [outcome.status for outcome in outcomes.values()]
    return ", ".join(f"{words.count(status)} {status}" for status in (PASSED, FAILED, SKIPPED))


def table(found: Iterable[Difference]) -> str:
    """Markdown."""
    rows = [
        f"| `{name}` | {one.direct.status} | {one.pooled.status} | {one.reason or '**unknown**'} |"
        for one in found
        for name in [one.test.replace("|", "\\|")]
    ]
    if not rows:
        return "No difference.\n"
    return "\n".join(["| test | direct | through pgnear | reason |", "|---|---|---|---|", *rows]) + "\n"
