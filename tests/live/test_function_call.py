"""FunctionCall on a shared connection: what a function does to its session stays that session's."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import WireClient

SET_CONFIG, NEXTVAL, LASTVAL, INT4PL, SETSEED = 2078, 1574, 2559, 177, 1599
LOCK, UNLOCK = 2880, 2884


def call(oid: int, *arguments: bytes) -> bytes:
    """A FunctionCall, all in text."""
    body = pack("!IHH", oid, 0, len(arguments)) + b"".join(pack("!i", len(each)) + each for each in arguments)
    return wire.frame("F", body + pack("!H", 0))


def result(frames: list[wire.Frame]) -> bytes:
    assert [kind for kind, _ in frames if kind != "S"] == ["V", "Z"], frames
    return dict(frames)["V"][4:]


@pytest.fixture
def one(pgnear: Start) -> Pgnear:
    """A single origin connection: whatever a client leaves on it, the next one would see."""
    return pgnear(pool_size=1)


@pytest.fixture
def client(one: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(one.port) as it:
        yield it


@pytest.fixture
def other(one: Pgnear) -> Iterator[WireClient]:
    with WireClient.logged_in(one.port) as it:
        yield it


def test_a_function_without_effects_leaves_its_client_unpinned(
    one: Pgnear, client: WireClient, other: WireClient
) -> None:
    assert result(client.ask(call(INT4PL, b"40", b"2"))) == b"42"
    assert other.one("select 1") == b"1"
    assert one.metric("clients_pinned") == 0


@pytest.mark.parametrize(
    ("oid", "arguments", "reason", "end"),
    [
        (SET_CONFIG, (b"work_mem", b"5MB", b"false"), "setting that cannot follow", "discard all"),
        (LOCK, (b"4711",), "advisory lock", "select pg_advisory_unlock(4711)"),
    ],
)
def test_one_with_effects_pins_until_they_are_gone_and_operators_hear_why(
    one: Pgnear, client: WireClient, other: WireClient, oid: int, arguments: tuple[bytes, ...], reason: str, end: str
) -> None:
    result(client.ask(call(oid, *arguments)))
    assert one.metric("clients_pinned") == 1
    assert one.wait_for_log("client_pinned")["reason"] == reason
    assert one.metric("pins_total", reason=reason) == 1
    other.send(wire.query("show work_mem"))
    until(lambda: one.metric("clients_waiting") == 1, what="the other waits")
    client.query(end)
    assert wire.rows(other.receive_until()) == [[b"4MB"]]
    assert one.metric("clients_pinned") == 0


def test_a_lock_that_a_function_call_gives_back_pins_no_longer(
    one: Pgnear, client: WireClient, other: WireClient
) -> None:
    client.query("select pg_advisory_lock(4712)")
    result(client.ask(call(UNLOCK, b"4712")))
    assert other.one("select 1") == b"1"


def test_a_function_of_ones_own_pins_since_nobody_knows_what_it_does(
    one: Pgnear, client: WireClient, other: WireClient, origin: Server
) -> None:
    origin.execute("create or replace function harmless() returns int language sql as 'select 5'")
    ((oid,),) = origin.execute("select 'harmless'::regproc::oid::bigint")
    assert isinstance(oid, int)
    assert result(client.ask(call(oid))) == b"5"
    assert one.wait_for_log("client_pinned")["reason"] == "function or block with session effects"
    client.query("discard all")
    assert other.one("select 1") == b"1"


def test_a_seed_that_a_function_call_has_set_is_nobody_elses(one: Pgnear, client: WireClient) -> None:
    first = client.one("select pg_backend_pid()")
    result(client.ask(call(SETSEED, b"0.5")))
    client.query("discard all")
    client.terminate()
    with WireClient.logged_in(one.port) as later:
        assert later.one("select pg_backend_pid()") != first


def test_lastval_by_a_function_call_is_never_somebody_elses(
    one: Pgnear, client: WireClient, other: WireClient, origin: Server
) -> None:
    origin.execute("drop sequence if exists called")
    origin.execute("create sequence called")
    result(client.ask(call(NEXTVAL, b"called")))
    fields = wire.error_fields(dict(other.ask(call(LASTVAL)))["E"])
    assert fields["C"] == "55000"
    assert one.wait_for_log("sequence_values_asked_for")["application"] == ""
    other.query("discard sequences")
    result(client.ask(call(NEXTVAL, b"called")))
    assert result(client.ask(call(LASTVAL))) == b"2"


def test_a_function_call_that_fails_pins_nobody_and_leaves_the_session_as_it_was(
    one: Pgnear, client: WireClient, other: WireClient
) -> None:
    fields = wire.error_fields(dict(client.ask(call(SET_CONFIG, b"work_mem", b"nonsense", b"false")))["E"])
    assert fields["C"] == "22023"
    assert other.one("show work_mem") == b"4MB"
    assert client.one("show work_mem") == b"4MB"


def test_a_function_call_in_a_transaction_is_undone_with_it(one: Pgnear, client: WireClient, other: WireClient) -> None:
    client.query("begin")
    assert result(client.ask(call(SET_CONFIG, b"work_mem", b"5MB", b"false"))) == b"5MB"
    client.query("rollback")
    assert client.one("show work_mem") == b"4MB"
    client.query("discard all")
    assert other.one("show work_mem") == b"4MB"


def test_one_that_ends_before_its_last_field_is_refused(one: Pgnear, client: WireClient, other: WireClient) -> None:
    client.send(wire.frame("F", b"\0\0"))
    fields = wire.error_fields(dict(client.receive_until("E"))["E"])
    assert (fields["S"], fields["C"]) == ("FATAL", "08P01")
    assert other.one("select 1") == b"1"
