"""Structured logs: one line per event an operator cares about, on standard error.

key=value on a terminal, JSON elsewhere. Not here: what is logged where; no hot path logs.

A log must never be the reason that clients wait or fail: where standard error takes no more (its disk is full, its
reader has stopped), lines are dropped and counted.
"""

from __future__ import annotations

import io
import logging
import select
import sys
from collections.abc import MutableMapping
from typing import IO, Any, Literal

import structlog

PATIENCE_MILLISECONDS = 10
"""How long a line waits for the reader of a full pipe. After a lost one nobody waits until there is room again."""


class LogOutput:
    """A text file for log lines over `file`; its writes never raise and never wait for long.

    Attributes:
      lost: how many lines could not be written.
    """

    def __init__(self, file: IO[str]) -> None:
        self.lost = 0
        self._file: IO[Any] = file
        self._poll: select.poll | None = None
        self._losing = False
        try:
            number = file.fileno()
            self._file = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 (for as long as the process lives)
            self._poll = select.poll()
            self._poll.register(number, select.POLLOUT)
        except (OSError, ValueError, io.UnsupportedOperation):
            pass  # not a file of the system's: it takes everything

    def write(self, text: str) -> None:
        try:
            if self._poll is None:
                self._file.write(text)
            elif self._has_room():
                self._file.write(text.encode(errors="replace"))
            else:
                self._lose()
                return
            self._losing = False
        except (OSError, ValueError):
            self._lose()

    def _has_room(self) -> bool:
        assert self._poll is not None
        return bool(self._poll.poll(0 if self._losing else PATIENCE_MILLISECONDS))

    def _lose(self) -> None:
        self.lost += 1
        self._losing = True

    def flush(self) -> None:
        pass


output = LogOutput(sys.stderr)
"""Where lines go, since `configure` was last called."""


def configure(
    format: Literal["auto", "console", "json"] = "auto", level: str = "info", *, worker: int | None = None
) -> None:
    """Set up logging for the process; each line says of which `worker` it is, once that was given."""
    global output, _verbose, _worker
    _worker = _worker if worker is None else worker
    output = LogOutput(sys.stderr)
    _verbose = level.upper() == "DEBUG"
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if _worker is not None:
        processors.insert(0, _say_worker)
    if console:
        processors.append(
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
        )
    else:
        processors.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(output),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


_verbose = False
_worker: int | None = None


def _say_worker(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.setdefault("worker", _worker)
    return event


def is_verbose() -> bool:
    """Whether lines of level debug are written; asked where one would be made for each client."""
    return _verbose


def get_logger(name: str) -> Any:
    """A logger for the module `name`."""
    return structlog.get_logger(module=name.removeprefix("pooler."))
