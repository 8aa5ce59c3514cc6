"""`python -m tests.suites.languages` (`make driver-suites-languages`): other languages' drivers' own tests, likewise.

Exit statuses: 0 no difference but known ones, 1 there are others, 2 no suite could be run. What could not be run is
named, with what is missing; docs/ keeps what it has of these and of suites that were not asked for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from tests.suites import compare, report, rigs, workplace
from tests.suites.compare import FAILED, Difference, Outcome
from tests.suites.languages import Suite, Task, ToolsMissing
from tests.suites.languages.cplusplus import CPLUSPLUS
from tests.suites.languages.doctrine import DOCTRINE
from tests.suites.languages.go import GO_PGX, GO_PQ
from tests.suites.languages.java import JAVA
from tests.suites.languages.knex import KNEX
from tests.suites.languages.libpq import LIBPQ
from tests.suites.languages.minitest import ACTIVE_RECORD, SEQUEL
from tests.suites.languages.node import NODE
from tests.suites.languages.odbc import ODBC
from tests.suites.languages.perl import PERL
from tests.suites.languages.pgjdbc import PGJDBC
from tests.suites.languages.php import PHP
from tests.suites.languages.postgres_js import POSTGRES_JS
from tests.suites.languages.ruby import RUBY
from tests.suites.languages.rust import RUST
from tests.suites.workplace import DOCS, SuiteFailed, note
from tests.support.postgres import system_installation

REASONS = Path(__file__).with_name("known.toml")
SUITES: tuple[Suite, ...] = (
    LIBPQ,
    CPLUSPLUS,
    ODBC,
    NODE,
    POSTGRES_JS,
    KNEX,
    GO_PQ,
    GO_PGX,
    PHP,
    DOCTRINE,
    RUBY,
    SEQUEL,
    ACTIVE_RECORD,
    PERL,
    JAVA,
    *PGJDBC,
    RUST,
)


def main() -> int:
    arguments = _arguments()
    sections, unknown, trouble = [], 0, []
    for suite in SUITES:
        if suite.name not in arguments.suites:
            continue
        try:
            found, pgnear_trouble, section = _compare(suite, arguments)
        except (ToolsMissing, SuiteFailed) as error:
            note(f"{suite.name} was not run: {error}")
            continue
        sections.append(section)
        unknown += sum(one.reason is None for one in found)
        trouble += pgnear_trouble
    print("\n".join(_head(arguments) + sections))
    if sections and not arguments.no_docs and not arguments.no_cache:
        titles = [suite.title for suite in SUITES]
        report.update(DOCS / "driver-suites-languages.md", _head(arguments), sections, titles, str)
    if unknown or trouble:
        note(f"driver-suites-languages: {unknown} unknown differences; pgnear: {'; '.join(trouble) or 'fine'}")
    if not sections:
        return 2
    return 1 if unknown or trouble else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.suites.languages", description=__doc__)
    workplace.add_arguments(parser)
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", default=names, help=f"of {', '.join(names)} (default all)")
    parser.add_argument("--run-seconds", type=float, default=1500, help="a whole run that takes longer is ended")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(names):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return arguments


def _head(arguments: argparse.Namespace) -> list[str]:
    return [
        "# Other languages' drivers' own test suites through pgnear",
        "",
        "Written by `make driver-suites-languages`: each suite runs on a fresh cluster directly and on another through "
        f"pgnear in transaction mode, cache {'off' if arguments.no_cache else 'on'}, {arguments.pool_size} origin "
        "connections per database.",
        "",
    ]


def _compare(suite: Suite, arguments: argparse.Namespace) -> tuple[list[Difference], list[str], str]:
    suite.check_tools()
    home = arguments.work / "languages"
    home.mkdir(parents=True, exist_ok=True)
    tree, driver = suite.prepare(home)
    direct, _, version = _run(rigs.DIRECT, suite, tree, arguments)
    pooled, trouble, _ = _run(rigs.POOLED, suite, tree, arguments)
    found = compare.differences(direct, pooled, compare.read_reasons(REASONS, suite.name))
    report.tell_unknown(suite.name, found, most=4000)
    head = [f"## {suite.title}", "", f"- version: {driver}", f"- server: PostgreSQL {version}"]
    return found, trouble, report.section(head, direct, pooled, suite.excluded, trouble, found)


def _run(
    name: str, suite: Suite, tree: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Outcome], list[str], str]:
    """The outcome of every test, pgnear's own trouble, and the server's version."""
    installation = system_installation()
    if installation is None:
        raise ToolsMissing("no PostgreSQL of the system's packages (apt-get install postgresql)")
    note(f"running {suite.name}: {name}")
    with workplace.scratch("pgnear-languages-") as home:
        with rigs.running(
            name, installation, suite.databases, setup=suite.setup, users=suite.users, cache=not arguments.no_cache,
            pool_size=arguments.pool_size,
        ) as rig:  # fmt: skip
            version = str(rig.server.execute("select current_setting('server_version')")[0][0])
            outcomes = suite.kept(suite.run(Task(rig, tree, home, arguments.run_seconds)))
        if arguments.keep is not None:
            kept = arguments.keep / f"{suite.name}-{name}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            (kept / "outcomes").write_text(
                "\n".join(f"=== {test}: {one.status}\n{one.detail}" for test, one in outcomes.items())
            )
            (kept / "pgnear.log").write_text("\n".join(json.dumps(line) for line in rig.log))
        failed = sum(outcome.status == FAILED for outcome in outcomes.values())
        if not outcomes or (name == rigs.DIRECT and failed > len(outcomes) / 3):
            last = [one.detail[-300:] for one in outcomes.values() if one.status == FAILED][:3]
            raise SuiteFailed(f"{suite.name} does not run here: {failed} of {len(outcomes)} tests fail: {last}")
    return outcomes, rig.trouble, version


if __name__ == "__main__":
    sys.exit(main())
