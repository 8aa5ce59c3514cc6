"""What a query costs pgnear in Python calls and in system calls: counts, which a busy machine does not change.

A ceiling is a little above what was counted when it was set. Whoever makes a query cheaper lowers it; whoever has to
raise it says in the commit what the query gets for it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pooler.sequences import PROBATION
from tests.support.cached import keep
from tests.support.compiled import needs_counting
from tests.support.postgres import Server
from tests.support.process import Pgnear, executed, running
from tests.support.wire import SYNC, WireClient, bind, describe, execute, parse, query

QUERIES = 300
QUESTION = "select v from counted where id = 1"

SHAPES = {
    "simple": query(QUESTION),
    "extended": parse(QUESTION) + bind() + describe() + execute() + SYNC,
    "prepared": bind("kept") + describe() + execute() + SYNC,
}
"""One query, as pgbench sends it in its modes."""

COUNTING = partial(executed, module="tests.bench.counted")

WAYS: dict[str, dict[str, Any]] = {
    "forwarded": {"cache": {"enabled": False}},
    "cached": {"cache": {"ttl": "1h", "invalidation": "writes"}},
}

TRAFFIC = frozenset("recvfrom recvmsg sendto sendmsg read write readv writev".split())
"""System calls that move bytes, by the kernel's names."""

OTHERS = 0.5
"""System calls a query that are neither traffic nor waiting. trio makes a few when it wakes."""


@dataclass(frozen=True)
class Ceiling:
    """For one query: `calls` of our own Python functions, `traffic` of recv and send, `polls` of epoll_wait."""

    calls: float
    traffic: float
    polls: float


CEILINGS = {
    ("simple", "forwarded"): Ceiling(28, 4, 2),
    ("extended", "forwarded"): Ceiling(29, 4, 2),
    ("prepared", "forwarded"): Ceiling(29, 4, 2),
    ("simple", "cached"): Ceiling(9, 2, 1),
    ("extended", "cached"): Ceiling(9, 2, 1),
    ("prepared", "cached"): Ceiling(9, 2, 1),
}
SLACK = 1.02
"""What goes on beside the queries: ticks, a look at a socket that had nothing yet."""

each = pytest.mark.parametrize(("shape", "way"), list(CEILINGS))


@pytest.fixture(scope="module")
def table(origin: Server) -> Iterator[None]:
    origin.execute("create table counted (id int primary key, v int)")
    origin.execute("insert into counted values (1, 10)")
    yield
    origin.execute("drop table counted")


def _clients(near: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(near.port) as client:
        client.ask(parse(QUESTION, "kept") + SYNC)
        yield client


@pytest.fixture(scope="module")
def near(origin: Server, table: None) -> Iterator[dict[str, Pgnear]]:
    """For each way a pgnear that counts its calls; the one that caches knows the answer."""
    with (
        running(origin.url(), start=COUNTING, pool_size=1, **WAYS["forwarded"]) as forwards,
        running(origin.url(), start=COUNTING, pool_size=1, **WAYS["cached"]) as caches,
    ):
        with caches.connect() as client:
            keep(caches, client, QUESTION)
        yield {"forwarded": forwards, "cached": caches}


def counted(near: Pgnear) -> tuple[dict[str, int], dict[str, int]]:
    """Functions and methods that were called since this was asked last."""
    told = sum(line.get("event") == "counted" for line in near.log_lines)
    near.process.send_signal(signal.SIGUSR1)
    line = near.wait_for_log("counted", count=told + 1)
    return line["functions"], line["methods"]


def ask(client: WireClient, messages: bytes, times: int) -> None:
    for _ in range(times):
        client.ask(messages)


@needs_counting
@each
def test_a_query_needs_no_more_calls_than_it_did(near: dict[str, Pgnear], shape: str, way: str) -> None:
    for client in _clients(near[way]):
        ask(client, SHAPES[shape], 10)
        counted(near[way])
        ask(client, SHAPES[shape], QUERIES)
        functions, methods = counted(near[way])
    functions.pop("reactor.run", None)  # comes back from trio as often as the machine lets it sleep
    called = {name: round(count / QUERIES, 2) for name, count in functions.items() if count >= QUERIES / 2}
    calls = sum(called.values())
    polls = methods.pop("poll", 0) / QUERIES
    traffic = sum(methods.values()) / QUERIES
    ceiling = CEILINGS[shape, way]
    print(f"{shape}, {way}: {calls:.1f} calls, {traffic:.2f} recv and send, {polls:.2f} polls")
    assert calls <= ceiling.calls * SLACK, called
    assert traffic <= ceiling.traffic * SLACK, methods
    assert polls <= ceiling.polls * 1.5  # a sleepy client makes it look in vain


WAITING_CALLS = 38
"""For one query that waits for its connection, or whose connection goes to one that waits."""


@needs_counting
def test_a_query_that_waits_for_a_connection_needs_few_calls_more(near: dict[str, Pgnear]) -> None:
    port = near["forwarded"].port  # there is one connection
    with WireClient.logged_in(port) as one, WireClient.logged_in(port) as other:

        def both() -> None:
            one.send(SHAPES["simple"])
            other.send(SHAPES["simple"])
            one.receive_until()
            other.receive_until()

        for _ in range(10):
            both()
        counted(near["forwarded"])
        for _ in range(QUERIES):
            both()
        functions, _ = counted(near["forwarded"])
    functions.pop("reactor.run", None)
    called = {name: round(count / 2 / QUERIES, 2) for name, count in functions.items() if count >= QUERIES / 2}
    assert called.get("session.granted", 0) > 0.4, f"they did not wait for each other: {called}"
    print(f"waiting: {sum(called.values()):.1f} calls")
    assert sum(called.values()) <= WAITING_CALLS * SLACK, called


BLOCK = (
    "begin", "update counted set v = v + {} where id = {}", "select v from counted where id = {}",
    "update counted set v = v - {} where id = {}", "insert into counted values ({}, {})", "rollback",
)  # fmt: skip
BLOCK_CALLS = {False: 162, True: 151}
"""For all of these, most of which come with numbers of their own: BEGIN as it comes, or deferred."""


@needs_counting
@pytest.mark.parametrize("defers", BLOCK_CALLS, ids=["as it comes", "deferred"])
def test_a_transaction_s_statements_need_few_calls(origin: Server, table: None, defers: bool) -> None:
    with (
        running(origin.url(), start=COUNTING, pool_size=1, defer_begin=defers, **WAYS["forwarded"]) as near,
        WireClient.logged_in(near.port) as client,
    ):
        numbers = iter(range(10, 1_000_000))

        def blocks(times: int) -> None:
            for _ in range(times):
                for text in BLOCK:
                    client.query(text.format(next(numbers), next(numbers)))

        blocks(30)
        counted(near)
        blocks(QUERIES)
        functions, _ = counted(near)
    functions.pop("reactor.run", None)
    called = {name: round(count / QUERIES, 2) for name, count in functions.items() if count >= QUERIES / 2}
    print(f"a block: {sum(called.values()):.1f} calls")
    assert sum(called.values()) <= BLOCK_CALLS[defers] * SLACK, called


KEEPS = "update counted set v = v where id = 1"
SEQUENCE_CALLS = 5
"""What a write costs more, at most, once a client of another application has asked for a sequence's value."""


@needs_counting
def test_who_never_asks_for_sequence_values_does_not_pay_for_those_who_do(origin: Server, table: None) -> None:
    """Writes of everybody left the express lane, and brought a DISCARD SEQUENCES, once anybody had called lastval."""
    writes = {"simple": query(KEEPS), "extended": parse(KEEPS) + bind() + describe() + execute() + SYNC}
    with (
        running(origin.url(), start=COUNTING, pool_size=1, **WAYS["forwarded"]) as near,
        WireClient.logged_in(near.port, application_name="plain") as one,
        WireClient.logged_in(near.port, application_name="plain") as other,
    ):

        def calls(messages: bytes) -> float:
            for client in (one, other):
                ask(client, messages, 10)
            counted(near)
            for _ in range(QUERIES // 2):
                ask(one, messages, 1)
                ask(other, messages, 1)
            functions, _ = counted(near)
            functions.pop("reactor.run", None)
            return sum(count for count in functions.values() if count >= QUERIES / 2) / QUERIES

        for _ in range(PROBATION // 2 + 1):  # until nobody is expected to ask
            ask(one, writes["simple"], 1)
            ask(other, writes["simple"], 1)
        before = {shape: calls(messages) for shape, messages in writes.items()}
        with WireClient.logged_in(near.port, application_name="asks") as asks:
            asks.query("select lastval()")
        near.wait_for_log("sequence_values_asked_for")
        for shape, messages in writes.items():
            assert calls(messages) <= before[shape] + SEQUENCE_CALLS * SLACK, shape


LOGINS = 50
LOGIN_CALLS, LOGIN_SENDS, LOGIN_RECEIVES, LOGIN_POLLER = 100, 3, 5, 1
"""For one login with SCRAM and its end: AuthenticationSASL, its continuation, and all the rest are one send each;
receives are one for each message of the client, with some that look in vain. Its socket is registered once."""


@needs_counting
def test_a_login_needs_no_more_calls_than_it_did(near: dict[str, Pgnear]) -> None:
    WireClient.logged_in(near["forwarded"].port).terminate()
    counted(near["forwarded"])
    for _ in range(LOGINS):
        WireClient.logged_in(near["forwarded"].port).terminate()
    functions, methods = counted(near["forwarded"])
    called = {name: round(count / LOGINS, 2) for name, count in functions.items() if count >= LOGINS / 2}
    called.pop("reactor.run", None)
    print(f"login: {sum(called.values()):.1f} calls, {methods}")
    assert sum(called.values()) <= LOGIN_CALLS, called
    assert methods["send"] / LOGINS <= LOGIN_SENDS * SLACK
    assert methods["recv"] / LOGINS <= LOGIN_RECEIVES
    assert sum(methods.pop(name, 0) for name in ("register", "modify", "unregister")) / LOGINS <= LOGIN_POLLER * SLACK


@pytest.fixture(scope="module")
def traced(origin: Server, table: None) -> Iterator[dict[str, Pgnear]]:
    """The same as `near`, as users run it."""
    with (
        running(origin.url(), pool_size=1, **WAYS["forwarded"]) as forwards,
        running(origin.url(), pool_size=1, **WAYS["cached"]) as caches,
    ):
        with caches.connect() as client:
            keep(caches, client, QUESTION)
        yield {"forwarded": forwards, "cached": caches}


def system_calls(near: Pgnear, tmp_path: Path, times: int, load: Callable[[], object]) -> dict[str, float]:
    """The kernel's own count under `load`, which does something so many times, for each of them, by name."""
    output = tmp_path / "strace"
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(output), "-p", str(near.process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace may not look into another process here: {line.strip()}")
        try:
            load()
        finally:
            strace.send_signal(signal.SIGINT)
    lines = [line.split() for line in output.read_text().splitlines()]
    return {words[1]: int(words[0]) / times for words in lines if len(words) == 2 and words[0].isdecimal()}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@each
def test_a_query_needs_no_more_system_calls_than_it_did(
    traced: dict[str, Pgnear], shape: str, way: str, tmp_path: Path
) -> None:
    for client in _clients(traced[way]):
        ask(client, SHAPES[shape], 10)
        calls = system_calls(traced[way], tmp_path, QUERIES, partial(ask, client, SHAPES[shape], QUERIES))
    waits = sum(calls.pop(name, 0) for name in ("epoll_wait", "epoll_pwait"))
    calls.pop("total", None)
    ceiling = CEILINGS[shape, way]
    assert sum(count for name, count in calls.items() if name in TRAFFIC) <= ceiling.traffic * SLACK, calls
    assert sum(count for name, count in calls.items() if name not in TRAFFIC) <= OTHERS, calls
    assert waits <= ceiling.polls * 2, calls  # strace makes it slow enough to go to sleep in trio now and then


LOGIN_SYSTEM_CALLS = 16
"""For one login and its end, without waiting: accept, three about the new socket, four receives and three sends, two
of randomness, close. trio makes some more when it wakes."""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_login_needs_no_more_system_calls_than_it_did(traced: dict[str, Pgnear], tmp_path: Path) -> None:
    near = traced["forwarded"]

    def come_and_go() -> None:
        for _ in range(LOGINS):
            WireClient.logged_in(near.port).terminate()

    come_and_go()
    calls = system_calls(near, tmp_path, LOGINS, come_and_go)
    for name in ("epoll_wait", "epoll_pwait", "total"):
        calls.pop(name, None)
    print(f"login: {sum(calls.values()):.1f} system calls, {calls}")
    assert sum(calls.values()) <= LOGIN_SYSTEM_CALLS, calls
