"""The generated documentation is that of the models as they are, and what it shows can be used."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import config
from config import ConfigError, reference
from tests.support.certificates import Authority

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "config/pgnear.example.toml"
SCHEMA = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))
SETTINGS = {setting.name: setting for setting in reference.settings()}


@pytest.mark.parametrize("path", list(reference.documents(ROOT)), ids=lambda path: path.name)
def test_what_is_generated_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == reference.documents(ROOT)[path], "run: make reference"


def test_generating_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in reference.documents(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "config/schema.json").write_text("{}")
    reference.main(tmp_path)
    assert capsys.readouterr().out == "wrote config/schema.json\n"
    reference.main(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_says_what_it_is_when_to_change_it_its_unit_and_its_default(name: str) -> None:
    setting = SETTINGS[name]
    assert len(re.findall(r"\.(?: |$)", setting.description)) >= 2, "say what it is, and when to change it"
    assert setting.unit
    assert setting.example
    assert setting.default or SETTINGS[name].example != ""


def test_chapters_and_common_settings_are_settings() -> None:
    assert set(reference.CHAPTERS) | set(reference.COMMON) <= set(SETTINGS)


# ---- the example file -----------------------------------------------------------------------------------------------


def test_the_example_file_loads_and_changes_nothing_but_the_origin() -> None:
    settings = config.load(file=EXAMPLE, environ={})
    assert settings.origin is not None
    assert settings == config.load(flags={"origin": settings.origin.get_secret_value()}, environ={})


def test_each_line_of_the_example_file_can_be_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, under its table: then it is the default, or an example that is accepted."""
    monkeypatch.chdir(tmp_path)
    issued = Authority().issue("localhost")
    (tmp_path / "server.key").write_bytes(issued.key)
    lines = EXAMPLE.read_text(encoding="utf-8").split("\n")
    plain = config.load(file=EXAMPLE, environ={})
    seen, table = set(), -1
    for number, line in enumerate(lines):
        if re.match(r"#?\[", line):
            table = number
        match = re.match(r"#(\w+) = ", line)
        if not match:
            continue
        name = f"{lines[table].strip('#[]')}.{match[1]}" if table >= 0 else match[1]
        known = re.sub(r"^(users|databases)\.\w+", r"\1.NAME", name)
        known = re.sub(r"^(cache\.policy|override|replica)\.", r"\1[].", known)
        seen.add(known)
        switched = [
            text[1:] if index in (number, table) and text[0] == "#" else text for index, text in enumerate(lines)
        ]
        (tmp_path / "server.crt").write_bytes(issued.certificate + (issued.key if name == "tls_cert_file" else b""))
        if name == "tls_key_file":
            switched.insert(0, 'tls_cert_file = "server.crt"')
        if name == "users.reporting.pooling":
            switched.insert(number, 'password = "x"')
        if name.startswith("cache.policy.") and name != "cache.policy.name":
            switched.insert(number, 'name = "catalogue"')
        if name.startswith("replica.") and name != "replica.url":
            switched.insert(number, 'url = "postgresql://app@localhost/shop"')
        if name == "replica.database":
            switched.append('[databases.orders]\norigin = "postgresql://app@localhost/shop"')
        if name.startswith("databases.replica.") and name != "databases.replica.origin":
            switched.insert(number, 'origin = "postgresql://app@localhost"')
        if name in ("password_file", "password_command"):
            switched = [text.replace("app:secret@", "app@") for text in switched]
        file = tmp_path / "pgnear.toml"
        file.write_text("\n".join(switched))
        settings = config.load(file=file, environ={})
        changed = settings != plain
        assert changed == (not SETTINGS[known].default or "[]" in known), name
    assert seen | {"origin"} == set(SETTINGS)


# ---- the schema -----------------------------------------------------------------------------------------------------


def accepts(value: Any, schema: dict[str, Any]) -> bool:
    """Whether the JSON Schema accepts the value; knows the keywords that ours has, and no others."""
    known = (
        "$schema $defs title description default examples unit format writeOnly $ref anyOf type enum pattern minimum "
        "exclusiveMinimum maximum items minItems properties additionalProperties required"
    ).split()
    assert set(schema) <= set(known)
    if "$ref" in schema:
        return accepts(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema and not any(accepts(value, one) for one in schema["anyOf"]):
        return False
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict
    }  # fmt: skip
    kind = schema.get("type")
    if kind and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, dict):
        others = schema.get("additionalProperties", {})
        if set(schema.get("required", ())) - set(value):
            return False
        return all(
            accepts(item, schema["properties"][name])
            if name in schema.get("properties", {})
            else others is not False and accepts(item, others)
            for name, item in value.items()
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(accepts(item, schema.get("items", {})) for item in value)
    if isinstance(value, str):
        return value in schema.get("enum", [value]) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, bool):
        return True
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
    )  # fmt: skip


def test_the_schema_accepts_the_example_file_with_every_line_switched_on() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert accepts(tomllib.loads(text), SCHEMA)
    everything = tomllib.loads(re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE))
    assert set(everything) == set(SCHEMA["properties"])
    assert accepts(everything, SCHEMA)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("pool_size = 5", True),
        ("pool_size = 0", False),
        ("pool_size = 10001", False),
        ('pool_size = "many"', False),
        ("pool_sise = 5", False),
        ('tls = "require"', True),
        ('tls = "perhaps"', False),
        ('listen = "127.0.0.1:1"', True),
        ('listen = ["127.0.0.1:1", "[::1]:1"]', True),
        ("listen = []", False),
        ("cache.ttl = 5", True),
        ('cache.ttl = "5min"', True),
        ('cache.ttl = "5 weeks"', False),
        ("cache.ttl = 0", False),
        ('cache.max_bytes = "64MB"', True),
        ('cache.max_bytes = "64 things"', False),
        ('cache.enabled = "yes, please"', False),
        ('users.ann.password = "x"', True),
        ('users.ann.passwort = "x"', False),
        ('databases.other.origin = "postgresql://a:b@localhost"', True),
        ("databases.other.pool_size = 5", False),
    ],
)
def test_the_schema_and_the_program_agree(tmp_path: Path, text: str, right: bool) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(f'origin = "postgresql://a:b@localhost/c"\n{text}\n')
    assert accepts(tomllib.loads(file.read_text()), SCHEMA) is right
    try:
        config.load(file=file, environ={})
    except ConfigError:
        assert not right
    else:
        assert right
