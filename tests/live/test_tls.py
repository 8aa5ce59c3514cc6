"""TLS to clients: what they may ask for, what is refused, and certificates. For the origin's side: test_tls_origin."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization

from tests.conftest import Start
from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, run, running
from tests.support.tls import TlsByHand, somebody_between, trusting
from tests.support.waiting import until
from tests.support.wire import (
    GSSENC_REQUEST,
    SSL_REQUEST,
    Refused,
    WireClient,
    cancel_request,
    error_fields,
    query,
    rows,
    startup,
)


@contextmanager
def direct_tls(port: int, context: ssl.SSLContext) -> Iterator[WireClient]:
    """A connection that begins with a ClientHello instead of an SSLRequest."""
    client = WireClient(port)
    try:
        client.socket = context.wrap_socket(client.socket)
        yield client
    finally:
        client.hang_up()


def encrypted(client: psycopg.Connection) -> bool:
    """Whether the client's own connection, not the one behind it, is under TLS."""
    return bool(client.pgconn.ssl_in_use)


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    """A pgnear with the default `tls = allow` and a certificate of its own making."""
    with running(origin.url(), pool_size=4) as server:
        yield server


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def certificate(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """pgnear's settings for a certificate for localhost, and `root`, what its clients must trust."""
    issued = authority.issue("localhost", "127.0.0.1")
    files = {"tls_cert_file": issued.certificate, "tls_key_file": issued.key, "root": authority.certificate}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in files}


def test_tls_disable_answers_no_and_goes_on_in_plaintext(pgnear: Start) -> None:
    near = pgnear(tls="disable")
    with WireClient(near.port) as client:
        client.send(SSL_REQUEST)
        assert client.read(1) == b"N"
        client.log_in("postgres", PASSWORD, "postgres")
        assert client.one("select 1") == b"1"
    with near.connect(dsn={"sslmode": "prefer"}) as connection:
        assert not encrypted(connection)
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        near.connect(dsn={"sslmode": "require"})


def test_tls_allow_serves_both_kinds(near: Pgnear) -> None:
    for sslmode, expected in (("disable", False), ("prefer", True), ("require", True)):
        with near.connect(dsn={"sslmode": sslmode}) as connection:
            assert encrypted(connection) is expected
            assert connection.execute("select 1").fetchone() == (1,)


def test_tls_require_turns_plaintext_away_but_not_unix_sockets(pgnear: Start, tmp_path: Path) -> None:
    near = pgnear(tls="require", listen=f"127.0.0.1:0,unix:{tmp_path}/.s.PGSQL.5432")
    with pytest.raises(Refused, match="accepts only encrypted connections") as refused:
        WireClient.logged_in(near.port)
    assert refused.value.sqlstate == "28000"
    assert refused.value.fields["H"]
    with near.connect(dsn={"sslmode": "require"}) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    with near.connect(dsn={"host": str(tmp_path), "port": 5432}) as connection:
        assert not encrypted(connection)


def test_gssenc_request_is_answered_no_before_and_instead_of_tls(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.send(GSSENC_REQUEST)
        assert client.read(1) == b"N"
        client.encrypt(trusting())
        client.log_in("postgres", PASSWORD, "postgres")
        assert client.one("select 1") == b"1"


def test_encryption_requests_without_end_are_refused(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        for _ in range(2):
            client.send(GSSENC_REQUEST)
            assert client.read(1) == b"N"
        client.send(GSSENC_REQUEST)
        assert error_fields(client.receive()[1])["C"] == "08P01"
        assert client.receive_all() == []


def test_a_second_ssl_request_inside_tls_is_refused(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        client.send(SSL_REQUEST)
        assert error_fields(client.receive()[1])["C"] == "08P01"


def test_a_certificate_of_ones_own_passes_verify_full(pgnear: Start, certificate: dict[str, str]) -> None:
    root = certificate.pop("root")
    near = pgnear(tls="require", **certificate)
    with near.connect(dsn={"host": "localhost", "sslmode": "verify-full", "sslrootcert": root}) as connection:
        assert encrypted(connection)


def test_the_certificate_that_pgnear_makes_is_shown_as_self_signed(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        assert isinstance(client.socket, ssl.SSLSocket)
        shown = ssl.DER_cert_to_PEM_cert(client.socket.getpeercert(binary_form=True) or b"")
    context = ssl.create_default_context(cadata=shown)
    with WireClient(near.port) as client:
        client.encrypt(context, host="localhost")
        client.log_in("postgres", PASSWORD, "postgres")
    with WireClient(near.port) as client, pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed"):
        client.encrypt(ssl.create_default_context())


def test_alpn_postgresql_is_chosen(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.encrypt(trusting(alpn="postgresql"))
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.selected_alpn_protocol() == "postgresql"


def test_direct_tls_works_with_libpq(near: Pgnear) -> None:
    if psycopg.pq.version() < 170000:
        pytest.skip("this libpq has no sslnegotiation")
    with near.connect(dsn={"sslmode": "require", "sslnegotiation": "direct"}) as connection:
        assert encrypted(connection)
        assert connection.execute("select 1").fetchone() == (1,)


def test_direct_tls_with_alpn_works_and_without_is_closed_as_postgresql_does(near: Pgnear) -> None:
    with direct_tls(near.port, trusting(alpn="postgresql")) as client:
        client.log_in("postgres", PASSWORD, "postgres")
        assert client.one("select 1") == b"1"
    for context in (trusting(), trusting(alpn="http/1.1")):
        with direct_tls(near.port, context) as client:
            assert client.receive_all() == []
    reason = "received direct SSL connection request without ALPN protocol negotiation extension"
    near.wait_for_log("login_failed", reason=reason)


def test_direct_tls_where_tls_is_off_is_an_error_and_no_hang(pgnear: Start) -> None:
    near = pgnear(tls="disable")
    with pytest.raises(ssl.SSLError), direct_tls(near.port, trusting(alpn="postgresql")):
        pass


def test_tls_below_1_2_is_refused(near: Pgnear) -> None:
    def attempt(version: ssl.TLSVersion) -> None:
        context = trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
        with WireClient(near.port) as client:
            client.encrypt(context)
            client.log_in("postgres", PASSWORD, "postgres")

    with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises(ssl.SSLError, match=r"(?i)protocol|alert"):
        attempt(ssl.TLSVersion.TLSv1_1)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        attempt(ssl.TLSVersion.TLSv1_2)


def test_renegotiation_is_refused_and_harms_nobody(pgnear: Start) -> None:
    """A client that renegotiates costs the server a handshake each time; OpenSSL's own tool asks for one."""
    near = pgnear(client_login_timeout="2s")  # the tool waits for the server to end it
    try:
        process = subprocess.Popen(
            ["openssl", "s_client", "-tls1_2", "-starttls", "postgres", "-connect", f"127.0.0.1:{near.port}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            seen = []
            for line in process.stdout:
                seen.append(line)
                if line.startswith("---") and any("Verify return code" in before for before in seen):
                    break
            process.stdin.write("R\n")
            process.stdin.flush()
            rest = process.stdout.read()  # until it gives up, which it does by itself
        finally:
            process.kill()
    assert any("Secure Renegotiation IS supported" in line for line in seen)
    assert "RENEGOTIATING" in rest
    assert "no renegotiation" in rest
    with near.connect(dsn={"sslmode": "require"}) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_channel_binding_is_offered_over_tls_and_required_by_those_who_ask(near: Pgnear) -> None:
    with near.connect(dsn={"sslmode": "require", "channel_binding": "require"}) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="channel binding required"):
        near.connect(dsn={"sslmode": "disable", "channel_binding": "require"})


def test_channel_binding_uncovers_somebody_between(near: Pgnear, authority: Authority, tmp_path: Path) -> None:
    with (
        somebody_between(near.port, authority, tmp_path) as port,
        pytest.raises(psycopg.OperationalError, match="authentication failed"),
    ):
        near.connect(dsn={"port": port, "sslmode": "require"})


def test_plaintext_behind_ssl_request_is_refused(near: Pgnear) -> None:
    """CVE-2021-23214: what an attacker sends before the handshake must not pass for the client's words after it."""
    for request in (SSL_REQUEST, GSSENC_REQUEST):
        with WireClient(near.port) as client:
            client.send(request + startup({"user": "postgres", "database": "postgres"}))
            kind, body = client.receive()
            assert kind == "E"
            assert error_fields(body)["M"] == "received unencrypted data after SSL request"
            assert client.receive_all() == []


def test_plaintext_that_comes_after_the_answer_to_ssl_request_is_no_handshake(near: Pgnear) -> None:
    with WireClient(near.port) as client:
        client.send(SSL_REQUEST)
        assert client.read(1) == b"S"
        client.send(startup({"user": "postgres", "database": "postgres"}))
        assert b"SFATAL" not in b"".join(body for _, body in client.receive_all())


def test_a_big_result_and_copy_pass_through_tls(near: Pgnear, origin: Server) -> None:
    origin.execute("drop table if exists tls_copy")
    origin.execute("create table tls_copy (a text)")
    with near.connect(dsn={"sslmode": "require"}) as connection:
        total = 0
        for (part,) in connection.cursor().stream("select repeat('x', 99991) from generate_series(1, 400)"):
            assert part == "x" * 99991
            total += 1
        assert total == 400
        with connection.cursor().copy("copy tls_copy from stdin") as copy:
            for _ in range(200):
                copy.write(b"y" * 70001 + b"\n")
        assert connection.execute("select count(*), sum(length(a)) from tls_copy").fetchone() == (200, 200 * 70001)
        with connection.cursor().copy("copy tls_copy to stdout") as copy:
            assert sum(len(data) for data in copy) == 200 * 70002
    origin.execute("drop table tls_copy")


def test_a_slow_reader_over_tls_gets_every_byte(near: Pgnear) -> None:
    """The kernel takes TLS records in pieces; what is left waits, and the origin is paused meanwhile."""
    with WireClient(near.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        client.encrypt(trusting())
        client.log_in("postgres", PASSWORD, "postgres")
        client.send(query("select repeat('z', 50000) from generate_series(1, 200)"))
        until(lambda: near.metric("clients_linked") == 1, what="the query is not under way")
        frames = client.receive_until()
        assert sum(len(columns[0] or b"") for columns in rows(frames)) == 200 * 50000


def test_a_client_that_ends_tls_properly_right_behind_its_query_is_answered_and_closed(near: Pgnear) -> None:
    """Query and close_notify in one segment; the client keeps its socket open until pgnear has ended TLS too."""
    clients = near.metric("clients")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with WireClient(near.port) as client:
        client.send(SSL_REQUEST)
        assert client.read(1) == b"S"
        client.socket = TlsByHand(client.socket, incoming, outgoing)  # type: ignore[assignment]
        client.log_in("postgres", PASSWORD, "postgres")
        assert near.metric("clients") == clients + 1
        assert isinstance(client.socket, TlsByHand)
        client.socket.send_and_end(query("select 'last'"))
        client.receive_all()
    until(lambda: near.metric("clients") == clients, what="the session lives on")


def test_an_abrupt_end_of_tls_frees_the_session_and_its_transaction(near: Pgnear) -> None:
    clients = near.metric("clients")
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        client.log_in("postgres", PASSWORD, "postgres")
        client.query("begin")
        assert near.metric("clients") == clients + 1
    until(lambda: near.metric("clients") == clients and near.metric("pool_busy") == 0, what="the session lives on")


def test_last_words_come_with_a_proper_end_of_tls(pgnear: Start) -> None:
    """Without close_notify libpq adds "SSL error: unexpected eof" to the reason that was given."""
    near = pgnear(tls="require")
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.suppress_ragged_eofs = False
        client.log_in("postgres", PASSWORD, "postgres")
        client.send(b"!\0\0\0\4")
        assert error_fields(client.receive()[1])["C"] == "08P01"
        with pytest.raises(EOFError):  # and not ssl.SSLEOFError
            client.receive()
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.suppress_ragged_eofs = False
        with pytest.raises(Refused):
            client.log_in("postgres", "wrong", "postgres")
        with pytest.raises(EOFError):
            client.receive()


def test_a_query_is_cancelled_over_tls(near: Pgnear) -> None:
    with near.connect(dsn={"sslmode": "require"}) as connection:
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(30)")
        timer.join()


def test_a_cancel_request_in_plaintext_is_heard_where_tls_is_required(pgnear: Start) -> None:
    """As PostgreSQL does: libpq before 17 sends all its cancel requests in plaintext."""
    near = pgnear(tls="require")
    with WireClient(near.port) as client:
        client.encrypt(trusting())
        client.log_in("postgres", PASSWORD, "postgres")
        client.send(query("select pg_sleep(30)"))
        until(lambda: near.metric("clients_linked") == 1)
        with WireClient(near.port) as other:
            other.send(cancel_request(client.pid, client.secret))
            assert other.receive_all() == []
        assert error_fields(dict(client.receive_until())["E"])["C"] == "57014"


# ---- certificates that cannot be used --------------------------------------------------------------------------------


def _unreadable(tmp_path: Path) -> Path:
    path = tmp_path / "unreadable"
    if os.geteuid() == 0:
        if sys.platform != "linux":
            pytest.skip("root can read everything here")
        return Path("/proc/self/mem")  # a regular file that nobody can read from its beginning
    path.write_bytes(b"")
    path.chmod(0)
    return path


def test_a_key_that_cannot_be_used_is_one_clear_line(
    origin: Server, certificate: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    del certificate["root"]
    anothers = tmp_path / "anothers"
    anothers.write_bytes(authority.issue("localhost").key)
    locked = tmp_path / "locked"
    key = serialization.load_pem_private_key(Path(certificate["tls_key_file"]).read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    for path, said, status in (
        (tmp_path / "missing", "cannot be read", 2),
        (_unreadable(tmp_path), "cannot be read", 2),
        (anothers, "is not that of the certificate in", 2),
        (locked, "is encrypted", 2),
        (nonsense, "has no PEM block of a private key", 2),
    ):
        settings = {**certificate, "tls_key_file": str(path)}
        done = run("serve", "--origin", origin.url(), listen="127.0.0.1:0", **settings)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_no_session_tickets_are_sent(pgnear: Start) -> None:
    """As PostgreSQL: its clients do not resume sessions, and each ticket costs a login CPU and bytes."""
    near = pgnear(tls="require")
    client = WireClient(near.port)
    client.send(SSL_REQUEST)
    assert client.read(1) == b"S"
    tls = TlsByHand(client.socket, ssl.MemoryBIO(), ssl.MemoryBIO())
    tls.sendall(startup({"user": "postgres", "database": "postgres"}))
    assert tls.recv(1) == b"R"
    assert tls.tls.session is None or not tls.tls.session.has_ticket
    client.hang_up()
