"""SCRAM, md5 and cleartext: the RFC's own exchange, both sides against each other, and everything that must fail."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from struct import pack

import pytest
import scramp.core
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from scramp import ScramClient

from protocol import auth
from protocol import messages as m
from protocol.auth import (
    AUTHENTICATION_OK,
    OriginAuthenticator,
    ScramServer,
    ScramVerifier,
    tls_server_end_point,
)
from protocol.responses import PgError
from tests.support.certificates import Authority
from tests.support.postgres import Server
from tests.support.wire import WireClient, frame, startup

BINDING = b"b" * 32
PENCIL = ScramVerifier.from_password("pencil")
SLOW = settings(max_examples=25, deadline=None)

# RFC 7677, section 3.
NONCE, SERVER_NONCE = "rOprNGfwEbeRWgbNEkqO", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
CLIENT_FIRST = f"n,,n=user,r={NONCE}"
SERVER_FIRST = f"r={NONCE}{SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = f"c=biws,r={NONCE}{SERVER_NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SERVER_FINAL = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def server(
    verifier: ScramVerifier | None = PENCIL, user: str = "user", channel_binding: bytes | None = None
) -> ScramServer:
    """One that has made its offer."""
    started = ScramServer([verifier] if verifier is not None else [], user, channel_binding)
    started.start()
    return started


def client(password: str = "pencil", user: str = "user", channel_binding: bytes | None = None) -> OriginAuthenticator:
    return OriginAuthenticator(user, password, channel_binding=channel_binding, cleartext_allowed=False)


def body(raw: bytes) -> bytes:
    """A frame's body; its length is right."""
    assert int.from_bytes(raw[1:5], "big") == len(raw) - 1
    return raw[5:]


def initial(message: str | bytes, mechanism: str = "SCRAM-SHA-256") -> bytes:
    """A SASLInitialResponse's body."""
    data = message.encode() if isinstance(message, str) else message
    return body(m.SASLInitialResponse.encode(auth_mechanism=mechanism, data=data))


def exchange(one: ScramServer, other: OriginAuthenticator) -> list[m.Decoded]:
    """Let them talk until both are done; every message, read by the catalogue.

    Raises:
      PgError: either of them refused.
    """
    said, request = [], one.start()
    done = False
    while True:
        said.append(m.decode(b"R", body(request), from_frontend=False))
        answer = other.feed(body(request))
        if done:
            assert answer is None
            return said
        assert answer is not None
        said.append(m.decode(b"p", body(answer), True, request=said[-1].message))
        request, done = one.feed(body(answer))


def made_with_salt(monkeypatch: pytest.MonkeyPatch, password: str, salt: bytes) -> ScramVerifier:
    """The verifier that would be made from `password` if chance gave this salt."""
    with monkeypatch.context() as patched:
        patched.setattr(secrets, "token_bytes", lambda size: salt[:size])
        return ScramVerifier.from_password(password)


# ---- the RFC's exchange ----------------------------------------------------------------------------------------------


def test_the_server_says_what_rfc_7677_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.auth._nonce", lambda: SERVER_NONCE)
    one = server(made_with_salt(monkeypatch, "pencil", SALT))
    first, done = one.feed(initial(CLIENT_FIRST))
    assert (first, done) == (m.AuthenticationSASLContinue.encode(data=SERVER_FIRST.encode()), False)
    final, done = one.feed(CLIENT_FINAL.encode())
    assert (final, done) == (m.AuthenticationSASLFinal.encode(data=SERVER_FINAL.encode()), True)


def test_the_client_says_what_rfc_7677_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the RFC's user name: PostgreSQL wants none here, and pgnear gives a stand-in."""
    monkeypatch.setattr(scramp.core.Nonce, "create", lambda: scramp.core.Nonce(NONCE))
    monkeypatch.setattr(
        auth, "ScramClient", lambda names, _user, *rest, **more: ScramClient(names, "user", *rest, **more)
    )
    other = client()
    offer = m.AuthenticationSASL.encode(auth_mechanisms=["SCRAM-SHA-256"])
    assert other.feed(body(offer)) == frame("p", initial(CLIENT_FIRST))
    challenge = m.AuthenticationSASLContinue.encode(data=SERVER_FIRST.encode())
    assert other.feed(body(challenge)) == frame("p", CLIENT_FINAL.encode())
    outcome = m.AuthenticationSASLFinal.encode(data=SERVER_FINAL.encode())
    assert other.feed(body(outcome)) is None
    assert other.feed(body(AUTHENTICATION_OK)) is None


# ---- both sides against each other -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_server", "at_client", "mechanism"),
    [
        (None, None, "SCRAM-SHA-256"),
        (BINDING, BINDING, "SCRAM-SHA-256-PLUS"),
        (BINDING, None, "SCRAM-SHA-256"),  # a client that cannot bind
        (None, BINDING, "SCRAM-SHA-256"),  # a server that cannot; the client says so with "y"
    ],
)
def test_both_sides_agree(at_server: bytes | None, at_client: bytes | None, mechanism: str) -> None:
    said = exchange(ScramServer([PENCIL], "user", at_server), client(channel_binding=at_client))
    assert [each.message.name for each in said] == [
        "AuthenticationSASL",
        "SASLInitialResponse",
        "AuthenticationSASLContinue",
        "SASLResponse",
        "AuthenticationSASLFinal",
    ]
    assert said[0].fields["auth_mechanisms"][0] == ("SCRAM-SHA-256-PLUS" if at_server else "SCRAM-SHA-256")
    assert said[1].fields["auth_mechanism"] == mechanism
    assert said[1].fields["data"][:1] == {(True, True): b"p", (False, True): b"y"}.get(
        (at_server is not None, at_client is not None), b"n"
    )


@SLOW
@given(password=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_password_logs_in_and_another_does_not(password: str) -> None:
    verifier = ScramVerifier.from_password(password)
    exchange(ScramServer([verifier], "user", None), client(password))
    with pytest.raises(PgError) as caught:
        exchange(ScramServer([verifier], "user", None), client(password + "x"))
    assert caught.value.sqlstate == "28P01"


def test_a_wrong_password_fails_as_postgresql_words_it() -> None:
    with pytest.raises(PgError, match='password authentication failed for user "user"') as caught:
        exchange(ScramServer([PENCIL], "user", None), client("crayon"))
    assert caught.value.sqlstate == "28P01"


def test_an_unknown_user_fails_like_a_wrong_password_at_the_same_step() -> None:
    def told(verifier: ScramVerifier | None) -> tuple[str, str, int]:
        one = server(verifier, "ghost")
        first, _ = one.feed(initial(CLIENT_FIRST))
        challenge = re.search(rb"s=([^,]+),i=(\d+)", first)
        assert challenge is not None
        nonce = body(first)[4:].decode().split(",")[0]
        with pytest.raises(PgError) as caught:
            one.feed(f"c=biws,{nonce},p={'A' * 43}=".encode())
        return caught.value.sqlstate, caught.value.message, len(challenge[1])

    assert told(None) == told(PENCIL)  # the salt's length included


def test_an_unknown_users_salt_stays_the_same() -> None:
    """A salt that changes from attempt to attempt would tell that there is no such user."""

    def salt(user: str) -> bytes:
        first, _ = server(None, user).feed(initial(CLIENT_FIRST))
        return first.partition(b",s=")[2]

    assert salt("ghost") == salt("ghost")
    assert salt("ghost") != salt("phantom")


def test_nobody_logs_in_as_an_unknown_user() -> None:
    for password in ("", "ghost", "pencil"):
        with pytest.raises(PgError) as caught:
            exchange(ScramServer([], "ghost", None), client(password))
        assert caught.value.sqlstate == "28P01"


def test_not_even_the_right_proof_logs_an_unknown_user_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock verifier's keys are random; should they ever be guessed, there is still no such user."""
    monkeypatch.setattr(ScramVerifier, "doomed", lambda user: PENCIL)
    with pytest.raises(PgError) as caught:
        exchange(ScramServer([], "ghost", None), client())
    assert caught.value.sqlstate == "28P01"


def test_a_server_that_does_not_know_the_password_is_not_believed() -> None:
    other = client()
    one = server()
    first = other.feed(body(one.start()))
    assert first is not None
    challenge, _ = one.feed(body(first))
    assert other.feed(body(challenge)) is not None
    for lie in (SERVER_FINAL.encode(), b"v=", b"", b"e=other-error"):
        with pytest.raises(PgError, match="SCRAM failed") as caught:
            other.feed(body(m.AuthenticationSASLFinal.encode(data=lie)))
        assert caught.value.sqlstate == "08001"


def test_authentication_ok_in_the_middle_of_scram_is_not_believed() -> None:
    """A server that skips its proof has not shown that it knows the password."""
    other, one = client(), server()
    first = other.feed(body(one.start()))
    assert first is not None
    with pytest.raises(PgError, match="without finishing SCRAM"):
        other.feed(body(AUTHENTICATION_OK))
    challenge, _ = one.feed(body(first))
    other.feed(body(challenge))
    with pytest.raises(PgError, match="without finishing SCRAM"):
        other.feed(body(AUTHENTICATION_OK))


# ---- channel binding -------------------------------------------------------------------------------------------------


def test_a_man_in_the_middle_with_another_certificate_is_found_out() -> None:
    with pytest.raises(PgError) as caught:
        exchange(ScramServer([PENCIL], "user", BINDING), client(channel_binding=b"m" * 32))
    assert caught.value.sqlstate == "28P01"


def test_a_downgrade_is_refused() -> None:
    """The client could bind and was not offered to: somebody has taken -PLUS out of the offer."""
    with pytest.raises(PgError, match="channel binding negotiation") as caught:
        server(channel_binding=BINDING).feed(initial(f"y,,n=,r={NONCE}"))
    assert caught.value.sqlstate == "28000"


@pytest.mark.parametrize(
    ("binding", "mechanism", "message", "words"),
    [
        (None, "SCRAM-SHA-256-PLUS", f"p=tls-server-end-point,,n=,r={NONCE}", "invalid SASL authentication mechanism"),
        (BINDING, "SCRAM-SHA-256-PLUS", f"n,,n=,r={NONCE}", "malformed SCRAM message"),
        (BINDING, "SCRAM-SHA-256", f"p=tls-server-end-point,,n=,r={NONCE}", "malformed SCRAM message"),
        (BINDING, "SCRAM-SHA-256-PLUS", f"p=tls-unique,,n=,r={NONCE}", "unsupported SCRAM channel-binding type"),
        (None, "SCRAM-SHA-1", f"n,,n=,r={NONCE}", "invalid SASL authentication mechanism"),
        (None, "", f"n,,n=,r={NONCE}", "invalid SASL authentication mechanism"),
    ],
)
def test_mechanism_and_binding_must_match(binding: bytes | None, mechanism: str, message: str, words: str) -> None:
    with pytest.raises(PgError, match=words) as caught:
        server(channel_binding=binding).feed(initial(message, mechanism))
    assert caught.value.sqlstate == "08P01"


def test_the_binding_is_the_certificates_hash() -> None:
    certificate = x509.load_pem_x509_certificate(Authority().issue("localhost").certificate)
    der = certificate.public_bytes(Encoding.DER)
    assert tls_server_end_point(der) == hashlib.sha256(der).digest()


# ---- malformed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=abcd",  # 12 bytes that say 13
        b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abcd",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",  # no initial response: SCRAM needs one
        initial(b"\xff\xfe"),
        initial(""),
        initial("n,,"),
        initial("n,,n=user"),
        initial("x,,n=user,r=abc"),
    ],
)
def test_a_malformed_first_message_is_a_protocol_violation(payload: bytes) -> None:
    with pytest.raises(PgError) as caught:
        server().feed(payload)
    assert caught.value.sqlstate == "08P01"


@pytest.mark.parametrize("message", ["n,a=admin,n=user,r=abc", "n,,m=ext,n=user,r=abc"])
def test_what_postgresql_does_not_do_either_is_refused_as_such(message: str) -> None:
    with pytest.raises(PgError) as caught:
        server().feed(initial(message))
    assert caught.value.sqlstate == "0A000"


@pytest.mark.parametrize(
    "final", [b"", b"c=biws", b"c=biws,r=other,p=AAAA", b"p=AAAA", b"c=!!,r=x,p=??", b"n,,n=,r=abc"]
)
def test_a_malformed_last_message_never_logs_in(final: bytes) -> None:
    one = server()
    one.feed(initial(CLIENT_FIRST))
    with pytest.raises(PgError) as caught:
        one.feed(final)
    assert caught.value.sqlstate in ("28P01", "08P01")


PIECES = st.sampled_from(
    b"n,, n= r= abc , y,, p=tls-server-end-point,, p=x,, a= m= c=biws = \xff \0 p= AAAA v= s= i=4096 i=1 e=x "
    b"s=QUFBQUFBQUFBQUFBQUFBQQ== i=99999999999999999999 \xc3\xa9".split(b" ")
)
MESSAGES = st.lists(PIECES, max_size=8).map(b"".join) | st.binary(max_size=30)


@settings(deadline=None, max_examples=300)
@given(
    mechanism=st.sampled_from(["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "X"]),
    first=MESSAGES,
    final=MESSAGES,
    binding=st.sampled_from([None, BINDING]),
)
def test_whatever_a_client_sends_it_is_refused_with_a_pg_error(
    mechanism: str, first: bytes, final: bytes, binding: bytes | None
) -> None:
    one = server(channel_binding=binding)

    def talk() -> None:
        one.feed(initial(first, mechanism))
        one.feed(final)

    with pytest.raises(PgError) as caught:
        talk()
    assert caught.value.sqlstate in ("08P01", "28P01", "28000")


@settings(deadline=None, max_examples=300)
@given(payload=st.binary(max_size=60), final=MESSAGES)
def test_any_bytes_never_log_in(payload: bytes, final: bytes) -> None:
    with pytest.raises(PgError):
        server().feed(payload)
    one = server()
    one.feed(initial(CLIENT_FIRST))
    with pytest.raises(PgError):
        one.feed(final)


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.tuples(st.sampled_from([3, 5, 7, 10, 11, 12]), MESSAGES | st.just(b"SCRAM-SHA-256\0\0"))),
    binding=st.sampled_from([None, BINDING]),
)
def test_whatever_an_origin_sends_is_answered_or_refused_with_a_pg_error(
    steps: list[tuple[int, bytes]], binding: bytes | None
) -> None:
    other = client(channel_binding=binding)
    try:
        for code, data in steps:
            answer = other.feed(code.to_bytes(4, "big") + data)
            assert answer is None or answer[:1] == b"p"
    except PgError as error:
        assert error.sqlstate == "08001"  # noqa: PT017


@settings(deadline=None)
@given(payload=st.binary(max_size=30))
def test_any_authentication_message_is_answered_or_refused(payload: bytes) -> None:
    try:
        client().feed(payload)
    except PgError as error:
        assert error.sqlstate == "08001"  # noqa: PT017


# ---- what else an origin may ask for ---------------------------------------------------------------------------------


def test_md5_is_what_postgresql_expects() -> None:
    """md5 of the hex of md5 of password and user, and the salt."""
    answer = client("pencil", "user").feed(body(m.AuthenticationMD5Password.encode(salt=b"\1\2\3\4")))
    inner = hashlib.md5(b"penciluser").hexdigest().encode()
    assert answer == m.PasswordMessage.encode(password="md5" + hashlib.md5(inner + b"\1\2\3\4").hexdigest())


def test_a_cleartext_password_is_sent_only_where_that_is_allowed() -> None:
    asked = body(m.AuthenticationCleartextPassword.encode())
    with pytest.raises(PgError, match="cleartext password on an unencrypted connection"):
        client("pencil").feed(asked)
    allowed = OriginAuthenticator("user", "pencil", channel_binding=None, cleartext_allowed=True)
    assert allowed.feed(asked) == m.PasswordMessage.encode(password="pencil")


@pytest.mark.parametrize("request_message", [m.AuthenticationGSS, m.AuthenticationSSPI, m.AuthenticationKerberosV5])
def test_what_pgnear_does_not_know_is_refused_by_its_number(request_message: m.Message) -> None:
    with pytest.raises(PgError, match=f"authentication method {request_message.code}, which"):
        client().feed(body(request_message.encode()))


def test_an_offer_without_scram_sha_256_is_refused() -> None:
    with pytest.raises(PgError, match="it offers only OAUTHBEARER authentication"):
        client().feed(body(m.AuthenticationSASL.encode(auth_mechanisms=["OAUTHBEARER"])))
    with pytest.raises(PgError, match="it offers only SCRAM-SHA-256-PLUS authentication"):  # no TLS to bind to
        client().feed(body(m.AuthenticationSASL.encode(auth_mechanisms=["SCRAM-SHA-256-PLUS"])))


def test_authentication_ok_alone_is_trust() -> None:
    assert client().feed(body(AUTHENTICATION_OK)) is None
    assert m.AuthenticationOk.encode() == AUTHENTICATION_OK


# ---- verifiers -------------------------------------------------------------------------------------------------------


def stored(verifier: ScramVerifier) -> str:
    """As pg_authid has it."""
    salt, stored_key, server_key = (
        base64.b64encode(raw).decode() for raw in (verifier.salt, verifier.stored_key, verifier.server_key)
    )
    return f"SCRAM-SHA-256${verifier.iterations}:{salt}${stored_key}:{server_key}"


def test_a_verifier_is_read_as_it_is_stored() -> None:
    assert ScramVerifier.parse(stored(PENCIL)) == PENCIL


KEY = "A" * 43 + "="


@pytest.mark.parametrize(
    "text",
    [
        "",
        "md5abcdef",
        "pencil",
        "SCRAM-SHA-256$4096:c2FsdA==",
        f"SCRAM-SHA-1$4096:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$x:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$-4096:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$²:c2FsdA==${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:c2FsdA==$AAAA:{KEY}",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:!!",
        f"SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}:more",
        f"SCRAM-SHA-256$4095:c2FsdA==${KEY}:{KEY}",  # no login with it could succeed: say so when it is read
        f"SCRAM-SHA-256$99999999:c2FsdA==${KEY}:{KEY}",
    ],
)
def test_what_is_no_verifier_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form|not a SCRAM|iterations"):
        ScramVerifier.parse(text)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("SCRAM-SHA-256$:4096=Aé"), max_size=40) | st.text())
def test_any_text_is_a_verifier_or_a_value_error(text: str) -> None:
    try:
        ScramVerifier.parse(text)
    except ValueError:
        pass


def test_a_verifier_does_not_show_its_keys() -> None:
    assert repr(PENCIL) == "ScramVerifier(iterations=4096)"


# ---- PostgreSQL is the referee ---------------------------------------------------------------------------------------

PASSWORDS = [
    "pencil",
    "é",
    "e\u0301",  # composed by SASLprep
    "Ⅸ",  # becomes IX
    "a\u00a0b",  # a space
    "a\u00adb",  # mapped to nothing
    "\u00ad",  # mapped to nothing at all: then it is taken as it is
    "bell\x07",  # prohibited: taken as it is
    "\u0633\u0644\u0627\u06451",  # an Arabic word and a digit: no bidirectional string of stringprep: taken as it is
    "🔒 lock",  # unassigned in Unicode 3.2: taken as it is
    "Ⅸ🔒",
]


@pytest.mark.parametrize("password", PASSWORDS, ids=ascii)
def test_postgresql_makes_the_same_verifier_and_lets_the_client_in(
    origin: Server, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scramp alone refuses what SASLprep prohibits; PostgreSQL takes such a password as it is, and so do we."""
    role = "scram_" + hashlib.sha256(password.encode()).hexdigest()[:8]
    with origin.connect() as connection:
        name = sql.Identifier(role)
        connection.execute(sql.SQL("create role {} login password {}").format(name, sql.Literal(password)))
        try:
            row = connection.execute("select rolpassword from pg_authid where rolname = %s", [role]).fetchone()
            assert row is not None
            theirs = ScramVerifier.parse(row[0])
            assert made_with_salt(monkeypatch, password, theirs.salt) == theirs
            with WireClient(origin.port) as raw:
                raw.send(startup({"user": role, "database": "postgres"}))
                log_in(raw, client(password, role))
        finally:
            connection.execute(sql.SQL("drop role {}").format(name))


def log_in(raw: WireClient, authenticator: OriginAuthenticator) -> None:
    """Let `authenticator` answer until the server says AuthenticationOk."""
    while True:
        kind, data = raw.receive()
        assert kind == "R", (kind, data)
        if (answer := authenticator.feed(data)) is not None:
            raw.send(answer)
        elif data == body(AUTHENTICATION_OK):
            return


def test_a_former_password_under_the_same_salt_will_do_and_no_third_one() -> None:
    former = ScramVerifier.from_password("crayon")
    current = ScramVerifier.from_password("pencil", salt=former.salt)
    elsewhere = ScramVerifier.from_password("chalk")
    for password in ("pencil", "crayon"):
        exchange(ScramServer([current, former, elsewhere], "user", None), client(password))
    for password in ("chalk", "pen"):
        with pytest.raises(PgError, match="password authentication failed"):
            exchange(ScramServer([current, former, elsewhere], "user", None), client(password))


def test_an_origin_that_asks_for_more_rounds_than_can_be_borne_is_refused_at_once() -> None:
    """Ten million of them, which scramp takes, held every client of pgnear up for most of a minute."""
    login = OriginAuthenticator("user", "secret", channel_binding=None, cleartext_allowed=False)
    first = login.feed(pack("!I", 10) + b"SCRAM-SHA-256\0\0")
    assert first is not None
    nonce = first.rpartition(b"r=")[2]
    salt = base64.b64encode(b"s" * 16)
    for rounds in (b"1000001", b"10000000", b"9" * 5000):
        with pytest.raises(PgError, match="rounds of SCRAM"):
            login.feed(pack("!I", 11) + b"r=" + nonce + b"x,s=" + salt + b",i=" + rounds)
