"""`python -m tests.bench.counted`: pgnear, with its Python calls counted.

At SIGUSR1 it logs a line `counted` with what was called since the one before: functions of our own by name, and
methods of the kernel's objects. What trio does between batches is not counted: how often it sleeps is the machine's
business.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

import protocol
from pooler import cli

OURS = tuple(str(Path(str(module.__file__)).parent) for module in (cli, protocol))

SYSTEM_CALLS = frozenset(
    "recv recv_into recvmsg recvmsg_into recvfrom send sendall sendmsg sendto read write readv writev poll control "
    "register modify unregister".split()
)
"""Names of builtin methods that are one system call each."""

_functions: Counter[CodeType] = Counter()
_methods: Counter[str] = Counter()


def _count(frame: FrameType, event: str, function: object) -> None:
    if event == "call":
        _functions[frame.f_code] += 1
    elif event == "c_call":
        name = getattr(function, "__name__", "")
        if name in SYSTEM_CALLS and frame.f_code.co_filename.startswith(OURS) and _is_kernels(function):
            _methods[name] += 1


def _is_kernels(function: object) -> bool:
    """Not, say, an SSLObject's `read`."""
    return type(getattr(function, "__self__", None)).__module__ in ("_socket", "socket", "select", "builtins", "posix")


def _tell(*_: object) -> None:
    ours: Counter[str] = Counter()
    for code, count in dict(_functions).items():  # a copy: what is called here is counted too
        if code.co_filename.startswith(OURS):
            ours[f"{Path(code.co_filename).stem}.{code.co_name}"] += count
    sys.stderr.write(json.dumps({"event": "counted", "functions": ours, "methods": _methods}) + "\n")
    sys.stderr.flush()
    _functions.clear()
    _methods.clear()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    sys.setprofile(_count)
    cli.main()
