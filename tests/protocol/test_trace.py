"""The trace's lines: libpq's format, one line a message whatever is in it, and no secret in any."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages as m
from protocol import startup
from protocol.fields import Message
from protocol.framing import frame, query
from protocol.trace import HIDDEN, Trace
from tests.protocol.strategies import EACH, any_fields

REQUESTS = {answer: request for request, answer in m.ANSWERS.items()}
SECRET = "correct horse"


def lines(*sent: tuple[str, bytes], limit: int = 0) -> list[str]:
    """The lines of these (direction, bytes) on one connection."""
    trace = Trace(limit)
    return [line for direction, data in sent for line in trace.feed(data, from_frontend=direction == "F")]


@pytest.mark.parametrize(
    ("direction", "name", "fields", "line"),
    [
        ("F", "Query", {"string": "select 1"}, 'F\t13\tQuery\t "select 1"'),
        ("F", "Sync", {}, "F\t4\tSync"),
        ("F", "Describe", {"object_type": "P", "name": ""}, 'F\t6\tDescribe\t P ""'),
        ("B", "DataRow", {"values": [b"1", None, b"\0\xff"]}, "B\t21\tDataRow\t 3 1 '1' -1 2 '\\x00\\xff'"),
        ("B", "ReadyForQuery", {"tx_status": "I"}, "B\t5\tReadyForQuery\t I"),
        ("B", "ParameterStatus", {"name": "a", "value": "b"}, 'B\t8\tParameterStatus\t "a" "b"'),
        ("B", "CopyInResponse", {"overall_format": 0, "column_format_codes": [0, 1]},
         "B\t11\tCopyInResponse\t 0 2 0 1"),
        ("F", "CopyData", {"data": b"1\n"}, "F\t6\tCopyData\t '1\\x0a'"),
        (
            "B",
            "ErrorResponse",
            {"fields": [{"type": "S", "value": "ERROR"}, {"type": "M", "value": "no"}]},
            'B\t16\tErrorResponse\t S "ERROR" M "no" \\x00',
        ),
        (
            "F",
            "Bind",
            {
                "destination_portal": "",
                "prepared_statement": "s1",
                "parameter_format_codes": [],
                "parameters": [b"4"],
                "result_format_codes": [1],
            },
            "F\t21\tBind\t \"\" \"s1\" 0 1 1 '4' 1 1",
        ),
    ],
)  # fmt: skip
def test_a_line_is_direction_length_name_and_fields(
    direction: str, name: str, fields: dict[str, Any], line: str
) -> None:
    assert lines((direction, m.BY_NAME[name].encode(**fields))) == [line]


def test_startup_packets_have_lines_too() -> None:
    trace = Trace()
    assert trace.startup(startup.ssl_request()) == "F\t8\tSSLRequest\t 1234 5679"
    assert trace.encryption_refused(startup.ssl_request()) == "B\t1\tSSLResponse\t N"
    assert trace.startup(startup.startup_message({"user": "app"})) == 'F\t18\tStartupMessage\t 3 0 "user" "app"'
    assert (
        trace.startup(startup.cancel_request(7, b"\xde\xad\xbe\xef")) == f"F\t16\tCancelRequest\t 1234 5678 7 {HIDDEN}"
    )
    assert trace.startup(b"\0\0\0\x08\0\2\0\0") == "F\t8\tmalformed StartupMessage: protocol 2.0"


@pytest.mark.parametrize(
    ("request_message", "answer"),
    [
        (m.AuthenticationCleartextPassword.encode(), m.PasswordMessage.encode(password=SECRET)),
        (m.AuthenticationMD5Password.encode(salt=b"salt"), m.PasswordMessage.encode(password=SECRET)),
        (m.AuthenticationSASL.encode(auth_mechanisms=["OAUTHBEARER"]),
         m.SASLInitialResponse.encode(auth_mechanism="OAUTHBEARER", data=SECRET.encode())),
        (m.AuthenticationSASLContinue.encode(data=b"r="), m.SASLResponse.encode(data=SECRET.encode())),
        (m.AuthenticationGSS.encode(), m.GSSResponse.encode(data=SECRET.encode())),
        (m.AuthenticationSASLFinal.encode(data=SECRET.encode()), b""),
        (m.BackendKeyData.encode(process_id=1, secret_key=SECRET.encode()), b""),
        # And where the relay cannot know what it is:
        (b"", m.PasswordMessage.encode(password=SECRET)),
        (b"", m.SASLResponse.encode(data=SECRET.encode())),
        (m.AuthenticationSASL.encode(auth_mechanisms=[]), m.SASLResponse.encode(data=SECRET.encode())),
        (frame(b"K", SECRET.encode() * 30), b""),
    ],
)  # fmt: skip
def test_no_secret_is_shown(request_message: bytes, answer: bytes) -> None:
    shown = "\n".join(lines(("B", request_message), ("F", answer)))
    assert SECRET not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "text",
    [
        f"alter role app password '{SECRET}'",
        f"CREATE ROLE app LOGIN PASSWORD\n E'it\\'s {SECRET}' superuser",
        f"alter role app password 'it''s {SECRET}'",
        f"alter role app password $${SECRET}$$",
        f"alter role app password $a$ $$ {SECRET}$a$",
        f"alter role app password '{SECRET}",
    ],
)
def test_a_password_in_a_statement_is_hidden(text: str) -> None:
    for message in (query(text), m.Parse.encode(name="", query=text, parameter_oids=[])):
        (line,) = lines(("F", message))
        assert SECRET not in line
        assert f"'{HIDDEN}'" in line


def test_what_only_looks_like_a_password_stays() -> None:
    (line,) = lines(("F", query("select password, 'x' from users where password = $1")))
    assert "select password, 'x' from users where password = $1" in line


def walk(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in walk(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in walk(each)]
    return [value]


@pytest.mark.parametrize("message", [each for each in m.CATALOGUE if each.kind], ids=repr)
@EACH
@given(data=st.data())
def test_any_message_is_one_line_that_a_terminal_can_show(message: Message, data: st.DataObject) -> None:
    fields = data.draw(any_fields(message))
    trace = Trace(limit=data.draw(st.sampled_from([0, 1, 5])))
    if message in REQUESTS:
        blank = {name: [] if name == "auth_mechanisms" else b"salt" for name in REQUESTS[message].fields}
        trace.feed(REQUESTS[message].encode(**blank), from_frontend=False)
    (line,) = trace.feed(message.encode(**fields), from_frontend=message.direction == "F")
    assert line.replace("\t", "").isprintable()
    direction, length, name, *rest = line.split("\t")
    assert (direction, name) == (message.direction[-1], message.name)
    assert int(length) == len(message.encode(**fields)) - 1
    assert len(rest) <= 1
    for leaf in walk([value for name, value in fields.items() if name not in message.secrets]):
        if isinstance(leaf, int):
            assert f" {leaf}" in line


@settings(deadline=None)
@given(data=st.data())
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: st.DataObject) -> None:
    stream = b"".join(
        [query("select 1"), m.Sync.encode(), m.Describe.encode(object_type="S", name="x"), query("é\n"), b"!\0\0\0\4"]
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert lines(*(("F", piece) for piece in pieces)) == lines(("F", stream))


@settings(deadline=None)
@given(data=st.binary(max_size=80), from_frontend=st.booleans())
def test_any_bytes_have_lines(data: bytes, from_frontend: bool) -> None:
    for line in Trace().feed(data, from_frontend):
        assert line.replace("\t", "").isprintable()


def test_a_length_that_lies_ends_one_direction_and_not_the_other() -> None:
    trace = Trace()
    (line,) = trace.feed(b"Q\0\0\0\3", from_frontend=True)
    assert "invalid message length 3" in line
    assert trace.feed(query("select 1"), from_frontend=True) == []
    assert trace.feed(m.ReadyForQuery.encode(tx_status="I"), from_frontend=False) == ["B\t5\tReadyForQuery\t I"]


def test_a_malformed_message_is_shown_with_its_bytes() -> None:
    (line,) = lines(("F", frame(b"Q", b"no end")))
    assert line == "F\t10\tmalformed Query: string: a string without its terminating NUL\t 'no end'"


def test_a_long_value_is_cut_and_says_how_long_it_was() -> None:
    assert lines(("F", query("x" * 30)), limit=3) == ['F\t35\tQuery\t "xxx... (30)"']
    row = m.DataRow.encode(values=[b"y" * 30])
    assert lines(("B", row), limit=3) == ["B\t40\tDataRow\t 1 30 'yyy'... (30 bytes)"]


def test_replication_is_read_inside_copy_data() -> None:
    keepalive = m.PrimaryKeepalive.encode(server_wal_end=5, server_time=6, reply_requested=0)
    status = m.StandbyStatusUpdate.encode(
        wal_write_position=1, wal_flush_position=2, wal_apply_position=3, client_time=4, reply_requested=1
    )
    data = m.CopyData.encode(data=keepalive)
    both = m.CopyBothResponse.encode(overall_format=0, column_format_codes=[])
    assert lines(("B", data))[0].startswith("B\t22\tCopyData\t 'k")
    assert lines(("B", both), ("B", data), ("F", m.CopyData.encode(data=status)))[1:] == [
        "B\t22\tCopyData\t PrimaryKeepalive 5 6 0",
        "F\t38\tCopyData\t StandbyStatusUpdate 1 2 3 4 1",
    ]
