"""Where the suites are kept and run: the cache directory, commands that must succeed, and a directory for the tests.

Knows nothing of a suite.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
TEST_USER = "nobody" if os.geteuid() == 0 else None
"""Who runs PostgreSQL and pg_regress: neither is for root."""


class SuiteFailed(Exception):
    """A suite could not be fetched, built or run; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every runner takes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--work", type=Path, default=cache / "pgnear", help="where sources are kept (default %(default)s)"
    )
    parser.add_argument("--no-cache", action="store_true", help="run pgnear without its query cache")
    parser.add_argument("--pool-size", type=int, default=40, help="pgnear's origin connections per database")
    parser.add_argument("--no-docs", action="store_true", help="only print; leave the table in docs/ alone")
    parser.add_argument("--keep", type=Path, help="keep results, logs and differences of both runs in this directory")


def run(command: Sequence[str | Path], *, cwd: Path | None = None, within: float = 600.0) -> str:
    """Run a command that must succeed; its standard output.

    Raises:
      SuiteFailed: it failed or took longer than `within` seconds; the message has its last words.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=within)
    except FileNotFoundError:
        raise SuiteFailed(f"{words[0]}: not found") from None
    except subprocess.TimeoutExpired:
        raise SuiteFailed(f"{' '.join(words)}: not done within {within:g} s") from None
    if done.returncode:
        raise SuiteFailed(f"{' '.join(words)}: {(done.stderr.strip() or done.stdout.strip())[-2000:]}")
    return done.stdout


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary directory that `TEST_USER` owns; removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        hand_over(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def hand_over(directory: Path) -> None:
    """Make `directory` and what is in it `TEST_USER`'s own."""
    if TEST_USER is None:
        return
    owner = pwd.getpwnam(TEST_USER)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def note(text: str) -> None:
    """Tell whoever waits what goes on."""
    print(text, file=sys.stderr, flush=True)
