"""The Dockerfile and examples/ fit the program: each variable is a setting, each value is one that `config` takes.

No YAML library: the files are read as lines, which their simple shape allows.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import config

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "Dockerfile",
    "examples/docker-compose.yml",
    "examples/kubernetes-sidecar.yaml",
    "examples/README.md",
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def field_of(variable: str) -> Any:
    """The setting that PGNEAR_... names, or None."""
    model: Any = config.Config
    field = None
    for part in variable.removeprefix("PGNEAR_").lower().split("__"):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
    return field


def dockerfile_environment() -> dict[str, str]:
    joined = read("Dockerfile").replace("\\\n", " ")
    pairs = [word for line in re.findall(r"^ENV (.*)$", joined, re.MULTILINE) for word in shlex.split(line)]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name.startswith("PGNEAR_")}


def compose_environment() -> dict[str, str]:
    found = re.findall(r"^\s+(PGNEAR_\w+): (.+)$", read("examples/docker-compose.yml"), re.MULTILINE)
    return {name: value.strip('"') for name, value in found}


def kubernetes_environment() -> dict[str, str]:
    text = read("examples/kubernetes-sidecar.yaml")
    plain = dict(re.findall(r"- name: (PGNEAR_\w+)\n\s+value: (.+)", text))
    secrets = dict(re.findall(r"^  (origin|url): (.+)$", text, re.MULTILINE))
    named = dict(
        re.findall(r"- name: (\w+)\n\s+valueFrom:\n\s+secretKeyRef:\n\s+name: shop-database\n\s+key: (\w+)", text)
    )
    values = plain | {name: secrets[key] for name, key in named.items() if name.startswith("PGNEAR_")}
    return {name: value.strip('"') for name, value in values.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_variable_is_a_setting(name: str) -> None:
    variables = set(re.findall(r"PGNEAR_\w+", read(name)))
    assert variables
    assert not [variable for variable in sorted(variables) if field_of(variable) is None]


@pytest.mark.parametrize("environment", [compose_environment, kubernetes_environment])
def test_an_example_is_a_configuration_that_starts(environment: Any) -> None:
    variables = dockerfile_environment() | environment()
    settings = config.load(environ=variables)
    (target,) = settings.targets().values()
    assert target.database == "shop"
    assert settings.http == "0.0.0.0:9432"


def test_the_sidecar_listens_for_its_own_pod_only() -> None:
    settings = config.load(environ=dockerfile_environment() | kubernetes_environment())
    assert settings.listen == ("127.0.0.1:6432",)


def test_the_sidecar_encrypts_its_way_to_the_origin() -> None:
    settings = config.load(environ=dockerfile_environment() | kubernetes_environment())
    assert not settings.allow_plaintext_origin
    assert settings.targets()["shop"].sslmode == "verify-full"


def test_probes_ask_for_pages_that_exist() -> None:
    text = read("examples/kubernetes-sidecar.yaml")
    assert set(re.findall(r"path: (\S+)", text)) <= {"/metrics", "/healthz", "/readyz"}
    assert "\t" not in text + read("examples/docker-compose.yml")


def test_the_image_runs_as_nobody_special() -> None:
    users = re.findall(r"^USER (\S+)$", read("Dockerfile"), re.MULTILINE)
    assert users
    assert all(int(number) > 0 for number in users[-1].split(":"))


def test_the_health_check_is_a_program_that_asks_readyz() -> None:
    match = re.search(r"^HEALTHCHECK.*?CMD (\[.*?\])$", read("Dockerfile"), re.MULTILINE | re.DOTALL)
    assert match is not None
    python, flag, program = json.loads(match[1])
    assert (python, flag) == ("python", "-c")
    compile(program, "HEALTHCHECK", "exec")
    assert "/readyz" in program


def test_the_image_is_built_from_files_that_its_context_has() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", read("Dockerfile"), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    allowed = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert set(copied) <= allowed
    assert {"protocol", "config", "pooler", "pyproject.toml"} <= set(copied)
    assert not [source for source in copied if not (ROOT / source).exists()]
