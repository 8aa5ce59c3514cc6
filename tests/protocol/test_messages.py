"""The catalogue: each message by an example written out by hand, then any fields there and back, then any bytes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages as m
from protocol.fields import Message
from protocol.responses import MalformedMessage
from tests.protocol.strategies import EACH, any_fields


def wire(text: str) -> bytes:
    """`'Q' 0000000b 'select' 00` as bytes: hex, and text in quotes."""
    raw = b""
    for quoted, hexadecimal in re.findall(r"'([^']*)'|([0-9a-f]+)", text):
        raw += quoted.encode() if quoted else bytes.fromhex(hexadecimal)
    return raw


EXAMPLES: list[tuple[Message, str, dict[str, Any]]] = [
    (m.AuthenticationOk, "'R' 00000008 00000000", {}),
    (m.AuthenticationKerberosV5, "'R' 00000008 00000002", {}),
    (m.AuthenticationCleartextPassword, "'R' 00000008 00000003", {}),
    (m.AuthenticationMD5Password, "'R' 0000000c 00000005 93b2a10c", {"salt": b"\x93\xb2\xa1\x0c"}),
    (m.AuthenticationSCMCredential, "'R' 00000008 00000006", {}),
    (m.AuthenticationGSS, "'R' 00000008 00000007", {}),
    (m.AuthenticationGSSContinue, "'R' 0000000a 00000008 6082", {"data": b"\x60\x82"}),
    (m.AuthenticationSSPI, "'R' 00000008 00000009", {}),
    (
        m.AuthenticationSASL,
        "'R' 0000002a 0000000a 'SCRAM-SHA-256-PLUS' 00 'SCRAM-SHA-256' 00 00",
        {"auth_mechanisms": ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]},
    ),
    (m.AuthenticationSASLContinue, "'R' 0000000d 0000000b 'r=abc'", {"data": b"r=abc"}),
    (m.AuthenticationSASLFinal, "'R' 0000000d 0000000c 'v=abc'", {"data": b"v=abc"}),
    (m.BackendKeyData, "'K' 0000000c 00000102 deadbeef", {"process_id": 258, "secret_key": b"\xde\xad\xbe\xef"}),
    (
        m.Bind,
        "'B' 0000001e 'p1' 00 's1' 00 0001 0001 0002 00000002 cafe ffffffff 0001 0000",
        {
            "destination_portal": "p1",
            "prepared_statement": "s1",
            "parameter_format_codes": [1],
            "parameters": [b"\xca\xfe", None],
            "result_format_codes": [0],
        },
    ),
    (m.BindComplete, "'2' 00000004", {}),
    (
        m.CancelRequest,
        "00000010 04d2162e 00000102 deadbeef",
        {"process_id": 258, "secret_key": b"\xde\xad\xbe\xef"},
    ),
    (m.Close, "'C' 00000008 'S' 's1' 00", {"object_type": "S", "name": "s1"}),
    (m.CloseComplete, "'3' 00000004", {}),
    (m.CommandComplete, "'C' 0000000d 'SELECT 1' 00", {"command_tag": "SELECT 1"}),
    (m.CopyData, "'d' 00000006 310a", {"data": b"1\n"}),
    (m.CopyDone, "'c' 00000004", {}),
    (m.CopyFail, "'f' 00000009 'stop' 00", {"message": "stop"}),
    (m.CopyInResponse, "'G' 0000000b 00 0002 0000 0000", {"overall_format": 0, "column_format_codes": [0, 0]}),
    (m.CopyOutResponse, "'H' 00000009 01 0001 0001", {"overall_format": 1, "column_format_codes": [1]}),
    (m.CopyBothResponse, "'W' 00000007 00 0000", {"overall_format": 0, "column_format_codes": []}),
    (m.DataRow, "'D' 00000013 0003 00000001 '1' ffffffff 00000000", {"values": [b"1", None, b""]}),
    (m.Describe, "'D' 00000006 'P' 00", {"object_type": "P", "name": ""}),
    (m.EmptyQueryResponse, "'I' 00000004", {}),
    (
        m.ErrorResponse,
        "'E' 00000013 'SERROR' 00 'C42601' 00 00",
        {"fields": [{"type": "S", "value": "ERROR"}, {"type": "C", "value": "42601"}]},
    ),
    (m.Execute, "'E' 0000000b 'p1' 00 00000064", {"portal": "p1", "max_rows": 100}),
    (m.Flush, "'H' 00000004", {}),
    (
        m.FunctionCall,
        "'F' 00000018 00000539 0001 0001 0001 00000004 0000002a 0001",
        {
            "function": 1337,
            "arg_format_codes": [1],
            "arguments": [b"\0\0\0\x2a"],
            "result_format_code": 1,
        },
    ),
    (m.FunctionCallResponse, "'V' 00000008 ffffffff", {"result": None}),
    (m.GSSENCRequest, "00000008 04d21630", {}),
    (m.GSSResponse, "'p' 00000006 6082", {"data": b"\x60\x82"}),
    (
        m.NegotiateProtocolVersion,
        "'v' 00000014 00030002 00000001 '_pq_.xy' 00",
        {"newest_protocol_version": 3 << 16 | 2, "unrecognized_options": ["_pq_.xy"]},
    ),
    (m.NoData, "'n' 00000004", {}),
    (m.NoticeResponse, "'N' 0000000c 'Mhello' 00 00", {"fields": [{"type": "M", "value": "hello"}]}),
    (
        m.NotificationResponse,
        "'A' 0000000f 00000102 'news' 00 '!' 00",
        {"process_id": 258, "channel": "news", "payload": "!"},
    ),
    (m.ParameterDescription, "'t' 0000000e 0002 00000017 00000019", {"parameter_oids": [23, 25]}),
    (m.ParameterStatus, "'S' 00000011 'TimeZone' 00 'UTC' 00", {"name": "TimeZone", "value": "UTC"}),
    (
        m.Parse,
        "'P' 00000017 's1' 00 'select $1' 00 0001 00000017",
        {"name": "s1", "query": "select $1", "parameter_oids": [23]},
    ),
    (m.ParseComplete, "'1' 00000004", {}),
    (m.PasswordMessage, "'p' 0000000b 'secret' 00", {"password": "secret"}),
    (m.PortalSuspended, "'s' 00000004", {}),
    (m.Query, "'Q' 0000000d 'select 1' 00", {"string": "select 1"}),
    (m.ReadyForQuery, "'Z' 00000005 'I'", {"tx_status": "I"}),
    (
        m.RowDescription,
        "'T' 0000001b 0001 'id' 00 00004000 0001 00000017 0004 ffffffff 0000",
        {
            "fields": [
                {
                    "name": "id",
                    "table_oid": 16384,
                    "table_attribute_number": 1,
                    "data_type_oid": 23,
                    "data_type_size": 4,
                    "type_modifier": -1,
                    "format": 0,
                }
            ]
        },
    ),
    (
        m.SASLInitialResponse,
        "'p' 0000001a 'SCRAM-SHA-256' 00 00000004 'n,,n'",
        {"auth_mechanism": "SCRAM-SHA-256", "data": b"n,,n"},
    ),
    (m.SASLResponse, "'p' 0000000a 'c=biws'", {"data": b"c=biws"}),
    (m.SSLRequest, "00000008 04d2162f", {}),
    (
        m.StartupMessage,
        "00000012 0003 0002 'user' 00 'app' 00 00",
        {"major_version": 3, "minor_version": 2, "parameters": [{"name": "user", "value": "app"}]},
    ),
    (m.Sync, "'S' 00000004", {}),
    (m.Terminate, "'X' 00000004", {}),
    (
        m.XLogData,
        "'w' 0000000001000000 0000000001000100 0000000000000001 'wx'",
        {"wal_start": 1 << 24, "server_wal_end": (1 << 24) + 256, "server_time": 1, "wal_data": b"wx"},
    ),
    (
        m.PrimaryKeepalive,
        "'k' 0000000001000000 0000000000000001 01",
        {"server_wal_end": 1 << 24, "server_time": 1, "reply_requested": 1},
    ),
    (
        m.StandbyStatusUpdate,
        "'r' 0000000000000003 0000000000000002 0000000000000001 ffffffffffffffff 00",
        {
            "wal_write_position": 3,
            "wal_flush_position": 2,
            "wal_apply_position": 1,
            "client_time": -1,
            "reply_requested": 0,
        },
    ),
    (
        m.HotStandbyFeedback,
        "'h' 0000000000000001 00000064 00000000 00000063 00000001",
        {"client_time": 1, "xmin": 100, "xmin_epoch": 0, "catalog_xmin": 99, "catalog_xmin_epoch": 1},
    ),
]


# ---- one message, both ways ------------------------------------------------------------------------------------------

REQUESTS = {answer: request for request, answer in m.ANSWERS.items()}
IDS = [message.name for message, _, _ in EXAMPLES]


def split(message: Message, raw: bytes) -> bytes:
    """The body of a whole message, whose type byte and length are right."""
    head = len(message.kind)
    assert raw[:head] == message.kind
    if not message.has_length:
        return raw[head:]
    assert int.from_bytes(raw[head : head + 4], "big") == len(raw) - head
    return raw[head + 4 :]


def decode_as(message: Message, raw: bytes) -> m.Decoded:
    """What the public decoders make of a whole message, sent by who sends it, after what it answers."""
    body = split(message, raw)
    if message in m.REPLICATION:
        return m.decode_replication(raw, from_frontend=message.direction == "F")
    if not message.kind:
        return m.decode_startup(raw)
    decoded = [
        m.decode(message.kind, body, from_frontend=sender == "F", request=REQUESTS.get(message))
        for sender in message.direction
    ]
    assert all(each == decoded[0] for each in decoded)
    return decoded[0]


@pytest.mark.parametrize(("message", "hexadecimal", "fields"), EXAMPLES, ids=IDS)
def test_a_message_written_out_by_hand(message: Message, hexadecimal: str, fields: dict[str, Any]) -> None:
    raw = wire(hexadecimal)
    assert message.encode(**fields) == raw
    assert decode_as(message, raw) == (message, fields)


def test_every_message_has_an_example_in_the_catalogues_order() -> None:
    assert [message for message, _, _ in EXAMPLES] == [*m.CATALOGUE, *m.REPLICATION]


def test_the_catalogue_is_the_specifications_list_in_its_order() -> None:
    names = [message.name for message in m.CATALOGUE]
    assert names == SPECIFICATION.split()


SPECIFICATION = """
AuthenticationOk AuthenticationKerberosV5 AuthenticationCleartextPassword AuthenticationMD5Password
AuthenticationSCMCredential AuthenticationGSS AuthenticationGSSContinue AuthenticationSSPI AuthenticationSASL
AuthenticationSASLContinue AuthenticationSASLFinal BackendKeyData Bind BindComplete CancelRequest Close CloseComplete
CommandComplete CopyData CopyDone CopyFail CopyInResponse CopyOutResponse CopyBothResponse DataRow Describe
EmptyQueryResponse ErrorResponse Execute Flush FunctionCall FunctionCallResponse GSSENCRequest GSSResponse
NegotiateProtocolVersion NoData NoticeResponse NotificationResponse ParameterDescription ParameterStatus Parse
ParseComplete PasswordMessage PortalSuspended Query ReadyForQuery RowDescription SASLInitialResponse SASLResponse
SSLRequest StartupMessage Sync Terminate
"""


@pytest.mark.parametrize("message", [*m.CATALOGUE, *m.REPLICATION], ids=repr)
@EACH
@given(data=st.data())
def test_any_fields_come_back_as_they_were_sent(message: Message, data: st.DataObject) -> None:
    fields = data.draw(any_fields(message))
    raw = message.encode(**fields)
    assert decode_as(message, raw) == (message, fields)


@pytest.mark.parametrize("message", [*m.CATALOGUE, *m.REPLICATION], ids=repr)
@EACH
@given(data=st.data())
def test_a_message_cut_short_or_with_something_behind_is_malformed_or_another_whole_one(
    message: Message, data: st.DataObject
) -> None:
    """Only a message that ends in ByteN may be of any length; what it holds is then another message, byte by byte."""
    body = split(message, message.encode(**data.draw(any_fields(message))))
    cut = data.draw(st.integers(0, len(body)), label="kept bytes")
    other = data.draw(st.sampled_from([body[:cut], body + b"\0", body + b"\xff"]))
    if other == body:
        return
    if any(name in message.fields for name in ("data", "secret_key", "wal_data")):
        try:
            assert split(message, message.encode(**message.decode(other))) == other
        except MalformedMessage:
            pass
        return
    with pytest.raises(MalformedMessage, match=f"malformed {message.name}: ") as caught:
        message.decode(other)
    assert caught.value.sqlstate == "08P01"


# ---- any bytes -------------------------------------------------------------------------------------------------------


@EACH
@given(kind=st.binary(min_size=1, max_size=1), body=st.binary(max_size=60), from_frontend=st.booleans())
def test_any_frame_is_read_or_raises_malformed_message(kind: bytes, body: bytes, from_frontend: bool) -> None:
    for request in [None, *m.ANSWERS]:
        try:
            message, fields = m.decode(kind, body, from_frontend, request)
        except MalformedMessage:
            continue
        assert split(message, message.encode(**fields)) == body


@pytest.mark.parametrize("message", [*m.CATALOGUE, *m.REPLICATION], ids=repr)
@EACH
@given(body=st.binary(max_size=60))
def test_any_body_is_read_to_the_byte_or_raises_malformed_message(message: Message, body: bytes) -> None:
    if message.code is not None:
        body = message.code.to_bytes(4, "big") + body
    try:
        fields = message.decode(body)
    except MalformedMessage:
        return
    assert split(message, message.encode(**fields)) == body


@EACH
@given(packet=st.binary(max_size=60), code=st.sampled_from([0, 3 << 16, 3 << 16 | 2, 80877102, 80877103, 80877104]))
def test_any_startup_packet_is_read_or_raises_malformed_message(packet: bytes, code: int) -> None:
    for raw in (packet, (len(packet) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + packet):
        try:
            message, fields = m.decode_startup(raw)
        except MalformedMessage:
            continue
        assert message.encode(**fields) == raw


@EACH
@given(data=st.binary(max_size=60), from_frontend=st.booleans())
def test_any_copy_data_is_a_replication_message_or_raises_malformed_message(data: bytes, from_frontend: bool) -> None:
    try:
        message, fields = m.decode_replication(data, from_frontend)
    except MalformedMessage:
        return
    assert message.encode(**fields) == data


# ---- the words of a refusal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (b"Q", b"select 1", "malformed Query: string: a string without its terminating NUL"),
        (b"Q", b"select 1\0\0", "malformed Query: expected end of stream"),
        (b"C", b"Xs1\0", "malformed Close: object_type: not a value that it can have"),
        (b"B", b"\0\0\0\0\0\1\xff\xff\xff\xfe", "malformed Bind: parameters"),
        (b"p", b"no end", "malformed PasswordMessage: password"),
        (b"!", b"", "invalid frontend message type '!'"),
        (b"\x01", b"", r"invalid frontend message type '\x01'"),
        (b"Z", b"I", "invalid frontend message type 'Z'"),
    ],
)
def test_a_refusal_names_message_and_field(kind: bytes, body: bytes, words: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        m.decode(kind, body, from_frontend=True)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_authentication_request_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="unknown authentication request 99"):
        m.decode(b"R", b"\0\0\0\x63", from_frontend=False)
    with pytest.raises(MalformedMessage, match="ends before its code"):
        m.decode(b"R", b"\0\0", from_frontend=False)


@pytest.mark.parametrize("length", [3, 257])
def test_a_cancel_key_has_4_to_256_bytes(length: int) -> None:
    with pytest.raises(MalformedMessage, match="secret_key"):
        m.decode(b"K", b"\0\0\0\1" + b"k" * length, from_frontend=False)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("Query", {}, "Query lacks string"),
        ("Query", {"string": "x", "text": "y"}, "Query has no text"),
        ("Query", {"string": "a\0b"}, "Query: string: a string with a NUL in it"),
        ("Query", {"string": None}, "Query: "),
        ("ReadyForQuery", {"tx_status": "X"}, "ReadyForQuery: tx_status"),
        ("ReadyForQuery", {"tx_status": "IT"}, "ReadyForQuery: tx_status"),
        ("Execute", {"portal": "", "max_rows": 1 << 31}, "Execute: max_rows"),
        ("BackendKeyData", {"process_id": 1, "secret_key": b"abc"}, "BackendKeyData: secret_key"),
        ("AuthenticationSASL", {"auth_mechanisms": ["", "x"]}, "AuthenticationSASL"),
        ("DataRow", {"values": ["text"]}, "DataRow: values"),
        ("RowDescription", {"fields": [{"name": "x"}]}, "RowDescription"),
    ],
)
def test_what_a_message_cannot_hold_is_a_value_error(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        m.BY_NAME[name].encode(**fields)


def test_a_long_text_is_read_in_linear_time() -> None:
    """construct's own NullTerminated reads in quadratic time: 15 s for a megabyte, and minutes for this."""
    text = "x" * 5_000_000
    assert m.decode(b"Q", text.encode() + b"\0", from_frontend=True).fields == {"string": text}
