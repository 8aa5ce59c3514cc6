"""What a setting's value may be, and how it is written: sizes, durations, addresses, lists, commands; and what all
sections of the configuration are made of.

Lives here: types that more than one setting could have, with their units. Not here: any setting.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|KiB|MB|MiB|GB|GiB)?", re.IGNORECASE)
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1024,
    "kib": 1024,
    "mb": 1024**2,
    "mib": 1024**2,
    "gb": 1024**3,
    "gib": 1024**3,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", re.IGNORECASE)
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def number(value: Any) -> Any:
    """No true or false.

    Raises:
      ValueError: it is one of them.
    """
    if isinstance(value, bool):  # which Python takes for 1 and 0
        raise ValueError("is true or false where a number is wanted")
    return value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return number(value)
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("write a size like 64MB, 512kB or a number of bytes")
    return int(float(match[1]) * _SIZE_UNITS[(match[2] or "").lower()])


def duration(value: Any) -> Any:
    """Seconds: a number as it is, a text like 500ms, 10s or 5min read.

    Raises:
      ValueError: it is neither.
    """
    if not isinstance(value, str):
        return number(value)
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("write a duration like 500ms, 10s, 5min or a number of seconds")
    return float(match[1]) * _DURATION_UNITS[(match[2] or "").lower()]


def several(value: Any) -> Any:
    """A list of texts, where it is one text or several, each with commas or without."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return [part.strip() for item in value for part in item.split(",") if part.strip()]
    return value


def from_json(value: Any) -> Any:
    """What a text holds as JSON; anything else as it is.

    Raises:
      ValueError: the text is no JSON.
    """
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"is no JSON: {error}") from None
    return value


def _address(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith(("unix:/", "/")):
        host, colon, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host) != bracketed:
            raise ValueError("write HOST:PORT, [IPv6]:PORT or unix:/path/of/socket")
    return value


def host_and_port(value: Any) -> Any:
    """An address that is no unix socket.

    Raises:
      ValueError: it is one.
    """
    if isinstance(value, str) and value.startswith(("unix:", "/")):
        raise ValueError("write HOST:PORT or [IPv6]:PORT")
    return value


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {error}") from None
    if value in ([], ()):
        raise ValueError("names no program")
    return value


Size = Annotated[int, BeforeValidator(_size), Field(json_schema_extra={"unit": "bytes"})]
Seconds = Annotated[float, BeforeValidator(duration), Field(allow_inf_nan=False, json_schema_extra={"unit": "seconds"})]
Connections = Annotated[int, BeforeValidator(number), Field(json_schema_extra={"unit": "connections"})]
PoolSize = Annotated[
    int, Field(ge=1, le=10000), BeforeValidator(number), Field(json_schema_extra={"unit": "connections"})
]
Statements = Annotated[int, BeforeValidator(number), Field(json_schema_extra={"unit": "statements"})]
Workers = Annotated[int, BeforeValidator(number), Field(json_schema_extra={"unit": "processes"})]
Address = Annotated[str, BeforeValidator(_address), Field(json_schema_extra={"unit": "address"})]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_arguments),
    Field(json_schema_extra={"unit": "program and arguments"}),
]
Url = Annotated[SecretStr, Field(json_schema_extra={"unit": "URL"})]
Ttl = Annotated[
    float, Field(gt=0, allow_inf_nan=False, json_schema_extra={"unit": "seconds"}), BeforeValidator(duration)
]
Duration = Annotated[
    float, Field(ge=0, allow_inf_nan=False, json_schema_extra={"unit": "seconds"}), BeforeValidator(duration)
]
Budget = Annotated[int, Field(ge=65536, json_schema_extra={"unit": "bytes"}), BeforeValidator(_size)]
Names = Annotated[tuple[str, ...], BeforeValidator(several), Field(json_schema_extra={"unit": "names"})]

Pooling = Literal["transaction", "session", "statement"]


class Section(BaseModel):
    """A table of settings: nothing unknown in it, no value shown in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
