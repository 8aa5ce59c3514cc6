"""What passes between pgnear and systemd: listening sockets that it holds for us, and words about our state.

Source: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import time

from pooler.ceremony.listen import adopted

FIRST_FD = 3


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """The listening sockets that were passed to this process, by their names (LISTEN_FDNAMES); asked once."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    sockets: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isdigit():
        return sockets
    for place in range(int(count)):
        sockets.setdefault(names[place] if place < len(names) else "", []).append(adopted(FIRST_FD + place))
    return sockets


def ready() -> None:
    """Clients can connect, and what RELOAD changes is changed."""
    _notify("READY=1")


def reloading() -> None:
    """RELOAD has begun."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """The drain has begun."""
    _notify("STOPPING=1")


def _notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.send(state.encode())
    except OSError:
        pass  # whoever asked to be told does not listen
