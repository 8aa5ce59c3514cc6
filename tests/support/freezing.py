"""A PostgreSQL whose processes are stopped, all of them, and go on afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.support.postgres import Server


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """The server's processes are frozen: connections are accepted by the kernel, and nothing is answered."""
    assert server.process is not None
    family = [psutil.Process(server.process.pid)]
    family += family[0].children(recursive=True)
    for process in family:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(family):
            os.kill(process.pid, signal.SIGCONT)
