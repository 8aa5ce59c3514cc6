"""ODBC: psqlodbc under unixODBC. Its tests come from its repository, at the version that is installed.

They run in several of the driver's modes: cursors of its own or the server's, statements prepared by the server or
not, and what it does of a failed statement in a transaction: a savepoint before each, or ROLLBACK, or nothing.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.suites.workplace import SuiteFailed, note
from tests.support.postgres import PASSWORD

_PACKAGE, _DATABASE = "odbc-postgresql", "contrib_regression"
_TEST_SECONDS = 60
_NOT_BUILT = "params-batch-exec"
"""It includes the driver's own headers, which its package lacks."""
_SOURCES = (("psqlodbc_test_dsn", "psqlodbcw.so"), ("psqlodbc_test_dsn_ansi", "psqlodbca.so"))
_SETTINGS = """\
[{source}]
Driver = {driver}
Database = {database}
Servername = 127.0.0.1
Port = {port}
Username = postgres
Password = {password}
SSLmode = disable
ReadOnly = No
RowVersioning = No
ShowSystemTables = No
ShowOidColumn = No
FakeOidIndex = No
ConnSettings = set lc_messages='C'
UseDeclareFetch = {cursors}
UseServerSidePrepare = {prepared}
Protocol = 7.4-{rollback}
"""


def _driver(name: str) -> Path:
    return next(
        Path(file) for file in workplace.run(["dpkg", "--listfiles", _PACKAGE]).splitlines() if file.endswith(name)
    )


def _prepare(home: Path) -> tuple[Path, str]:
    package = workplace.run(["dpkg-query", "--show", "--showformat=${Version}", _PACKAGE])
    found = re.search(r"(\d+)\.(\d+)\.(\d{4})", package)
    if found is None:
        raise SuiteFailed(f"{_PACKAGE} {package}: not a version of psqlodbc")
    version, tree = found[0], home / f"psqlodbc-{found[0]}"
    sources = home / f"psqlodbc-{version}-sources"
    clone("https://github.com/postgresql-interfaces/psqlodbc", f"REL-{'_'.join(found.groups())}", ("test",), sources)
    if (tree / "ready").exists():
        return tree, version
    note(f"building the tests of psqlodbc {version}")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(sources / "test", tree)
    names = re.findall(r"exe/([\w-]+)-test", (tree / "tests").read_text())
    (tree / "exe").mkdir()
    (tree / "config.h").touch()
    options = ["gcc", "-w", f"-I{tree}", "-DHAVE_CONFIG_H"]

    def build(program: str, *files: Path) -> str:
        return workplace.run([*options, "-o", tree / program, *files, tree / "src/common.c", "-lodbc"])

    build("reset-db", tree / "reset-db.c", f"-I{tree / 'src'}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(
                lambda name: build(f"exe/{name}-test", tree / f"src/{name}-test.c"), sorted({*names} - {_NOT_BUILT})
            )
        )
    (tree / "ready").touch()
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    outcomes = {}
    tree = task.home / "psqlodbc"
    shutil.copytree(task.tree, tree)
    names = sorted(path.name.removesuffix("-test") for path in (tree / "exe").iterdir())
    kept = {name: value for name, value in task.environment.items() if not name.startswith("PG")}
    environment = kept | {"ODBCSYSINI": str(tree), "ODBCINI": str(tree / "odbc.ini")}
    (tree / "odbcinst.ini").touch()
    for cursors, prepared, rollback in product((0, 1), (0, 1), (0, 1, 2)):
        (tree / "odbc.ini").write_text(
            "\n".join(
                _SETTINGS.format(
                    source=source, driver=_driver(driver), database=_DATABASE, port=task.rig.port, password=PASSWORD,
                    cursors=cursors, prepared=prepared, rollback=rollback,
                )
                for source, driver in _SOURCES
            )
        )  # fmt: skip
        mode = f"UseDeclareFetch={cursors} UseServerSidePrepare={prepared} Protocol=7.4-{rollback}"
        made = execute(
            [tree / "reset-db"], cwd=tree, environment=environment, within=_TEST_SECONDS,
            given=tree / "sampletables.sql",
        )  # fmt: skip
        if made.status:
            outcomes[f"reset-db ({mode})"] = Outcome(FAILED, made.output)
        for name in names:
            ended = execute([tree / f"exe/{name}-test"], cwd=tree, environment=environment, within=_TEST_SECONDS)
            outcomes[f"{name} ({mode})"] = _judged(ended.output, sorted(tree.glob(f"expected/{name}*.out")), name)
    return outcomes


def _judged(output: str, expected: Iterable[Path], name: str) -> Outcome:
    """Passed where it is one of what is expected; otherwise what differs from the one that is nearest."""
    lines = output.splitlines()
    differences = [
        list(difflib.unified_diff(path.read_text(errors="replace").splitlines(), lines, path.name, "written"))
        for path in expected
        if re.fullmatch(rf"{re.escape(name)}(_\d+)?\.out", path.name)
    ]
    least = min(differences, key=len, default=["no output is expected"])
    return Outcome(FAILED, "\n".join(["diff ", *least])) if least else Outcome(PASSED)


ODBC = Suite(
    name="psqlodbc",
    title="ODBC: psqlodbc",
    needs={
        "gcc": "gcc",
        "git": "git",
        "/usr/include/sql.h": "unixodbc-dev",
        f"/usr/share/doc/{_PACKAGE}": _PACKAGE,
    },
    prepare=_prepare,
    run=_run,
    setup=(f"CREATE DATABASE {_DATABASE}",),
    databases=(_DATABASE,),
)
