"""Faults that a standby gets over: it becomes the primary, and pgnear has both for its origin's hosts.

Replication is synchronous (`rig.bank_standby`), so that what was acknowledged must be there afterwards. What is told of
`faults` holds here: recovery is counted from the function's return.
"""

from __future__ import annotations

import os
import signal
import subprocess

from tests.chaos.faults import ROLE_BACKENDS, Fault
from tests.chaos.rig import Rig
from tests.support.postgres import Server
from tests.support.standby import follow
from tests.support.waiting import until


def promote(rig: Rig) -> None:
    """kill -9 of the primary with all its processes, and its standby is promoted"""
    old = rig.server
    assert old.process is not None
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(old.process.pid)], capture_output=True, text=True, check=True
    )
    for pid in (old.process.pid, *map(int, children.stdout.split())):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    old.process.wait()
    _promote(rig)


def switch_over(rig: Rig) -> None:
    """a switchover while both live: the primary is made read-only, its standby promoted once pgnear has left it"""
    old = rig.server
    _make_read_only(old)
    until(lambda: not rig.ask(ROLE_BACKENDS), what="pgnear has not left the read-only server")
    _promote(rig)


def switch_over_paused(rig: Rig) -> None:
    """the same behind PAUSE and RESUME on pgnear's console"""
    rig.command("pause")
    _make_read_only(rig.server)
    _promote(rig)
    rig.command("resume")


def demote(rig: Rig) -> None:
    """a switchover: the primary is stopped, its standby promoted, and the old primary is that one's standby then"""
    old = rig.server
    assert old.process is not None
    old.process.send_signal(signal.SIGINT)  # a standby that streams has everything when it has ended
    old.process.wait(30)
    _promote(rig)
    follow(old, rig.server)


def _make_read_only(server: Server) -> None:
    server.execute("alter system set default_transaction_read_only = on")
    server.execute("select pg_reload_conf()")


def _promote(rig: Rig) -> None:
    assert rig.standby is not None
    rig.standby.promote()
    rig.server = rig.standby


FAILOVERS: dict[str, Fault] = {fault.__name__: fault for fault in (promote, switch_over, switch_over_paused, demote)}
