"""Rust: tokio-postgres, whose Debian package holds its sources with its tests; they are built offline."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from tests.suites import workplace
from tests.suites.compare import FAILED, PASSED, SKIPPED, Outcome
from tests.suites.languages import Suite, Task, execute
from tests.suites.workplace import SuiteFailed, note

_REGISTRY, _PACKAGE = Path("/usr/share/cargo/registry"), "librust-tokio-postgres-dev"
_OURS = Path(__file__).parent
_TEST_SECONDS = 60
_PLACES = (
    (r'TcpStream::connect\("127\.0\.0\.1:5433"\)', "TcpStream::connect(suite::address())"),
    (r"\bs\.parse::<Config>\(\)", "suite::place(s).parse::<Config>()"),
    (r"tokio_postgres::connect\(s, NoTls\)", "tokio_postgres::connect(&suite::place(s), NoTls)"),
    (r'tokio_postgres::connect\(\s*("[^"]+"),', r"tokio_postgres::connect(&suite::place(\1),"),
)
"""Where the tests say where the server is -> as our rust_suite.rs says it."""


def _prepare(home: Path) -> tuple[Path, str]:
    tree, crate = home / "tokio-postgres", next(_REGISTRY.glob("tokio-postgres-*"))
    version = workplace.run(["dpkg-query", "--show", "--showformat=${Version}", _PACKAGE])
    ready = tree / "ready"
    if ready.exists() and ready.read_text() == version:
        return tree, version
    note(f"building the tests of tokio-postgres {version}")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(crate / "tests", tree / "tests")
    shutil.copy(_OURS / "rust_suite.rs", tree)
    shutil.copy(_OURS / "rust_suite.toml", tree / "Cargo.toml")
    for name in ("main.rs", "runtime.rs"):
        file = tree / "tests/test" / name
        text = file.read_text()
        for pattern, replacement in _PLACES:
            text = re.sub(pattern, replacement, text)
        file.write_text(text)
    (tree / ".cargo").mkdir()
    (tree / ".cargo/config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{_REGISTRY}"\n'
    )
    built = execute(
        ["cargo", "test", "--offline", "--quiet", "--no-run", "--test=test", "--message-format=json"],
        cwd=tree, environment=os.environ | {"CARGO_HOME": str(tree / "cargo"), "RUSTFLAGS": "-Awarnings"}, within=900,
    )  # fmt: skip
    if built.status:
        raise SuiteFailed(f"the tests of tokio-postgres do not build: {built.output[-1000:]}")
    messages = [json.loads(line) for line in built.output.splitlines() if line.startswith("{")]
    program = next(one["executable"] for one in messages if one.get("executable"))
    shutil.copy(program, tree / "program")
    ready.write_text(version)
    return tree, version


def _run(task: Task) -> dict[str, Outcome]:
    """Each test by itself, so that one that hangs is the only one."""
    program = task.tree / "program"
    listed = execute([program, "--list"], cwd=task.home, environment=task.environment, within=20).output
    outcomes = {}
    for name in re.findall(r"^(\S+): test$", listed, re.MULTILINE):
        ended = execute(
            [program, "--exact", name, "--nocapture"],
            cwd=task.home, environment=task.environment, within=_TEST_SECONDS,
        )  # fmt: skip
        skipped = " 1 ignored;" in ended.output
        outcomes[name] = Outcome(SKIPPED if skipped else FAILED if ended.status else PASSED, _panic(ended.output))
        if ended.status is None:
            outcomes[name] = Outcome(FAILED, "the test hung")
    return outcomes


def _panic(output: str) -> str:
    """With the panic last, as a reason wants it."""
    found = re.search(r"panicked at (.*\n.*)", output)
    return f"{output}\n{' '.join(found[1].splitlines())}" if found else output


RUST = Suite(
    name="tokio-postgres",
    title="Rust: tokio-postgres",
    needs={"cargo": "cargo", f"/usr/share/doc/{_PACKAGE}": _PACKAGE},
    prepare=_prepare,
    run=_run,
    setup=(
        *(f"CREATE ROLE {how}_user PASSWORD 'password' LOGIN" for how in ("pass", "md5", "scram")),
        *(f"CREATE EXTENSION {name}" for name in ("hstore", "citext", "ltree")),
    ),
    users={f"{how}_user": "password" for how in ("pass", "md5", "scram")},
)
