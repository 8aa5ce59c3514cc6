"""PHP: the tests of its extensions pgsql and pdo_pgsql, and those of PDO that every driver has to pass."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.suites import sources, workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.support.postgres import PASSWORD

_STATUSES = {
    "PASSED": PASSED,
    "FAILED": FAILED,
    "BORKED": FAILED,
    "SKIPPED": SKIPPED,
    "XFAILED": FAILED,
    "WARNED": PASSED,
}
_MEMBERS = ("run-tests.php", "ext/pgsql/tests", "ext/pdo_pgsql/tests", "ext/pdo/tests")
_TESTS = ("ext/pgsql/tests", "ext/pdo_pgsql/tests")


def _prepare(home: Path) -> tuple[Path, str]:
    branch = workplace.run(["php", "-r", "echo PHP_MAJOR_VERSION, '.', PHP_MINOR_VERSION;"])
    version, tree = sources.source_package(f"php{branch}", home.parent, "run-tests.php")
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    tree, results = task.home / "php", task.home / "results"
    for member in _MEMBERS:
        source, target = task.tree / member, tree / member
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    place = f"host=127.0.0.1 port={task.rig.port} user=postgres password='{PASSWORD}' dbname=test"
    ended = execute(
        ["php", "run-tests.php", "-P", "-q", "-W", results, "--set-timeout", "60", *_TESTS],
        cwd=tree, within=task.within,
        environment=task.environment
        | {"PGSQL_TEST_CONNSTR": place, "PDO_PGSQL_TEST_DSN": f"pgsql:{place}", "NO_INTERACTION": "1"},
    )  # fmt: skip
    outcomes = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        status, _, name = line.partition("\t")
        difference = tree / f"{name.split(': ')[-1]}".replace(".phpt", ".diff")
        outcomes[name.replace(f"{tree}/", "")] = Outcome(
            _STATUSES.get(status, FAILED), difference.read_text(errors="replace") if difference.exists() else ""
        )
    return outcomes or {"run-tests.php": Outcome(FAILED, ended.output)}


PHP = Suite(
    name="php",
    title="PHP: pgsql and PDO_PGSQL",
    needs={"php": "php-cli", "/etc/php": "php-pgsql"},
    prepare=_prepare,
    run=_run,
    setup=("CREATE DATABASE test",),
    databases=("test",),
)
