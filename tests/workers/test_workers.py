"""Several worker processes are one pgnear."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from pooler.ceremony import greeting
from tests.support.postgres import Server
from tests.support.process import Pgnear, run
from tests.support.waiting import until

CLIENTS = 24
"""So many that each of two workers has some: the kernel shares them out by chance."""


@contextmanager
def clients(near: Pgnear, count: int = CLIENTS) -> Iterator[list[psycopg.Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(near.connect())) for _ in range(count)]


def worker_of(client: psycopg.Connection) -> int:
    return (client.info.backend_pid - greeting._ABOVE_ALL_PROCESSES) % 2


def have_clients(near: Pgnear) -> set[int]:
    """Which workers take in those who connect now."""
    with clients(near) as connected:
        return {worker_of(client) for client in connected}


def processes(near: Pgnear) -> dict[int, int]:
    """The latest process of each worker."""
    return {line["worker"]: line["pid"] for line in near.log_lines if line.get("event") == "worker_started"}


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def in_a_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_clients_are_shared_out(house: Callable[..., Pgnear]) -> None:
    with clients(house()) as connected:
        assert {worker_of(client) for client in connected} == {0, 1}
        assert [client.execute("select 42").fetchone() for client in connected] == [(42,)] * CLIENTS


def put_to_sleep(
    sleepers: list[psycopg.Connection], direct: psycopg.Connection
) -> tuple[list[threading.Thread], list[str]]:
    """Have all of them sleep at the origin, until they are cancelled: the threads, and what has become of each."""
    outcomes: list[str] = []

    def sleep(client: psycopg.Connection) -> None:
        try:
            client.execute("select pg_sleep(60), 'sleeper'")
        except psycopg.errors.QueryCanceled:
            outcomes.append("canceled")

    threads = [in_a_thread(lambda client=client: sleep(client)) for client in sleepers]  # type: ignore[misc]
    asleep = "select count(*) from pg_stat_activity where state = 'active' and query like '%''sleeper''%'"
    until(lambda: direct.execute(asleep + " and pid <> pg_backend_pid()").fetchone() == (len(sleepers),))
    return threads, outcomes


def test_a_cancel_finds_its_way_whichever_worker_hears_of_it(house: Callable[..., Pgnear], origin: Server) -> None:
    """Each of the requests comes in on a connection of its own, to a worker that chance decides."""
    near = house(pool_size=20)
    with clients(near, 16) as connected, origin.connect() as direct:
        threads, outcomes = put_to_sleep(connected, direct)
        for client in connected:
            client.cancel_safe()
        for thread in threads:
            thread.join(30)
        assert outcomes == ["canceled"] * 16
        assert {worker_of(client) for client in connected} == {0, 1}


def test_a_cancel_and_a_termination_by_sql_reach_clients_of_other_workers(
    house: Callable[..., Pgnear], origin: Server
) -> None:
    """By the process ids that they were given at login: each says whose it is."""
    near = house(pool_size=20)
    with clients(near, 16) as connected, origin.connect() as direct:
        askers = {worker_of(client): client for client in connected}
        assert set(askers) == {0, 1}
        targets = [client for client in connected if client not in askers.values()]
        threads, outcomes = put_to_sleep(targets, direct)
        for client in targets:
            asker = askers[1 - worker_of(client)]
            done = asker.execute("select pg_cancel_backend(%s)", [client.info.backend_pid])
            assert done.fetchone() == (True,)
        for thread in threads:
            thread.join(30)
        assert outcomes == ["canceled"] * len(targets)
        for client in targets:
            asker = askers[1 - worker_of(client)]
            asker.execute("begin")
            for expected in (True, False):  # then it is gone
                done = asker.execute("select pg_terminate_backend(%s, 20000)", [client.info.backend_pid])
                assert done.fetchone() == (expected,)
            asker.execute("commit")
            with pytest.raises(psycopg.errors.AdminShutdown):
                client.execute("select 1")


def test_all_together_open_no_more_origin_connections_than_pool_size(
    house: Callable[..., Pgnear], origin: Server
) -> None:
    near = house(pool_size=3)
    with clients(near) as connected, origin.connect() as direct:
        threads = [in_a_thread(lambda each=each: each.execute("select pg_sleep(0.05)")) for each in connected]  # type: ignore[misc]
        count = "select count(*) from pg_stat_activity where application_name like 'pgnear%'"
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, direct.execute(count).fetchone()[0])  # type: ignore[index]
        for thread in threads:
            thread.join()
    assert most <= 3


def test_a_worker_that_dies_takes_only_its_own_clients_along_and_another_takes_its_place(
    house: Callable[..., Pgnear],
) -> None:
    near = house()
    with clients(near) as connected:
        victim = processes(near)[0]
        os.kill(victim, signal.SIGKILL)
        near.wait_for_log("worker_ended", worker=0)
        for client in connected:
            if worker_of(client) == 1:
                assert client.execute("select 1").fetchone() == (1,)
            else:
                with pytest.raises(psycopg.OperationalError):
                    client.execute("select 1")
        with clients(near) as others:
            assert [client.execute("select 2").fetchone() for client in others] == [(2,)] * CLIENTS
    until(lambda: have_clients(near) == {0, 1}, what="nobody is in its place", within=40)
    assert processes(near)[0] != victim


def test_a_signal_lets_transactions_finish_in_every_worker(house: Callable[..., Pgnear]) -> None:
    near = house()
    with clients(near, 16) as connected:
        for client in connected:
            client.execute("begin")
            client.execute("select 1")
        near.process.send_signal(signal.SIGTERM)
        near.wait_for_log("stopping", count=3)  # the parent, and both
        for client in connected:
            assert client.execute("select 2").fetchone() == (2,)
            client.execute("commit")
        assert near.process.wait(20) == 0
    assert not any(map(is_running, processes(near).values()))


def test_a_second_signal_ends_all_of_them_at_once(house: Callable[..., Pgnear]) -> None:
    near = house()
    with clients(near, 8) as connected:
        for client in connected:
            client.execute("begin")
            client.execute("select 1")
        near.process.send_signal(signal.SIGTERM)
        near.wait_for_log("stopping", count=3)
        near.process.send_signal(signal.SIGINT)
        assert near.process.wait(10) == 0
    assert not any(map(is_running, processes(near).values()))


def test_workers_end_when_their_parent_is_gone(origin: Server) -> None:
    near = Pgnear(origin.url(), {"workers": 2, "http": None})
    workers = processes(near).values()
    near.process.kill()
    near.process.wait()
    until(lambda: not any(map(is_running, workers)), within=20)


def test_a_reload_reaches_every_worker(house: Callable[..., Pgnear], tmp_path: Path, origin: Server) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text("query_timeout = 0\n")
    near = house("--config", str(file))
    file.write_text('query_timeout = "50ms"\n')
    near.process.send_signal(signal.SIGHUP)
    near.wait_for_log("reloaded", worker=0)
    near.wait_for_log("reloaded", worker=1)
    with clients(near) as connected:
        for client in connected:
            with pytest.raises(psycopg.errors.QueryCanceled):
                client.execute("select pg_sleep(10)")


def test_a_unix_socket_is_shared(house: Callable[..., Pgnear], tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.6432"
    near = house(listen=f"unix:{path}", auth="trust")
    with ExitStack() as stack:
        connected = [
            stack.enter_context(
                psycopg.connect(f"host={tmp_path} port=6432 user=postgres dbname=postgres", autocommit=True)
            )
            for _ in range(CLIENTS)
        ]
        assert [client.execute("select 1").fetchone() for client in connected] == [(1,)] * CLIENTS
    near.stop()
    assert not path.exists()


def test_an_address_that_is_taken_is_said_once(origin: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("serve", "--origin", origin.url(), "--listen", address, "--workers", "2")
    assert ended.returncode == 1
    assert ended.stderr.count("cannot_start") == 1
    assert "the port is taken" in ended.stderr


def test_a_pool_has_a_connection_for_each_worker() -> None:
    origin = "postgresql://a:b@127.0.0.1/c"
    ended = run("serve", "--origin", origin, "--workers", "4", "--pool-size", "3")
    assert ended.returncode == 2
    assert "a pool_size of 3 leaves some of 4 workers no connection" in ended.stderr


def test_no_worker_has_many_more_clients_than_another(house: Callable[..., Pgnear]) -> None:
    """Whatever the kernel's dice say: each has but its share of the pool."""
    with clients(house(), 40) as connected:
        assert abs(sum(1 if worker_of(client) else -1 for client in connected)) <= 2
        assert [client.execute("select 1").fetchone() for client in connected] == [(1,)] * 40


def test_who_connects_while_a_worker_is_away_is_served_by_the_others(house: Callable[..., Pgnear]) -> None:
    """It is away for as long as a client of it may take for its transaction, here without end."""
    near = house()
    with clients(near, 8) as connected:
        stays = next(client for client in connected if worker_of(client) == 0)
        stays.execute("begin")
        stays.execute("select 1")
        os.kill(processes(near)[0], signal.SIGTERM)
        until(lambda: have_clients(near) == {1})
        with clients(near) as others:
            assert [client.execute("select 2").fetchone() for client in others] == [(2,)] * CLIENTS
        assert stays.execute("select 3").fetchone() == (3,)
        stays.execute("commit")
    until(lambda: have_clients(near) == {0, 1}, what="nobody is in its place", within=40)
