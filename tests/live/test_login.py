"""Who may log in, and how those fare who may not, who are slow, or who speak something else."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import pack

import psycopg
import pytest

from protocol.auth import ScramServer, ScramVerifier
from protocol.responses import PgError
from tests.conftest import Start
from tests.support.certificates import Authority
from tests.support.postgres import PASSWORD, Server, system_installation
from tests.support.process import Pgnear, run, running
from tests.support.waiting import together, until
from tests.support.wire import (
    SSL_REQUEST,
    Refused,
    WireClient,
    frame,
    query,
    startup,
)


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=4) as server:
        yield server


def test_the_process_id_given_at_login_is_no_process_of_the_origins(near: Pgnear) -> None:
    """psycopg_pool's tests terminate a backend by it; counted from 1 it could be somebody else's in a container."""
    with near.connect() as connection:
        assert connection.info.backend_pid >= 2**22
        backends = connection.execute("select pid from pg_stat_activity").fetchall()
        assert backends
        assert (connection.info.backend_pid,) not in backends


# ---- passwords -------------------------------------------------------------------------------------------------------


def test_users_log_in_by_password_or_by_the_verifier_that_postgresql_keeps(origin: Server, pgnear: Start) -> None:
    origin.execute("create role donor login password 'borrowed'")
    verifier = origin.execute("select rolpassword from pg_authid where rolname = 'donor'")[0][0]
    origin.execute("drop role donor")
    near = pgnear(users={"anna": {"password": "an na's"}, "ben": {"verifier": verifier}})
    for user, password in (("anna", "an na's"), ("ben", "borrowed")):
        with near.connect(dsn={"user": user, "password": password}) as connection:
            assert connection.execute("select current_user").fetchone() == ("postgres",)
    for user, password in (("anna", "borrowed"), ("ben", "an na's"), ("ben", str(verifier)), ("postgres", PASSWORD)):
        with pytest.raises(psycopg.OperationalError, match=f'password authentication failed for user "{user}"'):
            near.connect(dsn={"user": user, "password": password})
    assert near.metric("login_failures_total") == 4
    assert near.metric("clients_rejected_total", sqlstate="28P01") == 4


def test_without_users_the_origins_own_user_logs_in_and_nobody_else(near: Pgnear) -> None:
    with near.connect() as connection:
        assert connection.execute("select current_user").fetchone() == ("postgres",)
    for user, password in (("postgres", ""), ("postgres", PASSWORD + " "), ("nobody", PASSWORD)):
        with pytest.raises(Refused) as refused:
            WireClient.logged_in(near.port, user=user, password=password)
        assert refused.value.sqlstate == "28P01"


@pytest.mark.parametrize("password", ["pässwörd", "I\u00adX", "\u2168", "💡 in the dark", "tab\tand\x7f", "a=b,c"])
def test_unusual_passwords_work_on_both_sides(origin: Server, pgnear: Start, password: str) -> None:
    """SASLprep maps some characters, and PostgreSQL takes a password as it is where SASLprep forbids it."""
    with origin.connect() as connection:
        connection.execute("create role unusual login superuser password %s".replace("%s", "'" + password + "'"))
    try:
        near = pgnear(url=origin.url(user="unusual", password=password))
        with near.connect(dsn={"user": "unusual", "password": password}) as connection:
            assert connection.execute("select current_user").fetchone() == ("unusual",)
        near.stop()
    finally:
        origin.execute("drop role unusual")


def test_user_names_of_any_kind_log_in(pgnear: Start) -> None:
    names = ["Jürgen O'Neil", "a, b", "💡", "x" * 200]
    near = pgnear(users={name: {"password": "p"} for name in names})
    for name in names:
        with WireClient.logged_in(near.port, user=name, password="p") as client:
            assert client.one("select 1") == b"1"


def test_an_unknown_user_looks_like_a_wrong_password(pgnear: Start, origin: Server) -> None:
    """Message for message: same mechanisms, iterations and salt length, a salt that stays the same, same last words."""
    origin.execute("create role donor login password 'x'")
    verifier = origin.execute("select rolpassword from pg_authid where rolname = 'donor'")[0][0]
    origin.execute("drop role donor")
    near = pgnear(users={"known1": {"password": "right"}, "known2": {"verifier": verifier}})

    def attempt(user: str) -> tuple[WireClient, dict[str, str]]:
        client = WireClient(near.port)
        with client, pytest.raises(Refused) as refused:
            client.log_in(user, "wrong", "postgres")
        return client, refused.value.fields

    salts = set()
    looks = set()
    for user in ("known1", "known2", "absent", "nobody"):
        first, fields = attempt(user)
        second, again = attempt(user)
        assert fields == again
        assert first.salt == second.salt
        salts.add(first.salt)
        told = tuple(sorted((key, value.replace(user, "USER")) for key, value in fields.items()))
        looks.add((len(first.salt), first.iterations, told))
    assert len(salts) == 4
    assert len(looks) == 1, looks


def test_an_unknown_user_costs_the_same_work_as_a_wrong_password() -> None:
    """Counted, not timed: the calls of every function but the few that make up a verifier."""

    def calls(verifier: ScramVerifier | None) -> Counter[str]:
        counted: Counter[str] = Counter()

        def count(frame: object, event: str, argument: object) -> None:
            if event == "call":
                counted[frame.f_code.co_qualname] += 1  # type: ignore[attr-defined]
            elif event == "c_call":
                counted[argument.__qualname__] += 1  # type: ignore[attr-defined]

        sys.setprofile(count)
        try:
            server = ScramServer([] if verifier is None else [verifier], "user", None)
            server.start()
            first = b"n,,n=,r=abcdefgh"
            reply, _ = server.feed(b"SCRAM-SHA-256\0" + pack("!I", len(first)) + first)
            nonce = reply[9:].split(b",")[0]
            with pytest.raises(PgError, match="password authentication failed"):
                server.feed(b"c=biws," + nonce + b",p=" + b"A" * 43 + b"=")
        finally:
            sys.setprofile(None)
        return counted

    known = ScramVerifier.from_password("right")
    calls(known)  # what is done once per process is done now
    calls(None)
    wrong, unknown = calls(known), calls(None)
    assert not wrong - unknown
    extra = unknown - wrong
    assert sum(extra.values()) < 20, extra
    assert not {"pbkdf2_hmac", "openssl_pbkdf2_hmac"} & extra.keys()


def test_no_secret_is_logged(origin: Server, pgnear: Start) -> None:
    near = pgnear(log={"level": "debug"}, users={"anna": {"password": "an na's secret"}})
    with near.connect(dsn={"user": "anna", "password": "an na's secret"}) as connection:
        connection.execute("select 1")
    for password in ("an na's other secret", ""):
        with pytest.raises(psycopg.OperationalError):
            near.connect(dsn={"user": "anna", "password": password})
    metrics = near.metrics()
    near.stop()
    for secret in ("an na's", PASSWORD, "SCRAM-SHA-256$"):
        assert secret not in json.dumps(near.log_lines)
        assert secret not in metrics


@pytest.mark.parametrize(
    ("initial", "final", "sqlstate"),
    [
        (b"", None, "08P01"),
        (b"SCRAM-SHA-256", None, "08P01"),
        (b"SCRAM-SHA-256\0", None, "08P01"),
        (b"SCRAM-SHA-256\0\xff\xff\xff\xff", None, "08P01"),
        (b"SCRAM-SHA-256\0" + pack("!I", 99) + b"n,,n=,r=abc", None, "08P01"),
        (b"SCRAM-SHA-1\0" + pack("!I", 11) + b"n,,n=,r=abc", None, "08P01"),
        (b"SCRAM-SHA-256-PLUS\0" + pack("!I", 11) + b"n,,n=,r=abc", None, "08P01"),
        (b"SCRAM-SHA-256\0" + pack("!I", 8) + b"nonsense", None, "08P01"),
        (b"SCRAM-SHA-256\0" + pack("!I", 11) + b"n,,n=,x=abc", None, "08P01"),
        (b"SCRAM-SHA-256\0" + pack("!I", 11) + b"n,,m=,r=abc", None, "0A000"),
        (b"SCRAM-SHA-256\0" + pack("!I", 10) + b"n,,n=,r=\xff\xfe", None, "08P01"),
        (b"SCRAM-SHA-256\0" + pack("!I", 12) + b"n,,n=,r=a\0bc", None, "08P01"),
        (None, b"", "08P01"),
        (None, b"nonsense", "08P01"),
        (None, b"c=biws,r=abc,p=AAAA", "08P01"),
        (None, b"c=biws,r={nonce}", "08P01"),
        (None, b"c=biws,r={nonce},p=!!!!", "08P01"),
        (None, b"c=biws,r={nonce},p=AAAA", "08P01"),
        (None, b"c=eSws,r={nonce},p=" + b"A" * 43 + b"=", "08P01"),
        (None, b"c=biws,r={nonce},p=" + b"A" * 43 + b"=", "28P01"),
        (None, b"\xff\xfe", "08P01"),
    ],
)
def test_malformed_scram_is_refused(near: Pgnear, initial: bytes | None, final: bytes | None, sqlstate: str) -> None:
    with WireClient(near.port) as client:
        client.send(startup({"user": "postgres", "database": "postgres"}))
        assert client.receive() == ("R", pack("!I", 10) + b"SCRAM-SHA-256\0\0")
        client.send(frame("p", b"SCRAM-SHA-256\0" + pack("!I", 11) + b"n,,n=,r=abc" if initial is None else initial))
        if final is not None:
            kind, body = client.receive()
            assert kind == "R"
            nonce = body[4:].split(b",")[0][2:]
            client.send(frame("p", final.replace(b"{nonce}", nonce)))
        assert client.fatal()["C"] == sqlstate


@pytest.mark.parametrize(
    ("message", "sqlstate"),
    [
        (query("select 1"), "08P01"),
        (frame("X"), "08P01"),
        (b"p\0\0\0\1", "08P01"),
        (b"p\x7f\xff\xff\xff", "54000"),
        (frame("p", b"x" * 70000), "54000"),
    ],
)
def test_what_is_no_password_message_is_refused(near: Pgnear, message: bytes, sqlstate: str) -> None:
    with WireClient(near.port) as client:
        client.send(startup({"user": "postgres", "database": "postgres"}))
        client.receive()
        client.send(message)
        assert client.fatal()["C"] == sqlstate


# ---- trust -----------------------------------------------------------------------------------------------------------


def test_trust_lets_anybody_in_on_loopback_and_unix_sockets(pgnear: Start, tmp_path: Path) -> None:
    near = pgnear(auth="trust", listen=f"127.0.0.1:0,[::1]:0,unix:{tmp_path}/.s.PGSQL.5432")
    port_6 = near.addresses[1].rpartition(":")[2]
    for host, port in (("127.0.0.1", near.port), ("::1", port_6), (str(tmp_path), 5432)):
        with near.connect(dsn={"host": host, "port": port, "user": "anybody", "password": None}) as connection:
            assert connection.execute("select current_user").fetchone() == ("postgres",)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0", "example.com:0"])
def test_trust_is_refused_where_others_could_connect(origin: Server, address: str) -> None:
    done = run("serve", "--origin", origin.url(), auth="trust", listen=address)
    assert done.returncode == 2, done.stderr
    assert "trust lets anybody in" in done.stderr


# ---- deadlines and limits --------------------------------------------------------------------------------------------


def _silent(client: WireClient) -> None:
    pass


def _half_a_packet(client: WireClient) -> None:
    client.send(startup({"user": "postgres"})[:-3])


def _without_password(client: WireClient) -> None:
    client.send(startup({"user": "postgres", "database": "postgres"}))
    client.receive()


def _half_a_handshake(client: WireClient) -> None:
    client.send(SSL_REQUEST)
    assert client.read(1) == b"S"
    client.send(b"\x16\x03\x01")


@pytest.mark.parametrize("begin", [_silent, _half_a_packet, _without_password, _half_a_handshake])
def test_a_login_has_a_deadline_wherever_it_stops(
    origin: Server, pgnear: Start, begin: Callable[[WireClient], None]
) -> None:
    near = pgnear(client_login_timeout="500ms")
    with WireClient(near.port) as client:
        begin(client)
        fields = client.fatal()
        assert fields["C"] == "57014"
        assert "login did not finish within 0.5 s" in fields["M"]
    until(lambda: near.metric("clients_unauthenticated") == 0)


def test_a_trickle_does_not_extend_the_deadline(pgnear: Start) -> None:
    near = pgnear(client_login_timeout="500ms")
    with WireClient(near.port, timeout=0.05) as client:
        packet = startup({"user": "postgres", "options": "x" * 9000})

        def trickle() -> bool:
            client.send(packet[:1])
            try:
                return client.socket.recv(1) == b"E"
            except TimeoutError:
                return False

        client.send(packet[:4])
        until(trickle)


def test_connections_that_do_not_log_in_are_limited_in_number(pgnear: Start) -> None:
    near = pgnear(max_unauthenticated_connections=3, client_login_timeout="30s")
    with ExitStack() as stack:
        idlers = [stack.enter_context(WireClient(near.port)) for _ in range(3)]
        until(lambda: near.metric("clients_unauthenticated") == 3)
        with WireClient(near.port) as refused:
            fields = refused.fatal()
            assert fields["C"] == "53300"
            assert "have not logged in yet" in fields["M"]
        assert near.metric("clients_rejected_total", sqlstate="53300") == 1
        with pytest.raises(Refused):  # and those who come later are not kept waiting for it again
            WireClient.logged_in(near.port)
        idlers[0].hang_up()
        until(lambda: near.metric("clients_unauthenticated") == 2)
        with WireClient.logged_in(near.port) as client:
            assert client.one("select 1") == b"1"


def test_a_crowd_that_comes_at_once_gets_in_a_few_at_a_time(pgnear: Start) -> None:
    near = pgnear(max_unauthenticated_connections=4)

    def come(number: int) -> object:
        with WireClient.logged_in(near.port) as client:
            return client.one(f"select {number}")

    assert together(60, come) == [str(number).encode() for number in range(60)]


def test_more_clients_than_max_client_connections_are_told_so(pgnear: Start) -> None:
    near = pgnear(max_client_connections=2)
    with near.connect(), near.connect():
        with pytest.raises(psycopg.OperationalError, match="sorry, too many clients already"):
            near.connect()
        assert near.metric("clients_rejected_total", sqlstate="53300") == 1
    until(lambda: near.metric("clients") == 0)
    with near.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_max_client_connections_holds_for_those_who_come_at_the_same_moment(pgnear: Start) -> None:
    """They are counted when they are let in, not only when they ask."""
    near = pgnear(max_client_connections=5)
    clients = [WireClient(near.port) for _ in range(30)]
    try:
        for client in clients:  # all of them pass the first check before any is logged in
            client.send(startup({"user": "postgres", "database": "postgres"}))
            assert client.receive()[0] == "R"
        outcomes: Counter[object] = Counter()
        for client in clients:
            client.buffer = frame("R", pack("!I", 10) + b"SCRAM-SHA-256\0\0")
            try:
                client.log_in_from_here(PASSWORD)
                outcomes["in"] += 1
            except Refused as refused:
                outcomes[refused.sqlstate] += 1
        assert outcomes == {"in": 5, "53300": 25}
    finally:
        for client in clients:
            client.hang_up()


# ---- pgnear's own login at the origin --------------------------------------------------------------------------------

_HBA = """
host all clear 127.0.0.1/32 password
host all hashed 127.0.0.1/32 md5
host all md5scram 127.0.0.1/32 md5
host all scram 127.0.0.1/32 scram-sha-256
host all trusted 127.0.0.1/32 trust
host all rejected 127.0.0.1/32 reject
"""


@pytest.fixture(scope="module")
def picky() -> Iterator[Server]:
    """A server that asks each user for something else; with TLS where the system's PostgreSQL is installed."""
    installation = system_installation()
    files, settings = {}, {}
    if installation is not None:
        issued = Authority().issue("127.0.0.1")
        files = {"server.crt": issued.certificate, "server.key": issued.key}
        settings = {"ssl": "on", "ssl_cert_file": "{files}/server.crt", "ssl_key_file": "{files}/server.key"}
    with Server(installation=installation, hba=_HBA, files=files, settings=settings) as server:
        for name in ("clear", "md5scram", "scram", "trusted", "rejected"):
            server.execute(f"create role {name} login password '{PASSWORD}'")
        with server.connect() as connection:
            connection.execute("set password_encryption = 'md5'")
            connection.execute(f"create role hashed login password '{PASSWORD}'")
        yield server


@pytest.mark.parametrize("user", ["hashed", "md5scram", "scram", "trusted", "clear"])
def test_pgnear_logs_in_at_its_origin_in_every_way(picky: Server, pgnear: Start, user: str) -> None:
    near = pgnear(url=picky.url(user=user, sslmode="disable"))
    with near.connect(dsn={"user": user}) as connection:
        assert connection.execute("select current_user").fetchone() == (user,)


def test_a_cleartext_password_goes_to_another_host_only_over_tls(picky: Server, pgnear: Start) -> None:
    """127.1 leads to this machine, but pgnear does not take it for loopback."""
    plain = picky.url(user="clear", sslmode="disable").replace("127.0.0.1", "127.1")
    near = pgnear(url=plain, allow_plaintext_origin="true")
    with pytest.raises(psycopg.OperationalError, match="asks for a cleartext password on an unencrypted connection"):
        near.connect(dsn={"user": "clear"})
    if system_installation() is None:
        pytest.skip("the rest needs a PostgreSQL built with OpenSSL: the system's packages (apt install postgresql)")
    near = pgnear(url=plain.replace("disable", "require"))
    with near.connect(dsn={"user": "clear"}) as connection:
        assert connection.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone() == (True,)


@pytest.mark.parametrize(("user", "told"), [("scram", "password authentication failed"), ("rejected", "pg_hba.conf")])
def test_a_client_hears_that_the_origin_refuses_pgnear_and_not_that_its_own_password_is_wrong(
    picky: Server, pgnear: Start, user: str, told: str
) -> None:
    near = pgnear(url=picky.url(user=user, password="wrong", sslmode="disable"), users={"anna": {"password": "right"}})
    with pytest.raises(Refused) as refused:
        WireClient.logged_in(near.port, user="anna", password="right")
    assert refused.value.sqlstate == "08001"
    assert "it refuses pgnear's login" in refused.value.fields["M"]
    assert told in refused.value.fields["M"]
    assert near.metric("login_failures_total") == 0
    assert near.metric("origin_connect_failures_total") > 0
    assert near.get("/readyz")[0] == 503
