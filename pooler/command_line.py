"""The command line that other users of the machine see in `ps`, without the passwords that were written there.

Lives here: overwriting them in the process's own memory, which is where the kernel reads them from. There is a moment
between the start and that; so the operator is told to write them elsewhere.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

_ARG_START, _ARG_END = 47, 48  # fields of /proc/self/stat, counted from 0 (proc_pid_stat(5))


def passwords_in(arguments: Iterable[str]) -> list[str]:
    """The passwords in those `arguments` that are connection URLs, as they are written there."""
    found = []
    for argument in arguments:
        _, is_url, rest = argument.partition("://")
        login = rest.rpartition("@")[0]
        password = login.partition(":")[2]
        if is_url and password:
            found.append(password)
        for piece in rest.partition("?")[2].split("&"):
            if is_url and piece.startswith("password=") and len(piece) > len("password="):
                found.append(piece.removeprefix("password="))
    return found


def hide(secrets: Iterable[str]) -> bool:
    """Write `*` over each of `secrets` on the command line; whether that was possible here."""
    if sys.platform != "linux":
        return False
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()  # from the third field on
        start, end = int(fields[_ARG_START - 2]), int(fields[_ARG_END - 2])
    except (OSError, ValueError, IndexError):
        return False
    if not 0 < start < end:
        return False
    line = ctypes.string_at(start, end - start)
    for secret in secrets:
        raw = secret.encode(errors="surrogateescape")
        line = line.replace(raw, b"*" * len(raw))
    ctypes.memmove(start, line, len(line))
    return True
