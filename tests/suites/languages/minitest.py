"""Ruby: Sequel and ActiveRecord, with ruby-pg. Their tests are Minitest's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from tests.suites import sources, workplace
from tests.suites.compare import FAILED, Outcome
from tests.suites.languages import Suite, Task, ToolsMissing, clone, execute
from tests.support.postgres import PASSWORD

_OUTCOMES = Path(__file__).with_name("minitest_outcomes.rb")
_SEQUEL = "5.106.0"


def _tested(task: Task, tree: Path, words: list[str | Path], environment: Mapping[str, str]) -> dict[str, Outcome]:
    """Run by `ruby` with `words`, in the same order each time."""
    written = task.home / "outcomes"
    ended = execute(
        ["ruby", "-r", _OUTCOMES, *words, "--seed", "1"],
        cwd=tree, environment=task.environment | environment | {"OUTCOMES": str(written)}, within=task.within,
    )  # fmt: skip
    told = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    outcomes = {name: Outcome(status, detail) for name, status, detail in told}
    outcomes["(the run)"] = (
        Outcome(FAILED, ended.output[-2000:]) if ended.status is None or not told else Outcome("passed")
    )
    return outcomes


def _prepare_sequel(home: Path) -> tuple[Path, str]:
    tree = home / f"sequel-{_SEQUEL}"
    clone("https://github.com/jeremyevans/sequel", _SEQUEL, ("lib", "spec"), tree)
    return tree, f"{_SEQUEL}, ruby-pg {workplace.run(['ruby', '-r', 'pg', '-e', 'print PG::VERSION'])}"


def _run_sequel(task: Task) -> dict[str, Outcome]:
    tree = task.home / "sequel"
    shutil.copytree(task.tree, tree, ignore=shutil.ignore_patterns(".git"))
    url = f"postgres://postgres:{quote(PASSWORD)}@127.0.0.1:{task.rig.port}/sequel_test"
    return _tested(task, tree, ["spec/adapter_spec.rb", "postgres"], {"SEQUEL_POSTGRES_URL": url})


SEQUEL = Suite(
    name="sequel",
    title="Ruby: Sequel",
    needs={
        "ruby": "ruby",
        "git": "git",
        "/usr/share/doc/ruby-pg": "ruby-pg",
        "/usr/share/doc/ruby-minitest-hooks": "ruby-minitest-hooks",
        "/usr/share/doc/ruby-minitest-global-expectations": "ruby-minitest-global-expectations",
    },
    prepare=_prepare_sequel,
    run=_run_sequel,
    setup=("CREATE DATABASE sequel_test",),
    databases=("sequel_test",),
)


def _prepare_activerecord(home: Path) -> tuple[Path, str]:
    version, tree = sources.source_package("rails", home.parent, "activerecord/test")
    program = "require 'active_record'; print ActiveRecord.version"
    installed = workplace.run(["ruby", "-e", program])
    if installed != version.partition(":")[2].partition("+")[0]:
        raise ToolsMissing(f"the sources of rails are those of {version}, installed is {installed}")
    return tree, f"{installed}, ruby-pg {workplace.run(['ruby', '-r', 'pg', '-e', 'print PG::VERSION'])}"


def _run_activerecord(task: Task) -> dict[str, Outcome]:
    """All in one process, as `rake test:postgresql` does."""
    tree = task.home / "rails"
    shutil.copytree(task.tree / "activerecord/test", tree / "activerecord/test")
    shutil.copytree(task.tree / "tools", tree / "tools")
    (tree / "activerecord/test/byebug.rb").touch()  # a debugger, which nothing calls
    return _tested(task, tree / "activerecord", ["-I", "test", "-e", _ALL_CASES, "--"], {"ARCONN": "postgresql"})


_ALL_CASES = """
files = Dir['test/cases/**/*_test.rb'].grep_v(%r{/adapters/(?!postgresql)}).sort
files.each { |file| require File.expand_path(file) }
"""

ACTIVE_RECORD = Suite(
    name="activerecord",
    title="Ruby: ActiveRecord",
    needs={
        "ruby": "ruby",
        "/usr/share/doc/ruby-pg": "ruby-pg",
        "/usr/share/doc/ruby-activerecord": "ruby-activerecord",
        "/usr/share/doc/ruby-mocha": "ruby-mocha",
        "/usr/share/doc/ruby-bcrypt": "ruby-bcrypt",
        "/usr/share/doc/ruby-rack": "ruby-rack",
        "/usr/share/doc/ruby-activejob": "ruby-activejob",
        "/usr/share/doc/ruby-sqlite3": "ruby-sqlite3",
    },
    prepare=_prepare_activerecord,
    run=_run_activerecord,
    setup=("CREATE DATABASE activerecord_unittest", "CREATE DATABASE activerecord_unittest2"),
    databases=("activerecord_unittest", "activerecord_unittest2"),
)
