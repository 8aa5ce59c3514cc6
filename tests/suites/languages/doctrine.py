"""PHP: Doctrine DBAL with pdo_pgsql and pgsql. Its tests come from its repository, at the version that is installed."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.support.postgres import PASSWORD

_DRIVERS = ("pdo_pgsql", "pgsql")
_AUTOLOAD = "/usr/share/php/Doctrine/DBAL/autoload.php"
_BOOTSTRAP = (
    f"<?php require '{_AUTOLOAD}'; spl_autoload_register(function ($name) {{"
    r" $file = str_replace(['Doctrine\DBAL\Tests', '\\'], [__DIR__ . '/tests', '/'], $name) . '.php';"
    " if (is_file($file)) require $file; });"
)


def _prepare(home: Path) -> tuple[Path, str]:
    package = workplace.run(["dpkg-query", "--show", "--showformat=${Version}", "php-doctrine-dbal"])
    version = package.partition("+")[0].partition("-")[0]
    tree = home / f"doctrine-dbal-{version}"
    clone("https://github.com/doctrine/dbal", version, ("tests",), tree)
    return tree, package


def _run(task: Task) -> dict[str, Outcome]:
    outcomes = {}
    for driver in _DRIVERS:
        outcomes |= {f"{name} ({driver})": outcome for name, outcome in _with(driver, task).items()}
    return outcomes


def _with(driver: str, task: Task) -> dict[str, Outcome]:
    tree = task.home / driver
    shutil.copytree(task.tree / "tests", tree / "tests")
    variables = {
        "db_driver": driver, "db_host": "127.0.0.1", "db_port": task.rig.port, "db_user": "postgres",
        "db_password": PASSWORD, "db_dbname": "doctrine_tests",
    }  # fmt: skip
    given = "".join(f"<var name={quoteattr(name)} value={quoteattr(str(value))}/>" for name, value in variables.items())
    (tree / "phpunit.xml").write_text(f"<phpunit convertDeprecationsToExceptions='true'><php>{given}</php></phpunit>")
    (tree / "bootstrap.php").write_text(_BOOTSTRAP)
    report = tree / "report.xml"
    ended = execute(
        ["phpunit", "--bootstrap", "bootstrap.php", "--log-junit", report, "tests/Functional"],
        cwd=tree, environment=task.environment, within=task.within / len(_DRIVERS),
    )  # fmt: skip
    if not report.exists() or not report.stat().st_size:
        return {"phpunit": Outcome(FAILED, ended.output)}
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = case.get("class", "").removeprefix("Doctrine\\DBAL\\Tests\\Functional\\")
        outcomes[f"{test}::{case.get('name')}"] = _outcome(case)
    return outcomes


def _outcome(case: ElementTree.Element) -> Outcome:
    for child in case:
        if child.tag == "skipped":
            return Outcome(SKIPPED)
        if child.tag in ("failure", "error", "warning"):
            text = (child.text or "").strip()
            return Outcome(FAILED, f"{text}\n{' '.join(text.split(os.linesep * 2)[0].split())}")
    return Outcome(PASSED)


DOCTRINE = Suite(
    name="doctrine-dbal",
    title="PHP: Doctrine DBAL",
    needs={"phpunit": "phpunit", "git": "git", "/etc/php": "php-pgsql", _AUTOLOAD: "php-doctrine-dbal"},
    prepare=_prepare,
    run=_run,
    databases=("doctrine_tests", "template1"),
)
