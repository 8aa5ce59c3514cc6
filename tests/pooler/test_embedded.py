"""The embedded PostgreSQL starts, stops, and leaves nothing behind however the process that started it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import psycopg
import pytest

from pooler.embedded import EmbeddedPostgres, PostgresFailed, installed
from tests.support.waiting import until


def started(program: str) -> tuple[subprocess.Popen[str], Path, psutil.Process]:
    """A Python process running `program` with a server in `postgres`; its scratch directory, and the server."""
    text = """
        from pooler.embedded import EmbeddedPostgres
        postgres = EmbeddedPostgres()
        postgres.start()
        print(postgres.data.parent, postgres.process.pid, flush=True)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text) + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    directory, pid = owner.stdout.readline().split()
    return owner, Path(directory), psutil.Process(int(pid))


def gone(server: psutil.Process) -> bool:
    return not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("version", [16, 18])
def test_it_answers_once_it_is_started_and_is_gone_once_it_is_stopped(version: int) -> None:
    with EmbeddedPostgres(installation=installed(version)) as postgres:
        assert postgres.process is not None
        server, directory = psutil.Process(postgres.process.pid), postgres.data.parent
        with psycopg.connect(postgres.url()) as connection:
            row = connection.execute("show server_version").fetchone()
        assert row is not None
        assert row[0].startswith(str(version))
    assert gone(server)
    assert not directory.exists()


def test_a_data_directory_of_its_own_is_kept_and_opened_again() -> None:
    with EmbeddedPostgres() as outer:  # a parent directory that the server's user can reach
        data = outer.data.parent / "kept"
        for new in (True, False):
            postgres = EmbeddedPostgres(data=data)
            assert postgres.start() is new
            postgres.stop()
            postgres.stop()  # harmless
            assert (data / "PG_VERSION").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")
@pytest.mark.parametrize("version", [16, 18])
def test_it_starts_from_where_only_root_can_read(tmp_path: Path, version: int) -> None:
    """A checkout under /root: the copy of the programs lacked their shared libraries, and `make demo` failed."""
    tmp_path.chmod(0o700)
    installation = installed(version)
    (tmp_path / "site-packages").symlink_to(installation.parent.parent)
    hidden = tmp_path / "site-packages" / installation.parent.name / installation.name
    with EmbeddedPostgres(installation=hidden) as postgres:
        assert tmp_path not in postgres.bin.parents
        with psycopg.connect(postgres.url()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        psql = subprocess.run([str(postgres.bin / "psql"), "--version"], capture_output=True, text=True)
        assert psql.stdout.startswith("psql (PostgreSQL)")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")
def test_a_data_directory_that_only_root_can_reach_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PostgresFailed, match=rf"cannot reach {tmp_path}/kept; choose"):
        EmbeddedPostgres(data=tmp_path / "kept").start()


def test_what_keeps_it_from_starting_is_said() -> None:
    with EmbeddedPostgres() as running:
        second = EmbeddedPostgres(port=running.port)
        with pytest.raises(PostgresFailed, match="Address already in use"):
            second.start()
        assert not second.data.parent.exists()


def test_what_was_never_started_leaves_nothing(tmp_path: Path) -> None:
    program = "from pooler.embedded import EmbeddedPostgres; print(EmbeddedPostgres().data.parent)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    until(lambda: not Path(done.stdout.strip()).exists(), what="the directory is still there")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_its_owner_is_killed(number: signal.Signals) -> None:
    owner, directory, server = started("import time; time.sleep(60)")
    with owner:
        assert directory.exists()
        owner.send_signal(number)
        assert owner.wait(40) == -number
    until(lambda: gone(server), what="the server lives")
    until(lambda: not directory.exists(), what="the directory is still there")


def test_nothing_is_left_when_its_owner_forgets_it() -> None:
    owner, directory, server = started("raise SystemExit(7)")
    with owner:
        assert owner.wait(40) == 7
    until(lambda: gone(server), what="the server lives")
    until(lambda: not directory.exists(), what="the directory is still there")


def test_it_outlives_the_thread_that_started_it() -> None:
    """Told by the kernel to die with its parent it died with the parent's thread."""
    program = """
        import threading
        thread = threading.Thread(target=lambda: (other := EmbeddedPostgres()).start() and others.append(other))
        others = []
        thread.start()
        thread.join()
        print(others[0].process.pid, flush=True)
        input()
    """
    owner, _, server = started(program)
    try:
        assert owner.stdout is not None
        other = psutil.Process(int(owner.stdout.readline()))
        with pytest.raises(psutil.TimeoutExpired):
            other.wait(0.5)
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.communicate()
    for process in (server, other):
        until(lambda process=process: gone(process), what="the server lives")  # type: ignore[misc]
