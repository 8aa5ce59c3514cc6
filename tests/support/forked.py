"""Starts `pgnear` without waiting for its imports, which take longer than most tests.

A process that has imported all of it once forks for each (multiprocessing's fork server). From there runs what the
command runs, with arguments, environment and standard streams of its own. Not here: the command line itself
(`process.executed`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TextIO

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


def _run(arguments: Sequence[str], environment: Mapping[str, str], errors: Connection) -> None:
    """In the new process: be `pgnear` with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (errors.fileno(), 2)):
        os.dup2(source, target)
    os.close(nothing)
    errors.close()
    sys.argv = ["pgnear", *arguments]
    from pooler import cli

    cli.main()


class Forked:
    """A `pgnear` with standard error as a pipe; to its user, what `subprocess.Popen` would be."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors, errors = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run, args=(arguments, dict(environment), errors), daemon=True)
        self._process.start()
        errors.close()
        self.stderr: TextIO = open(self._errors.fileno(), closefd=False)  # noqa: SIM115
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.

        Raises:
          subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        status = self.returncode
        if status is None:
            raise subprocess.TimeoutExpired("pgnear", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
