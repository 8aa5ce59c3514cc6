"""The command `pgnear` as somebody types it: real processes, their exit statuses, and what they say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import psycopg
import pytest

import pooler
from pooler import cli
from tests.conftest import Start
from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, executed, run, running
from tests.support.waiting import until
from tests.support.wire import Refused, WireClient

URL = "postgresql://app:secret@127.0.0.1:1/shop"


# ---- what it says about itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", ["--help", "-h", "serve --help", "check-config -h", "demo --help", "explain-cache --help"]
)
def test_help_fits_a_terminal_and_nothing_in_it_is_cut_off(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    assert "Usage: pgnear" in done.stdout


def test_help_names_every_command_with_what_it_is_for() -> None:
    text = run("--help").stdout
    for name in ("serve", "check-config", "demo", "explain-cache"):
        assert re.search(rf"^\W*{name} +[A-Z].*\.", text, re.MULTILINE), name


def test_serve_has_a_flag_for_each_common_setting() -> None:
    flags = set(re.findall(r"--[a-z-]+", run("serve", "--help").stdout))
    assert flags >= {"--origin", "--config", "--listen", "--pool-size", "--no-cache", "--http", "--log-level"}


def test_version() -> None:
    about = " (accelerated)" if pooler.accelerated() else ""
    assert run("--version").stdout == f"pgnear {pooler.__version__}{about}\n"


def test_the_installed_command_is_this_one() -> None:
    (entry,) = entry_points(group="console_scripts", name="pgnear")
    assert entry.load() is cli.main


# ---- usage and configuration: status 2 ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "Usage: pgnear"),
        ("serv", "Did you mean 'serve'?"),
        ("serve --pool-sise 3", "--pool-size"),
        ("serve --pool-size many", "valid integer"),
        ("serve --pool-size 0", "--pool-size: pool_size: input should be greater than or equal to 1"),
        ("serve --listen 6432", "--listen: listen.0: write HOST:PORT"),
        ("serve --origin mysql://a@b/c", "--origin: origin: must be a URL like postgresql://"),
        ("serve", "nothing to connect to"),
        ("check-config", "Missing argument"),
        ("demo --port 65536", "65535"),
    ],
)
def test_wrong_usage_is_status_2_and_said(arguments: str, said: str) -> None:
    done = run(*shlex.split(arguments))
    assert done.returncode == 2
    text = re.sub(r"[\s│]+", " ", done.stdout + done.stderr)
    assert said in text
    assert "Traceback" not in text


def test_check_config_says_everything_at_once(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text('origin = "postgresql://app:s3cr3t@db/shop?sslmode=allow"\npool_sise = 3\n[cache]\nttl = -1\n')
    done = run("check-config", str(file), log={"level": "loud"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"pgnear: {file} line 4: cache.ttl: input should be greater than 0",
        "pgnear: environment PGNEAR_LOG__level: log.level: input should be 'debug', 'info', 'warning' or 'error'",
        f"pgnear: {file} line 2: pool_sise: there is no such setting (did you mean pool_size?)",
        f"pgnear: {file} line 1: origin: sslmode=allow may send passwords and data unencrypted to db:5432; "
        "use verify-full, or set allow_plaintext_origin = true",
    ]


def test_check_config_of_a_good_file_shows_what_it_means(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(f'origin = "{URL}"\nlisten = "127.0.0.1:7000"\n[databases.other]\norigin = "{URL}"\n')
    done = run("check-config", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: ok (databases: other, shop; listening on 127.0.0.1:7000)\n"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for arguments in (("check-config", str(tmp_path)), ("serve", "-c", str(tmp_path))):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (2, f"pgnear: {tmp_path}: cannot be read: Is a directory\n")
    missing = tmp_path / "missing.toml"
    done = run("serve", CONFIG=missing)
    assert (done.returncode, done.stderr) == (2, f"pgnear: {missing}: cannot be read: No such file or directory\n")


def test_a_plaintext_origin_on_another_machine_is_refused_before_anything_starts() -> None:
    done = run("serve", "--origin", "postgresql://app:s3cr3t@192.0.2.1/shop?sslmode=disable")
    assert done.returncode == 2
    assert "unencrypted to 192.0.2.1" in done.stderr
    assert "s3cr3t" not in done.stderr


# ---- what cannot start: status 1 ------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("setting", ["listen", "http"])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_taken_port_is_one_clear_line(taken: str, setting: str, log_format: str) -> None:
    settings = {"listen": "127.0.0.1:0", setting: taken, "log": {"format": log_format}}
    done = run("serve", origin=URL, **settings)
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if "origin_connect_failed" not in text]
    assert "cannot_start" in line
    assert f"cannot listen on {taken}: the port is taken" in line


def test_an_address_that_is_not_of_this_machine_is_one_clear_line() -> None:
    done = run("serve", "--listen", "192.0.2.1:6432", origin=URL)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot listen on 192.0.2.1:6432: Cannot assign requested address" in line


def test_a_unix_socket_that_is_in_use_and_what_is_no_socket_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        done = run("serve", "--origin", URL, "--listen", f"unix:{path}")
        assert (done.returncode, "the port is taken" in done.stderr) == (1, True)
        assert path.exists()
    file = tmp_path / "file"
    file.write_text("precious")
    assert run("serve", "--origin", URL, "--listen", f"unix:{file}").returncode == 1
    assert file.read_text() == "precious"


def test_a_unix_socket_of_a_process_that_died_is_taken_over(pgnear: Start, tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.6432"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    near = pgnear(listen=f"127.0.0.1:0,unix:{path}")
    with near.connect(dsn={"host": str(tmp_path), "port": 6432}) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


# ---- serving --------------------------------------------------------------------------------------------------------


def without_origin_flag(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`running` gives the origin by flag; here it comes from elsewhere."""
    serve, _, _, *rest = arguments
    return executed([serve, *rest], environment)


def works(near: Pgnear, origin: Server, host: str = "127.0.0.1", port: int | None = None) -> None:
    """psql and psycopg get an answer through it."""
    port = port or near.port
    psql = subprocess.run(
        [
            str(origin.bin / "psql"),
            "-XAt",
            "-h",
            host,
            "-p",
            str(port),
            "-U",
            "postgres",
            "-c",
            "select 6*7",
            "postgres",
        ],
        env={**os.environ, "PGPASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (psql.stdout, psql.stderr) == ("42\n", "")
    with near.connect(dsn={"host": host, "port": port}) as connection:
        assert connection.execute("select %s::int", (42,)).fetchone() == (42,)


def test_the_origin_by_flag_is_all_that_is_needed(origin: Server) -> None:
    with running(origin.url()) as near:
        works(near, origin)


def test_the_origin_by_environment_is_all_that_is_needed(origin: Server) -> None:
    with running("", start=without_origin_flag, origin=origin.url()) as near:
        works(near, origin)


def test_the_origin_by_file_is_all_that_is_needed(origin: Server, tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(f'origin = "{origin.url()}"\npool_size = 3\n')
    with running("", "-c", str(file), "--pool-size", "4", start=without_origin_flag) as near:
        works(near, origin)
        assert near.metric("pool_size") == 4
    with running("", start=without_origin_flag, config=file) as near:
        works(near, origin)
        assert near.metric("pool_size") == 3


def test_listening_by_flags_on_ipv6_and_a_unix_socket(origin: Server, tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.6432"
    with running(origin.url(), "--listen", "[::1]:0", "--listen", f"unix:{path}") as near:
        near.wait_for_log("listening", count=2)
        works(near, origin, "::1")
        works(near, origin, str(tmp_path), 6432)
    assert not path.exists()


def test_without_the_cache_every_answer_is_the_origins(
    origin: Server, pgnear: Start, table: str, direct: psycopg.Connection
) -> None:
    count = f"select count(*) from {table}"
    cached, plain = pgnear(), pgnear("--no-cache")
    cached.wait_until_it_caches()
    with cached.connect() as one, plain.connect() as other:
        assert one.execute(count).fetchone() == other.execute(count).fetchone() == (3,)
        direct.execute(f"delete from {table} where id = 1".encode())  # past pgnear, which cannot know
        assert one.execute(count).fetchone() == (3,), "the cache did not answer, so this shows nothing"
        assert other.execute(count).fetchone() == (2,)


def test_http_tells_how_it_is(pgnear: Start) -> None:
    near = pgnear("--http", "127.0.0.1:0", http=None, log={"level": "info"})
    near.http = str(near.wait_for_log("http_listening")["address"])
    assert near.get("/healthz")[0] == 200
    until(lambda: near.get("/readyz")[0] == 200, what="not ready")
    assert "pgnear_pool_size" in near.metrics()


def test_http_is_off_unless_it_is_asked_for(pgnear: Start) -> None:
    near = pgnear(http=None)
    near.connect().close()
    near.stop()
    assert not [line for line in near.log_lines if line.get("event") == "http_listening"]


def test_a_certificate_that_cannot_be_used_is_status_2_and_named(tmp_path: Path) -> None:
    one, other = Authority().issue("localhost"), Authority().issue("localhost")
    (tmp_path / "one.crt").write_bytes(one.certificate)
    (tmp_path / "other.key").write_bytes(other.key)
    settings = {"tls_cert_file": tmp_path / "one.crt", "tls_key_file": tmp_path / "other.key"}
    done = run("serve", "--origin", URL, **settings)
    assert done.returncode == 2
    assert "environment PGNEAR_TLS_KEY_FILE: tls_key_file: the key in " in done.stderr


@pytest.fixture
def pgnear(pgnear: Start) -> Start:
    """The command itself, not forked: what it does at its end is its own."""
    return partial(pgnear, start=executed)


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_status_0(pgnear: Start, number: signal.Signals) -> None:
    near = pgnear()
    with near.connect() as idle:
        idle.execute("select 1")
        near.process.send_signal(number)
        assert near.process.wait(15) == 0
        with pytest.raises(psycopg.errors.AdminShutdown):
            idle.execute("select 1")
    assert near.wait_for_log("stopping", signal=number.name)
    assert near.wait_for_log("stopped")


def test_it_ends_well_while_it_waits_for_the_origin(origin: Server, pgnear: Start, direct: psycopg.Connection) -> None:
    """The connection that reads the catalog was closed under the task that read it: a traceback and status 1."""
    with direct.transaction():
        direct.execute("lock table pg_inherits in access exclusive mode")
        near = pgnear()
        waits = "select count(*) from pg_locks where not granted and relation = 'pg_inherits'::regclass"
        until(lambda: direct.execute(waits).fetchone() != (0,), what="the catalog is not read")
        near.stop(within=15)


def test_a_second_signal_does_not_wait_for_transactions(pgnear: Start) -> None:
    near = pgnear(drain_timeout="60s")
    connection = near.connect(autocommit=False)
    connection.execute("select 1")
    near.process.send_signal(signal.SIGTERM)
    near.wait_for_log("stopping")
    with pytest.raises(subprocess.TimeoutExpired):
        near.process.wait(0.5)  # the transaction may finish
    near.process.send_signal(signal.SIGTERM)
    assert near.process.wait(15) == 0


# ---- an origin that is not there, or says no ------------------------------------------------------------------------


def refused(near: Pgnear, **login: str) -> dict[str, str]:
    """What a client is told at login."""
    with pytest.raises(Refused) as refusal:
        WireClient.logged_in(near.port, **login)  # type: ignore[arg-type]
    return refusal.value.fields


def test_an_origin_that_is_not_there_yet_is_waited_for(origin_down: Server, pgnear: Start) -> None:
    near = pgnear(url=origin_down.url())
    failure = near.wait_for_log("origin_connect_failed")
    assert failure["sqlstate"] == "08001"
    assert "Connection refused" in failure["reason"]
    status, text = near.get("/readyz")
    assert status == 503
    assert "Connection refused" in text
    assert near.get("/healthz")[0] == 200
    said = refused(near)
    assert (said["S"], said["C"]) == ("FATAL", "08001")
    assert "the origin database cannot be reached" in said["M"]
    assert "Connection refused" in said["M"]

    origin_down.restart()
    until(lambda: near.get("/readyz")[0] == 200, what="not ready though the origin is there")
    with near.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


@pytest.fixture
def origin_down() -> Iterator[Server]:
    """A PostgreSQL of its own that has been stopped; `restart` brings it back."""
    with Server() as server:
        server.crash()
        yield server


def test_a_wrong_password_for_the_origin_is_said_where_it_is_looked_for(origin: Server, pgnear: Start) -> None:
    near = pgnear(url=origin.url(password="wrong"))
    failure = near.wait_for_log("origin_connect_failed")
    assert 'password authentication failed for user "postgres"' in failure["reason"]
    status, text = near.get("/readyz")
    assert (status, "password authentication failed" in text) == (503, True)
    said = refused(near, password="wrong")  # that is what pgnear itself believes, so the client passes
    assert "password authentication failed" in said["M"]


def test_a_database_that_the_origin_does_not_have_is_said(origin: Server, pgnear: Start) -> None:
    near = pgnear(url=origin.url("nowhere"))
    assert near.wait_for_log("origin_connect_failed")["sqlstate"] == "3D000"
    assert 'database "nowhere" does not exist' in refused(near, database="nowhere")["M"]
