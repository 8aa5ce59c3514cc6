"""Loaded by a pgnear under chaos: its wall clock and the addresses of names come from a file that the test writes.

The file is JSON, `{"clock": seconds to add, "names": {name: address}}`. The system's clock and resolver stay.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

_path = os.environ.get("BENT_WORLD", "")
_real_time, _real_lookup = time.time, socket.getaddrinfo


def _world() -> dict[str, Any]:
    try:
        with open(_path) as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


def _time() -> float:
    return _real_time() + float(_world().get("clock", 0))


def _lookup(host: Any, *arguments: Any, **more: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    return _real_lookup(_world().get("names", {}).get(name, host), *arguments, **more)


if _path:
    time.time = _time
    socket.getaddrinfo = _lookup
