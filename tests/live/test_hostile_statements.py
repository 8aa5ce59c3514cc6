"""What a logged-in client sends as SQL: nothing ends the process, keeps others waiting or grows without end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import Background, until
from tests.support.wire import SYNC, WireClient, bind, close, error_fields, execute, frame, parse, query

MEMORY_BYTES = 96 << 20
"""What one of these may add to the process."""


@pytest.fixture(scope="module", params=[True, False], ids=["cache on", "cache off"])
def near(request: pytest.FixtureRequest, origin: Server) -> Iterator[Pgnear]:
    cache = {"enabled": request.param}
    with running(origin.url(), pool_size=3, max_message_bytes="16MiB", query_timeout="20s", cache=cache) as server:
        with WireClient.logged_in(server.port) as client:
            client.one("select 1")
        yield server


def errors_in(frames: list[tuple[str, bytes]]) -> list[str]:
    return [error_fields(body)["C"] for kind, body in frames if kind == "E"]


def is_free_again(near: Pgnear) -> None:
    until(lambda: near.metric("pool_busy") == 0 and near.metric("clients_pinned") == 0)
    with WireClient.logged_in(near.port) as other:
        assert other.one("select 42") == b"42"


TEXTS = {
    "operators": "select 1" + "+1" * 60_000,
    "casts": "select 1" + "::int" * 60_000,
    "joins": "select 1 from a" + " join a using (x)" * 50_000,
    "parentheses": "select " + "(" * 100_000 + "1" + ")" * 100_000,
    "NOT": "select " + "not " * 250_000 + "true",
    "newlines": "select 1" + "\n" * 1_000_000,
    "comments in comments in 32 kB": "/*" * 8_000 + "*/" * 8_000 + "select 1",
    "a list": "select 1 where 1 in (" + "1," * 200_000 + "1)",
    "parameters": "select " + ",".join(f"${n}" for n in range(1, 65536)),
    "an identifier": "select 1 as " + "a" * 1_000_000,
    "surrogates": r"select U&'\d83d', E'\ud83d'",
}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_keeps_others_waiting_or_ends_the_process(near: Pgnear, name: str) -> None:
    """The parser's library ended the process by 40 kB of "1+1+1"; 20 kB of newlines took minutes."""
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as bystander:
        before = near.peak_memory()
        began = time.monotonic()
        client.send(query(TEXTS[name]), parse(TEXTS[name], "s"), SYNC)
        bystander.one("select clock_timestamp()")
        assert time.monotonic() - began < 10
        for _ in range(2):
            client.receive_until("Z")
        client.ask(close("S", "s"), SYNC)
        assert client.one("select 'still there'") == b"still there"
        assert near.peak_memory() - before < MEMORY_BYTES
    is_free_again(near)


@pytest.mark.parametrize(
    "text",
    [b"select 1\0; select 2", b"select '\xff'", b"select '\xed\xa0\x80'", b'select 1 as "\xc0\x80"', b"\xff" * 1000],
)
def test_a_text_that_is_no_text_is_refused_as_the_origin_refuses_it(near: Pgnear, text: bytes) -> None:
    with WireClient.logged_in(near.port) as client:
        frames = client.ask(frame("Q", text + b"\0"))
        assert set(errors_in(frames)) <= {"22021", "08P01", "42601"}
        assert errors_in(frames)
    is_free_again(near)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_thousands_of_settings_stay_on_a_connection_and_out_of_pgnears_memory(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as client:
        before = near.peak_memory()
        for begin in range(0, 2000, 500):
            client.send(*(query(f"set app.x_{n} = '{n:060}'") for n in range(begin, begin + 500)))
            for _ in range(500):
                assert not errors_in(client.receive_until("Z"))
        assert near.metric("clients_pinned") == 1
        near.wait_for_log("client_pinned", reason="more settings than are kept")
        assert client.one("show app.x_1999") == b"%060d" % 1999
        assert client.one("show app.x_0") == b"0" * 60
        assert near.peak_memory() - before < MEMORY_BYTES
        client.query("discard all")
        until(lambda: near.metric("clients_pinned") == 0)
    is_free_again(near)
    with WireClient.logged_in(near.port) as other:
        assert other.one("select coalesce(current_setting('app.x_1999', true), '')") == b""


def test_a_setting_of_megabytes_pins_and_is_not_kept(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as client:
        client.query("set app.large = '" + "x" * (8 << 20) + "'")
        assert near.metric("clients_pinned") == 1
        assert client.one("select length(current_setting('app.large'))") == str(8 << 20).encode()
    is_free_again(near)


def test_thousands_of_savepoints_behind_a_set_are_undone_as_ever(near: Pgnear) -> None:
    with WireClient.logged_in(near.port) as client:
        client.query("begin")
        client.query("set app.deep = 'before'")
        client.send(*(query(f"savepoint s{n}") for n in range(3000)))
        for _ in range(3000):
            client.receive_until("Z")
        client.query("set app.deep = 'behind'")
        client.query("rollback to s5")
        assert client.one("show app.deep") == b"before"
        client.query("commit")
        assert client.one("show app.deep") == b"before"
    is_free_again(near)


def test_a_client_has_no_more_prepared_than_a_message_may_hold(near: Pgnear) -> None:
    text = "select 1 /* " + "x" * (3 << 20) + " */"
    with WireClient.logged_in(near.port) as client:
        for number in range(5):
            assert not errors_in(client.ask(parse(text, f"s{number}"), SYNC))
        assert [kind for kind, _ in client.ask(bind("s0"), execute(), SYNC)][:1] == ["2"]
        client.ask(close("S", "s0"), SYNC)
        assert not errors_in(client.ask(parse(text, "another"), SYNC))
        client.send(parse(text, "one too many"), SYNC)
        fields = client.fatal()
        assert fields["C"] == "53400"
        assert "max_message_bytes" in fields["H"]
    is_free_again(near)


def test_nothing_of_this_is_a_traceback_in_the_log(near: Pgnear) -> None:
    is_free_again(near)
    assert not [line for line in near.log_lines if "raw" in line or "exception" in line]


def test_a_flood_of_slow_texts_leaves_others_their_turns(near: Pgnear) -> None:
    """Each costs its time in the parser, but between two of them others are served."""
    with WireClient.logged_in(near.port) as client, WireClient.logged_in(near.port) as bystander:
        slow = [f"select {number}; " + "select 1;" * 1500 for number in range(5)]

        def flood() -> None:
            for text in slow:
                client.query(text)

        flooding = Background(flood)
        answered = 0
        while flooding.running:
            bystander.one("select clock_timestamp()")
            answered += 1
        flooding.result()
        assert answered >= 5
