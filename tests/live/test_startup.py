"""Startup packets, well-formed and not, what they ask for, and protocol 3.2."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from struct import pack

import pytest

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import until
from tests.support.wire import SSL_REQUEST, Refused, WireClient, error_fields, frame, query, startup


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=4) as server:
        yield server


@pytest.mark.parametrize(
    "data",
    [
        pack("!II", 9, 3 << 16) + b"x",
        pack("!II", 14, 3 << 16) + b"user\0\0",
        pack("!II", 18, 3 << 16) + b"user\0x\0db\0",
        pack("!II", 9, 3 << 16) + b"\0",
        pack("!II", 17, 3 << 16) + b"\0x\0user\0\0",
        pack("!II", 17, 3 << 16) + b"user\0\xff\xfe\0\0",
        pack("!II", 16, 2 << 16) + b"whatever",
        pack("!II", 16, 9 << 16) + b"whatever",
        pack("!II", 12, 80877103) + b"long",
    ],
)
def test_startup_garbage_is_refused_and_harms_nobody(near: Pgnear, data: bytes) -> None:
    with WireClient(near.port) as client:
        client.send(data)
        fields = client.fatal()
        assert fields["C"] in ("08P01", "0A000", "28000", "22021")
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 1") == b"1"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        pack("!I", 7) + b"\0" * 8,
        pack("!I", 0x7FFFFFFF) + b"\0\3\0\0",
        pack("!II", 10005, 3 << 16),
        pack("!II", 12, 80877102) + b"shrt",
        b"\x80\x2e\x01\x03\x01" + b"\0" * 43,
        pytest.param(os.urandom(64).replace(b"\0", b"\1"), id="noise"),
    ],
)
def test_what_is_no_startup_packet_gets_no_answer_as_from_postgresql(near: Pgnear, origin: Server, data: bytes) -> None:
    for port in (origin.port, near.port):
        with WireClient(port) as client:
            client.send(data)
            assert client.receive_all() == []
            assert client.buffer == b""
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 1") == b"1"


def test_a_driver_that_leaves_before_its_login_has_begun_hears_no_error(near: Pgnear) -> None:
    """node-postgres says Terminate in place of a startup packet, and would report an answer as an error."""
    with WireClient(near.port) as client:
        client.send(frame("X"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.receive_all() == []


def test_a_client_that_is_still_talking_hears_why_it_is_refused(pgnear: Start) -> None:
    """A close with bytes unread resets the connection, and with it the words that were on their way."""
    near = pgnear()
    with WireClient(near.port) as client:
        client.send(pack("!II", 9000, 9 << 16) + b"x" * 1_000_000)
        near.wait_for_log("login_failed")
        client.send(b"and more")
        assert client.fatal()["C"] == "0A000"


def test_a_client_that_hangs_up_at_any_byte_of_its_login_harms_nobody(near: Pgnear) -> None:
    packet = SSL_REQUEST + startup({"user": "postgres", "database": "postgres"})
    for size in range(len(packet)):
        client = WireClient(near.port)
        client.send(packet[:size])
        if size % 2:
            client.hang_up()
        else:
            client.reset()
    until(lambda: near.metric("clients_unauthenticated") == 0)
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 1") == b"1"


def test_a_login_byte_by_byte_works(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.socket = _ByteByByte(client.socket)  # type: ignore[assignment]
        client.log_in("postgres", PASSWORD, "postgres", application_name="drip")
        assert client.one("select 'drop by drop'") == b"drop by drop"


class _ByteByByte:
    """A socket that sends one byte in a segment."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.recv = sock.recv
        self.close = sock.close

    def sendall(self, data: bytes) -> None:
        for position in range(len(data)):
            self._socket.sendall(data[position : position + 1])


@pytest.mark.parametrize("value", ["off", "of", "false", "F", "no", "n", "0"])
def test_a_client_that_says_it_wants_no_replication_gets_none(near: Pgnear, value: str) -> None:
    with WireClient.logged_in(near.port, replication=value) as client:
        assert near.metric("replication_connections") == 0
        assert client.one("select 1") == b"1"


def test_an_unknown_database_is_told_only_to_those_who_have_logged_in(near: Pgnear) -> None:
    with pytest.raises(Refused) as refused:
        WireClient.logged_in(near.port, database="nosuch", password="wrong")
    assert refused.value.sqlstate == "28P01"
    with pytest.raises(Refused, match='database "nosuch" does not exist') as refused:
        WireClient.logged_in(near.port, database="nosuch")
    assert refused.value.sqlstate == "3D000"


def test_a_bad_startup_setting_fails_in_the_origins_words(near: Pgnear) -> None:
    for parameters, sqlstate in (
        ({"no_such_setting": "1"}, "42704"),
        ({"TimeZone": "Middle/Earth"}, "22023"),
        ({"options": "-c work_mem=lots"}, "22023"),
        ({"options": "--"}, "42601"),
    ):
        with pytest.raises(Refused) as refused:
            WireClient.logged_in(near.port, **parameters)
        assert refused.value.sqlstate == sqlstate
        assert refused.value.fields["S"] == "FATAL"
    until(lambda: near.metric("pool_busy") == 0)


def test_clients_are_told_their_own_parameters(near: Pgnear, origin: Server) -> None:
    """What ParameterStatus says at login is what a private connection would say."""
    for parameters in (
        {},
        {"application_name": "anna's app"},
        {"application_name": "ben"},
        {"application_name": "nöt plain " + "x" * 80, "TimeZone": "Asia/Tokyo"},
        {"application_name": "y" * 64, "options": "-c DateStyle=German"},
        {"client_encoding": "LATIN1"},
    ):
        with (
            WireClient.logged_in(near.port, **parameters) as pooled,
            WireClient.logged_in(origin.port, **parameters) as direct,
        ):
            assert pooled.parameters == direct.parameters
            assert pooled.one("show application_name") == direct.one("show application_name")


@pytest.mark.parametrize(
    "parameters",
    [
        {"application_name": "y" * 63},
        {"application_name": "y" * 64},
        {"application_name": "n" * 62 + "öt plain"},
        {"options": "-c application_name=" + "o" * 70},
        {"application_name": "y" * 64, "options": "-c client_min_messages=Error"},
        {"application_name": "y" * 64, "options": "-c client_min_messages=log"},
    ],
)
def test_a_name_that_is_shortened_is_noticed_at_login(near: Pgnear, origin: Server, parameters: dict[str, str]) -> None:
    def noticed(port: int) -> list[tuple[int, dict[str, str]]]:
        with WireClient.logged_in(port, **parameters) as client:
            said = [(place, error_fields(body)) for place, (kind, body) in enumerate(client.greeting) if kind == "N"]
        return [(place, {letter: fields[letter] for letter in "SVCM"}) for place, fields in said]

    direct = noticed(origin.port)
    assert noticed(near.port) == direct
    assert noticed(near.port) == direct, "remembered"


def test_a_greeting_is_not_remembered_beyond_what_it_was_made_of(pgnear: Start, origin: Server) -> None:
    """What a startup packet comes to is kept by its bytes, and the same bytes can come to something else."""
    near = pgnear()
    parameters = {"application_name": "again"}
    with WireClient.logged_in(near.port, **parameters) as client:
        assert client.parameters["TimeZone"] != "Asia/Tokyo"
        client.query("alter role postgres set timezone to 'Asia/Tokyo'")
        try:
            with (
                WireClient.logged_in(near.port, **parameters) as pooled,
                WireClient.logged_in(origin.port, **parameters) as direct,
            ):
                assert pooled.parameters == direct.parameters
                assert pooled.parameters["TimeZone"] == "Asia/Tokyo"
        finally:
            origin.execute("alter role postgres reset timezone")


def test_clients_with_names_of_their_own_log_in_while_the_pool_is_busy(pgnear: Start) -> None:
    near = pgnear(pool_size=1)
    with near.connect() as first, first.transaction():
        first.execute("select 1")
        for number in range(3):
            with WireClient.logged_in(near.port, application_name=f"worker {number}") as client:
                assert client.parameters["application_name"] == f"worker {number}"


# ---- protocol 3.2 ----------------------------------------------------------------------------------------------------


def test_psql_18_speaks_protocol_3_2_and_cancels_with_its_long_key(near: Pgnear, origin: Server) -> None:
    process = subprocess.Popen(
        [str(origin.bin / "psql"), near.dsn(min_protocol_version="3.2"), "-Xqc", "select pg_sleep(30)"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        running_ = "select count(*) from pg_stat_activity where query = 'select pg_sleep(30)' and state = 'active'"
        until(lambda: origin.execute(running_)[0][0] == 1)
        process.send_signal(2)  # what the terminal sends for Ctrl-C
        _, told = process.communicate(timeout=40)
    finally:
        process.kill()
    assert "canceling statement due to user request" in told


def test_a_cancel_with_part_of_a_long_key_is_ignored(near: Pgnear) -> None:
    with WireClient.logged_in(near.port, minor=2) as client:
        assert len(client.secret) == 32
        client.send(query("select pg_sleep(0.5)"))
        until(lambda: near.metric("clients_linked") == 1)
        received = near.metric("cancels_received_total")
        for wrong in (client.secret[:4], client.secret[:-1] + b"?", client.secret + b"?", b"\0" * 32):
            with WireClient(near.port) as other:
                other.send(pack("!III", 12 + len(wrong), 80877102, client.pid) + wrong)
                assert other.receive_all() == []
        assert near.metric("cancels_received_total") == received + 4
        assert "E" not in dict(client.receive_until())
