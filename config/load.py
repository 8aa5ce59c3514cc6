"""From file, environment and flags to one `Config`, or to everything that is wrong at once.

Precedence: flag, environment (`PGNEAR_POOL_SIZE`, `PGNEAR_CACHE__TTL`), file, default. Each value remembers where it
came from, so that a problem names the flag, the variable or the line.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from config.model import Config

PREFIX = "PGNEAR_"

_IGNORED = {"PGNEAR_CONFIG", "PGNEAR_CONSOLE"}
_SERVICE_LINK = re.compile(r"PGNEAR_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""What Kubernetes puts into the environment of every pod beside a Service named pgnear."""

_FLAGS = {"cache.enabled": "--no-cache"}

Place = tuple[str, ...]
"""A setting's place: ("cache", "ttl")."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (key, and line, variable or flag), what, and what would be right."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load(
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Merge the sources and validate the whole.

    Args:
      flags: settings by dotted name (`cache.enabled`); None values were not given.
      environ: the process's own environment where None.

    Raises:
      ConfigError: with all problems; with one where the file cannot be read, for without it the rest means nothing.
    """
    merged: dict[str, Any] = {}
    sources: dict[Place, str] = {}
    if file is not None:
        text, merged = _read(file)
        for path, number in _lines(text):
            sources[path] = f"{file} line {number}"
    _merge_environment(os.environ if environ is None else environ, merged, sources)
    for name, value in (flags or {}).items():
        if value is not None:
            path = tuple(name.split("."))
            _put(merged, path, value)
            sources[path] = _FLAGS.get(name) or f"--{re.sub('[._]', '-', name)}"
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        problems = _problems(error, sources)
        problems += _problems_of_the_rest(merged, error, sources)
        raise ConfigError(problems) from None


# ---- the sources ----------------------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigError([Problem(str(file), f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(str(file), "cannot be read: it is not UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        what, line = str(error), ""
        if match := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", what):
            what, line = f"{match[1]}, at column {match[3]}", f" line {match[2]}"
        raise ConfigError([Problem(f"{file}{line}", f"is not TOML: {what}", 'write name = "value"')]) from None


_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_TABLE_LINE = re.compile(rf"\s*\[\s*({_KEYS})\s*\]")
_ARRAY_LINE = re.compile(rf"\s*\[\[\s*({_KEYS})\s*\]\]")
_VALUE_LINE = re.compile(rf"\s*({_KEYS})\s*=")
_MULTILINE = re.compile(r"\"\"\"|'''")


def _lines(text: str) -> Iterator[tuple[Place, int]]:
    """Where the tables and values of a TOML text that was parsed already stand: (path, line from 1)."""
    table: Place = ()
    counts: dict[Place, int] = {}  # of the tables in an array so far
    quote = ""  # of the multi-line string that we are in
    for number, line in enumerate(text.split("\n"), 1):
        if not quote:
            if match := _TABLE_LINE.match(line):
                table = _keys(match[1])
                yield table, number
            elif match := _ARRAY_LINE.match(line):
                array = _keys(match[1])
                table = (*array, str(counts.setdefault(array, 0)))
                counts[array] += 1
                yield table, number
            elif match := _VALUE_LINE.match(line):
                yield table + _keys(match[1]), number
            elif line.lstrip().startswith("#"):
                continue
        for mark in _MULTILINE.findall(line):
            quote = mark if not quote else "" if mark == quote else quote


def _keys(text: str) -> Place:
    path: list[str] = []
    tree: Any = tomllib.loads(f"{text} = 0")
    while isinstance(tree, dict):
        (key, tree), *_ = tree.items()
        path.append(key)
    return tuple(path)


def _merge_environment(environ: Mapping[str, str], merged: dict[str, Any], sources: dict[Place, str]) -> None:
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in _IGNORED:
            continue
        if _SERVICE_LINK.fullmatch(variable) and (variable != "PGNEAR_PORT" or "://" in value):
            continue
        path = tuple(variable[len(PREFIX) :].split("__"))
        # The name in the middle of users and databases is the operator's own, case and all.
        own = 1 if path[0].lower() in ("users", "databases") else -1
        path = tuple(part if index == own else part.lower() for index, part in enumerate(path))
        _put(merged, path, value)
        sources[path] = f"environment {variable}"


def _put(tree: dict[str, Any], path: Place, value: Any) -> None:
    for part in path[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    tree[path[-1]] = value


# ---- what is wrong --------------------------------------------------------------------------------------------------


def _problems_of_the_rest(merged: dict[str, Any], error: ValidationError, sources: dict[Place, str]) -> list[Problem]:
    """What the rules over several settings find once the values that are wrong by themselves are left out."""
    rest = copy.deepcopy(merged)
    known: set[str] = set()
    while bad := [item["loc"] for item in error.errors() if item["loc"]]:
        left_out = {name for place in bad if (name := _leave_out(rest, place))}
        if not left_out:
            return []
        known |= left_out
        try:
            Config.model_validate(rest)
        except ValidationError as another:
            error = another
        else:
            return []
    rules = error.errors(include_url=False, include_input=False) if known else []
    return [problem for item in rules for key, problem in _by_rules(item["msg"], sources) if key not in known]


def _leave_out(tree: dict[str, Any], place: tuple[int | str, ...]) -> str:
    """Remove the value at `place`, or what is around it where it is missing or in a list; the name of what went.

    "" where that is gone already.
    """
    place = tuple(itertools.takewhile(lambda part: isinstance(part, str), place))
    way: list[tuple[dict[str, Any], str]] = []
    below: Any = tree
    for part in place:
        if not isinstance(below, dict) or part not in below:
            break
        way.append((below, str(part)))
        below = below[part]
    if len(way) < max(1, len(place) - 1):
        return ""
    around, key = way[-1]
    del around[key]
    return ".".join(part for _, part in way)


def _problems(error: ValidationError, sources: dict[Place, str]) -> list[Problem]:
    problems: list[Problem] = []
    items = error.errors(include_url=False, include_input=False)
    for item in items:
        path = tuple(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not path:
            problems += (problem for _, problem in _by_rules(message, sources))
        elif item["type"] == "extra_forbidden":
            problems.append(Problem(_where(path, sources), "there is no such setting", _nearest(path)))
        elif item["type"] in ("model_type", "dict_type"):
            problems.append(Problem(_where(path, sources), "is a table of settings, not a value", _example(path)))
        elif item["type"] == "too_short":
            if not any(other["loc"][:-1] == item["loc"] for other in items):  # what is in it was not even counted
                problems.append(Problem(_where(path, sources), "is empty"))
        elif item["type"] == "tuple_type":
            problems.append(Problem(_where(path, sources), 'is a list of texts, like ["one", "two"]'))
        elif item["type"] == "missing":
            problems.append(Problem(_where(path, sources), "is missing"))
        else:
            problems.append(Problem(_where(path, sources), message[:1].lower() + message[1:]))
    return problems


def _by_rules(message: str, sources: dict[Place, str]) -> Iterator[tuple[str, Problem]]:
    """(key, problem) of each line of what `Config`'s rules over several settings say: `key: what`."""
    for line in message.removeprefix("Value error, ").splitlines():
        key, _, what = line.partition(": ")
        yield key, Problem(_where(tuple(key.split(".")), sources), what)


def _where(path: Place, sources: dict[Place, str]) -> str:
    """The setting's name, behind the line, variable or flag that it, what is around it, or its first part came from."""
    name = ".".join(path)
    by_name = {".".join(source): where for source, where in sources.items()}
    for length in range(len(path), 0, -1):
        if where := by_name.get(".".join(path[:length])):
            return f"{where}: {name}"
    parts = (where for source, where in by_name.items() if source.startswith(f"{name}."))  # users.web.password = ...
    return f"{where}: {name}" if (where := next(parts, "")) else name


def _nearest(path: Place) -> str:
    """The setting that was probably meant: one that is spelled alike, or the same one in another table."""
    elsewhere = [name for name in _names(Config) if name.rpartition(".")[2] == path[-1]]
    model = _model_at(path[:-1])
    alike = difflib.get_close_matches(path[-1], model.model_fields, 1) if model is not None else []
    return f"did you mean {(elsewhere + alike)[0]}?" if elsewhere or alike else ""


def _example(path: Place) -> str:
    model = _model_at(path)
    table = ".".join(path) if model is not None else f"{'.'.join(path)}.NAME"
    return f"write [{table}] and its settings below, or {PREFIX}{table.replace('.', '__').upper()}__..."


def _model_at(path: Place) -> type[BaseModel] | None:
    """The model whose settings stand below `path`; None where there is none."""
    kind: Any = Config
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(part)
            kind = field.annotation if field is not None else None
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name
