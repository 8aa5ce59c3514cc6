"""`python -m tests.suites.regress` (`make regress`): PostgreSQL's own regression suite, directly and through pgnear.

Sources come from Debian's source package, pg_regress from postgresql-server-dev of the same version. The parallel
schedule runs on two fresh clusters, and the sets of passing tests are compared. Exit statuses: 0 no difference but
known ones, 1 there are others, 2 the suite could not be run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from tests.suites import compare, rigs, sources, workplace
from tests.suites.compare import FAILED, PASSED, Outcome
from tests.suites.workplace import DOCS, TEST_USER, SuiteFailed, note

DATABASE = "regression"
REASONS = Path(__file__).with_name("regress.toml")
_LINE = re.compile(r"^(?:test| {5})\s*(\S+)\s+\.\.\. (ok|FAILED)")
_SETUP = [
    f'CREATE DATABASE "{DATABASE}" TEMPLATE=template0',
    *(
        f'ALTER DATABASE "{DATABASE}" SET {setting}'
        for setting in (
            "lc_messages TO 'C'", "lc_monetary TO 'C'", "lc_numeric TO 'C'", "lc_time TO 'C'",
            "bytea_output TO 'hex'", "timezone_abbreviations TO 'Default'",
        )
    ),
]  # fmt: skip
"""What pg_regress does itself, unless told to use an existing database: through a pooler it could not drop it."""


def main() -> int:
    arguments = _arguments()
    try:
        with workplace.scratch("pgnear-regress-") as home:
            release = sources.obtain(arguments.major, arguments.work, home)
            _lay_out(release, home)
            direct, _ = _run(rigs.DIRECT, release, home, arguments)
            pooled, trouble = _run(rigs.POOLED, release, home, arguments)
    except SuiteFailed as error:
        note(f"regress: {error}")
        return 2
    found = compare.differences(direct, pooled, compare.read_reasons(REASONS, "difference"))
    for one in found:
        if one.reason is None:
            print(f"\n=== {one.test}: {one.direct.status} directly, {one.pooled.status} through pgnear")
            print((one.pooled if one.pooled.status == FAILED else one.direct).detail)
    text = _report(release, direct, pooled, found, trouble, arguments)
    print(text)
    whole = not arguments.tests and not arguments.no_docs
    if whole and not arguments.no_cache:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "regress.md").write_text(text, encoding="utf-8")
    unknown = [one.test for one in found if one.reason is None]
    if unknown or trouble:
        note(
            f"regress: {len(unknown)} unknown differences: {' '.join(unknown)}; pgnear: {'; '.join(trouble) or 'fine'}"
        )
    return 1 if unknown or trouble else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.regress", description=__doc__)
    workplace.add_arguments(parser)
    parser.add_argument("tests", nargs="*", help="names of tests, run one after another; the whole schedule without")
    parser.add_argument("--major", type=int, default=15, help="of the system's PostgreSQL (default 15)")
    parser.add_argument("--test-seconds", type=float, default=120, help="a test that takes longer is ended")
    parser.add_argument("--run-seconds", type=float, default=1500, help="a whole run that takes longer is ended")
    return parser.parse_args()


def _lay_out(release: sources.Release, home: Path) -> None:
    """The suite and its modules, where the user of the server and of pg_regress can read them."""
    shutil.copytree(release.tree / "src/test/regress", home / "input")
    sources.build_module(release, home / "modules")
    for name in (rigs.DIRECT, rigs.POOLED):
        (home / name).mkdir()
    workplace.hand_over(home)


def _run(
    name: str, release: sources.Release, home: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Outcome], list[str]]:
    """The outcome of every test, and pgnear's own trouble."""
    note(f"running the suite: {name}")
    output = home / name
    with rigs.running(
        name, release.installation, [DATABASE], setup=_SETUP, cache=not arguments.no_cache,
        pool_size=arguments.pool_size,
    ) as rig:  # fmt: skip
        command = [
            str(release.pg_regress), "--use-existing", f"--dbname={DATABASE}", "--host=127.0.0.1",
            f"--port={rig.port}", "--user=postgres", f"--bindir={release.installation / 'bin'}",
            f"--inputdir={home / 'input'}", f"--outputdir={output}", f"--dlpath={home / 'modules'}",
            "--max-concurrent-tests=20",
        ]  # fmt: skip
        command += arguments.tests or [f"--schedule={home / 'input' / 'parallel_schedule'}"]
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=output, user=TEST_USER, env=rig.environment(DATABASE) | {"HOME": str(home)}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(process, ended, arguments), daemon=True)
        watch.start()
        text = process.communicate()[0]
        ended.set()
        watch.join()
        note(f"{name}: {time.monotonic() - started:.0f} s")
    outcomes = _outcomes(text, output)
    if arguments.keep is not None:
        kept = arguments.keep / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(output, kept)
        (kept / "pg_regress.out").write_text(text)
        (kept / "pgnear.log").write_text("\n".join(map(str, rig.log)))
    if not outcomes:
        raise SuiteFailed(f"pg_regress ran no test: {text[-2000:]}")
    return outcomes, rig.trouble


def _watch(process: subprocess.Popen[str], ended: threading.Event, arguments: argparse.Namespace) -> None:
    """End a test's psql that takes too long, and the whole when it does, so that a hang is a failure among others."""
    last = time.monotonic() + arguments.run_seconds
    while not ended.wait(1.0):
        for child in _children(process.pid):
            try:
                if time.time() - child.create_time() > arguments.test_seconds:
                    note(f"ended a psql after {arguments.test_seconds:g} s")
                    child.kill()
            except psutil.NoSuchProcess:
                continue
        if time.monotonic() > last:
            note(f"ended the run after {arguments.run_seconds:g} s")
            for child in _children(process.pid):
                child.kill()
            process.kill()
            return


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _outcomes(text: str, output: Path) -> dict[str, Outcome]:
    diffs: dict[str, str] = {}
    file = output / "regression.diffs"
    if file.exists():
        for part in re.split(r"(?m)^(?=diff )", file.read_text(errors="replace")):
            if match := re.match(r"diff .*/results/(\S+)\.out\s", part):
                diffs[match[1]] = part
    outcomes = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            test = match[1]
            outcomes[test] = Outcome(PASSED) if match[2] == "ok" else Outcome(FAILED, diffs.get(test, line.strip()))
    return outcomes


def _report(
    release: sources.Release, direct: dict[str, Outcome], pooled: dict[str, Outcome], found: list[compare.Difference],
    trouble: list[str], arguments: argparse.Namespace,
) -> str:  # fmt: skip
    lines = [
        "# PostgreSQL's regression suite through pgnear",
        "",
        "Written by `make regress`: the parallel schedule of `pg_regress`, on a fresh cluster directly and on another "
        "through pgnear in transaction mode.",
        "",
        f"- server and suite: postgresql-{arguments.major} {release.version}",
        f"- pgnear: cache {'off' if arguments.no_cache else 'on'}, {arguments.pool_size} origin connections",
        f"- direct: {compare.counts(direct)}",
        f"- through pgnear: {compare.counts(pooled)}",
    ]
    lines += compare.failed_directly(direct)
    lines += [f"- pgnear's own trouble: {one}" for one in trouble]
    return "\n".join([*lines, "", "## Differences", "", compare.table(found)])


if __name__ == "__main__":
    sys.exit(main())
