"""What breaks, one function each: it breaks something, and mends what must be mended, before it returns.

The recovery is counted from there. `PAUSE_SECONDS` is how long something stays broken where that is for us to say.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from threading import Event

import psutil
import psycopg

from pooler.embedded import PostgresFailed
from tests.chaos.rig import FIRST_PASSWORD, ROLE, Rig
from tests.support.waiting import until

PAUSE_SECONDS = 2.0

Fault = Callable[[Rig], None]

ROLE_BACKENDS = f"select pid from pg_stat_activity where usename = '{ROLE}' and backend_type = 'client backend'"


def _wait() -> None:
    Event().wait(PAUSE_SECONDS)


def terminate(rig: Rig) -> None:
    """every backend is ended by pg_terminate_backend"""
    rig.ask(f"select pg_terminate_backend(pid) from ({ROLE_BACKENDS}) each")


def kill_backend(rig: Rig) -> None:
    """kill -9 of a backend: the server restarts all of them, with crash recovery"""
    os.kill(int(str(rig.ask(ROLE_BACKENDS)[0][0])), signal.SIGKILL)
    until(lambda: _answers(rig), within=30)


def kill_postmaster(rig: Rig) -> None:
    """kill -9 of the postmaster, and a new start with crash recovery"""
    server = rig.server
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    _start_again(rig)


def restart(rig: Rig) -> None:
    """the origin is restarted (fast shutdown)"""
    server = rig.server
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    server.process.wait(30)
    _start_again(rig)


def _start_again(rig: Rig) -> None:
    def started() -> bool:
        try:
            rig.server.restart()
        except PostgresFailed:  # backends of the one before are still leaving
            return False
        return True

    until(started, within=30)
    until(lambda: _answers(rig), within=30)


def _answers(rig: Rig) -> bool:
    try:
        return bool(rig.ask("select true"))
    except psycopg.Error:
        return False


def stop_processes(rig: Rig) -> None:
    """SIGSTOP of postmaster and backends, then SIGCONT"""
    assert rig.server.process is not None
    family = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(rig.server.process.pid)], capture_output=True, text=True, check=True
    )
    pids = [rig.server.process.pid, *map(int, family.stdout.split())]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGSTOP:
            _wait()


def cut(rig: Rig) -> None:
    """every connection to the origin is closed in between"""
    rig.proxy.cut()


def reset(rig: Rig) -> None:
    """every connection to the origin is reset (RST)"""
    rig.proxy.reset()


def half_open(rig: Rig) -> None:
    """the origin's host vanishes without a word: connections stay open, nothing comes any more; new ones work"""
    rig.proxy.vanish()


def freeze(rig: Rig) -> None:
    """no byte passes, either way"""
    rig.proxy.freeze()
    _wait()
    rig.proxy.thaw()


def refuse(rig: Rig) -> None:
    """connections are cut, and new ones are reset at once"""
    rig.proxy.refuse()
    rig.proxy.cut()
    _wait()
    rig.proxy.refuse(False)


def delay(rig: Rig) -> None:
    """each piece of data takes 50 ms longer, either way"""
    rig.proxy.lag(0.05)
    _wait()
    rig.proxy.lag(0)


def throttle(rig: Rig) -> None:
    """20 kB/s for each connection"""
    rig.proxy.throttle(20_000)
    _wait()
    rig.proxy.throttle(None)


def move_name(rig: Rig) -> None:
    """the origin's name leads to another address, and nobody answers at the old one"""
    rig.world(names={"origin.test": "127.0.0.2"})
    rig.proxy.refuse()
    rig.proxy.cut()


def change_credentials(rig: Rig) -> None:
    """the origin's password changes, its connections are ended; pgnear's file has the new one a moment later"""
    new = f"{FIRST_PASSWORD}{os.urandom(4).hex()}"
    rig.ask(f"alter role {ROLE} password '{new}'")
    terminate(rig)
    _wait()
    rig.password(new)


def clock_forward(rig: Rig) -> None:
    """pgnear's wall clock jumps a day ahead"""
    rig.world(clock=86400)


def clock_back(rig: Rig) -> None:
    """pgnear's wall clock jumps a day back"""
    rig.world(clock=-86400)


def full_disk(rig: Rig) -> None:
    """the disk under pgnear's log is full (/dev/full), and every connection to the origin is cut"""
    rig.proxy.cut()


def kill_pgnear(rig: Rig) -> None:
    """kill -9 of pgnear itself, and a new start"""
    rig.process.kill()
    rig.process.wait()
    rig.start()


def kill_worker(rig: Rig) -> None:
    """kill -9 of one of pgnear's two workers"""
    _workers(rig)[0].kill()


def stop_worker(rig: Rig) -> None:
    """SIGSTOP of one of pgnear's two workers, then SIGCONT"""
    worker = _workers(rig)[0]
    worker.suspend()
    _wait()
    worker.resume()


def kill_parent(rig: Rig) -> None:
    """kill -9 of the parent of pgnear's two workers, and a new start"""
    rig.process.kill()
    rig.process.wait()
    rig.start(again=True)  # until they have left, its addresses are taken


def _workers(rig: Rig) -> list[psutil.Process]:
    return [each for each in psutil.Process(rig.process.pid).children() if "pooler.workers" in each.cmdline()]


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        terminate, kill_backend, kill_postmaster, restart, stop_processes, cut, reset, half_open, freeze, refuse, delay,
        throttle, move_name, change_credentials, clock_forward, clock_back, full_disk, kill_pgnear, kill_worker,
        stop_worker, kill_parent,
    )
}  # fmt: skip

LOGS = {"full_disk": "/dev/full"}
"""Where pgnear's log goes under a fault, if not to a file."""

WORKERS = {"kill_worker": 2, "stop_worker": 2, "kill_parent": 2}
"""How many workers pgnear has under a fault, if not one."""
