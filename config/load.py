"""From file, environment and flags to one `Config`, or to everything that is wrong at once.

Precedence: flag, environment (`PGNEAR_POOL_SIZE`, `PGNEAR_CACHE__TTL`), file, default. Each value remembers where it
came from, so that a problem names the flag, the variable or the line.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from config.model import Config

PREFIX = "PGNEAR_"
_NESTED = {"cache", "log", "users", "databases"}
_IGNORED = {"PGNEAR_CONFIG"}


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
      ConfigError: with all problems.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    if file is not None:
        _merge_file(file, merged, origins, problems)
    _merge_environment(os.environ if environ is None else environ, merged, origins)
    for name, value in (flags or {}).items():
        if value is not None:
            _put(merged, name.split("."), value)
            origins[name] = f"--{name.replace('cache.enabled', 'no-cache').replace('.', '-').replace('_', '-')}"
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += _problems(error, origins)
        problems += _problems_of_the_rest(merged, error, origins)
    if problems:
        raise ConfigError(problems)
    return config


def _merge_file(file: Path, merged: dict[str, Any], origins: dict[str, str], problems: list[Problem]) -> None:
    try:
        text = file.read_text(encoding="utf-8")
        merged.update(tomllib.loads(text))
    except OSError as error:
        problems.append(Problem(str(file), error.strerror or str(error)))
        return
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(Problem(str(file), str(error)))
        return
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = match[1].replace('"', "") + "."
            origins[table[:-1]] = f"{file} line {number}"
        elif match := re.match(r'\s*([\w.\-"]+)\s*=', line):
            origins[table + match[1].replace('"', "")] = f"{file} line {number}"


def _merge_environment(environ: Mapping[str, str], merged: dict[str, Any], origins: dict[str, str]) -> None:
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in _IGNORED:
            continue
        first, *rest = variable[len(PREFIX) :].split("__")
        path = [first.lower(), *rest]
        if path[0] in ("users", "databases"):  # the name between is the operator's own, case and all
            path = [path[0], *path[1:2], *(part.lower() for part in path[2:])]
        else:
            path = [part.lower() for part in path]
        _put(merged, path, value)
        origins[".".join(path)] = f"environment {variable}"


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    tree[path[-1]] = value


def _problems_of_the_rest(merged: dict[str, Any], error: ValidationError, origins: dict[str, str]) -> list[Problem]:
    """What the rules over several settings find once the values that are wrong by themselves are left out."""
    bad = [item["loc"] for item in error.errors() if item["loc"]]
    if not bad:
        return []
    rest = copy.deepcopy(merged)
    for path in bad:
        tree: Any = rest
        for part in path[:-1]:
            tree = tree.get(part) if isinstance(tree, dict) else None
        if isinstance(tree, dict):
            tree.pop(path[-1], None)
    try:
        Config.model_validate(rest)
    except ValidationError as second:
        return [problem for problem in _problems(second, origins) if "field required" not in problem.what]
    return []


def _problems(error: ValidationError, origins: dict[str, str]) -> list[Problem]:
    problems: list[Problem] = []
    for item in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if not path:  # rules over several settings name their key themselves
            for line in message.splitlines():
                key, _, what = line.partition(": ")
                problems.append(Problem(_where(key.split("."), origins), what))
        elif item["type"] == "extra_forbidden":
            problems.append(Problem(_where(path, origins), "there is no such setting", _nearest(path)))
        else:
            problems.append(Problem(_where(path, origins), message[:1].lower() + message[1:]))
    return problems


def _where(path: list[str], origins: dict[str, str]) -> str:
    for length in range(len(path), 0, -1):
        key = ".".join(path[:length])
        if key in origins:
            return f"{origins[key]}: {'.'.join(path)}"
    return ".".join(path)


def _nearest(path: list[str]) -> str:
    model: Any = Config
    for part in path[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field is not None else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    near = difflib.get_close_matches(path[-1], model.model_fields, 1)
    return f"did you mean {near[0]}?" if near else ""
