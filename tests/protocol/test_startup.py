"""What comes before the first message: read as PostgreSQL reads it, written as the catalogue has it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages as m
from protocol import startup
from protocol.responses import MalformedMessage, PgError
from protocol.startup import CancelRequest, GSSENCRequest, SSLRequest, StartupMessage, parse_options, parse_startup

QUIET = settings(deadline=None)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PARAMETERS = st.dictionaries(TEXT.filter(bool), TEXT, max_size=6)


def packet(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


@QUIET
@given(parameters=PARAMETERS, minor=st.integers(0, 0xFFFF))
def test_a_startup_message_comes_back_as_it_was_sent(parameters: dict[str, str], minor: int) -> None:
    raw = startup.startup_message(parameters, (3, minor))
    assert parse_startup(raw) == StartupMessage(3, minor, parameters)
    pairs = [{"name": name, "value": value} for name, value in parameters.items()]
    assert m.StartupMessage.encode(major_version=3, minor_version=minor, parameters=pairs) == raw


@QUIET
@given(pid=st.integers(0, 2**32 - 1), secret=st.binary(min_size=4, max_size=256))
def test_a_cancel_request_comes_back_with_a_key_of_any_length(pid: int, secret: bytes) -> None:
    raw = startup.cancel_request(pid, secret)
    assert parse_startup(raw) == CancelRequest(pid, secret)
    assert m.CancelRequest.encode(process_id=pid, secret_key=secret) == raw


def test_requests_for_encryption() -> None:
    assert startup.ssl_request() == m.SSLRequest.encode()
    assert parse_startup(m.SSLRequest.encode()) == SSLRequest()
    assert parse_startup(m.GSSENCRequest.encode()) == GSSENCRequest()


@QUIET
@given(minor=st.integers(0, 9), options=st.lists(TEXT, max_size=5))
def test_negotiate_protocol_version_is_the_catalogues(minor: int, options: list[str]) -> None:
    raw = startup.negotiate_protocol_version(minor, options)
    fields = {"newest_protocol_version": 3 << 16 | minor, "unrecognized_options": options}
    assert m.NegotiateProtocolVersion.encode(**fields) == raw


@pytest.mark.parametrize("size", [0, 3, 257, 300])
def test_a_cancel_key_of_an_impossible_length_is_refused(size: int) -> None:
    with pytest.raises(PgError, match="invalid length of query cancel packet") as caught:
        parse_startup(startup.cancel_request(1, b"k" * size))
    assert caught.value.sqlstate == "08P01"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0\x04",
        b"\0\0\0\x08\0\3\0",  # shorter than it says
        b"\0\0\0\x08\0\3\0\0\0",  # longer than it says
        packet(b"\0\3\0\0" + b"x" * startup.MAX_STARTUP_BYTES),
    ],
)
def test_a_length_that_lies_is_refused(raw: bytes) -> None:
    with pytest.raises(PgError, match="invalid length of startup packet") as caught:
        parse_startup(raw)
    assert caught.value.sqlstate == "08P01"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"user\0app\0",
        b"user\0app",
        b"user\0\0",
        b"\0app\0\0",
        b"user\0app\0\0\0",
        b"a\0b\0c\0\0",
    ],
)
def test_parameters_that_do_not_end_where_they_must_are_refused(body: bytes) -> None:
    with pytest.raises(PgError, match="expected terminator as last byte") as caught:
        parse_startup(packet(b"\0\3\0\0" + body))
    assert caught.value.sqlstate == "08P01"


def test_an_empty_value_is_a_value() -> None:
    assert parse_startup(packet(b"\0\3\0\0options\0\0user\0app\0\0")) == StartupMessage(
        3, 0, {"options": "", "user": "app"}
    )


def test_a_name_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(PgError, match="invalid byte sequence") as caught:
        parse_startup(packet(b"\0\3\0\0user\0\xff\0\0"))
    assert caught.value.sqlstate == "22021"


@pytest.mark.parametrize("version", [b"\0\2\0\0", b"\0\4\0\0", b"\x12\x34\0\0", b"GET "])
def test_another_major_version_is_told_by_its_number_whatever_follows(version: bytes) -> None:
    request = parse_startup(packet(version + b"anything"))
    assert isinstance(request, StartupMessage)
    assert (request.major, request.parameters) == (int.from_bytes(version[:2], "big"), {})


def test_an_encryption_request_with_more_in_it_is_none() -> None:
    request = parse_startup(packet((80877103).to_bytes(4, "big") + b"more"))
    assert isinstance(request, StartupMessage)
    assert request.major == 1234


@QUIET
@given(body=st.binary(max_size=60), code=st.sampled_from([0, 3 << 16, 3 << 16 | 2, 80877102, 80877103, 80877104]))
def test_any_packet_is_read_or_raises_pg_error_and_agrees_with_the_catalogue(body: bytes, code: int) -> None:
    raw = packet(code.to_bytes(4, "big") + body)
    try:
        request = parse_startup(raw)
    except PgError as error:
        if error.sqlstate == "08P01":
            with pytest.raises(MalformedMessage):
                m.decode_startup(raw)
        return
    if isinstance(request, StartupMessage) and request.major != 3:
        return
    message, fields = m.decode_startup(raw)
    assert message.name == type(request).__name__
    if isinstance(request, StartupMessage):
        assert {each["name"]: each["value"] for each in fields["parameters"]} == request.parameters


@QUIET
@given(raw=st.binary(max_size=40))
def test_any_bytes_are_read_or_raise_pg_error(raw: bytes) -> None:
    try:
        parse_startup(raw)
    except PgError as error:
        assert error.sqlstate in ("08P01", "22021")  # noqa: PT017


@pytest.mark.parametrize("parameters", [{"a\0b": "c"}, {"a": "b\0c"}])
def test_a_nul_is_never_smuggled_into_a_startup_message(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="NUL"):
        startup.startup_message(parameters)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", []),
        ("   ", []),
        ("-c geqo=off", [("geqo", "off")]),
        ("-cgeqo=off", [("geqo", "off")]),
        ("--geqo=off", [("geqo", "off")]),
        ("--statement-timeout=5", [("statement_timeout", "5")]),
        ("-c a=1 -c b=2\t--c=3", [("a", "1"), ("b", "2"), ("c", "3")]),
        (r"-c search_path=a\ b", [("search_path", "a b")]),
        (r"-c search_path=a\\b", [("search_path", "a\\b")]),
        ("-c a=b=c", [("a", "b=c")]),
        ("-c a=", [("a", "")]),
        ("-c app.user=7", [("app.user", "7")]),
    ],
)
def test_options_are_split_as_postgresql_splits_them(options: str, settings: list[tuple[str, str]]) -> None:
    assert parse_options(options) == settings


@pytest.mark.parametrize("options", ["-c", "geqo=off", "-x", "-", "-c =1", "-c a", "--a", "-c a=1 b", "--"])
def test_options_that_are_none_are_a_syntax_error(options: str) -> None:
    with pytest.raises(PgError) as caught:
        parse_options(options)
    assert caught.value.sqlstate == "42601"


@QUIET
@given(options=st.text(st.sampled_from("-c=a \\\t"), max_size=15) | TEXT)
def test_any_options_are_read_or_raise_a_syntax_error(options: str) -> None:
    try:
        settings = parse_options(options)
    except PgError as error:
        assert error.sqlstate == "42601"  # noqa: PT017
    else:
        assert all(name for name, _ in settings)


@QUIET
@given(settings=st.lists(st.tuples(st.from_regex(r"\A[a-z_.]+\Z"), TEXT), max_size=4))
def test_quoted_options_come_back_whatever_their_values(settings: list[tuple[str, str]]) -> None:
    def quoted(text: str) -> str:
        return "".join("\\" + each if each.isspace() or each == "\\" else each for each in text)

    assert parse_options(" ".join(f"-c {name}={quoted(value)}" for name, value in settings)) == settings
