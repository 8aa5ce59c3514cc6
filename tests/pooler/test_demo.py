"""`pgnear demo` as a newcomer meets it: on a terminal, with what it proposes to try, until Ctrl-C and beyond."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support.process import command
from tests.support.waiting import until

CTRL_C = b"\x03"
STARTS_WITHIN = 90.0


class Demo:
    """A `pgnear demo` on a terminal of its own, or on pipes.

    Attributes:
      text: what it has written so far, without the terminal's control sequences.
      family: its PostgreSQL's processes, once it is ready.
    """

    def __init__(self, temporary: Path, *arguments: str, terminal: bool = True) -> None:
        self.temporary = temporary
        self.text = ""
        self.family: list[psutil.Process] = []
        # Without PostgreSQL's programs on the PATH it proposes those of the wheel.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "COLUMNS"))}
        environment |= {"PATH": "/nowhere", "TMPDIR": str(temporary), "TERM": "xterm", "PGNEAR_POOL_SIZE": "nonsense"}
        line = command("demo", "--port", "0", "--http", "127.0.0.1:0", *arguments)
        if terminal:
            pid, self.terminal = pty.fork()
            if pid == 0:
                try:
                    os.execve(line[0], line, environment)
                finally:
                    os._exit(127)  # a second test run must not go on from here
            self.process = psutil.Process(pid)
        else:
            self.terminal, output = os.pipe()
            popen = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            os.close(output)
            popen.returncode = 0  # `end` waits for it
            self.process = psutil.Process(popen.pid)

    def read(self, within: float) -> bool:
        """Take what comes; whether anything did."""
        ready, _, _ = select.select([self.terminal], [], [], within)
        if not ready:
            return False
        try:
            data = os.read(self.terminal, 65536)
        except OSError:  # EIO: nobody has the other end open
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
        return bool(data)

    def wait_for(self, pattern: str, *, within: float = STARTS_WITHIN) -> re.Match[str]:
        """The first match in what comes from now on, or has come since the last one."""
        end = time.monotonic() + within
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if not self.read(0.1):
                assert _lives(self.process), self.text
        self.text = self.text[match.end() :]
        return match

    def ready(self) -> str:
        """The connection string, once it shows what happens."""
        url = self.wait_for(r"postgresql://\S+")[0]
        self.family = self.process.children(recursive=True)
        assert any(process.name() == "postgres" for process in self.family)
        return url

    def press(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def end(self, *, within: float = 40.0) -> int:
        """Its exit status; what it wrote last is in `text`."""
        end = time.monotonic() + within
        while True:
            self.read(0.05)
            pid, status = os.waitpid(self.process.pid, os.WNOHANG)
            if pid:
                while self.read(0):
                    pass
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"did not end within {within:g} s: {self.text[-500:]!r}"

    def left_nothing(self) -> None:
        """Neither a process of its PostgreSQL nor a directory."""
        until(lambda: not [process for process in self.family if _lives(process)], what="processes are left")
        until(lambda: not os.listdir(self.temporary), what="directories are left")

    def close(self) -> None:
        for process in (self.process, *self.family):
            if _lives(process):
                process.kill()
        os.close(self.terminal)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Start = Callable[..., Demo]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory that PostgreSQL's own user can reach, for everything temporary."""
    directory = Path(tempfile.mkdtemp(prefix="pgnear-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def start(temporary: Path) -> Iterator[Start]:
    demos: list[Demo] = []

    def started(*arguments: str, terminal: bool = True) -> Demo:
        demos.append(Demo(temporary, *arguments, terminal=terminal))
        return demos[-1]

    yield started
    for demo in demos:
        demo.close()


def test_a_newcomer_sees_it_work_and_ctrl_c_ends_everything(start: Start) -> None:
    demo = start()
    url = demo.ready()
    proposed = [
        shlex.split(demo.wait_for(rf"\r\n +(\S*{program} .*{re.escape(url)}.*)\r\n")[1])
        for program in ("psql", "psql", "pgbench")
    ]
    demo.wait_for("Ctrl-C ends everything")
    assert demo.wait_for(r"clients (\d+)  origin (\d+)  queries/s")[1] == "0"

    twice, write, busy = (_run(arguments) for arguments in proposed)
    assert twice.count("Ganymede") == 2
    assert twice.count("Time: ") == 2
    demo.wait_for(r"cache hits [1-9]\d*%")
    before, after = re.findall(r"Mont Blanc .*", write)
    assert before.rstrip().endswith("|")
    assert "climbed it at" in after, "the cache answered with what was before the write"
    assert "number of failed transactions: 0" in busy
    figures = demo.wait_for(
        r"origin (\d+)  queries/s [1-9][\d,]+  cache hits \S+  p50 (\S+) (?:us|ms)  p99 (\S+) (?:us|ms)"
    )
    assert int(figures[1]) <= 10

    demo.press(CTRL_C)
    assert demo.end() == 0
    assert demo.text.endswith("Stopped.\r\n")
    assert "Traceback" not in demo.text
    demo.left_nothing()


def _run(arguments: list[str]) -> str:
    """What one of the things to try writes; its pgbench runs shorter."""
    arguments = ["2" if argument == "20" else argument for argument in arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() in ("", "pgbench (18.4)"), done.stderr
    return done.stdout


def test_a_connection_that_is_open_does_not_hold_it_up(start: Start) -> None:
    demo = start()
    with psycopg.connect(demo.ready()) as connection:
        connection.execute("select 1")  # and its transaction stays open
        demo.wait_for("p99")
        demo.press(CTRL_C)
        assert demo.end(within=15) == 0
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        connection.close()
    demo.left_nothing()


@pytest.mark.parametrize("moment", ["Starting PostgreSQL", "Loading the sample", "Ctrl-C ends"])
def test_ctrl_c_again_and_again_at_any_moment_leaves_nothing(start: Start, moment: str) -> None:
    demo = start()
    demo.wait_for(moment)
    demo.family = demo.process.children(recursive=True)
    for _ in range(4):
        demo.press(CTRL_C)
        demo.read(0.05)
    assert demo.end() == 0
    assert "Traceback" not in demo.text
    demo.left_nothing()


def test_on_pipes_it_writes_lines_and_ends_at_a_signal(start: Start) -> None:
    demo = start(terminal=False)
    demo.ready()
    demo.wait_for(r"\nclients 0  origin \d+  queries/s 0  cache hits -  p50 -  p99 -\n")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.end() == 0
    assert demo.text.endswith("Stopped.\n")
    demo.left_nothing()


def test_closing_the_terminal_ends_everything(start: Start) -> None:
    demo = start()
    demo.ready()
    os.close(demo.terminal)
    demo.terminal = os.open(os.devnull, os.O_RDONLY)
    demo.process.wait(40)
    demo.left_nothing()


def test_killing_it_leaves_nothing(start: Start) -> None:
    demo = start()
    demo.ready()
    demo.process.kill()
    demo.process.wait(40)
    demo.left_nothing()


def test_data_is_kept_and_opened_again(start: Start, temporary: Path) -> None:
    data = temporary / "kept"
    first = start("--data", str(data), terminal=False)
    with psycopg.connect(first.ready(), autocommit=True) as connection:
        connection.execute("insert into mountain values ('Brocken', 'Germany', 1141)")
    # Another demo cannot have the same directory, and does not disturb the first.
    other = start("--data", str(data), terminal=False)
    assert other.end(within=STARTS_WITHIN) == 1
    assert re.search(r'\npgnear: PostgreSQL did not start: .*lock file "postmaster.pid" already exists', other.text)
    assert "Traceback" not in other.text
    first.wait_for("queries/s")
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 0
    assert first.text.endswith(f"Stopped; the database is kept in {data}.\n")
    assert os.listdir(temporary) == ["kept"]

    again = start("--data", str(data), terminal=False)
    with psycopg.connect(again.ready()) as connection:
        row = connection.execute("select height_m from mountain where name = 'Brocken'").fetchone()
    assert row == (1141,)
    again.process.send_signal(signal.SIGINT)
    assert again.end() == 0
    assert "Loading the sample" not in again.text


def test_a_directory_that_is_not_its_own_is_left_alone(start: Start, temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    for path, said in (
        (precious, "is not empty, and was not filled by the demo"),
        (precious / "thesis.tex", "is not a"),
    ):
        demo = start("--data", str(path), terminal=False)
        assert demo.end(within=STARTS_WITHIN) == 2
        assert demo.text.startswith(f"pgnear: --data: {path} {said}")
        assert demo.text.count("\n") == 1
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    assert os.listdir(temporary) == ["precious"]


def test_a_taken_port_is_one_clear_line(start: Start, temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        demo = start("--port", str(port), terminal=False)
        assert demo.end(within=STARTS_WITHIN) == 1
    assert demo.text == f"pgnear: cannot listen on 127.0.0.1:{port}: the port is taken\n"
    assert not os.listdir(temporary)


def test_where_the_metrics_port_is_taken_another_one_is_found(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        demo = start("--http", taken, terminal=False)
        other = demo.wait_for(rf"{taken} is taken; metrics are on (\S+)\.")[1]
        assert demo.wait_for(r"Metrics: http://(\S+)/metrics")[1] == other
        demo.process.send_signal(signal.SIGINT)
        assert demo.end() == 0
