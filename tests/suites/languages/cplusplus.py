"""C++: libpqxx, with the tests of the version that is installed."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.suites import sources, workplace
from tests.suites.compare import FAILED, PASSED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.suites.workplace import note

_TEST_SECONDS = 60
_REGISTERED = re.compile(r"PQXX_REGISTER_TEST\(\s*(\w+)\s*\)")


def _prepare(home: Path) -> tuple[Path, str]:
    version, source = sources.source_package("libpqxx", home.parent, "test/runner.cxx")
    tree = home / "libpqxx"
    ready = tree / "ready"
    if ready.exists() and ready.read_text() == version:
        return tree, version
    note(f"building the tests of libpqxx {version}")
    shutil.rmtree(tree, ignore_errors=True)
    options = ["-w", f"-I{source / 'test'}", f"-I{workplace.run(['pg_config', '--includedir']).strip()}"]
    for program, directory in (("program", source / "test"), ("unit", source / "test/unit")):
        objects = tree / program
        objects.mkdir(parents=True)
        files = sorted(directory.glob("*.cxx"))
        commands = [["g++", "-c", *options, "-o", objects / f"{file.stem}.o", file] for file in files]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(workplace.run, commands))
        workplace.run(["g++", "-o", objects / "program", *objects.glob("*.o"), "-lpqxx", "-lpq"])
        names = [name for file in files for name in _REGISTERED.findall(file.read_text())]
        (objects / "names").write_text("\n".join(names))
    ready.write_text(version)
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    outcomes = {}
    for kind in ("program", "unit"):
        program = task.tree / kind / "program"
        for name in (task.tree / kind / "names").read_text().split():
            ended = execute([program, name], cwd=task.home, environment=task.environment, within=_TEST_SECONDS)
            passed = ended.status == 0 and "Ran 1 test" in ended.output
            outcomes[name] = Outcome(PASSED if passed else FAILED, _telling(ended.output))
    return outcomes


def _telling(output: str) -> str:
    """With what went wrong last, as a reason wants it."""
    lines = [line for line in output.splitlines() if line.startswith(("Test failure", "SQL error", "Exception"))]
    return "\n".join([output.strip(), *lines[-1:]])


CPLUSPLUS = Suite(
    name="libpqxx",
    title="C++: libpqxx",
    needs={
        "g++": "g++",
        "/usr/bin/dpkg-source": "dpkg-dev",
        "pg_config": "libpq-dev",
        "/usr/share/doc/libpqxx-dev": "libpqxx-dev",
    },
    prepare=_prepare,
    run=_run,
)
