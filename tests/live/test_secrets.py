"""Secrets are planted wherever a configuration may have them, and looked for in everything that comes out."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

import config
from protocol.auth import ScramVerifier
from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import command, executed, run, running
from tests.support.waiting import until
from tests.support.wire import Refused, WireClient, startup

ANNA, BERT, OTHER = "planted%in%users", "planted.in.a.verifier", "planted-in-a-second-origin"


def _planted(origin: Server) -> tuple[str, list[str]]:
    """A configuration, and every text that must not come out of a pgnear that has it."""
    verifier = ScramVerifier.from_password(BERT)
    keys = [base64.b64encode(part).decode() for part in (verifier.salt, verifier.stored_key, verifier.server_key)]
    text = f"SCRAM-SHA-256${verifier.iterations}:{keys[0]}${keys[1]}:{keys[2]}"
    other = f"postgresql://postgres:{OTHER}@127.0.0.1:{origin.port}/postgres"
    file = f"""
admin_users = ["anna"]
[users.anna]
password = "{ANNA}"
[users.bert]
verifier = "{text}"
[databases.other]
origin = "{other}"
"""
    return file, [PASSWORD, PASSWORD.replace(" ", "%20"), ANNA, BERT, OTHER, *keys[1:]]


def test_no_planted_secret_comes_out_anywhere(origin: Server, tmp_path: Path) -> None:
    """Log at debug, metrics, status page, console, errors to clients, `ps`, and the objects' own words."""
    text, secrets = _planted(origin)
    file = tmp_path / "pgnear.toml"
    file.write_text(text)
    with running(origin.url(), "--config", str(file), start=executed, log={"level": "debug"}) as near:
        said: dict[str, str] = {"ps": Path(f"/proc/{near.process.pid}/cmdline").read_text()}
        assert "********" in said["ps"]
        assert f"@127.0.0.1:{origin.port}/" in said["ps"], "only the password is hidden"
        near.wait_for_log("password_on_command_line")

        with WireClient.logged_in(near.port, user="anna", password=ANNA) as client:
            client.query("select 1; select nonsense")
        with WireClient.logged_in(near.port, user="bert", password=BERT) as client:
            client.query("set evil.x to 1")
        refusals = []
        for user, password, database in (
            ("anna", BERT, "postgres"),
            ("nobody", ANNA, "postgres"),
            ("anna", ANNA, "other"),
        ):
            with pytest.raises(Refused) as refused:
                WireClient.logged_in(near.port, user=user, password=password, database=database)
            refusals.append(refused.value.fields)
        with WireClient(near.port) as client:
            client.send(startup({"user": "anna", "password": "no such setting"}))
            client.receive()
        said["errors"] = json.dumps(refusals)
        for page in ("/", "/metrics", "/healthz", "/readyz", "/nowhere"):
            said[page] = near.get(page)[1]
        with near.connect(dsn={"dbname": "pgnear", "user": "anna", "password": ANNA}) as console:
            shown = [row[0].removeprefix("SHOW ") for row in console.execute("show help") if row[0].startswith("SHOW")]
            assert "CONFIG" in shown
            for what in shown:
                said[what] = str(console.execute(f"show {what}".encode()).fetchall())
    said["log"] = json.dumps(near.log_lines)
    said["check-config"] = "".join(run("check-config", str(file)).stdout)
    settings = config.load(file=file, flags={"origin": origin.url()})
    objects = (settings, settings.targets(), settings.client_users())
    said["objects"] = "".join(map(repr, objects)) + "".join(map(str, objects)) + settings.model_dump_json()
    assert not [(where, secret) for where, words in said.items() for secret in secrets if secret in words]


@pytest.mark.parametrize(
    "broken",
    [
        "postgresql://app:{secret}@host:notaport/db",
        "postgresql://app:{secret}@/db?sslmode=nonsense",
        "postgresql://app:{secret}@host/db?unknown=1",
        "postgresql://app:{secret}@host@host/db",
        "postgres//app:{secret}@host/db",
        "postgresql://app:{secret}@db.example.com/db?sslmode=disable",
        "postgresql://app@host/db?password={secret}&sslmode=nonsense",
        "postgresql://app:%zz{secret}@host/db",
        "postgresql://pgnear:{secret}@127.0.0.1/pgnear",
    ],
)
def test_a_configuration_that_is_refused_is_refused_without_its_secrets(broken: str, tmp_path: Path) -> None:
    secret = "planted7secret"
    url = broken.format(secret=secret)
    file = tmp_path / "pgnear.toml"
    file.write_text(f'origin = "{url}"\nnonsense = 1\n[users.anna]\npassword = "{secret}"\nverifier = "{secret}"\n')
    for flags in ({}, {"origin": url}):
        with pytest.raises(config.ConfigError) as refused:
            config.load(file=file if not flags else None, flags=flags)
        assert refused.value.problems
        assert secret not in "".join(map(str, refused.value.problems)) + repr(refused.value)


def test_a_full_disk_under_the_log_stops_nobody(origin: Server) -> None:
    """Lines are lost and counted; clients are served, refused and let go as ever, and the process ends as it should."""
    with open("/dev/full", "w") as full:
        _serve_with_log_to(origin, full.fileno())


def test_a_reader_of_the_log_that_has_stopped_stops_nobody(origin: Server) -> None:
    """A pipe that nobody empties is full after 64 KiB; a write to it would wait for ever."""
    reading, writing = os.pipe()
    try:
        _serve_with_log_to(origin, writing)
    finally:
        os.close(reading)
        os.close(writing)


def _serve_with_log_to(origin: Server, fd: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, http = one.getsockname()[1], two.getsockname()[1]
    env = {**os.environ, "PGNEAR_ORIGIN": origin.url(), "PGNEAR_LISTEN": f"127.0.0.1:{port}"}
    env |= {"PGNEAR_HTTP": f"127.0.0.1:{http}", "PGNEAR_LOG__LEVEL": "debug", "PGNEAR_LOG__FORMAT": "json"}
    process = subprocess.Popen(command("serve"), env=env, stderr=fd, stdout=subprocess.DEVNULL)
    try:

        def lost() -> float:
            with urlopen(f"http://127.0.0.1:{http}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return sum(float(line.split()[1]) for line in lines if line.startswith("pgnear_log_lines_lost_total"))

        def refused() -> bool:
            try:
                with WireClient(port) as client:
                    client.send(b"GET / HTTP/1.1\r\n\r\n")
                    return client.receive_all() == []
            except ConnectionRefusedError:  # it does not listen yet
                return False

        until(refused, within=20)

        def loses() -> bool:
            for _ in range(50):
                assert refused()
            return lost() > 20

        until(loses, within=40)
        with WireClient.logged_in(port) as client:
            assert client.one("select 1") == b"1"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_nothing_is_warned_of_where_no_password_is_on_the_command_line(origin: Server, pgnear: Start) -> None:
    near = pgnear(url=f"postgresql://postgres@127.0.0.1:{origin.port}/postgres", auth="trust")
    with pytest.raises(psycopg.OperationalError):
        near.connect()
    near.stop()
    assert "password_on_command_line" not in json.dumps(near.log_lines)


def test_what_a_password_command_prints_comes_out_nowhere(origin: Server, tmp_path: Path) -> None:
    """Nor does it when the origin refuses it, or where the command says it on standard error and fails."""
    secret, wrong = tmp_path / "file", "planted-by-a-command"
    secret.write_text(PASSWORD)
    command = tmp_path / "command"
    command.write_text(f'#!/bin/sh\ncat "{secret}"; cat "{secret}" >&2; test -s "{secret}.ok"\n')
    command.chmod(0o700)
    (tmp_path / "file.ok").write_text("yes")
    url = f"postgresql://postgres@127.0.0.1:{origin.port}/postgres"
    with running(url, password_command=str(command), log={"level": "debug"}) as near:
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            secret.write_text(wrong)
            console.execute(b"reload")
            near.wait_for_log("credentials_not_rotated")
            (tmp_path / "file.ok").write_text("")
            console.execute(b"reload")
            near.wait_for_log("credentials_not_rotated", count=2)
            said = [str(console.execute(show).fetchall()) for show in (b"show config", b"show pools")]
        said += [near.get("/metrics")[1], json.dumps(near.log_lines)]
        said.append(Path(f"/proc/{near.process.pid}/cmdline").read_text())
    assert not [words for words in said for planted in (PASSWORD, wrong) if planted in words]
