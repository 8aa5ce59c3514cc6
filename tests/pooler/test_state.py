"""A session's settings through transactions, and what pins it, without sockets."""

from __future__ import annotations

import pytest

from pooler.settings import Settings, from_startup
from pooler.sql.statement import PinKind, classify
from pooler.state import SessionState, probe_query

IDLE, BLOCK, FAILED = b"ITE"


def run(state: SessionState, script: str) -> SessionState:
    """Each word group of `script` is a statement that completes; `!` fails; `.` is ReadyForQuery outside a block."""
    block = False
    for text in filter(None, (line.strip() for line in script.split(";"))):
        if text == "!":
            state.error()
            continue
        if text in (".", "T", "E"):
            state.ready({".": IDLE, "T": BLOCK, "E": FAILED}[text])
            continue
        tag = b"ROLLBACK" if text in ("rollback", "commit failed") else b""
        for part in classify(text.removesuffix(" failed").encode()).parts:
            state.complete(part, tag)
    assert not block
    return state


def names(settings: Settings) -> dict[str, str]:
    return {name: sql.rpartition(" ")[2] for name, sql in settings.items}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("set a to 1; .", {"a": "1"}),
        ("set a to 1; !; .", {}),
        ("set a to 1; commit; set a to 2; !; .", {"a": "1"}),
        ("set a to 1; T; set b to 2; T; commit; .", {"a": "1", "b": "2"}),
        ("set a to 1; T; rollback; .", {}),
        ("set a to 1; T; !; E; commit failed; .", {}),
        ("set a to 1; T; savepoint s; set a to 2; rollback to s; T; commit; .", {"a": "1"}),
        ("savepoint s; set a to 2; rollback to s; T; commit; .", {}),
        ("set a to 1; savepoint s; set a to 2; savepoint s; set a to 3; rollback to s; commit; .", {"a": "2"}),
        ("set a to 1; savepoint s; set a to 2; savepoint s; set a to 3; release s; rollback to s; commit; .", {"a": "1"}),  # noqa: E501
        ("set a to 1; savepoint s; set a to 2; !; E; rollback to s; T; set a to 4; rollback to s; commit; .", {"a": "1"}),  # noqa: E501
        ("set a to 1; .; reset a; .", {}),
        ("set a to 1; set role r; .; reset all; .", {"role": "r"}),
        ("set role r; .; set session authorization u; .", {"session_authorization": "u"}),
        ("set local a to 1; .", {}),
    ],
)  # fmt: skip
def test_settings_through_transactions(script: str, expected: dict[str, str]) -> None:
    assert names(run(SessionState(Settings.of({})), script).settings) == expected


def test_reset_goes_back_to_the_startup_packet() -> None:
    startup = from_startup({"TimeZone": "Asia/Tokyo"})
    state = run(SessionState(startup), "set timezone to utc; set a to 1; .")
    assert state.settings is not startup
    assert run(state, "reset timezone; reset a; .").settings is startup


def test_settings_outside_the_transaction_are_those_that_another_connection_needs() -> None:
    state = run(SessionState(Settings.of({})), "set a to 1; T")
    assert names(state.settings) == {}
    assert names(state.current) == {"a": "1"}
    assert state.dirty


def test_a_report_without_a_statement_is_taken_over() -> None:
    state = SessionState(Settings.of({}))
    state.reported("TimeZone", "Europe/Paris")
    state.reported("server_version", "99")
    state.ready(IDLE)
    assert [name for name, _ in state.settings.items] == ["timezone"]


def test_a_report_that_a_statement_explains_is_not() -> None:
    for script in ("set timezone to utc", "set local timezone to utc", "discard all", "reset all", "set role r"):
        state = run(SessionState(Settings.of({})), script)
        state.reported("TimeZone" if "role" not in script else "is_superuser", "UTC")
        state.ready(IDLE)
        assert "timezone" not in dict(state.settings.items) or script == "set timezone to utc"


def test_a_pin_ends_only_when_the_origin_says_so() -> None:
    state = run(SessionState(Settings.of({})), "listen news; create temp table t (a int); .")
    assert set(state.pins) == {PinKind.LISTEN, PinKind.TEMPORARY}
    assert set(state.probed_kinds()) == {PinKind.LISTEN, PinKind.TEMPORARY}
    assert not state.probe_due
    assert state.probe_answered({PinKind.LISTEN: True, PinKind.TEMPORARY: True}) == []
    run(state, "drop table t; .")
    assert state.probe_due
    state.probed_kinds()
    assert state.probe_answered({PinKind.LISTEN: True, PinKind.TEMPORARY: False}) == [PinKind.TEMPORARY]
    assert set(state.pins) == {PinKind.LISTEN}


def test_state_that_came_back_while_the_origin_was_asked_stays() -> None:
    state = run(SessionState(Settings.of({})), "listen news; .")
    state.probed_kinds()
    run(state, "listen news")
    assert state.probe_answered({PinKind.LISTEN: False}) == []
    assert PinKind.LISTEN in state.pins
    assert state.probe_due


def test_what_discard_all_takes_back_and_what_it_does_not() -> None:
    state = run(
        SessionState(Settings.of({})), "listen news; select setseed(0.1); prepare p as select 1; .; discard all; ."
    )
    assert set(state.pins) == {PinKind.SEED}
    assert state.tainted
    assert not state.sql_statements


@pytest.mark.parametrize("made", ["create temp table t (a int)", "do 'begin set work_mem to 5 end'"])
def test_behind_discard_all_the_origin_is_asked_whether_a_temporary_schema_is_left(made: str) -> None:
    state = run(SessionState(Settings.of({})), f"listen news; {made}; .; discard all; .")
    assert set(state.pins) == {PinKind.TEMPORARY}
    assert state.probed_kinds() == [PinKind.TEMPORARY]
    assert state.probe_answered({PinKind.TEMPORARY: False}) == [PinKind.TEMPORARY]
    assert not state.pins


def test_the_probe_asks_for_each_kind_in_order() -> None:
    text = probe_query([PinKind.LISTEN, PinKind.ADVISORY])[5:].decode()
    assert text.index("pg_listening_channels") < text.index("pg_locks")


def test_settings_beyond_what_may_be_kept_pin_and_are_not_kept() -> None:
    state = SessionState(Settings.of({}), max_bytes=100)
    run(state, "set a to 1; .")
    assert not state.pins
    run(state, "set b to '" + "x" * 100 + "'; .")
    assert list(state.pins) == [PinKind.TOO_MUCH]
    assert names(state.settings) == {"a": "1"}
    run(state, "set c to 2; .")
    assert names(state.settings) == {"a": "1", "c": "2"}
    run(state, "discard all; .")
    assert not state.pins


def test_what_a_transaction_has_set_and_its_savepoints_are_bounded() -> None:
    state = run(SessionState(Settings.of({})), "".join(f"set local a{n} to 1; " for n in range(1100)) + "commit; .")
    assert list(state.pins) == [PinKind.TOO_MUCH]
    state = run(SessionState(Settings.of({})), "set a to 1; " + "savepoint s; " * 1100 + "commit; .")
    assert list(state.pins) == [PinKind.TOO_MUCH]


def test_a_reported_setting_that_is_too_large_to_follow_pins() -> None:
    state = SessionState(Settings.of({}), max_bytes=100)
    state.reported("search_path", "x" * 100)
    state.ready(IDLE)
    assert list(state.pins) == [PinKind.TOO_MUCH]
