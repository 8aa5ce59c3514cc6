"""libpq: PostgreSQL's own test program for pipeline mode, and the traces of the protocol that it must leave."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from tests.suites import sources, workplace
from tests.suites.compare import FAILED, PASSED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.support.postgres import system_installation

_ROWS = "700"  # as PostgreSQL's own test has it
_FLAGS = ("-lpq", "-lpgcommon", "-lpgport")


def _prepare(home: Path) -> tuple[Path, str]:
    installation = system_installation()
    assert installation is not None
    release = sources.obtain(int(installation.name), home.parent, home)
    module = release.tree / "src/test/modules/libpq_pipeline"
    include = next(release.installation.parents[2].glob(f"include/postgresql/{installation.name}/server"))
    tree = home / "libpq_pipeline"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(module, tree)
    libpq = release.tree / "src/interfaces/libpq"
    workplace.run(
        ["gcc", "-O1", f"-I{include}", f"-I{libpq}", "-o", "program", "libpq_pipeline.c",
         f"-L{release.installation / 'lib'}", f"-L{_library()}", *_FLAGS],
        cwd=tree,
    )  # fmt: skip
    return tree, release.version


def _library() -> str:
    return workplace.run(["pg_config", "--libdir"]).strip()


def _run(task: Task) -> dict[str, Outcome]:
    program = task.tree / "program"
    names = execute([program, "tests"], cwd=task.home, environment=task.environment, within=20).output.split()
    outcomes = {}
    for name in names:
        trace = task.home / f"{name}.trace"
        ended = execute(
            [program, "-r", _ROWS, "-t", trace, name, ""],
            cwd=task.home, environment=task.environment, within=task.within / len(names),
        )  # fmt: skip
        outcomes[name] = Outcome(PASSED if ended.status == 0 else FAILED, ended.output)
        expected = task.tree / "traces" / f"{name}.trace"
        if expected.exists():
            outcomes[f"{name}, its trace"] = _same(expected, trace)
    return outcomes


def _same(expected: Path, written: Path) -> Outcome:
    lines = [path.read_text().splitlines() if path.exists() else [] for path in (expected, written)]
    difference = list(difflib.unified_diff(*lines, "expected", "written", lineterm=""))
    return Outcome(FAILED, "\n".join(["diff ", *difference])) if difference else Outcome(PASSED)


LIBPQ = Suite(
    name="libpq",
    title="C: libpq's pipeline mode (libpq_pipeline)",
    needs={"gcc": "gcc", "/usr/bin/dpkg-source": "dpkg-dev", "pg_config": "libpq-dev"},
    prepare=_prepare,
    run=_run,
)
