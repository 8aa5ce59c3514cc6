"""JavaScript: Knex with node-postgres. The npm package has no tests; its repository does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.suites.languages.node import told_by_mocha
from tests.support.postgres import PASSWORD

_VERSION = "3.3.0"
_DATABASE = "knex_test"
_TOOLS = (
    "pg@8.23.0", "pg-query-stream@4", "chai@4", "chai-as-promised@7", "chai-subset-in-order@3", "cli-testlab@3",
    "mocha@10", "rimraf@5", "sinon@15", "sinon-chai@3", "source-map-support@0.5", "lodash@4",
)  # fmt: skip


def _prepare(home: Path) -> tuple[Path, str]:
    tests, tree = home / f"knex-{_VERSION}-sources", home / f"knex-{_VERSION}"
    clone("https://github.com/knex/knex", _VERSION, ("test",), tests)
    if not (tree / "ready").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        (tree / "package.json").write_text('{"private": true}')
        quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        workplace.run(["npm", "install", *quiet, f"knex@{_VERSION}", *_TOOLS], cwd=tree)
        shutil.copytree(tests / "test", tree / "node_modules/knex/test")
        (tree / "ready").touch()
    return tree, f"{_VERSION}, {_TOOLS[0]}"


def _run(task: Task) -> dict[str, Outcome]:
    """Its tests of PostgreSQL, and those of all databases."""
    tree, report = task.home / "tree", task.home / "report.json"
    shutil.copytree(task.tree, tree, symlinks=True)  # they write migrations
    package = tree / "node_modules/knex"
    place = {
        "host": "127.0.0.1",
        "port": task.rig.port,
        "user": "postgres",
        "password": PASSWORD,
        "database": _DATABASE,
    }
    settings = task.home / "settings.json"
    settings.write_text(json.dumps({"postgres": place}))
    specs = sorted((package / "test/integration2").rglob("*.spec.js"))
    ours = [path for path in specs if path.parent.name != "dialects" or path.name.startswith("postgres")]
    options = ["--reporter", "json", "--reporter-option", f"output={report}", "--timeout", "10000", "--exit"]
    ended = execute(
        [tree / "node_modules/.bin/mocha", *options, "test/integration-test-suite.js", *ours],
        cwd=package, within=task.within,
        environment=task.environment | {"KNEX_TEST": str(settings), "DB": "postgres"},
    )  # fmt: skip
    return told_by_mocha(report, ended.output, "knex")


KNEX = Suite(
    name="knex",
    title="JavaScript: Knex",
    needs={"node": "nodejs", "npm": "npm", "git": "git"},
    prepare=_prepare,
    run=_run,
    setup=(f"CREATE DATABASE {_DATABASE}",),
    databases=(_DATABASE,),
)
