"""TLS to the origin: sslmode's words, certificates, and origins that are not what they say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest

from tests.conftest import Start
from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server, system_installation
from tests.support.process import Pgnear, run, running
from tests.support.tls import answering, somebody_between
from tests.support.wire import SSL_REQUEST

LOOPBACK_IN_DISGUISE = "127.1"
"""Leads to this machine, but is no name that pgnear takes for loopback: to it, this is a remote host."""


class Origin:
    """A PostgreSQL with TLS and what its clients must trust."""

    def __init__(self, server: Server, root: Path, other_root: Path, authority: Authority) -> None:
        self.authority = authority
        self.server = server
        self.root = root
        self.other_root = other_root

    def url(self, host: str = "127.0.0.1", user: str = "postgres", **query: object) -> str:
        url = self.server.url(user=user).replace("127.0.0.1", host)
        return f"{url}?{urlencode({name: str(value) for name, value in query.items()})}" if query else url


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """The system's PostgreSQL with a certificate for 127.0.0.1 and for the disguised loopback, but not localhost."""
    installation = system_installation()
    if installation is None:
        pytest.skip("needs a PostgreSQL built with OpenSSL: the system's packages (apt install postgresql)")
    authority = Authority()
    issued = authority.issue("127.0.0.1", LOOPBACK_IN_DISGUISE)
    directory = tmp_path_factory.mktemp("authority")
    root, other_root = directory / "root.pem", directory / "other.pem"
    root.write_bytes(authority.certificate)
    other_root.write_bytes(Authority().certificate)
    with Server(
        installation=installation,
        settings={
            "ssl": "on",
            "ssl_cert_file": "{files}/server.crt",
            "ssl_key_file": "{files}/server.key",
            "ssl_ca_file": "{files}/clients.crt",
        },
        files={"server.crt": issued.certificate, "server.key": issued.key, "clients.crt": authority.certificate},
        hba="hostssl all shows_certificate 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n"
        "hostssl all only_encrypted 127.0.0.1/32 scram-sha-256\nhost all only_encrypted 127.0.0.1/32 reject\n"
        "hostnossl all only_plain 127.0.0.1/32 scram-sha-256\nhost all only_plain 127.0.0.1/32 reject\n",
    ) as server:
        for name in ("only_encrypted", "only_plain", "shows_certificate"):
            server.execute(f"create role {name} login password '{PASSWORD}'")
        yield Origin(server, root, other_root, authority)


def behind(near: Pgnear, **dsn: object) -> str | None:
    """The TLS version between pgnear and its origin, None in plaintext."""
    with near.connect(dsn=dsn) as connection:
        row = connection.execute("select version from pg_stat_ssl where pid = pg_backend_pid()").fetchone()
        return row[0] if row else None


def refusal(near: Pgnear, **dsn: object) -> str:
    """What a client is told, over and over, when the origin cannot be reached."""
    with pytest.raises(psycopg.OperationalError) as caught:
        near.connect(dsn=dsn)
    assert "the origin database cannot be reached" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sslmode", "expected"),
    [
        ("disable", None), ("allow", None), ("prefer", "TLSv1.3"), ("require", "TLSv1.3"), ("verify-ca", "TLSv1.3"),
        ("verify-full", "TLSv1.3"),
    ],
)  # fmt: skip
def test_each_sslmode_word_means_what_libpq_means(
    tls_origin: Origin, pgnear: Start, sslmode: str, expected: str | None
) -> None:
    near = pgnear(url=tls_origin.url(sslmode=sslmode, sslrootcert=tls_origin.root))
    assert behind(near) == expected


def test_an_origin_whose_certificate_is_of_another_authority_is_refused(tls_origin: Origin, pgnear: Start) -> None:
    for sslmode in ("require", "verify-ca", "verify-full"):
        near = pgnear(url=tls_origin.url(sslmode=sslmode, sslrootcert=tls_origin.other_root))
        assert "TLS certificate not accepted" in refusal(near)
        assert near.wait_for_log("origin_connect_failed")["sqlstate"] == "08001"


def test_verify_full_wants_the_name_and_verify_ca_does_not(tls_origin: Origin, pgnear: Start) -> None:
    full = pgnear(url=tls_origin.url("localhost", sslmode="verify-full", sslrootcert=tls_origin.root))
    assert "Hostname mismatch" in refusal(full)
    chain = pgnear(url=tls_origin.url("localhost", sslmode="verify-ca", sslrootcert=tls_origin.root))
    assert behind(chain) == "TLSv1.3"


def test_require_without_a_root_certificate_encrypts_without_judging(tls_origin: Origin, pgnear: Start) -> None:
    assert behind(pgnear(url=tls_origin.url("localhost", sslmode="require"))) == "TLSv1.3"


def test_another_host_is_verified_in_full_unless_the_url_says_otherwise(tls_origin: Origin, pgnear: Start) -> None:
    trusted = pgnear(url=tls_origin.url(LOOPBACK_IN_DISGUISE, sslrootcert=tls_origin.root))
    assert behind(trusted) == "TLSv1.3"
    unknown = pgnear(url=tls_origin.url(LOOPBACK_IN_DISGUISE))
    assert "TLS certificate not accepted" in refusal(unknown)


def test_another_host_without_tls_is_refused_by_default(origin: Server, pgnear: Start) -> None:
    near = pgnear(url=origin.url().replace("127.0.0.1", LOOPBACK_IN_DISGUISE))
    assert "it does not offer TLS, and sslmode is verify-full" in refusal(near)


def test_an_origin_without_tls_is_refused_under_require(origin: Server, pgnear: Start) -> None:
    assert "it does not offer TLS, and sslmode is require" in refusal(pgnear(url=origin.url(sslmode="require")))


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
def test_another_host_in_plaintext_needs_permission(origin: Server, sslmode: str) -> None:
    url = origin.url(sslmode=sslmode).replace("127.0.0.1", LOOPBACK_IN_DISGUISE)
    done = run("serve", "--origin", url, listen="127.0.0.1:0")
    assert done.returncode == 2
    assert "allow_plaintext_origin = true" in done.stderr
    assert PASSWORD not in done.stderr
    with running(url, allow_plaintext_origin="true") as near:
        assert behind(near) is None


@pytest.mark.parametrize(("user", "sslmode"), [("only_encrypted", "allow"), ("only_plain", "prefer")])
def test_allow_and_prefer_try_the_other_way_where_pg_hba_wants_it(
    tls_origin: Origin, pgnear: Start, user: str, sslmode: str
) -> None:
    near = pgnear(url=tls_origin.url(user=user, sslmode=sslmode))
    assert behind(near, user=user) == ("TLSv1.3" if user == "only_encrypted" else None)


@pytest.mark.parametrize(("user", "sslmode"), [("only_encrypted", "disable"), ("only_plain", "require")])
def test_what_pg_hba_does_not_admit_is_told_in_the_origins_words(
    tls_origin: Origin, pgnear: Start, user: str, sslmode: str
) -> None:
    near = pgnear(url=tls_origin.url(user=user, sslmode=sslmode))
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects connection"):
        near.connect(dsn={"user": user})


def test_channel_binding_uncovers_somebody_between_pgnear_and_its_origin(
    tls_origin: Origin, pgnear: Start, authority: Authority, tmp_path: Path
) -> None:
    """`require` judges no certificate, but pgnear's proof is bound to the one that it was shown."""
    with somebody_between(tls_origin.server.port, authority, tmp_path) as port:
        near = pgnear(url=tls_origin.url(sslmode="require").replace(str(tls_origin.server.port), str(port)))
        with pytest.raises(psycopg.OperationalError, match="SCRAM channel binding check failed"):
            near.connect()


def test_sslrootcert_that_is_missing_is_told(tls_origin: Origin) -> None:
    done = run("serve", "--origin", tls_origin.url(sslmode="verify-full", sslrootcert="/nowhere/root.pem"))
    assert done.returncode == 2
    assert "sslrootcert: /nowhere/root.pem cannot be read" in done.stderr


def test_a_cancel_reaches_an_origin_over_tls(tls_origin: Origin, pgnear: Start) -> None:
    near = pgnear(url=tls_origin.url(sslmode="verify-full", sslrootcert=tls_origin.root))
    with near.connect() as connection:
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(30)")
        timer.join()


def test_a_big_result_and_copy_pass_through_tls_on_both_sides(tls_origin: Origin, pgnear: Start) -> None:
    near = pgnear(url=tls_origin.url(sslmode="require"))
    with near.connect(dsn={"sslmode": "require"}) as connection:
        connection.execute("create table if not exists both_sides (a text)")
        with connection.cursor().copy("copy both_sides from stdin") as copy:
            for _ in range(300):
                copy.write(b"y" * 70001 + b"\n")
        query_ = "select sum(length(a)) from both_sides"
        assert connection.execute(query_).fetchone() == (300 * 70001,)
        with connection.cursor().copy("copy both_sides to stdout") as copy:
            assert sum(len(data) for data in copy) == 300 * 70002
        connection.execute("drop table both_sides")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"SE\0\0\0\5\0", "it sent plaintext behind its answer to SSLRequest"),
        (b"S", "TLS handshake failed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak PostgreSQL's protocol"),
        (b"", "it does not speak PostgreSQL's protocol"),
    ],
)
def test_an_origin_that_answers_ssl_request_with_something_else_is_not_trusted(
    pgnear: Start, answer: bytes, told: str
) -> None:
    """CVE-2021-23222 among others: plaintext behind the S must not pass for what the server says under TLS."""

    def work(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            assert sock.recv(8) == SSL_REQUEST
            sock.sendall(answer)
            if answer == b"S":
                sock.recv(65536)
                sock.sendall(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I" * 10)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    with answering(work) as port:
        near = pgnear(url=f"postgresql://postgres:x@127.0.0.1:{port}/postgres?sslmode=require")
        assert told in refusal(near, password="x")


# ---- certificates that change ----------------------------------------------------------------------------------------


def put(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


def connects_anew(near: Pgnear) -> None:
    """Every connection to the origin is another one now, and one works."""
    with near.connect(dsn={"dbname": "pgnear", "user": "shows_certificate"}) as console:
        console.execute("reconnect")
    with near.connect(dsn={"user": "shows_certificate"}) as client:
        assert client.execute("select 1").fetchone() == (1,)


def test_a_certificate_of_its_own_is_shown_to_the_origin_and_renewed_once_it_works(
    tls_origin: Origin, pgnear: Start, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "near.crt", tmp_path / "near.key"
    first, second = (tls_origin.authority.issue("pgnear") for _ in range(2))
    put(certificate, first.certificate)
    put(key, first.key)
    near = pgnear(
        url=tls_origin.url(
            user="shows_certificate",
            sslmode="verify-full",
            sslrootcert=tls_origin.root,
            sslcert=certificate,
            sslkey=key,
        )
    )
    connects_anew(near)
    put(certificate, second.certificate)  # and not yet its key
    connects_anew(near)
    line = near.wait_for_log("tls_reload_failed", setting="sslcert")
    assert "is not that of the certificate" in line["reason"]
    put(key, second.key)
    connects_anew(near)
    near.wait_for_log("tls_reloaded", setting="sslcert, sslkey")
    stranger = Authority().issue("pgnear")  # a pair that the origin does not trust
    put(key, stranger.key)
    put(certificate, stranger.certificate)
    connects_anew(near)
    near.wait_for_log("tls_reload_failed", setting="sslcert, sslkey")
    assert near.metric("tls_reloads_total", outcome="used") == 1
    assert near.metric("tls_reloads_total", outcome="kept") >= 2


def test_authorities_that_do_not_vouch_for_the_origin_do_not_take_over(
    tls_origin: Origin, pgnear: Start, tmp_path: Path
) -> None:
    """A file with the wrong authority, renewed too early, cut pgnear off from its origin."""
    root = tmp_path / "root.pem"
    put(root, tls_origin.root.read_bytes())
    near = pgnear(url=tls_origin.url(sslmode="verify-full", sslrootcert=root))
    with near.connect() as client:
        client.execute("select 1")
    put(root, tls_origin.other_root.read_bytes())
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        console.execute("reconnect")
    with near.connect() as client:
        assert client.execute("select 1").fetchone() == (1,)
    line = near.wait_for_log("tls_reload_failed", setting="sslrootcert")
    assert "certificate" in line["reason"]


def test_a_certificate_for_the_origin_that_cannot_be_used_is_a_problem_of_the_configuration() -> None:
    done = run("serve", origin="postgresql://app:x@127.0.0.1/shop?sslcert=/nowhere.crt&sslkey=/nowhere.key")
    assert done.returncode == 2
    assert "origin: sslcert: /nowhere.crt cannot be read" in done.stderr
    assert "origin: sslkey: /nowhere.key cannot be read" in done.stderr
