"""Writes the documentation of the settings from the models: `python -m config.reference`.

Lives here: the forms that documentation takes. What it says is in `model` and the sections: to declare a setting is to
document it.

- `config/schema.json`: JSON Schema of the TOML file, for editors;
- `config/pgnear.example.toml`: every setting, its default and a comment;
- `docs/configuration.md`: the whole table, between its marks;
- `README.md`: the table of the settings that most people need, between its marks.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.model import Config

COMMON = (
    "origin listen pool_size pool_wait_timeout max_client_connections "
    "cache.enabled cache.ttl cache.max_bytes tls auth http log.level"
).split()
"""The settings of the README's table."""

CHAPTERS = {
    "origin": "The origin",
    "listen": "Where pgnear listens",
    "tls": "TLS for clients",
    "auth": "Who may connect",
    "pool_size": "Pooling",
    "cancel_wait_timeout": "Cancelling and stopping",
    "max_message_bytes": "Limits",
}
"""The top-level settings that begin a chapter, in the order of the model."""

ARRAY = "[]"
"""Behind the name of a table that may be given several times."""

EXAMPLE_NAMES = {"users": "reporting", "databases": "replica"}
"""What the tables are called that an operator names, in the example file."""

BEGIN, END = "<!-- configuration:begin -->", "<!-- configuration:end -->"

Schema = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting as the documentation sees it.

    Attributes:
      table: the TOML table that it stands in; "" for the top, `users.NAME` for one that the operator names,
        `cache.policy[]` for one that may be given several times.
      default: as it is written in TOML; "" where there is none.
      unit: of its value, or the words that it may be.
    """

    table: str
    key: str
    description: str
    default: str
    unit: str
    example: str

    @property
    def name(self) -> str:
        return f"{self.table}.{self.key}" if self.table else self.key


# ---- from the models ------------------------------------------------------------------------------------------------


def schema() -> Schema:
    """JSON Schema of the TOML file: pydantic's, with what strings may stand for and without what TOML lacks."""
    whole = Config.model_json_schema()
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "pgnear.toml"}
    for model in (whole, *whole["$defs"].values()):
        model["properties"] = {name: _in_toml(value) for name, value in model["properties"].items()}
    return whole


def _in_toml(value: Schema) -> Schema:
    value = {name: part for name, part in value.items() if name != "title"}
    if value.get("default", ...) is None:
        del value["default"]
    if value.get("anyOf", [{}])[-1] == {"type": "null"}:
        value |= value.pop("anyOf")[0]
    limits = ("type", "minimum", "exclusiveMinimum", "maximum", "items", "minItems")
    also = {
        "bytes": {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([Bb]|[kKmMgG][iI]?[bB])?\s*$"},
        "seconds": {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([mM]?[sS]|[mM]|[mM][iI][nN]|[hH]|[dD])?\s*$"},
    }.get(value.get("unit", ""), {"type": "string"} if value.get("items", {}).get("type") == "string" else None)
    if also is not None:
        value["anyOf"] = [{name: value.pop(name) for name in limits if name in value}, also]
    return value


def settings() -> list[Setting]:
    """Every setting, in the order of the models; those of tables after those of the top."""
    whole = schema()
    return list(_settings("", whole, whole["$defs"]))


def _settings(table: str, model: Schema, definitions: Schema) -> Iterator[Setting]:
    below: list[tuple[str, str]] = []
    for key, value in model["properties"].items():
        name = f"{table}.{key}" if table else key
        if "$ref" in value:
            below.append((name, value["$ref"]))
        elif "$ref" in value.get("additionalProperties", {}):
            below.append((f"{name}.NAME", value["additionalProperties"]["$ref"]))
        elif "$ref" in value.get("items", {}):
            below.append((f"{name}{ARRAY}", value["items"]["$ref"]))
        else:
            unit = _unit(value)
            default = _toml(value["default"], unit) if "default" in value else ""
            example = _toml(value["examples"][0], unit) if "examples" in value else default
            yield Setting(table, key, value["description"], default, unit, example)
    for name, reference in below:
        yield from _settings(name, definitions[reference.rpartition("/")[2]], definitions)


def _unit(value: Schema) -> str:
    if "unit" in value:
        return str(value["unit"])
    if "enum" in value:
        *words, last = value["enum"]
        return f"{', '.join(words)} or {last}"
    if value.get("type") == "boolean":
        return "true or false"
    return "file" if value.get("format") == "path" else "text"


def _toml(value: Any, unit: str) -> str:
    if isinstance(value, list):
        return _toml(value[0], unit) if len(value) == 1 else json.dumps(value)
    if unit == "bytes":
        power = max(power for power in range(4) if value % 1024**power == 0)
        return json.dumps(f"{value // 1024**power}{('B', 'kB', 'MB', 'GB')[power]}")
    if unit == "seconds":
        units = ((0.001, "ms"), (1, "s"), (60, "min"), (3600, "h"))
        size, name = max(unit for unit in units if value % unit[0] == 0 and (value > 60 or unit[0] <= 1))
        return json.dumps(f"{value / size:g}{name}")
    return json.dumps(value)


# ---- what is written ------------------------------------------------------------------------------------------------


INTRODUCTION = """\
Every setting of pgnear: what it is, when to change it, its default and its unit. Copy this file, keep the lines that \
you change, and check them: pgnear check-config FILE

Each can also be a variable: pool_size is PGNEAR_POOL_SIZE, ttl of [cache] is PGNEAR_CACHE__TTL. A variable wins over \
this file, a flag over both. Sizes are bytes, or written 64MB or 512kB; durations are seconds, or written 500ms, 10s, \
5min or 1h."""


def example() -> str:
    """The text of `pgnear.example.toml`: usable as it is, since only `origin` is not commented out."""
    paragraphs = ["\n".join(map(_comment, INTRODUCTION.splitlines()))]
    table = ""
    for setting in settings():
        if setting.table != table:
            table = setting.table
            first, _, named = table.partition(".")
            if table.endswith(ARRAY):
                header = f"#[[{table.removesuffix(ARRAY)}]]"
            else:
                header = f"#[{first}.{EXAMPLE_NAMES[first]}]" if named else f"[{table}]"
            paragraphs.append(f"{_heading(_description_of(table))}\n\n{header}")
        elif not table and setting.key in CHAPTERS:
            paragraphs.append(_heading(CHAPTERS[setting.key]))
        default = f"Default: {setting.default}" if setting.default else "No default"
        switch = "" if setting.name == "origin" else "#"
        paragraphs.append(
            f"{_comment(setting.description)}\n# {default} ({setting.unit}).\n{switch}{setting.key} = {setting.example}"
        )
    return "\n\n".join(paragraphs) + "\n"


def _description_of(table: str) -> str:
    """What a table is, from the setting of that name or, where that says nothing, from its model."""
    whole = schema()
    value: Schema = {}
    model: Schema = whole
    for part in table.removesuffix(ARRAY).removesuffix(".NAME").split("."):
        value = model["properties"][part]
        model = whole["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
    return str(value.get("description") or model["description"])


def _heading(title: str) -> str:
    return "\n".join(("# " + "-" * 100, _comment(title)))


def _comment(text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False, break_long_words=False
    ) or "#"  # fmt: skip


def table(names: list[str] | None = None) -> str:
    """A Markdown table of the settings with these names, of all where None; chapters have tables of their own."""
    if names is not None:
        by_name = {setting.name: setting for setting in settings()}
        return _rows([by_name[name] for name in names])
    chapters: list[tuple[str, list[Setting]]] = []
    last = ""
    for setting in settings():
        if setting.table != last:
            last = setting.table
            header = f"[[{last.removesuffix(ARRAY)}]]" if last.endswith(ARRAY) else f"[{last}]"
            chapters.append((f"### `{header}`\n\n{_description_of(last)}", []))
        elif not last and setting.key in CHAPTERS:
            chapters.append((f"### {CHAPTERS[setting.key]}", []))
        chapters[-1][1].append(setting)
    return "\n\n".join(f"{heading}\n\n{_rows(chapter)}" for heading, chapter in chapters)


def _rows(chosen: list[Setting]) -> str:
    lines = ["| setting | default | unit or values | what it is, and when to change it |", "|---|---|---|---|"]
    for setting in chosen:
        default = f"`{setting.default}`" if setting.default else "none"
        lines.append(f"| `{setting.name}` | {default} | {setting.unit} | {_markdown(setting.description)} |")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return re.sub(r"(?<![\w/`])([a-z]+(?:_[a-z]+)+(?:\.[a-z]+)?)(?![\w`])", r"`\1`", text.replace("|", r"\|"))


def between_marks(text: str, content: str) -> str:
    """`text` with `content` in the place of what stands between the two marks.

    Raises:
      ValueError: it lacks them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{BEGIN} and {END} are missing")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def documents(root: Path) -> dict[Path, str]:
    """What each generated file below `root` should hold."""
    readme, guide = root / "README.md", root / "docs/configuration.md"
    return {
        root / "config/schema.json": json.dumps(schema(), indent=2) + "\n",
        root / "config/pgnear.example.toml": example(),
        guide: between_marks(guide.read_text(encoding="utf-8"), table()),
        readme: between_marks(readme.read_text(encoding="utf-8"), table(COMMON)),
    }


def main(root: Path) -> None:
    for path, text in documents(root).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(root)}\n")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent)
