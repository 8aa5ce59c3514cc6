"""docs/security.md names tests: each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def rows() -> list[str]:
    """What stands in the column "shown by"."""
    table = [line.split("|") for line in PAGE.splitlines() if line.startswith("|")]
    assert table[0][4].strip() == "shown by"
    return [row[4] for row in table[2:]]


def test_every_line_names_what_shows_it() -> None:
    assert all("test_" in row or "make " in row for row in rows())


def test_every_test_file_that_is_named_exists() -> None:
    there = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    named = {name for row in rows() for name in re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)`", row)}
    assert named
    assert named <= there.keys()
    paths = {path for row in rows() for path in re.findall(r"`([\w/]+/test_\w+\.py)`", row)}
    assert all((ROOT / path).exists() for path in paths)


def test_every_test_that_is_named_exists() -> None:
    functions = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named = {name for row in rows() for name in re.findall(r"`(test_\w+)`", row)}
    assert named
    assert named <= functions


def test_every_command_and_fuzz_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in {name for row in rows() for name in re.findall(r"`make ([\w-]+)`", row)}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    targets = (ROOT / "tests" / "fuzz_protocol" / "targets.py").read_text()
    for row in rows():
        if "fuzz target" in row:
            for name in re.findall(r"`(\w+)`", row.partition("fuzz target")[2]):
                assert re.search(rf"\b{name}\b", targets), name
