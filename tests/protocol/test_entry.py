"""A client's way in, step by step: what may come when, whatever the pieces in which it comes."""

from __future__ import annotations

import base64
import hashlib
import hmac
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import auth
from protocol.auth import ScramServer, ScramVerifier
from protocol.entry import Entry, Step
from protocol.responses import PgError
from protocol.startup import CancelRequest, StartupMessage
from tests.support.wire import GSSENC_REQUEST, SSL_REQUEST, cancel_request, frame, query, startup

PENCIL = ScramVerifier.from_password("pencil")
PACKET = startup({"user": "anna", "database": "shop"})
NONCE = "server"


def trusting(request: StartupMessage) -> None:
    return None


def asking(request: StartupMessage) -> ScramServer:
    return ScramServer([PENCIL], request.parameters["user"], None)


def proof(password: bytes = b"pencil") -> bytes:
    """Both SASL messages of a client that knows what the server's nonce will be."""
    first, text = "n=,r=client", f"c=biws,r=client{NONCE}"
    challenge = f"r=client{NONCE},s={base64.b64encode(PENCIL.salt).decode()},i={PENCIL.iterations}"
    salted = hashlib.pbkdf2_hmac("sha256", password, PENCIL.salt, PENCIL.iterations)
    key = hmac.digest(salted, b"Client Key", "sha256")
    mask = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{text}".encode(), "sha256")
    shown = base64.b64encode(bytes(a ^ b for a, b in zip(key, mask, strict=True))).decode()
    initial = f"n,,{first}".encode()
    return frame("p", b"SCRAM-SHA-256\0" + pack("!I", len(initial)) + initial) + frame(
        "p", f"{text},p={shown}".encode()
    )


def feed(entry: Entry, data: bytes, step: int) -> bytes:
    """All that is answered to `data` in pieces of `step` bytes, for as long as it is wanted."""
    out = b""
    for position in range(0, len(data), step):
        if entry.step not in (Step.PACKET, Step.PROOF):
            entry.rest += data[position:]
            break
        out += entry.feed(data[position : position + step], asking)
    return out


@pytest.fixture(scope="module", autouse=True)
def known_nonce() -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(auth, "_nonce", lambda: NONCE)
        yield


@given(step=st.integers(1, 400))
def test_a_login_is_the_same_in_any_pieces(step: int) -> None:
    whole, pieces = Entry(offers_tls=False), Entry(offers_tls=False)
    data = PACKET + proof() + query("select 1")
    assert feed(pieces, data, step) == feed(whole, data, len(data))
    for entry in (whole, pieces):
        assert entry.step is Step.IN
        assert entry.packet == PACKET
        assert entry.rest == query("select 1")


def test_a_wrong_password_ends_it_at_the_proof() -> None:
    entry = Entry(offers_tls=False)
    first, second = proof(b"crayon")[:55], proof(b"crayon")[55:]
    entry.feed(PACKET + first, asking)
    assert entry.step is Step.PROOF
    with pytest.raises(PgError) as caught:
        entry.feed(second, asking)
    assert caught.value.sqlstate == "28P01"
    assert entry.step is Step.PROOF


def test_who_need_prove_nothing_is_in_with_the_startup_packet() -> None:
    entry = Entry(offers_tls=True)
    assert entry.feed(PACKET, trusting) == b""
    assert entry.step is Step.IN
    assert isinstance(entry.request, StartupMessage)
    assert entry.request.parameters == {"user": "anna", "database": "shop"}


def test_gssapi_is_declined_tls_is_taken_up_and_then_the_packet_comes_through_it() -> None:
    entry = Entry(offers_tls=True)
    assert entry.feed(GSSENC_REQUEST, trusting) == b"N"
    assert entry.feed(SSL_REQUEST, trusting) == b"S"
    assert (entry.step, entry.rest, entry.direct) == (Step.TLS, b"", False)
    entry.encrypted()
    assert entry.feed(PACKET, trusting) == b""
    assert entry.step is Step.IN


def test_a_client_hello_is_a_handshakes_and_kept_for_it() -> None:
    entry = Entry(offers_tls=True)
    assert entry.feed(b"\x16\x03\x01", trusting) == b""
    assert (entry.step, entry.rest, entry.direct) == (Step.TLS, b"\x16\x03\x01", True)


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_nothing_may_stand_in_plaintext_behind_an_encryption_request(request_: bytes) -> None:
    """CVE-2021-23214: it would be taken for what came through TLS."""
    with pytest.raises(PgError) as caught:
        Entry(offers_tls=True).feed(request_ + PACKET[:1], trusting)
    assert caught.value.sqlstate == "08P01"


def test_what_came_before_the_handshake_does_not_count_behind_it() -> None:
    entry = Entry(offers_tls=True)
    entry.feed(SSL_REQUEST, trusting)
    entry.rest = b"smuggled"
    entry.encrypted()
    assert entry.rest == b""


@pytest.mark.parametrize(
    "said",
    [
        [SSL_REQUEST, SSL_REQUEST, SSL_REQUEST],
        [b"\x16\x03\x01\x02\x00"],  # TLS, where there is none
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"\0\0\0\7"],
        [PACKET, query("select 1")],
    ],
)
def test_what_cannot_come_now_is_a_protocol_violation(said: list[bytes]) -> None:
    entry = Entry(offers_tls=False)
    *before, last = said
    for data in before:
        entry.feed(data, asking)
    with pytest.raises(PgError) as caught:
        entry.feed(last, asking)
    assert caught.value.sqlstate == "08P01"


def test_a_cancel_request_is_the_end_of_its_connection() -> None:
    entry = Entry(offers_tls=True)
    assert entry.feed(cancel_request(7, b"1234"), trusting) == b""
    assert entry.step is Step.CANCEL
    assert entry.request == CancelRequest(7, b"1234")
