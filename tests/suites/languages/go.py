"""Go: lib/pq and jackc's pgx, pgconn and pgtype, whose Debian packages hold their sources with their tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import quote

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.suites.workplace import SuiteFailed, note
from tests.support.postgres import PASSWORD

_GOPATH = Path("/usr/share/gocode")
_PGX = ("pgconn", "pgconn/stmtcache", "pgx/v4", "pgx/v4/pgxpool", "pgx/v4/stdlib")
"""Not pgtype: its tests need a package that Debian's lacks."""

_MOCK = Path(__file__).with_name("pgmock.go")
_STATUSES = {"pass": PASSED, "fail": FAILED, "skip": SKIPPED}


def _building(home: Path) -> dict[str, str]:
    """For the go command: packages from where Debian has them, and nothing from the network."""
    return {
        "GO111MODULE": "off", "GOPATH": f"{home / 'go'}:{_GOPATH}", "GOPROXY": "off", "GOFLAGS": "-trimpath",
        "GOCACHE": str(home / "go-cache"), "HOME": str(home), "PATH": "/usr/lib/go/bin:/usr/local/bin:/usr/bin:/bin",
    }  # fmt: skip


def _prepare(name: str, package: str, modules: tuple[str, ...], home: Path) -> tuple[Path, str]:
    """A test program for each of `modules`, and the sources that it reads."""
    tree = home / name
    version = workplace.run(["dpkg-query", "--show", "--showformat=${Version}", package])
    ready = tree / "ready"
    if ready.exists() and ready.read_text() == version:
        return tree, version
    note(f"building the tests of {name} {version}")
    shutil.rmtree(tree, ignore_errors=True)
    mock = home / "go/src/github.com/jackc/pgmock"
    mock.mkdir(parents=True, exist_ok=True)
    shutil.copy(_MOCK, mock)
    for module in modules:
        source, directory = _GOPATH / "src/github.com" / module, tree / module
        shutil.copytree(
            source,
            directory,
            ignore=lambda where, names: [one for one in names if (Path(where) / one).is_dir() and one != "testdata"],
        )
        built = execute(
            ["go", "test", "-c", "-vet=off", "-o", directory / "tests", f"github.com/{module}"],
            cwd=home, environment=_building(home), within=900,
        )  # fmt: skip
        if built.status:
            raise SuiteFailed(f"the tests of {module} do not build: {built.output[-1000:]}")
    ready.write_text(version)
    return tree, version


def _run(modules: tuple[str, ...], environment: dict[str, str], task: Task) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    dsn = {"port": str(task.rig.port), "quoted": quote(PASSWORD)}
    given = (
        task.environment | {name: value.format(**dsn) for name, value in environment.items()} | {"GOPATH": str(_GOPATH)}
    )
    for module in modules:
        ended = execute(
            ["go", "tool", "test2json", "-p", module, "./tests", "-test.v", "-test.timeout=300s"],
            cwd=task.tree / module, environment=given | _building(task.home), within=task.within,
        )  # fmt: skip
        outcomes |= _outcomes(module, ended.output)
    return outcomes


def _outcomes(module: str, output: str) -> dict[str, Outcome]:
    """What test2json tells; a test that has only begun when the program ended died or hung."""
    said: dict[str, list[str]] = {}
    outcomes: dict[str, Outcome] = {}
    for line in output.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if "Test" not in event:
            continue
        name = f"{module} {event['Test']}"
        if event["Action"] == "run":
            outcomes[name] = Outcome(FAILED, "the test hung, or the program died in it")
        elif event["Action"] == "output":
            said.setdefault(name, []).append(event["Output"])
        elif event["Action"] in _STATUSES:
            words = [one for one in said.get(name, ()) if not one.lstrip().startswith(("=== ", "--- "))]
            outcomes[name] = Outcome(_STATUSES[event["Action"]], "".join(words))
    return outcomes


def _suite(
    name: str,
    title: str,
    package: str,
    modules: tuple[str, ...],
    environment: dict[str, str],
    beside: tuple[tuple[str, str], ...] = (),
    **more: object,
) -> Suite:
    """`beside`: what its tests import and its package does not depend on, by the package that has it."""
    return Suite(
        name=name,
        title=title,
        needs={"go": "golang-go", f"{_GOPATH}/src/github.com/{modules[-1]}": package}
        | {f"{_GOPATH}/src/github.com/{module}": its_package for module, its_package in beside},
        prepare=lambda home: _prepare(name, package, modules, home),
        run=lambda task: _run(modules, environment, task),
        **more,  # type: ignore[arg-type]
    )


GO_PQ = _suite(
    "lib-pq", "Go: lib/pq (database/sql)", "golang-github-lib-pq-dev", ("lib/pq",),
    {"PGCONNECT_TIMEOUT": "20"},
)  # fmt: skip
_DSN = "host=127.0.0.1 port={port} user=postgres password='" + PASSWORD + "' dbname=postgres sslmode=disable"
_URL = "postgres://postgres:{quoted}@127.0.0.1:{port}/postgres"
GO_PGX = _suite(
    "pgx", "Go: pgx 4 with pgconn, pgtype, pgxpool and its database/sql driver", "golang-github-jackc-pgx-v4-dev",
    tuple(f"jackc/{module}" for module in _PGX),
    {
        "PGX_TEST_CONN_STRING": _DSN, "PGX_TEST_DATABASE": _URL + "?sslmode=disable", "PGX_TEST_TCP_CONN_STRING": _DSN,
        "PGX_TEST_MD5_PASSWORD_CONN_STRING": "", "PGX_TEST_TLS_CONN_STRING": _URL + "?sslmode=require",
    },
    beside=(("Masterminds/semver", "golang-github-masterminds-semver-dev"),),
    setup=("CREATE EXTENSION hstore", "CREATE EXTENSION ltree", "CREATE DOMAIN uint64 AS numeric(20,0)"),
)  # fmt: skip
