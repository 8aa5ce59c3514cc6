"""RELOAD and SIGHUP: what changes, what needs a restart, and a file that cannot be used."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Start
from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear
from tests.support.waiting import until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pgnear.toml"
    path.write_text("")
    return path


def reload(near: Pgnear) -> dict[str, str]:
    with near.connect(dsn={"dbname": "pgnear"}) as connection:
        return dict(connection.execute(b"reload").fetchall())


def hang_up(near: Pgnear, event: str, **fields: object) -> dict[str, Any]:
    """Send SIGHUP; the log line that it ends in."""
    before = sum(line.get("event") == event for line in near.log_lines)
    near.process.send_signal(signal.SIGHUP)
    return near.wait_for_log(event, count=before + 1, **fields)


def test_what_can_change_changes_for_clients_that_are_there_already(pgnear: Start, origin: Server, file: Path) -> None:
    role = origin.role("reloaded")
    near = pgnear("--config", str(file), url=role, min_pool_size=1)
    with near.connect(dsn={"user": "reloaded"}) as connection:
        connection.execute("select pg_sleep(0.3)")
        file.write_text(
            f"""
            query_timeout = "150ms"
            pool_size = 3
            max_client_connections = 7
            admin_users = "reloaded"
            [log]
            level = "debug"
            [users.reloaded]
            password = "{PASSWORD}"
            [users.late]
            password = "comes late"
            [cache]
            ttl = "5s"
            [[cache.policy]]
            name = "one"
            ttl = "1s"
            text = "one"
            """
        )
        assert reload_as(near, "reloaded") == {
            "query_timeout": "changed",
            "pool_size": "changed",
            "max_client_connections": "changed",
            "admin_users": "changed",
            "log.level": "changed",
            "users.late": "changed",
            "users.reloaded": "changed",
            "cache.ttl": "changed",
            "cache.policy": "changed",
        }
        with pytest.raises(psycopg.errors.QueryCanceled, match="query_timeout"):
            connection.execute("select pg_sleep(20)")
        assert near.metric("pool_size") == 3
        near.connect(dsn={"user": "late", "password": "comes late"}).close()
        near.wait_for_log("client_connected", user="late")
        file.write_text("")
        near.process.send_signal(signal.SIGHUP)
        near.wait_for_log("reloaded", count=2)
        connection.execute("select pg_sleep(0.3)")
        assert near.metric("pool_size") == 20
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            near.connect(dsn={"user": "late", "password": "comes late"})


def reload_as(near: Pgnear, user: str) -> dict[str, str]:
    with near.connect(dsn={"dbname": "pgnear", "user": user}) as connection:
        return dict(connection.execute(b"reload").fetchall())


def test_a_broken_file_changes_nothing_and_everything_wrong_is_said(pgnear: Start, file: Path) -> None:
    near = pgnear("--config", str(file))
    with near.connect() as connection:
        file.write_text('pool_size = 0\nquery_timout = "1s"\n')
        problems = str(hang_up(near, "reload_failed")["problems"])
        assert "line 1: pool_size" in problems
        assert "did you mean query_timeout?" in problems
        with pytest.raises(psycopg.Error) as caught:
            reload(near)
        assert caught.value.sqlstate == "F0000"
        assert "line 1: pool_size" in str(caught.value)
        near.wait_for_log("reload_failed", count=2)
        file.write_text("pool_size = [")
        assert "is not TOML" in str(hang_up(near, "reload_failed")["problems"])
        assert connection.execute("select 1").fetchone() == (1,)
        assert near.metric("pool_size") == 20
        assert near.metric("reload_failures_total") == 3


def test_what_needs_a_restart_is_named_and_stays(pgnear: Start, origin: Server, file: Path) -> None:
    near = pgnear("--config", str(file))
    file.write_text(f'reuse_port = true\n[cache]\nmax_bytes = "1MB"\n[databases.more]\norigin = "{origin.url()}"\n')
    assert reload(near) == {
        "reuse_port": "needs a restart",
        "cache.max_bytes": "needs a restart",
        "databases.more": "needs a restart",
    }
    assert near.wait_for_log("reloaded")["needs_restart"] == ["reuse_port", "cache.max_bytes", "databases.more"]
    with near.connect(dsn={"dbname": "pgnear"}) as connection:
        settings = {row[0]: row[1:] for row in connection.execute(b"show config")}
    assert settings["cache.max_bytes"] == (str(128 * 1024**2), str(128 * 1024**2), "no")
    assert settings["pool_size"][2] == "yes"


def test_a_smaller_pool_shrinks_and_a_larger_one_serves_those_who_wait(pgnear: Start, file: Path) -> None:
    file.write_text("pool_size = 4")
    near = pgnear("--config", str(file))
    clients = [near.connect() for _ in range(4)]
    for client in clients:
        client.execute("begin")
    file.write_text("pool_size = 2")
    reload(near)
    for client in clients:
        assert client.execute("select 1").fetchone() == (1,)
        client.execute("commit")
    until(lambda: near.metric("pool_idle") + near.metric("pool_busy") <= 2)
    for client in clients:
        client.close()


def test_a_new_certificate_is_shown_and_a_broken_pair_keeps_the_old(pgnear: Start, tmp_path: Path) -> None:
    first, second = Authority(), Authority()
    certificate, key, roots = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "root.crt"

    def put(authority: Authority) -> None:
        issued = authority.issue("localhost")
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)

    def connect(near: Pgnear, authority: Authority) -> None:
        roots.write_bytes(authority.certificate)
        near.connect(dsn={"host": "localhost", "sslmode": "verify-full", "sslrootcert": str(roots)}).close()

    put(first)
    near = pgnear(tls_cert_file=str(certificate), tls_key_file=str(key))
    connect(near, first)
    put(second)
    near.wait_for_log("tls_reloaded")
    until(lambda: succeeds(lambda: connect(near, second)))
    key.write_text("-----BEGIN PRIVATE KEY-----\nbroken\n")
    near.wait_for_log("tls_reload_failed")
    connect(near, second)


def succeeds(work: Any) -> bool:
    try:
        work()
    except psycopg.OperationalError:
        return False
    return True
