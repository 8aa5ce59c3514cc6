"""A client vanishes: in every state, in every manner, all that it held is free again within the cancel wait."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until
from tests.support.wire import FLUSH, SSL_REQUEST, SYNC, WireClient, bind, execute, frame, parse, query, startup

ROLE = "leaving"
CANCEL_WAIT_SECONDS = 5.0
SLACK_SECONDS = 10.0
"""For a busy machine; without an end, a query of this file takes a minute."""

WITNESSES = 3

ASLEEP = "select pg_sleep(60)"
LONG = "select repeat('x', 1000) from generate_series(1, 1000000)"


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    """A pgnear whose origin connections are told from others by their role."""
    url = origin.role(ROLE)
    origin.execute("create table vanished (a int)")
    with running(
        url, pool_size=WITNESSES, min_pool_size=0, cancel_wait_timeout=CANCEL_WAIT_SECONDS, cache={"enabled": False}
    ) as near:
        yield near
    origin.execute("drop table vanished")


@pytest.fixture(scope="module")
def witnesses(near: Pgnear, origin: Server) -> Iterator[list[WireClient]]:
    """Clients that stay, one for each connection of the pool."""
    clients = [logged_in(WireClient(near.port)) for _ in range(WITNESSES)]
    yield clients
    for client in clients:
        client.terminate()


State = Callable[[WireClient, Server], None]


def logged_in(client: WireClient) -> WireClient:
    client.log_in(ROLE, PASSWORD, "postgres")
    return client


def at_work(origin: Server, marker: str) -> bool:
    """Whether the origin works on a statement that has `marker` in it."""
    return bool(
        origin.execute(
            "select count(*) from pg_stat_activity where usename = %s and state = 'active' and query like %s",
            ROLE,
            f"%{marker}%",
        )[0][0]
    )


def idle(client: WireClient, origin: Server) -> None:
    logged_in(client).query("select 1")


def mid_query(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query(ASLEEP))
    until(lambda: at_work(origin, "pg_sleep"))


def mid_message(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query(ASLEEP)[:-5])


def pipeline(client: WireClient, origin: Server) -> None:
    batch = parse(ASLEEP) + bind() + execute() + SYNC
    logged_in(client).send(batch * 5)
    until(lambda: at_work(origin, "pg_sleep"))


def batch_without_its_sync(client: WireClient, origin: Server) -> None:
    logged_in(client).send(parse("insert into vanished values (1)"), bind(), execute(), FLUSH)
    client.receive_until("C")


def transaction(client: WireClient, origin: Server) -> None:
    logged_in(client).query("begin")
    client.query("lock table vanished")


def failed_transaction(client: WireClient, origin: Server) -> None:
    transaction(client, origin)
    client.query("select 1/0")


def pinned(client: WireClient, origin: Server) -> None:
    logged_in(client).query("create temp table gone (a int)")


def copy_in(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query("copy vanished from stdin"), frame("d", b"1\n"))
    client.receive_until("G")


def copy_in_mid_message(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query("copy vanished from stdin"), frame("d", b"1\n" * 100_000)[:-50_000])
    client.receive_until("G")


def copy_out(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query(f"copy ({LONG}) to stdout"))
    client.receive_until("d")


def result_not_read(client: WireClient, origin: Server) -> None:
    logged_in(client).send(query(LONG))
    client.receive_until("D")


def before_the_startup_packet(client: WireClient, origin: Server) -> None:
    client.send(startup({"user": ROLE, "database": "postgres"})[:10])


def during_authentication(client: WireClient, origin: Server) -> None:
    client.send(startup({"user": ROLE, "database": "postgres"}))
    client.receive_until("R")


def during_tls(client: WireClient, origin: Server) -> None:
    client.send(SSL_REQUEST)
    assert client.read(1) == b"S"
    hello = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client.send(hello.read()[:-20])


STATES: list[State] = [
    idle, mid_query, mid_message, pipeline, batch_without_its_sync, transaction, failed_transaction, pinned, copy_in,
    copy_in_mid_message, copy_out, result_not_read, before_the_startup_packet, during_authentication, during_tls,
]  # fmt: skip


def hang_up(client: WireClient) -> None:
    client.hang_up()


def reset(client: WireClient) -> None:
    client.reset()


def half_close(client: WireClient) -> None:
    client.socket.shutdown(socket.SHUT_WR)


def held(near: Pgnear, origin: Server) -> dict[str, float]:
    """What clients but the witnesses hold of this pgnear and of its origin."""
    names = ("clients", "clients_unauthenticated", "clients_pinned", "pool_busy", "pool_waiting", "pool_connecting")
    counted = {name: near.metric(name) for name in names}
    counted["clients"] -= WITNESSES
    query = "select count(*) from pg_stat_activity where usename = %s and state is distinct from 'idle'"
    counted["backends at work"] = float(str(origin.execute(query, ROLE)[0][0]))
    return {name: number for name, number in counted.items() if number}


def is_free_again(near: Pgnear, origin: Server) -> None:
    until(lambda: not held(near, origin), within=CANCEL_WAIT_SECONDS + SLACK_SECONDS, what="something is still held")
    assert near.metric("pool_idle") <= WITNESSES


def all_are_clean(witnesses: list[WireClient]) -> None:
    """Each connection of the pool is as if nobody had been there."""
    for client in witnesses:
        client.query("begin")
        assert client.one("select count(*) from vanished") == b"0"
        assert client.one("select to_regclass('gone')") is None
    for client in witnesses:
        client.query("rollback")


@pytest.mark.parametrize("vanish", [hang_up, reset, half_close])
@pytest.mark.parametrize("state", STATES)
def test_all_that_a_vanished_client_held_is_free_within_the_cancel_wait(
    near: Pgnear, origin: Server, witnesses: list[WireClient], state: State, vanish: Callable[[WireClient], None]
) -> None:
    client = WireClient(near.port)
    state(client, origin)
    vanish(client)
    is_free_again(near, origin)
    client.hang_up()
    all_are_clean(witnesses)


@pytest.mark.parametrize("vanish", [hang_up, reset, half_close])
def test_one_that_vanishes_from_the_queue_is_not_waited_for(
    near: Pgnear, origin: Server, witnesses: list[WireClient], vanish: Callable[[WireClient], None]
) -> None:
    for holder in witnesses:
        holder.query("begin")
    first, second = (logged_in(WireClient(near.port)) for _ in range(2))
    first.send(query("insert into vanished values (1)"))
    until(lambda: near.metric("pool_waiting") == 1)
    second.send(query("select 'second'"))
    until(lambda: near.metric("pool_waiting") == 2)
    vanish(first)
    until(lambda: near.metric("pool_waiting") == 1)
    witnesses[0].query("rollback")
    assert (b"\0\1\0\0\0\6second") in [body for _, body in second.receive_until()]
    for each in (*witnesses[1:], second):
        each.query("rollback")
    first.hang_up()
    second.terminate()
    is_free_again(near, origin)
    all_are_clean(witnesses)  # the query of the one that vanished was never carried out


@pytest.mark.parametrize("size", [300_000, 3_000_000], ids=["in one kernel", "in both kernels"])
@pytest.mark.parametrize("vanish", [hang_up, reset, half_close])
def test_one_that_vanishes_from_the_queue_behind_more_than_is_read_is_not_waited_for(
    near: Pgnear, origin: Server, witnesses: list[WireClient], vanish: Callable[[WireClient], None], size: int
) -> None:
    """Its end is behind what it has sent, and of that pgnear reads no more than buffer_high_water while it waits."""
    for holder in witnesses:
        holder.query("begin")
    client = logged_in(WireClient(near.port))
    client.send(query("insert into vanished values (1)") * (size // 37))
    until(lambda: near.metric("pool_waiting") == 1)
    vanish(client)
    until(lambda: near.metric("pool_waiting") == 0, within=CANCEL_WAIT_SECONDS + SLACK_SECONDS)
    assert near.metric("deadlines_exceeded_total", deadline="pool_wait_timeout") == 0
    for holder in witnesses:
        holder.query("rollback")
    client.hang_up()
    is_free_again(near, origin)
    all_are_clean(witnesses)


@pytest.mark.parametrize("before", [0, 300_000], ids=["nothing", "more than is read"])
def test_what_was_said_before_terminate_is_carried_out_though_its_client_has_left_the_queue(
    near: Pgnear, origin: Server, witnesses: list[WireClient], before: int
) -> None:
    """As by a private connection, which reads what it was sent before it reads the end."""
    for holder in witnesses:
        holder.query("begin")
    client = logged_in(WireClient(near.port))
    filler = frame("Q", b"--" + b" " * before + b"\0") if before else b""
    client.send(filler, query("insert into vanished values (2)"), frame("X"))
    client.hang_up()
    until(lambda: near.metric("pool_waiting") == 1)
    for holder in witnesses:
        holder.query("rollback")
    until(lambda: origin.execute("delete from vanished where a = 2 returning a") == [(2,)])
    is_free_again(near, origin)
    all_are_clean(witnesses)


def test_a_long_pipeline_before_terminate_is_carried_out_though_the_origin_takes_it_slowly(
    near: Pgnear, origin: Server, witnesses: list[WireClient]
) -> None:
    client = logged_in(WireClient(near.port))
    text = "insert into vanished values (3) -- " + "x" * 10_000
    with origin.connect() as locker:
        locker.execute("begin; lock table vanished")
        client.send(query(text) * 100, frame("X"))
        client.socket.shutdown(socket.SHUT_WR)
        until(lambda: at_work(origin, "insert into vanished"))
        locker.execute("rollback")
    until(lambda: origin.execute("select count(*) from vanished where a = 3") == [(100,)])
    origin.execute("delete from vanished")
    client.hang_up()
    is_free_again(near, origin)
    all_are_clean(witnesses)


def test_one_that_vanishes_behind_more_than_the_origin_takes_does_not_keep_it_at_work(
    near: Pgnear, origin: Server, witnesses: list[WireClient]
) -> None:
    client = logged_in(WireClient(near.port))
    with origin.connect() as locker:
        locker.execute("begin; lock table vanished")
        client.send(query("insert into vanished values (4) -- " + "x" * 10_000) * 40)
        until(lambda: at_work(origin, "insert into vanished"))
        client.socket.shutdown(socket.SHUT_WR)
        until(lambda: not held(near, origin), within=CANCEL_WAIT_SECONDS + SLACK_SECONDS)
    client.hang_up()
    all_are_clean(witnesses)
