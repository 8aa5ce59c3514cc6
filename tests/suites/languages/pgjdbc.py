"""Java: pgjdbc's own JUnit tests, from its repository, at the version that is installed; compiled without Gradle.

What it needs is what Debian has of JUnit. Tests of what Debian lacks (system stubs, OSGi, leaks of class loaders) are
left out, and so are the lists of tests, as every class is run.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, Outcome
from tests.suites.languages import Suite, Task, clone, execute
from tests.support.postgres import PASSWORD

_DRIVER, _PACKAGE = "/usr/share/java/postgresql.jar", "libpostgresql-jdbc-java"
_RUNNER = Path(__file__).with_name("JUnitSuite.java")
_JARS = (
    "junit-jupiter-api", "junit-jupiter-params", "junit-jupiter-engine", "junit-vintage-engine", "junit4",
    "junit-platform-commons", "junit-platform-engine", "junit-platform-launcher", "opentest4j", "apiguardian-api",
    "hamcrest", "hamcrest-all",
)  # fmt: skip
_CLASSPATH = ":".join((_DRIVER, *(f"/usr/share/java/{jar}.jar" for jar in _JARS)))
_LACKING = re.compile(r"^import (uk\.org\.webcompere|se\.jiderhamn|org\.osgi)", re.MULTILINE)
_NULLNESS = re.compile(r"^import org\.checkerframework\..*|@(Nullable|NonNull|MonotonicNonNull)\b", re.MULTILINE)
_TEST_SECONDS = 60


def _prepare(home: Path) -> tuple[Path, str]:
    package = workplace.run(["dpkg-query", "--show", "--showformat=${Version}", _PACKAGE])
    version = package.partition("-")[0]
    sources, tree = home / f"pgjdbc-{version}-sources", home / f"pgjdbc-{version}"
    clone(
        "https://github.com/pgjdbc/pgjdbc", f"REL{version}",
        ("build.properties", "ssltest.properties", "certdir", "pgjdbc/src/test"), sources,
    )  # fmt: skip
    if not (tree / "classes").is_dir():
        shutil.rmtree(tree, ignore_errors=True)
        for name in ("build.properties", "ssltest.properties", "certdir"):
            source = sources / name
            shutil.copytree(source, tree / name) if source.is_dir() else _copied(source, tree)
        shutil.copytree(sources / "pgjdbc/src/test/resources", tree / "part")
        _compile(_usable(sources / "pgjdbc/src/test/java", tree / "java"), tree / "part")
        (tree / "part").rename(tree / "classes")
    runner = tree / "runner"
    shutil.rmtree(runner, ignore_errors=True)
    _compile([_RUNNER], runner)
    return tree, package


def _copied(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, directory)


def _usable(sources: Path, tree: Path) -> list[Path]:
    """The sources that can be compiled here, without annotations that only a checker of theirs reads."""
    texts = {path: path.read_text(encoding="utf-8") for path in sources.rglob("*.java")}
    left_out = {path.stem for path, text in texts.items() if _LACKING.search(text) or path.stem.endswith("TestSuite")}
    names = re.compile(rf"\b({'|'.join(sorted(left_out))})\b")
    kept = []
    for path, text in texts.items():
        if not names.search(path.stem) and not names.search(text):
            target = tree / path.relative_to(sources)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_NULLNESS.sub("", text), encoding="utf-8")
            kept.append(target)
    return kept


def _compile(sources: Iterable[Path], target: Path) -> None:
    workplace.run(["javac", "-nowarn", "-encoding", "UTF-8", "-cp", _CLASSPATH, "-d", target, *sources])


def _run(task: Task, mode: str) -> dict[str, Outcome]:
    """Again without what was run, where a test hung."""
    home = task.home
    (home / "pgjdbc").mkdir()
    ended_tests, end = home / "ended", time.monotonic() + task.within
    ended_tests.touch()
    properties = {
        "server": "127.0.0.1", "port": task.rig.port, "privilegedPassword": PASSWORD, "preferQueryMode": mode,
        "build.properties.relative.path": task.tree, "user.home": home,
        "ssl": "false&sslmode=disable",  # goes into URLs; `false` alone means: if the server has it
    }  # fmt: skip
    command = ["java", *(f"-D{name}={value}" for name, value in properties.items()), "-cp"]
    command += [
        f"{task.tree}/runner:{task.tree}/classes:{_CLASSPATH}",
        _RUNNER.stem,
        f"{task.tree}/classes",
        ended_tests,
    ]
    outcomes: dict[str, Outcome] = {}
    while (left := end - time.monotonic()) > 0:
        ended = execute(
            [*command, str(_TEST_SECONDS)], cwd=home / "pgjdbc", environment=task.environment, within=left,
            errors=False,
        )  # fmt: skip
        told = [json.loads(line) for line in ended.output.splitlines() if line.startswith('["')]
        for name, status, detail, _ in told:
            outcomes[" ".join(name.split()).removeprefix("org.postgresql.")] = Outcome(status, detail)
        if ended.status == 0 or not told:
            break
        workplace.note(f"ended pgjdbc's tests in {told[-1][0]}: it hangs")
        with ended_tests.open("a") as file:
            file.writelines(f"{unique}\n" for *_, unique in told)
    return outcomes or {"JUnit": Outcome(FAILED, ended.output)}


def _suite(mode: str) -> Suite:
    return Suite(
        name=f"pgjdbc-{mode}",
        title=f"Java: pgjdbc's own tests, preferQueryMode={mode}",
        needs={
            "javac": "default-jdk-headless",
            "git": "git",
            _DRIVER: _PACKAGE,
            "/usr/share/java/junit-jupiter-engine.jar": "junit5",
            "/usr/share/java/junit4.jar": "junit4",
            "/usr/share/java/hamcrest-all.jar": "libhamcrest-java",
        },
        prepare=_prepare,
        run=partial(_run, mode=mode),
        setup=(
            "CREATE ROLE test LOGIN REPLICATION PASSWORD 'test'",
            "CREATE DATABASE test OWNER test",
        ),
        databases=("test",),
        users={"test": "test"},
    )


PGJDBC = tuple(_suite(mode) for mode in ("extended", "simple"))
