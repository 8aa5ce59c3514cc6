"""The origin's password changes under load, in either order, and no query fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, run
from tests.support.waiting import Background, until

NEW = "another secret"


def role(origin: Server, name: str) -> str:
    """A new role; the URL to log in as it, without its password."""
    return origin.role(name).replace(origin.url(user=name).split("@")[0], f"postgresql://{name}")


def change_password(origin: Server, name: str, password: str) -> None:
    origin.execute(f"alter role {name} password '{password}'")


@contextmanager
def load(near: Pgnear, user: str, clients: int = 6) -> Iterator[None]:
    """Clients that query all the time; at the end none of them has seen an error."""
    over = threading.Event()
    done = [0] * clients

    def work(number: int) -> None:
        with near.connect(dsn={"user": user}) as connection:
            while not over.is_set():
                assert connection.execute(f"select {number}, clock_timestamp()").fetchone()[0] == number
                done[number] += 1

    workers = [Background(lambda number=number: work(number)) for number in range(clients)]  # type: ignore[misc]

    def goes_on() -> None:
        before = list(done)
        until(lambda: all(now > then for now, then in zip(done, before, strict=True)) or not workers_alive())

    def workers_alive() -> bool:
        return all(worker.running for worker in workers)

    try:
        goes_on()
        yield
        goes_on()
    finally:
        over.set()
        for worker in workers:
            worker.result()


def rotations(near: Pgnear, outcome: str) -> float:
    return near.metric("credential_rotations_total", outcome=outcome)


def new_backends(origin: Server, name: str, near: Pgnear) -> None:
    """Have every connection of the pool closed, so that new ones need the password that holds."""
    with near.connect(dsn={"user": name, "dbname": "pgnear"}) as connection:
        connection.execute(b"reconnect")


def test_a_password_changed_at_the_origin_first_costs_no_query(pgnear: Start, origin: Server, tmp_path: Path) -> None:
    """Between the two changes pgnear's password is refused: the connections that it has go on working."""
    url = role(origin, "rotates_first")
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    near = pgnear(url=url, password_file=str(secret), pool_size=4, cache={"enabled": False})
    with load(near, "rotates_first"):
        change_password(origin, "rotates_first", NEW)
        replaced = tmp_path / "replaced"
        replaced.write_text(NEW)
        replaced.rename(secret)
        near.wait_for_log("credentials_rotated")
        new_backends(origin, "rotates_first", near)
    assert rotations(near, "verified") == 1
    assert near.metric("origin_connect_failures_total") == 0


def test_a_password_changed_in_the_file_first_waits_until_the_origin_takes_it(
    pgnear: Start, origin: Server, tmp_path: Path
) -> None:
    url = role(origin, "rotates_second")
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    near = pgnear(url=url, password_file=str(secret), pool_size=4, cache={"enabled": False})
    with load(near, "rotates_second"):
        secret.write_text(NEW)
        failed = near.wait_for_log("credentials_not_rotated", outcome="rejected")
        assert NEW not in str(failed)
        with near.connect(dsn={"user": "rotates_second", "dbname": "pgnear"}) as connection:
            assert "refuses pgnear's login" in connection.execute(b"show pools").fetchone()[14]
            connection.execute(b"reconnect")  # the old password still does
            change_password(origin, "rotates_second", NEW)
            connection.execute(b"reconnect")  # and now is refused: the source is read at once
        near.wait_for_log("credentials_rotated")
    with near.connect(dsn={"user": "rotates_second", "dbname": "pgnear"}) as connection:
        assert connection.execute(b"show pools").fetchone()[14] is None


def test_clients_may_use_the_old_password_for_a_while(pgnear: Start, origin: Server, tmp_path: Path) -> None:
    url = role(origin, "rotates_clients")
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    near = pgnear(url=url, password_file=str(secret), password_grace="2s")
    near.connect(dsn={"user": "rotates_clients"}).close()
    change_password(origin, "rotates_clients", NEW)
    secret.write_text(NEW)
    near.wait_for_log("credentials_rotated")
    for password in (PASSWORD, NEW):
        near.connect(dsn={"user": "rotates_clients", "password": password}).close()

    def refused() -> bool:
        try:
            near.connect(dsn={"user": "rotates_clients"}).close()
        except psycopg.OperationalError:
            return True
        return False

    until(refused)
    near.connect(dsn={"user": "rotates_clients", "password": NEW}).close()


def test_a_password_command_is_run_again_when_the_origin_refuses_what_it_printed(
    pgnear: Start, origin: Server, tmp_path: Path
) -> None:
    url = role(origin, "rotates_command")
    secret = tmp_path / "secret $(touch injected); x"
    secret.write_text(PASSWORD)
    program = "import sys; print(open(sys.argv[1]).read())"
    file = tmp_path / "pgnear.toml"
    file.write_text(f"password_command = {[sys.executable, '-c', program, str(secret)]}\n")
    near = pgnear("--config", str(file), url=url, cache={"enabled": False}, min_pool_size=0)
    with near.connect(dsn={"user": "rotates_command"}) as connection:
        connection.execute("select 1")
        change_password(origin, "rotates_command", NEW)
        secret.write_text(NEW)
        new_backends(origin, "rotates_command", near)
        assert connection.execute("select 2").fetchone() == (2,)
    assert rotations(near, "verified") == 1
    text = str(near.log_lines)
    assert PASSWORD not in text
    assert NEW not in text


def test_another_user_at_reload_takes_over_and_the_old_ones_connections_go(
    pgnear: Start, origin: Server, tmp_path: Path
) -> None:
    first, second = origin.role("rotates_a"), origin.role("rotates_b")
    file = tmp_path / "pgnear.toml"
    with_users = f'admin_users = "client"\n[users.client]\npassword = "{PASSWORD}"\n'
    file.write_text(f'{with_users}[databases.served]\norigin = "{first}"\n')
    near = pgnear("--config", str(file), url=origin.url(), cache={"enabled": False})
    with near.connect(dsn={"user": "client", "dbname": "served"}) as connection:
        assert connection.execute("select current_user").fetchone() == ("rotates_a",)
        file.write_text(f'{with_users}[databases.served]\norigin = "{second}"\n')
        with near.connect(dsn={"user": "client", "dbname": "pgnear"}) as console:
            assert console.execute(b"reload").fetchall() == [("databases.served.origin", "changed")]
            assert connection.execute("select current_user").fetchone() == ("rotates_b",)
            until(lambda: origin.backends("rotates_a") == 0)
            wrong = second.replace("rotates_b:", "rotates_c:")
            file.write_text(f'{with_users}[databases.served]\norigin = "{wrong}"\n')
            outcomes = dict(console.execute(b"reload").fetchall())
        assert outcomes["credentials of served"].startswith("kept: the origin database cannot be reached")
        assert connection.execute("select current_user").fetchone() == ("rotates_b",)


def test_a_source_without_a_password_is_said_at_the_start() -> None:
    done = run("serve", "--origin", "postgresql://app@127.0.0.1:1/shop", listen="127.0.0.1:0", password_file="/nowhere")
    assert done.returncode == 1
    assert "password_file /nowhere cannot be read: No such file or directory" in done.stderr
