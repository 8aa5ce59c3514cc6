"""What pgnear writes to standard error: `[log]`. How it is written is in `pooler.logs`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from config.values import Section


class Log(Section):
    """What is written to standard error."""

    format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="The form of a line: key=value (console) or JSON. auto is console on a terminal, json elsewhere; "
        "change it when that guess is wrong.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least that is written. debug adds a line for each connection on either side; use it to find "
        "out why somebody cannot connect.",
    )
