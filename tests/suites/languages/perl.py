"""Perl: DBD::Pg. Its tests come from its repository, at the version that is installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.support.postgres import PASSWORD

_NOT_OF_THE_DRIVER = re.compile(r"(00_|99_(?!cleanup))")
_LINE = re.compile(r"^(not )?ok (\d+)\s*-?\s*(.*)$")


def _prepare(home: Path) -> tuple[Path, str]:
    version = workplace.run(["perl", "-MDBD::Pg", "-e", "print $DBD::Pg::VERSION"])
    tree = home / f"dbdpg-{version}"
    clone("https://github.com/bucardo/dbdpg", version, (".",), tree)
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    tree = task.home / "dbdpg"
    shutil.copytree(task.tree, tree, ignore=shutil.ignore_patterns(".git", "lib", "Pg.pm"))
    environment = task.environment | {
        "DBI_DSN": f"dbi:Pg:dbname=postgres;host=127.0.0.1;port={task.rig.port}", "DBI_USER": "postgres",
        "DBI_PASS": PASSWORD, "DBDPG_NOCLEANUP": "1",
    }  # fmt: skip
    outcomes: dict[str, Outcome] = {}
    for file in sorted((tree / "t").glob("*.t")):
        if not _NOT_OF_THE_DRIVER.match(file.name):
            outcomes |= _tested(file, tree, environment)
    return outcomes


def _tested(file: Path, tree: Path, environment: dict[str, str]) -> dict[str, Outcome]:
    """The lines of TAP of one file; the file itself has failed where it did not come to its end."""
    ended = execute(["perl", "-I.", "-It", file], cwd=tree, environment=environment, within=300)
    outcomes: dict[str, Outcome] = {}
    number, said = 0, [""]
    for line in ended.output.splitlines():
        found = _LINE.match(line)
        if found is None:
            said.append(line)
            continue
        number, name = int(found[2]), found[3]
        skipped = "# skip" in name.lower() or "# todo" in name.lower()
        said = []
        outcomes[f"{file.name} {number}"] = Outcome(SKIPPED if skipped else FAILED if found[1] else PASSED, name)
    planned = re.search(r"^1\.\.(\d+)", ended.output, re.MULTILINE)
    whole = planned is not None and int(planned[1]) == number and ended.status is not None
    outcomes[file.name] = Outcome(PASSED if whole else FAILED, "\n".join(said[-20:]))
    for line in re.finditer(r"Failed test '?(.*?)'?\n#\s+at .* line \d+\.((?:\n#.*)*)", ended.output):
        for test, outcome in outcomes.items():
            if outcome.status == FAILED and line[1] and line[1] in outcome.detail:
                outcomes[test] = Outcome(FAILED, f"{outcome.detail}{line[2]}")
    return outcomes


PERL = Suite(
    name="dbd-pg",
    title="Perl: DBD::Pg",
    needs={"perl": "perl", "/usr/share/doc/libdbd-pg-perl": "libdbd-pg-perl", "git": "git"},
    prepare=_prepare,
    run=_run,
)
