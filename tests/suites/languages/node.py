"""JavaScript: node-postgres with its pool, cursors and streams. The npm packages have no tests; its repository does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, clone, execute

_VERSION = "8.23.0"
_REPOSITORY = "https://github.com/brianc/node-postgres"
_PACKAGES = ("pg", "pg-pool", "pg-cursor", "pg-query-stream")
_FILE_SECONDS = 60
_TOOLS = (
    "async@2.6.4", "bluebird@3.7.2", "co@4.6.0", "pg-copy-streams@0.3.0", "mocha@11", "expect.js@0.3.1", "lodash@4",
    "JSONStream@1.3", "concat-stream@1.0.1", "stream-spec@0.3", "ts-node@10", "typescript@5", "@types/node@16",
)  # fmt: skip


def _prepare(home: Path) -> tuple[Path, str]:
    tests, tree = home / f"node-postgres-{_VERSION}", home / f"node-{_VERSION}"
    clone(_REPOSITORY, f"pg@{_VERSION}", tuple(f"packages/{name}" for name in _PACKAGES), tests)
    if not (tree / "ready").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        (tree / "package.json").write_text('{"private": true}')
        described = [tests / "packages" / name / "package.json" for name in _PACKAGES]
        drivers = [
            f"{name}@{json.loads(path.read_text())['version']}" for name, path in zip(_PACKAGES, described, strict=True)
        ]
        workplace.note(f"installing {' '.join(drivers)}")
        quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        workplace.run(["npm", "install", *quiet, *drivers, *_TOOLS], cwd=tree)
        for name in _PACKAGES:
            shutil.copytree(tests / "packages" / name / "test", tree / "node_modules" / name / "test")
        (tree / "ready").touch()
    return tree, _VERSION


def _run(task: Task) -> dict[str, Outcome]:
    outcomes = {}
    driver = task.tree / "node_modules/pg"
    environment = task.environment | {"PATH": f"{task.tree}/node_modules/.bin:{task.environment['PATH']}"}
    for file in sorted((driver / "test/integration").rglob("*-tests.js")):
        name = str(file.relative_to(driver / "test"))
        ended = execute(["node", file], cwd=driver, environment=environment, within=_FILE_SECONDS)
        outcomes[f"pg: {name}"] = Outcome(PASSED if ended.status == 0 else FAILED, _telling(ended.output))
    for package in _PACKAGES[1:]:
        outcomes |= _mocha(package, task, environment)
    return outcomes


def _telling(output: str) -> str:
    """With what went wrong last, as a reason wants it."""
    lines = [line.strip() for line in output.splitlines()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return "\n".join([output.strip(), *errors[:1]])


def _mocha(package: str, task: Task, environment: dict[str, str]) -> dict[str, Outcome]:
    directory, report = task.tree / "node_modules" / package, task.home / f"{package}.json"
    files = sorted(str(path.relative_to(directory)) for path in (directory / "test").glob("*.[jt]s"))
    options = ["--reporter", "json", "--reporter-option", f"output={report}", "--timeout", "10000", "--exit"]
    if package == "pg-query-stream":
        options += ["--require", "ts-node/register/transpile-only"]
        environment = environment | {
            "TS_NODE_COMPILER_OPTIONS": '{"module":"commonjs","esModuleInterop":true}',
            "TS_NODE_IGNORE": "node_modules/(?!pg-query-stream)",
        }
    ended = execute(
        ["mocha", *options, *files], cwd=directory, environment=environment, within=task.within,
    )  # fmt: skip
    return told_by_mocha(report, ended.output, package)


def told_by_mocha(report: Path, output: str, what: str) -> dict[str, Outcome]:
    """What its reporter `json` has written in `report`; without that, what its `output` says is the only outcome."""
    if not report.exists():
        return {f"{what}: mocha": Outcome(FAILED, output)}
    told: dict[str, Any] = json.loads(report.read_text())
    return {
        f"{what}: {one['fullTitle']}": outcome
        for kind, outcome_of in (
            ("passes", lambda one: Outcome(PASSED)),
            ("pending", lambda one: Outcome(SKIPPED)),
            (
                "failures",
                lambda one: Outcome(FAILED, one["err"].get("stack", "") + "\n" + one["err"].get("message", "")),
            ),
        )
        for one in told[kind]
        for outcome in [outcome_of(one)]
    }


NODE = Suite(
    name="node-postgres",
    title="JavaScript: node-postgres (pg, pg-pool, pg-cursor, pg-query-stream)",
    needs={"node": "nodejs", "npm": "npm", "git": "git"},
    prepare=_prepare,
    run=_run,
    databases=("template1",),
)
