"""Hostile input: whatever a stranger or a logged-in client sends, it hears a clear error or is cut off, nobody else
notices, and memory stays where it was.

One pgnear takes all of it, one case after another, with a bystander in a transaction throughout.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle
from struct import pack

import psycopg
import pytest

from tests.conftest import Start
from tests.support.hostile import MESSAGES
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.tls import answering
from tests.support.waiting import together, until
from tests.support.wire import (
    FLUSH,
    GSSENC_REQUEST,
    SSL_REQUEST,
    SYNC,
    TERMINATE,
    Refused,
    WireClient,
    bind,
    cancel_request,
    describe,
    error_fields,
    execute,
    frame,
    parse,
    query,
    startup,
)

MEMORY_BYTES = 64 << 20
"""What all of this together may add to the process."""


@pytest.fixture(scope="module")
def near(origin: Server) -> Iterator[Pgnear]:
    with running(origin.url(), pool_size=3, max_message_bytes="1MiB", client_login_timeout="2s") as server:
        yield server


@pytest.fixture(scope="module")
def started_with(near: Pgnear) -> int:
    with WireClient.logged_in(near.port) as client:
        client.one("select 1")
    return near.peak_memory()


@pytest.fixture
def bystander(near: Pgnear) -> Iterator[Callable[[], None]]:
    """Sees that everything is as it should be for somebody in a transaction and for somebody who comes anew."""
    with WireClient.logged_in(near.port, application_name="bystander") as client:
        client.query("begin")
        client.query("create temporary table mine on commit drop as select 17 as v")

        def unharmed() -> None:
            assert client.one("select v from mine") == b"17"
            with WireClient.logged_in(near.port) as other:
                assert other.one("select 42") == b"42"
            until(lambda: near.metric("pool_busy") == 1, what="connections are held by those who are gone")

        yield unharmed
        client.query("commit")


# ---- logged in: each message in each state ---------------------------------------------------------------------------


def _copying(client: WireClient) -> None:
    client.query("begin")
    client.query("create temporary table target (a int) on commit drop")
    client.send(query("copy target from stdin"))
    client.receive_until("G")
    client.send(frame("d", b"1\n"))


def _failed(client: WireClient) -> None:
    client.query("begin")
    client.query("select 1 / 0")


def _in_pipeline(client: WireClient) -> None:
    client.send(parse("select 1", "one"), bind("one"), execute())


def _behind_an_error(client: WireClient) -> None:
    client.send(parse("select nonsense"), FLUSH)
    client.receive_until("E")


STATES: dict[str, Callable[[WireClient], object]] = {
    "idle": lambda client: None,
    "in a transaction": lambda client: client.query("begin"),
    "in a failed transaction": _failed,
    "in COPY": _copying,
    "in a pipeline": _in_pipeline,
    "behind an error": _behind_an_error,
}


@pytest.mark.parametrize("state", STATES)
def test_whatever_a_client_sends_in_whatever_state_it_is_answered_or_cut_off(
    near: Pgnear, started_with: int, bystander: Callable[[], None], state: str
) -> None:
    """Every message above, then Sync and a query, then the end of the stream: all that comes back is whole frames, each
    error has its SQLSTATE, and the connection comes to its end by itself."""
    for name, message in MESSAGES.items():
        with WireClient.logged_in(near.port) as client:
            STATES[state](client)
            try:
                client.send(message, SYNC, query("select 'behind it'"), TERMINATE)
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was cut off while it sent
            frames = client.receive_all()
            assert not client.buffer, (name, client.buffer[:100])
            for fields in (error_fields(body) for kind, body in frames if kind == "E"):
                assert len(fields["C"]) == 5, (name, fields)
                assert fields["C"] != "XX000", (name, fields)
                assert fields["M"], (name, fields)
    bystander()
    assert near.peak_memory() - started_with < MEMORY_BYTES


# ---- strangers -------------------------------------------------------------------------------------------------------


def _pile_of_requests(client: WireClient) -> None:
    for request in (GSSENC_REQUEST, GSSENC_REQUEST, GSSENC_REQUEST, GSSENC_REQUEST):
        client.send(request)
        if client.read(1) != b"N":
            raise ConnectionError


def _flood_before_login(client: WireClient) -> None:
    client.send(pack("!I", 10000) + b"\0\3\0\0")
    for _ in range(64):
        client.send(b"a" * (1 << 20))


def _login_with(message: bytes) -> Callable[[WireClient], None]:
    def act(client: WireClient) -> None:
        client.send(startup({"user": "postgres", "database": "postgres"}))
        client.receive()
        client.send(message)

    return act


def _start_up(parameters: dict[str, str]) -> Callable[[WireClient], None]:
    return lambda client: client.send(startup(parameters))


def _stuffed(behind: bytes) -> Callable[[WireClient], None]:
    return lambda client: client.send(SSL_REQUEST + behind)


STRANGERS: dict[str, Callable[[WireClient], None]] = {
    "64 MB in place of a startup packet": _flood_before_login,
    "four GSSENCRequests": _pile_of_requests,
    "a query before login": lambda client: client.send(query("select 1")),
    "a query in place of a password": _login_with(query("select pg_sleep(1)")),
    "COPY data in place of a password": _login_with(frame("d", b"x" * 1000)),
    "2 GB of password declared": _login_with(b"p\x7f\xff\xff\xff"),
    "a negative password": _login_with(b"p\xff\xff\xff\xff"),
    "a SASL message of 60 kB": _login_with(frame("p", b"SCRAM-SHA-256\0\0\0\xea\x60n,,n=,r=" + b"a" * 59992)),
    "a cleartext password": _login_with(frame("p", b"postgres\0")),
    "plaintext query behind SSLRequest": _stuffed(query("select 1")),
    "plaintext startup packet behind SSLRequest": _stuffed(startup({"user": "postgres"})),
    "one byte behind SSLRequest": _stuffed(b"\0"),
    "a thousand parameters": _start_up({f"p{n}": "v" for n in range(700)} | {"user": "nobody"}),
    "unknown protocol options": lambda client: client.send(startup({"user": "x", "_pq_.evil": "1"}, minor=9999)),
    "a user that is not UTF-8": lambda client: client.send(pack("!II", 18, 3 << 16) + b"user\0\xff\xff\xff\0\0"),
    "an option that never ends": _start_up({"user": "x", "options": "\\" * 4000}),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_whoever_has_not_logged_in_is_told_why_and_cut_off(
    near: Pgnear, started_with: int, bystander: Callable[[], None], name: str
) -> None:
    with WireClient(near.port) as client:
        try:
            STRANGERS[name](client)
            client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        for kind, body in client.receive_all():
            assert kind in "RE"
            if kind == "E":
                assert error_fields(body)["S"] == "FATAL"
                assert error_fields(body)["C"] in ("08P01", "54000", "28P01", "22021", "42601")
    bystander()
    assert near.peak_memory() - started_with < MEMORY_BYTES


def test_slow_logins_keep_nobody_out_for_longer_than_a_login_may_take(pgnear: Start) -> None:
    near = pgnear(max_unauthenticated_connections=4, client_login_timeout="500ms")
    packet = startup({"user": "postgres", "database": "postgres"})
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(WireClient(near.port)).send(packet[:20])

        def gets_in() -> bool:
            try:
                with WireClient.logged_in(near.port) as client:
                    return client.one("select 1") == b"1"
            except (Refused, OSError):
                return False

        until(gets_in, within=8)


def test_a_flood_of_startups_is_served_and_leaves_nothing(near: Pgnear, started_with: int) -> None:
    def come(number: int) -> object:
        for round_ in range(20):
            with WireClient(near.port) as client:
                client.send(startup({"user": f"user{number}", "database": "postgres"}))
                if round_ % 2:
                    client.receive()
        return None

    together(8, come)
    until(lambda: near.metric("clients_unauthenticated") == 0)
    assert near.metric("client_addresses") <= 1
    assert near.peak_memory() - started_with < MEMORY_BYTES


def test_a_flood_of_cancel_requests_cancels_only_what_it_has_the_key_of(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as mine, WireClient.logged_in(near.port) as other:
        other.send(query("select pg_sleep(1), 'mine'"))
        before = near.metric("cancels_forwarded_total")
        for pid in range(300):
            with WireClient(near.port) as guess:
                guess.send(cancel_request(pid, b"\0\0\0\0"))
        until(lambda: near.metric("cancels_received_total") >= 300)
        assert near.metric("cancels_forwarded_total") == before
        assert [kind for kind, _ in other.receive_until("Z")] == ["T", "D", "C", "Z"]
        mine.send(query("select pg_sleep(30)"))
        until(lambda: near.metric("pool_busy") == 1)
        for _ in range(100):
            with WireClient(near.port) as cancel:
                cancel.send(cancel_request(mine.pid, mine.secret))
        frames = mine.receive_until("Z")
        assert [error_fields(body)["C"] for kind, body in frames if kind == "E"] == ["57014"]
    until(lambda: near.metric("pool_busy") == 0, what="the connection is kept for cancels that have long arrived")


# ---- names in queries of pgnear's own --------------------------------------------------------------------------------

POISON = "x'; create table public.injected (a int); --"
ENCODINGS = ("UTF8", "SJIS", "BIG5", "GBK", "GB18030", "LATIN1")


def test_no_name_or_value_of_a_clients_becomes_sql_of_pgnears(origin: Server, pgnear: Start) -> None:
    """What pgnear says on its own is settings, names of statements and look-ups; each is quoted so that it reads the
    same under every client_encoding and standard_conforming_strings. The pool of one shows what is left behind."""
    near = pgnear(pool_size=1)
    before = near.metric("settings_replayed_total")
    values = (POISON, POISON.replace("'", "\\'"), POISON.replace("'", "é\\'"), POISON.replace("'", "表\\'"))
    reasons: set[str | None] = set()
    with ExitStack() as stack:
        for encoding in ENCODINGS:
            for value in values:
                for strings in ("on", "off"):
                    parameters = {"client_encoding": encoding, "standard_conforming_strings": strings}
                    client = stack.enter_context(WireClient(near.port))
                    try:
                        client.log_in("postgres", origin.password, "postgres", application_name=value, **parameters)
                    except Refused as refused:
                        reasons.add(refused.sqlstate)
                        continue
                    client.query("select 1")
                    client.query(f"""set "evil.{POISON.replace('"', "")}" to 'a'""")
        with WireClient.logged_in(near.port, application_name="after") as after:
            assert after.one("show application_name") == b"after"
            assert after.one("show client_encoding") == b"UTF8"
    assert reasons <= {"22P05"}  # the encoding has no such character
    assert near.metric("settings_replayed_total") > before
    assert origin.execute("select to_regclass('public.injected')") == [(None,)]


@pytest.mark.parametrize(
    "parameters",
    [
        {"search_path": f'"{POISON}", public'},
        {"search_path": POISON},
        {"role": POISON},
        {"options": "-c search_path=x\\';create\\ table\\ injected(a\\ int);--"},
        {"options": "-c evil.x\\';drop=1"},
        {POISON: "1"},
        {"evil." + POISON: "1"},
        {"TimeZone": POISON},
        {"datestyle": "ISO'; create table injected(a int); --"},
    ],
)
def test_a_startup_packets_settings_are_taken_as_names_and_values(
    origin: Server, near: Pgnear, parameters: dict[str, str]
) -> None:
    outcome: str | None = None
    try:
        with WireClient.logged_in(near.port, **parameters) as client:
            assert client.one("select 'in'") == b"in"
    except Refused as refused:
        outcome = refused.sqlstate
    assert outcome in (None, "22023", "42704", "42602")
    with WireClient.logged_in(near.port) as client:
        assert client.one("show search_path") == b'"$user", public'
    assert origin.execute("select to_regclass('public.injected')") == [(None,)]


@pytest.mark.parametrize("field", ["user", "database"])
def test_the_names_one_logs_in_with_reach_no_query(origin: Server, near: Pgnear, field: str) -> None:
    for name in (POISON, '"' + POISON, "a\\", "é" * 100, "%s%n{0}", "pgnear'--"):
        with pytest.raises(Refused) as refused:
            WireClient.logged_in(near.port, **{field: name})  # type: ignore[arg-type]
        assert refused.value.sqlstate == ("28P01" if field == "user" else "3D000")
    assert origin.execute("select to_regclass('public.injected')") == [(None,)]


def test_statements_with_poisoned_names_are_prepared_and_followed(origin: Server, near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as client:
        kinds = [
            kind
            for kind, _ in client.ask(parse("select 1", POISON), bind(POISON), describe("S", POISON), execute(), SYNC)
        ]
        assert kinds == ["1", "2", "t", "T", "D", "C", "Z"]
        quoted = '"' + POISON + '"'
        assert client.one(f"execute {quoted}") == b"1"
        client.query(f"deallocate {quoted}")
    assert origin.execute("select to_regclass('public.injected')") == [(None,)]


# ---- limits by address -----------------------------------------------------------------------------------------------


def test_one_address_has_no_more_connections_than_it_may_logged_in_or_not(pgnear: Start, tmp_path: object) -> None:
    near = pgnear(max_connections_per_address=3, listen=f"127.0.0.1:0,unix:{tmp_path}/.s.PGSQL.5432")
    with WireClient.logged_in(near.port), WireClient.logged_in(near.port) as second, WireClient(near.port):
        until(lambda: near.metric("clients_unauthenticated") == 1)
        for _ in range(5):
            with WireClient(near.port) as refused:
                fields = refused.fatal()
                assert fields["C"] == "53300"
                assert "too many connections from this address" in fields["M"]
                assert "max_connections_per_address" in fields["H"]
        assert near.metric("address_limit_refusals_total") == 5
        near.wait_for_log("address_limit", client="127.0.0.1", limit=3)
        assert sum(line.get("event") == "address_limit" for line in near.log_lines) == 1  # a flood is not one of lines
        with near.connect(dsn={"host": str(tmp_path), "port": 5432}) as local:  # unix sockets are exempt
            assert local.execute("select 1").fetchone() == (1,)
        with WireClient(near.port, source="127.0.0.2") as other:  # another address has its own count
            other.log_in("postgres", PASSWORD, "postgres")
            assert other.one("select 1") == b"1"
            assert near.metric("client_addresses") == 2
        second.terminate()

        def gets_in() -> bool:
            try:
                with WireClient.logged_in(near.port):
                    return True
            except Refused:
                return False

        until(gets_in)
    until(lambda: near.metric("client_addresses") == 0, what="connections that are closed still count")


# ---- an origin that is not what it should be -------------------------------------------------------------------------


AUTHENTICATED = frame("R", pack("!I", 0))
BAD_ORIGINS: dict[str, bytes] = {
    "says nothing that is a frame": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "closes at once": b"",
    "a ParameterStatus without value": AUTHENTICATED + frame("S", b"name\0"),
    "an empty ParameterStatus": AUTHENTICATED + frame("S"),
    "a ParameterStatus that is not UTF-8": AUTHENTICATED + frame("S", b"\xff\0\xfe\0") + frame("D", b"row"),
    "2 GB declared": AUTHENTICATED + b"S\x7f\xff\xff\xff",
    "a negative length": AUTHENTICATED + b"S\xff\xff\xff\xff",
    "an empty Authentication": frame("R"),
    "SASL without mechanisms": frame("R", pack("!I", 10)),
    "SCRAM's second message first": frame("R", pack("!I", 11) + b"r=x,s=QQ==,i=4096"),
    "SCRAM of two billion rounds": frame("R", pack("!I", 10) + b"SCRAM-SHA-256\0\0")
    + frame("R", pack("!I", 11) + b"r=x,s=QQ==,i=2000000000"),
    "an error without fields": frame("E"),
    "rows before anybody asked": AUTHENTICATED + frame("D", pack("!H", 65535)),
}


def test_an_origin_that_speaks_nonsense_costs_a_connection_and_not_the_process() -> None:
    """One nonsense for each attempt to connect; a client hears that the origin cannot be reached."""
    nonsense = cycle(BAD_ORIGINS.values())

    def work(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            if connection.recv(65536) == SSL_REQUEST:
                connection.sendall(b"N")
                connection.recv(65536)
            connection.sendall(next(nonsense))

    with answering(work) as port:
        url = f"postgresql://someone:secret@127.0.0.1:{port}/postgres?sslmode=disable"
        with running(url, origin_connect_timeout="2s", min_pool_size=0, breaker={"failures": 1000}) as near:
            for _ in range(2 * len(BAD_ORIGINS)):
                with pytest.raises(Refused) as refused:
                    WireClient.logged_in(near.port, user="someone", password="secret")
                assert refused.value.sqlstate in ("08001", "XX000")


def test_pushing_against_a_closed_door_takes_no_time(near: Pgnear) -> None:
    """A thousand packets that are refused are refused in seconds: no case above is a way to keep pgnear busy."""
    began = time.monotonic()
    for _ in range(300):
        with WireClient(near.port) as client:
            client.send(b"\0\0\0\1")
            assert client.receive_all() == []
    assert time.monotonic() - began < 20


def test_passwords_with_every_character_are_refused_without_an_internal_error(near: Pgnear) -> None:
    for password in ("\x7f", "\u200b", "é" * 500, "\ufdd0", "a" * 10000, "%", "\\", "'"):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            near.connect(dsn={"password": password})
