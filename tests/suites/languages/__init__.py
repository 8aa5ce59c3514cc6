"""Drivers of other languages than Python: their own tests, directly and through pgnear, one module a language.

Here: what a suite is, and running its programs. Each suite fetches its tests, finds the driver that belongs to them and
runs them against one rig; the command (`__main__`) runs it twice and compares. What is not installed is said, not
installed.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import Outcome
from tests.suites.rigs import Rig
from tests.suites.workplace import SuiteFailed


class ToolsMissing(Exception):
    """The suite's tools are not installed here; the message says which, and how they are had."""


@dataclass(frozen=True)
class Task:
    """One run of a suite.

    Attributes:
      tree: what `Suite.prepare` made; not to be written to.
      home: a directory of this run's own.
      within: seconds that the run may take.
    """

    rig: Rig
    tree: Path
    home: Path
    within: float

    @property
    def environment(self) -> dict[str, str]:
        """libpq's variables, which every driver here knows, and a home that has no settings of anybody's."""
        return self.rig.environment("postgres") | {"HOME": str(self.home), "PGSSLMODE": "disable"}


@dataclass(frozen=True)
class Suite:
    """A driver's tests.

    Attributes:
      needs: program or file -> the Debian package that has it.
      prepare: fetches and builds in a directory that is kept; where the tests are, and the driver's version.
      run: the outcome of each test.
      setup: SQL that its authors ask for. databases: those that pgnear serves beside `postgres`.
      users: name -> password of those that may log in to pgnear beside `postgres`.
      excluded: tests that are not run either way, with the reason; names or patterns with * and ?.
      pgnear: settings of pgnear's for this suite.
    """

    name: str
    title: str
    needs: Mapping[str, str]
    prepare: Callable[[Path], tuple[Path, str]]
    run: Callable[[Task], dict[str, Outcome]]
    setup: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)

    def check_tools(self) -> None:
        """Raises ToolsMissing."""
        missing = {
            package
            for tool, package in self.needs.items()
            if not (Path(tool).exists() if tool.startswith("/") else shutil.which(tool))
        }
        if missing:
            raise ToolsMissing(
                f"not installed: {', '.join(sorted(missing))} (apt-get install {' '.join(sorted(missing))})"
            )

    def kept(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Without those that are excluded."""
        return {
            test: outcome
            for test, outcome in outcomes.items()
            if not any(fnmatch.fnmatchcase(test, pattern) for pattern in self.excluded)
        }


@dataclass(frozen=True)
class Ended:
    """A program that ran. `status`: None where it took too long and was killed."""

    status: int | None
    output: str


def execute(
    command: list[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    within: float,
    errors: bool = True,
    given: Path | None = None,
) -> Ended:
    """Run a test program that may fail or hang; it and its children are gone afterwards.

    Args:
      errors: whether the output includes standard error.
      given: its standard input.
    """
    with open(given or os.devnull, "rb") as standard_input:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=dict(environment), stdin=standard_input,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT if errors else subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    status: int | None = None
    try:
        written, _ = process.communicate(timeout=within)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        written, _ = process.communicate()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return Ended(status, written.decode(errors="replace"))


def clone(repository: str, tag: str, members: tuple[str, ...], tree: Path) -> None:
    """The `members` of a public repository at `tag`, once. A mirror is named by git's `url.<base>.insteadOf`.

    Raises:
      ToolsMissing: it cannot be had from here.
    """
    if tree.is_dir():
        return
    workplace.note(f"fetching {repository} {tag}")
    part = tree.with_name(f"{tree.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    options = ["--quiet", "--depth=1", "--no-checkout", f"--branch={tag}"]
    try:
        workplace.run(
            ["git", "-c", "http.lowSpeedTime=20", "-c", "http.lowSpeedLimit=1", "clone", *options, repository, part]
        )
        workplace.run(["git", "checkout", "--quiet", "HEAD", "--", *members], cwd=part)
    except SuiteFailed as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ToolsMissing(
            f"{repository} cannot be reached (git's url.<base>.insteadOf names a mirror): {str(error)[-300:]}"
        ) from None
    part.rename(tree)
