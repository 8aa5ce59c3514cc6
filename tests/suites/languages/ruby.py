"""Ruby: ruby-pg. Its tests come from its repository, at the version that is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, clone, execute

_SERVER = Path(__file__).with_name("ruby_server.rb")
_STATUSES = {"passed": PASSED, "failed": FAILED, "pending": SKIPPED}


def _prepare(home: Path) -> tuple[Path, str]:
    version = workplace.run(["ruby", "-r", "pg", "-e", "print PG::VERSION"])
    tree = home / f"ruby-pg-{version}"
    clone("https://github.com/ged/ruby-pg", f"v{version}", ("spec",), tree)
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    tree, report = task.home / "ruby-pg", task.home / "report.json"
    shutil.copytree(task.tree / "spec", tree / "spec")
    shutil.copy(_SERVER, tree)
    port = {"SUITE_PORT": str(task.rig.port), "PGPORT": str(task.rig.port)}
    ended = execute(
        ["rspec", "-r", f"./{_SERVER.name}", "--format", "json", "--out", report, "--order", "defined", "--no-color"],
        cwd=tree, environment=task.environment | port, within=task.within,
    )  # fmt: skip
    if not report.exists() or not report.stat().st_size:
        return {"rspec": Outcome(FAILED, ended.output)}
    outcomes = {}
    for one in json.loads(report.read_text())["examples"]:
        why = one.get("exception") or {}
        where = "\n".join(why.get("backtrace") or ())
        outcomes[one["full_description"]] = Outcome(
            _STATUSES[one["status"]], f"{where}\n{why.get('message', '')}".strip()
        )
    return outcomes


RUBY = Suite(
    name="ruby-pg",
    title="Ruby: ruby-pg",
    needs={"ruby": "ruby", "rspec": "ruby-rspec", "git": "git", "/usr/share/doc/ruby-pg": "ruby-pg"},
    prepare=_prepare,
    run=_run,
    setup=("CREATE DATABASE test",),
    databases=("test",),
)
