"""JavaScript: postgres.js. The npm package has no tests; its repository does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.support.postgres import PASSWORD

_VERSION = "3.4.9"
_USER = "postgres_js_test"
_HERE = Path(__file__).parent


def _prepare(home: Path) -> tuple[Path, str]:
    tests, tree = home / f"postgres.js-{_VERSION}", home / f"postgres.js-{_VERSION}-package"
    clone("https://github.com/porsager/postgres", f"v{_VERSION}", ("tests",), tests)
    if not (tree / "tests").is_dir():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        (tree / "package.json").write_text('{"private": true}')
        workplace.run(["npm", "install", "--silent", "--no-audit", "--no-fund", f"postgres@{_VERSION}"], cwd=tree)
        shutil.copytree(tests / "tests", tree / "tests")
    return tree, _VERSION


def _run(task: Task) -> dict[str, Outcome]:
    package = task.home / "package"
    shutil.copytree(task.tree / "node_modules/postgres", package)
    shutil.copytree(task.tree / "tests", package / "tests")
    for name in ("test", "bootstrap"):
        shutil.copy(_HERE / f"postgres_js_{name}.js", package / "tests" / f"{name}.js")
    environment = task.environment | {"SUITE_SERVER_PORT": str(task.rig.server.port)}
    environment.pop("PGSSLMODE")  # postgres.js takes it for more than libpq does
    ended = execute(["node", "tests/index.js"], cwd=package, environment=environment, within=600)
    outcomes = {}
    for line in ended.output.splitlines():
        if line.startswith('["'):
            name, status, detail = json.loads(line)
            outcomes[name if name not in outcomes else f"{name}, again"] = Outcome(status, detail)
    return outcomes or {"tests/index.js": Outcome(FAILED, ended.output)}


POSTGRES_JS = Suite(
    name="postgres.js",
    title="JavaScript: postgres.js",
    needs={"node": "nodejs", "npm": "npm", "git": "git", "psql": "postgresql-client"},
    prepare=_prepare,
    run=_run,
    setup=(
        f"CREATE ROLE {_USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'",
        *(f"CREATE ROLE {_USER}_{how} LOGIN PASSWORD '{_USER}_{how}'" for how in ("md5", "scram")),
        f"CREATE DATABASE {_USER} OWNER {_USER}",
    ),
    databases=(_USER,),
    users={_USER: PASSWORD, f"{_USER}_md5": f"{_USER}_md5", f"{_USER}_scram": f"{_USER}_scram"},
)
