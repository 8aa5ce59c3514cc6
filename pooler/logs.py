"""Structured logs: one line per event an operator cares about, on standard error.

key=value on a terminal, JSON elsewhere. Not here: what is logged where; no hot path logs.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog


def configure(format: Literal["auto", "console", "json"] = "auto", level: str = "info") -> None:
    """Set up logging for the process."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if console:
        processors.append(
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
        )
    else:
        processors.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Any:
    """A logger for the module `name`."""
    return structlog.get_logger(module=name.removeprefix("pooler."))
