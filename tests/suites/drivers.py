"""`python -m tests.suites.drivers` (`make driver-suites`): drivers' own tests, directly and through pgnear.

The tests come from each driver's source distribution; they run in a virtual environment of their own with the driver
of the same version. Exit statuses: 0 no difference but known ones, 1 there are others, 2 a suite could not be run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path
from urllib.parse import quote

from tests.suites import compare, report, rigs, workplace
from tests.suites.catalogue import SUITES, Suite
from tests.suites.compare import FAILED, Difference, Outcome
from tests.suites.workplace import DOCS, SuiteFailed, note
from tests.support.postgres import PASSWORD, system_installation

REASONS = Path(__file__).with_name("drivers.toml")
PLUGIN = Path(__file__).with_name("outcomes_plugin.py")
_TOOLS = ("pytest", "pytest-timeout")
LOADED_BY_SUITES = (PLUGIN, *(PLUGIN.with_name(name) for name in ("django_outcomes.py", "django_settings.py")))


def main() -> int:
    arguments = _arguments()
    sections, unknown, trouble = [], 0, []
    try:
        for suite in SUITES:
            if suite.name in arguments.suites:
                found, pgnear_trouble, section = _compare(suite, arguments)
                sections.append(section)
                unknown += sum(one.reason is None for one in found)
                trouble += pgnear_trouble
    except SuiteFailed as error:
        note(f"driver-suites: {error}")
        return 2
    print("\n".join(_head(arguments) + sections))
    if not (arguments.select or arguments.tests or arguments.no_docs or arguments.no_cache):
        names = [suite.name for suite in SUITES]
        report.update(DOCS / "driver-suites.md", _head(arguments), sections, names, lambda heading: heading.split()[0])
    if unknown or trouble:
        note(f"driver-suites: {unknown} unknown differences; pgnear: {'; '.join(trouble) or 'fine'}")
    return 1 if unknown or trouble else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.drivers", description=__doc__)
    workplace.add_arguments(parser)
    names = [suite.name for suite in SUITES]
    ordinary = [suite.name for suite in SUITES if not suite.on_demand]
    parser.add_argument(
        "suites", nargs="*", default=ordinary, help=f"of {', '.join(names)} (default {', '.join(ordinary)})"
    )
    parser.add_argument("--all", action="store_true", help="all suites; some take long")
    parser.add_argument("-k", dest="select", help="pytest's expression: only tests whose names match")
    parser.add_argument("--tests", nargs="+", help="of one suite: only these files, directories or apps of its tests")
    parser.add_argument("--test-seconds", type=float, default=60, help="a test that takes longer has failed")
    parser.add_argument("--run-seconds", type=float, default=1500, help="a whole run that takes longer is ended")
    arguments = parser.parse_args()
    if arguments.all:
        arguments.suites = names
    return arguments


def _head(arguments: argparse.Namespace) -> list[str]:
    return [
        "# Drivers' own test suites through pgnear",
        "",
        "Written by `make driver-suites`: each suite runs on a fresh cluster directly and on another through pgnear in "
        f"transaction mode, cache {'off' if arguments.no_cache else 'on'}, {arguments.pool_size} origin connections "
        "per database.",
        "",
    ]


def _compare(suite: Suite, arguments: argparse.Namespace) -> tuple[list[Difference], list[str], str]:
    python, tree = _prepare(suite, arguments.work / "drivers")
    direct, _, version = _run(rigs.DIRECT, suite, python, tree, arguments)
    pooled, trouble, _ = _run(rigs.POOLED, suite, python, tree, arguments)
    found = compare.differences(direct, pooled, compare.read_reasons(REASONS, suite.name))
    report.tell_unknown(suite.name, found)
    head = [f"## {suite.name} {suite.version}", "", f"- server: PostgreSQL {version}"]
    return found, trouble, report.section(head, direct, pooled, suite.excluded, trouble, found)


def _prepare(suite: Suite, home: Path) -> tuple[Path, Path]:
    """The interpreter that has the driver, and the directory with its tests; both made once."""
    home.mkdir(parents=True, exist_ok=True)
    tree, environment = home / f"{suite.name}-{suite.version}", home / f"venv-{suite.name}-{suite.version}"
    python = environment / "bin/python"
    ready, packages = environment / "ready", [f"{suite.driver}=={suite.version}", *_TOOLS, *suite.needs]
    if not ready.exists() or ready.read_text().split() != packages:
        note(f"installing {suite.driver} {suite.version}")
        venv.create(environment, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet"]
        workplace.run([*pip, "install", *packages], within=1200)
        shutil.rmtree(tree, ignore_errors=True)
        if suite.repository:
            _clone(suite, tree)
        else:
            source = suite.source or suite.name
            downloads = home / "downloads"
            options = ["--no-deps", "--no-binary", source, "--dest", str(downloads)]
            workplace.run([*pip, "download", *options, f"{source}=={suite.version}"], within=1200)
            _unpack(suite, downloads / f"{source}-{suite.version}.tar.gz", tree)
        if not (tree / suite.tests).is_dir():
            raise SuiteFailed(f"the sources of {suite.name} {suite.version} have no tests")
        ready.write_text("\n".join(packages))
    return python, tree


def _clone(suite: Suite, tree: Path) -> None:
    options = ["--quiet", "--depth=1", "--no-checkout", f"--branch={suite.version}"]
    workplace.run(["git", "clone", *options, suite.repository, tree], within=1200)
    workplace.run(["git", "checkout", "--quiet", "HEAD", "--", *suite.members], cwd=tree)


def _unpack(suite: Suite, archive: Path, tree: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name.startswith(suite.members):
                tar.extract(member, tree, filter="data")


def _run(
    name: str, suite: Suite, python: Path, tree: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Outcome], list[str], str]:
    """The outcome of every test, pgnear's own trouble, and the server's version."""
    installation = system_installation()
    if installation is None:
        raise SuiteFailed("the suites need a PostgreSQL of the system's packages: apt-get install postgresql")
    note(f"running {suite.name}: {name}")
    with workplace.scratch("pgnear-drivers-") as home:
        for file in LOADED_BY_SUITES:
            shutil.copy(file, home)
        command = _command(suite, python, arguments)
        with rigs.running(
            name, installation, suite.databases, setup=suite.setup, users=suite.users, cache=not arguments.no_cache,
            pool_size=arguments.pool_size,
        ) as rig:  # fmt: skip
            version = str(rig.server.execute("select current_setting('server_version')")[0][0])
            values = {"port": rig.port, "password": PASSWORD, "quoted": quote(PASSWORD)}
            command += [option.format(**values) for option in suite.options]
            environment = {name: value.format(**values) for name, value in suite.environment.items()}
            outcomes = _tests(
                command,
                tree / "tests" if suite.by_django else tree,
                home,
                rig.environment("postgres") | environment,
                arguments,
            )
        if arguments.keep is not None:
            kept = arguments.keep / f"{suite.name}-{name}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            for file in ("tests.out", "outcomes"):
                shutil.copy(home / file, kept)
            (kept / "pgnear.log").write_text("\n".join(json.dumps(line) for line in rig.log))
        failed = sum(outcome.status == FAILED for outcome in outcomes.values())
        if not outcomes or (name == rigs.DIRECT and failed > len(outcomes) / 10):
            last = (home / "tests.out").read_text()[-2000:]
            raise SuiteFailed(f"{suite.name} does not run here: {failed} of {len(outcomes)} tests fail: {last}")
    return outcomes, rig.trouble, version


def _command(suite: Suite, python: Path, arguments: argparse.Namespace) -> list[str]:
    selected = ["-k", arguments.select] if arguments.select else []
    parts = arguments.tests or suite.parts or [suite.tests]
    if suite.by_django:
        return [
            str(python), "runtests.py", "--settings=django_settings", "--noinput", "--parallel=1",
            *parts, *selected,
        ]  # fmt: skip
    command = [
        str(python), "-m", "pytest", "-q", "-p", PLUGIN.stem, "--tb=short",
        f"--timeout={arguments.test_seconds:g}", "--continue-on-collection-errors", *parts,
        *(f"--deselect={test}" for test in suite.excluded), *selected,
    ]  # fmt: skip
    if "pytest-benchmark" in suite.needs:
        command.append("--benchmark-disable")
    return command


def _tests(
    command: list[str], tree: Path, home: Path, environment: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Outcome]:
    """Run it, again where a test hung so that not even its own time limit could end it."""
    written = home / "outcomes"
    written.touch()
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(home),
        "OUTCOMES": str(written),
        "TEST_SECONDS": f"{arguments.test_seconds:g}",
    }
    end = time.monotonic() + arguments.run_seconds
    for attempt in itertools.count():
        if time.monotonic() >= end:
            break
        # psycopg's tests refuse to follow a killed run
        environment["PYTEST_ADDOPTS"] = f"-o cache_dir={home / f'cache-{attempt}'}"
        with open(home / "tests.out", "ab") as output:
            process = subprocess.Popen(
                command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        if _ends(process, written, min(2 * arguments.test_seconds, end - time.monotonic())):
            break
        note("ended pytest: a test hangs")
    return _outcomes(written)


def _ends(process: subprocess.Popen[bytes], written: Path, silence: float) -> bool:
    """Whether it ends by itself; it and its children are killed where it writes nothing for `silence` seconds.

    Before the first test five times as long: large suites collect theirs for minutes.
    """
    size, since = -1, time.monotonic()
    begun = written.stat().st_size
    while True:
        try:
            process.wait(1)
            return True
        except subprocess.TimeoutExpired:
            now = written.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > (silence if now != begun else 5 * silence):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return False


def _outcomes(written: Path) -> dict[str, Outcome]:
    """The last word on each test; one that only began hung."""
    outcomes: dict[str, Outcome] = {}
    for line in written.read_text(encoding="utf-8").splitlines():
        test, status, detail = json.loads(line)
        before = outcomes.get(test)
        if status == "began":
            outcomes[test] = Outcome(FAILED, "the test hung, or pytest died in it")
        elif (
            status == FAILED
            and before is not None
            and before.status == FAILED
            and before.detail.startswith("the test hung")
        ):
            outcomes[test] = Outcome(FAILED, detail)
        elif before is None or before.status != FAILED or before.detail.startswith("the test hung"):
            outcomes[test] = Outcome(status, detail)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
