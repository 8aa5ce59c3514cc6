"""Java: pgjdbc. A program of our own, which does in each of its query modes what programs do with it.

Its own tests are in `pgjdbc`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.support.postgres import PASSWORD

_DRIVER, _PACKAGE = "/usr/share/java/postgresql.jar", "libpostgresql-jdbc-java"
_PROGRAM = Path(__file__).with_name("Jdbc.java")


def _prepare(home: Path) -> tuple[Path, str]:
    tree = home / "jdbc"
    shutil.rmtree(tree, ignore_errors=True)
    workplace.run(["javac", "-nowarn", "-cp", _DRIVER, "-d", tree, _PROGRAM])
    return tree, workplace.run(["dpkg-query", "--show", "--showformat=${Version}", _PACKAGE])


def _run(task: Task) -> dict[str, Outcome]:
    command = ["java", "-cp", f"{task.tree}:{_DRIVER}", "Jdbc", str(task.rig.port), PASSWORD]
    ended = execute(command, cwd=task.home, environment=task.environment, within=task.within)
    told = [json.loads(line) for line in ended.output.splitlines() if line.startswith('["')]
    return {name: Outcome(status, detail) for name, status, detail in told} or {"Jdbc": Outcome(FAILED, ended.output)}


JAVA = Suite(
    name="pgjdbc",
    title="Java: pgjdbc",
    needs={"javac": "default-jdk-headless", _DRIVER: _PACKAGE},
    prepare=_prepare,
    run=_run,
    excluded={
        f"{test} (simple, *": "pgjdbc itself cannot do it in this query mode"
        for test in ("types there and back", "metadata of a statement", "a function with a cursor")
    },
)
