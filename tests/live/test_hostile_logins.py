"""SCRAM, startup packets and TLS as no driver would speak them: each is a clear refusal, and nobody else notices."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from struct import pack

import pytest

from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.tls import trusting
from tests.support.waiting import until
from tests.support.wire import GSSENC_REQUEST, SSL_REQUEST, Refused, WireClient, frame, startup

MEMORY_BYTES = 32 << 20


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=2, client_login_timeout="1s", log={"level": "debug"}) as server:
        with WireClient.logged_in(server.port) as client:
            client.one("select 1")
        memory = server.peak_memory()
        yield server
        assert server.peak_memory() - memory < MEMORY_BYTES
        until(lambda: server.metric("clients_unauthenticated") == 0)
        said = json.dumps(server.log_lines)
        assert "Traceback" not in said
        assert PASSWORD not in said


@pytest.fixture(autouse=True)
def _others_are_served(near: Pgnear) -> Iterator[None]:
    yield
    with WireClient.logged_in(near.port) as other:
        assert other.one("select 1") == b"1"


# ---- SCRAM -----------------------------------------------------------------------------------------------------------


def initial(body: bytes, *, mechanism: bytes = b"SCRAM-SHA-256", length: int | None = None) -> bytes:
    return frame("p", mechanism + b"\0" + pack("!i", len(body) if length is None else length) + body)


FIRST: dict[str, bytes] = {
    "no nonce": initial(b"n,,n=,r="),
    "channel binding without it": initial(b"p=tls-server-end-point,,n=,r=abcdefgh"),
    "-PLUS over plaintext": initial(b"p=tls-server-end-point,,n=,r=abc", mechanism=b"SCRAM-SHA-256-PLUS"),
    "an unknown flag": initial(b"z,,n=,r=abc"),
    "another identity": initial(b"n,a=root,n=,r=abc"),
    "a mandatory extension": initial(b"n,,m=x,n=,r=abc"),
    "another order": initial(b"n,,r=abc,n="),
    "half of it": initial(b"n"),
    "nothing": initial(b""),
    "none": initial(b"", length=-1),
    "a length beyond its end": initial(b"n,,n=,r=abc", length=1000),
    "a negative length": initial(b"n,,n=,r=abc", length=-5),
    "a NUL": initial(b"n,,n=\0,r=abc"),
    "no UTF-8": initial(b"n,,n=\xff,r=\xfe\xff"),
    "a nonce that is not printable": initial(b"n,,n=,r=a\x01b"),
    "another mechanism": initial(b"n,,n=,r=abc", mechanism=b"SCRAM-MD5"),
    "no mechanism": initial(b"n,,n=,r=abc", mechanism=b""),
    "no flag": initial(b",,n=,r=abc"),
    "no comma": initial(b"n"),
    "a name without a value": initial(b"n,,n"),
    "a value missing": initial(b"n,,n=,r"),
    "something between": initial(b"n,x,n=,r=abc"),
    "an attribute that is a digit": initial(b"n,,n=,r=abc,1=x"),
    "an attribute without a value": initial(b"n,,n=,r=abc,x"),
    "a flag without a value": initial(b"p,,n=,r=abc"),
    "50,000 commas": initial(b"n,,n=," + b"," * 50_000),
    "the last message first": frame("p", b"c=biws,r=abc,p=AAAA"),
    "both at once": initial(b"n,,n=,r=abcdefgh") + frame("p", b"c=biws,r=abcdefgh,p=AAAA"),
}


def answer_to_first(port: int, name: str) -> dict[str, str]:
    with WireClient(port) as client:
        client.send(startup({"user": "postgres", "database": "postgres"}))
        client.receive()
        client.send(FIRST[name])
        return words(client)


def words(client: WireClient) -> dict[str, str]:
    """The fields of an error that say what is wrong, and not where in whose source."""
    return {key: value for key, value in client.fatal().items() if key in "SCMDH"}


UNLIKE = {"no nonce", "none", "50,000 commas"}
"""PostgreSQL takes an empty nonce, asks again where there is no first message, and of one that is too long it says that
the password is wrong."""


@pytest.mark.parametrize("name", FIRST)
def test_a_first_scram_message_that_is_wrong_is_refused_at_once_in_postgresqls_words(
    near: Pgnear, origin: Server, name: str
) -> None:
    said = answer_to_first(near.port, name)
    assert said["C"] in ("08P01", "28P01", "0A000")
    if name not in UNLIKE:
        assert said == answer_to_first(origin.port, name)


FINAL: dict[str, bytes] = {
    "empty": b"",
    "no proof": b"c=biws,r=%s",
    "another nonce": b"c=biws,r=zzz,p=AAAA",
    "a proof that is no base64": b"c=biws,r=%s,p=!!!!",
    "a proof that is too short": b"c=biws,r=%s,p=AAAA",
    "a proof of zeros": b"c=biws,r=%s,p=" + base64.b64encode(b"\0" * 32),
    "an extension": b"c=biws,r=%s,x=1,p=AAAA",
    "an extension without a value": b"c=biws,r=%s,x,p=AAAA",
    "something behind": b"c=biws,r=%s,p=" + base64.b64encode(b"\0" * 32) + b",x=1",
    "the nonce of another": b"c=biws,r=zzz,p=" + base64.b64encode(b"\0" * 32),
    "the binding of another flag": b"c=eSws,r=%s,p=" + base64.b64encode(b"\0" * 32),
    "a binding that is no base64": b"c=!!!,r=%s,p=AAAA",
    "another binding": b"c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws,r=%s,p=" + base64.b64encode(b"x" * 32),
    "another order": b"r=%s,c=biws,p=AAAA",
    "a NUL": b"c=biws,r=%s\0,p=AAAA",
    "no UTF-8": b"\xff\xfe",
    "the first message again": initial(b"n,,n=,r=abcdefgh")[5:],
}


def answer_to_final(port: int, name: str) -> dict[str, str]:
    with WireClient(port) as client:
        client.send(startup({"user": "postgres", "database": "postgres"}))
        client.receive()
        client.send(initial(b"n,,n=,r=abcdefgh"))
        nonce = client.receive()[1][4:].split(b",")[0][2:]
        client.send(frame("p", FINAL[name].replace(b"%s", nonce)))
        return words(client)


@pytest.mark.parametrize("name", FINAL)
def test_a_last_scram_message_that_is_wrong_lets_nobody_in_and_says_why_as_postgresql_does(
    near: Pgnear, origin: Server, name: str
) -> None:
    said = answer_to_final(near.port, name)
    assert said["C"] in ("08P01", "28P01")
    assert said == answer_to_final(origin.port, name)


def test_who_could_bind_its_channel_and_was_offered_to_is_not_let_in_saying_it_was_not(near: Pgnear) -> None:
    """The flag "y": somebody between has taken -PLUS out of the list."""
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        client.send(startup({"user": "postgres", "database": "postgres"}))
        assert b"SCRAM-SHA-256-PLUS" in client.receive()[1]
        client.send(initial(b"y,,n=,r=abcdefgh"))
        assert client.fatal()["C"] == "28000"


# ---- startup packets -------------------------------------------------------------------------------------------------

PACKETS: dict[str, tuple[bytes, str]] = {
    "no terminator": (b"user\0postgres", "08P01"),
    "a name without a value": (b"user\0postgres\0database\0\0", "08P01"),
    "nothing": (b"\0", "28000"),
    "no user": (b"database\0postgres\0\0", "28000"),
    "an empty user": (b"user\0\0database\0postgres\0\0", "28000"),
    "a user of 9000 letters": (b"user\0" + b"u" * 9000 + b"\0\0", "28P01"),
    "an application that is not UTF-8": (b"user\0postgres\0application_name\0\xff\xfe\0\0", "22021"),
    "a database that is not UTF-8": (b"user\0postgres\0database\0\xc0\x80\0\0", "22021"),
    "options that are not UTF-8": (b"user\0postgres\0options\0-c a.b=\xff\0\0", "22021"),
    "bytes behind the end": (b"user\0postgres\0database\0postgres\0\0trailing", "08P01"),
    "an empty name": (b"user\0postgres\0\0x\0\0", "08P01"),
    "replication, maybe": (b"user\0postgres\0replication\0maybe\0\0", "22023"),
}


@pytest.mark.parametrize("name", PACKETS)
def test_a_startup_packet_that_is_none_is_refused_with_its_reason(near: Pgnear, name: str) -> None:
    parameters, sqlstate = PACKETS[name]
    with WireClient(near.port) as client:
        client.send(pack("!II", len(parameters) + 8, 3 << 16) + parameters)
        with pytest.raises(Refused) as refused:
            client.log_in_from_here(PASSWORD)
        assert refused.value.sqlstate == sqlstate


@pytest.mark.parametrize("length", [0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_startup_packets_length_that_lies_is_refused_before_anything_is_kept(near: Pgnear, length: int) -> None:
    with WireClient(near.port) as client:
        client.send(pack("!I", length) + b"\0\3\0\0")
        assert client.receive_all() == []  # as from PostgreSQL


def test_hundreds_of_settings_in_options_follow_their_client(near: Pgnear) -> None:
    options = " ".join(f"-cevil.x{number}={number}" for number in range(400))
    with WireClient.logged_in(near.port, options=options) as client, WireClient.logged_in(near.port) as other:
        other.query("begin")
        assert client.one("show evil.x399") == b"399"
        assert other.one("select coalesce(current_setting('evil.x399', true), '')") == b""


# ---- encryption ------------------------------------------------------------------------------------------------------


def _hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = trusting().wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_tls_handshake_byte_by_byte_ends_with_the_login_timeout(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.send(SSL_REQUEST)
        assert client.read(1) == b"S"
        for byte in _hello()[:-1]:
            client.send(bytes((byte,)))
        assert near.metric("clients_unauthenticated") == 1
        client.receive_all()


STUFFED: dict[str, Callable[[], bytes]] = {
    "a startup packet": lambda: SSL_REQUEST + startup({"user": "postgres"}),
    "SSLRequest": lambda: SSL_REQUEST + SSL_REQUEST,
    "GSSENCRequest": lambda: SSL_REQUEST + GSSENC_REQUEST,
    "a startup packet behind GSSENCRequest": lambda: GSSENC_REQUEST + startup({"user": "postgres"}),
    "a ClientHello before its time": lambda: SSL_REQUEST + _hello(),
}


@pytest.mark.parametrize("what", STUFFED)
def test_nothing_may_come_behind_a_request_for_encryption_before_its_answer(near: Pgnear, what: str) -> None:
    """CVE-2021-23214: what stands there was written by somebody between."""
    with WireClient(near.port) as client:
        client.send(STUFFED[what]())
        fields = client.fatal()
        assert fields["C"] == "08P01"
        assert "unencrypted data" in fields["M"]
