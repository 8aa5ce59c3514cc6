"""The protocol's readable catalogue: every message of protocol 3.0 and 3.2, one declaration each.

In the order of the specification's "Message Formats", with its message names; fields are named as pgproto3 names them,
in snake case, since the specification describes most of them without a name. For tests, traces and people: traffic
never comes here (its only parser is `protocol.framing`). What declarations are made of is in `protocol.fields`.

    >>> decode(b"Z", b"I", from_frontend=False)
    Decoded(message=ReadyForQuery, fields={'tx_status': 'I'})
    >>> Describe.encode(object_type="S", name="s1").hex(" ")
    '44 00 00 00 08 53 73 31 00'

Source: PostgreSQL documentation (18), "Message Formats" and "Streaming Replication Protocol".
AuthenticationSCMCredential is in it up to version 15.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from construct import Bytes, If, Struct, this

from protocol.errors import malformed_message, unknown_message
from protocol.fields import (
    ByteN,
    Int8,
    Int16,
    Int32,
    Int64,
    Message,
    String,
    UInt16,
    UInt32,
    UInt64,
    Value,
    byte1,
    counted,
    limited,
    message,
    one_of,
    until_empty,
)

SSL_REQUEST_CODE = 80877103
GSSENC_REQUEST_CODE = 80877104
CANCEL_REQUEST_CODE = 80877102

_SECRET_KEY = limited(4, 256)
"""4 bytes with protocol 3.0, 4 to 256 with 3.2."""

_ERROR_FIELDS = until_empty(
    Struct("type" / byte1(), "value" / If(this.type != "\0", String)),
    is_end=lambda field: field["type"] == "\0",
    end={"type": "\0", "value": None},
)
"""ErrorResponse's and NoticeResponse's; types are under "Error and Notice Message Fields"."""

_PARAMETERS = until_empty(
    Struct("name" / String, "value" / If(this.name != "", String)),
    is_end=lambda parameter: parameter["name"] == "",
    end={"name": "", "value": None},
)

_COPY_FORMATS = (
    "overall_format" / one_of(Int8, 0, 1),  # text, binary
    "column_format_codes" / counted(Int16),
)

AuthenticationOk = message("AuthenticationOk", "B", b"R", code=0)

AuthenticationKerberosV5 = message("AuthenticationKerberosV5", "B", b"R", code=2)

AuthenticationCleartextPassword = message("AuthenticationCleartextPassword", "B", b"R", code=3)

AuthenticationMD5Password = message("AuthenticationMD5Password", "B", b"R", "salt" / Bytes(4), code=5)

AuthenticationSCMCredential = message("AuthenticationSCMCredential", "B", b"R", code=6)

AuthenticationGSS = message("AuthenticationGSS", "B", b"R", code=7)

AuthenticationGSSContinue = message("AuthenticationGSSContinue", "B", b"R", "data" / ByteN, code=8)

AuthenticationSSPI = message("AuthenticationSSPI", "B", b"R", code=9)

AuthenticationSASL = message(
    "AuthenticationSASL",
    "B",
    b"R",
    "auth_mechanisms" / until_empty(String, is_end=lambda name: name == "", end=""),
    code=10,
)

AuthenticationSASLContinue = message("AuthenticationSASLContinue", "B", b"R", "data" / ByteN, code=11)

# With the challenge, the outcome is enough to try passwords against: both of SCRAM's signatures are hidden.
AuthenticationSASLFinal = message("AuthenticationSASLFinal", "B", b"R", "data" / ByteN, code=12, secrets=("data",))

BackendKeyData = message(
    "BackendKeyData",
    "B",
    b"K",
    "process_id" / UInt32,
    "secret_key" / _SECRET_KEY,
    secrets=("secret_key",),
)

Bind = message(
    "Bind",
    "F",
    b"B",
    "destination_portal" / String,
    "prepared_statement" / String,
    "parameter_format_codes" / counted(Int16),
    "parameters" / counted(Value),
    "result_format_codes" / counted(Int16),
)

BindComplete = message("BindComplete", "B", b"2")

CancelRequest = message(
    "CancelRequest",
    "F",
    b"",
    "process_id" / UInt32,
    "secret_key" / _SECRET_KEY,
    code=CANCEL_REQUEST_CODE,
    secrets=("secret_key",),
)

Close = message("Close", "F", b"C", "object_type" / byte1("SP"), "name" / String)

CloseComplete = message("CloseComplete", "B", b"3")

CommandComplete = message("CommandComplete", "B", b"C", "command_tag" / String)

CopyData = message("CopyData", "FB", b"d", "data" / ByteN)

CopyDone = message("CopyDone", "FB", b"c")

CopyFail = message("CopyFail", "F", b"f", "message" / String)

CopyInResponse = message("CopyInResponse", "B", b"G", *_COPY_FORMATS)

CopyOutResponse = message("CopyOutResponse", "B", b"H", *_COPY_FORMATS)

CopyBothResponse = message("CopyBothResponse", "B", b"W", *_COPY_FORMATS)

DataRow = message("DataRow", "B", b"D", "values" / counted(Value))

Describe = message("Describe", "F", b"D", "object_type" / byte1("SP"), "name" / String)

EmptyQueryResponse = message("EmptyQueryResponse", "B", b"I")

ErrorResponse = message("ErrorResponse", "B", b"E", "fields" / _ERROR_FIELDS)

Execute = message("Execute", "F", b"E", "portal" / String, "max_rows" / Int32)

Flush = message("Flush", "F", b"H")

FunctionCall = message(
    "FunctionCall",
    "F",
    b"F",
    "function" / UInt32,
    "arg_format_codes" / counted(Int16),
    "arguments" / counted(Value),
    "result_format_code" / Int16,
)

FunctionCallResponse = message("FunctionCallResponse", "B", b"V", "result" / Value)

GSSENCRequest = message("GSSENCRequest", "F", b"", code=GSSENC_REQUEST_CODE)

GSSResponse = message("GSSResponse", "F", b"p", "data" / ByteN, secrets=("data",))

NegotiateProtocolVersion = message(
    "NegotiateProtocolVersion",
    "B",
    b"v",
    "newest_protocol_version" / Int32,  # called minor in the specification; servers send major << 16 | minor
    "unrecognized_options" / counted(String, count=UInt32),
)

NoData = message("NoData", "B", b"n")

NoticeResponse = message("NoticeResponse", "B", b"N", "fields" / _ERROR_FIELDS)

NotificationResponse = message(
    "NotificationResponse", "B", b"A", "process_id" / UInt32, "channel" / String, "payload" / String
)

ParameterDescription = message("ParameterDescription", "B", b"t", "parameter_oids" / counted(UInt32))

ParameterStatus = message("ParameterStatus", "B", b"S", "name" / String, "value" / String)

Parse = message("Parse", "F", b"P", "name" / String, "query" / String, "parameter_oids" / counted(UInt32))

ParseComplete = message("ParseComplete", "B", b"1")

PasswordMessage = message("PasswordMessage", "F", b"p", "password" / String, secrets=("password",))

PortalSuspended = message("PortalSuspended", "B", b"s")

Query = message("Query", "F", b"Q", "string" / String)

ReadyForQuery = message("ReadyForQuery", "B", b"Z", "tx_status" / byte1("ITE"))

RowDescription = message(
    "RowDescription",
    "B",
    b"T",
    "fields"
    / counted(
        Struct(
            "name" / String,
            "table_oid" / UInt32,
            "table_attribute_number" / Int16,
            "data_type_oid" / UInt32,
            "data_type_size" / Int16,
            "type_modifier" / Int32,
            "format" / Int16,
        )
    ),
)

SASLInitialResponse = message(
    "SASLInitialResponse", "F", b"p", "auth_mechanism" / String, "data" / Value, secrets=("data",)
)

SASLResponse = message("SASLResponse", "F", b"p", "data" / ByteN, secrets=("data",))

SSLRequest = message("SSLRequest", "F", b"", code=SSL_REQUEST_CODE)

StartupMessage = message(
    "StartupMessage", "F", b"", "major_version" / UInt16, "minor_version" / UInt16, "parameters" / _PARAMETERS
)

Sync = message("Sync", "F", b"S")

Terminate = message("Terminate", "F", b"X")

CATALOGUE: tuple[Message, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Message))
"""All of the above, in that order."""


# ---- streaming replication: inside CopyData, once CopyBothResponse has begun it --------------------------------------
# Clocks are microseconds since 2000-01-01 UTC, positions are WAL byte positions. What pgoutput puts into XLogData is
# not here.

XLogData = message(
    "XLogData",
    "B",
    b"w",
    "wal_start" / UInt64,
    "server_wal_end" / UInt64,
    "server_time" / Int64,
    "wal_data" / ByteN,
    has_length=False,
)

PrimaryKeepalive = message(
    "PrimaryKeepalive",
    "B",
    b"k",
    "server_wal_end" / UInt64,
    "server_time" / Int64,
    "reply_requested" / one_of(Int8, 0, 1),
    has_length=False,
)

StandbyStatusUpdate = message(
    "StandbyStatusUpdate",
    "F",
    b"r",
    "wal_write_position" / UInt64,
    "wal_flush_position" / UInt64,
    "wal_apply_position" / UInt64,
    "client_time" / Int64,
    "reply_requested" / one_of(Int8, 0, 1),
    has_length=False,
)

HotStandbyFeedback = message(
    "HotStandbyFeedback",
    "F",
    b"h",
    "client_time" / Int64,
    "xmin" / UInt32,
    "xmin_epoch" / UInt32,
    "catalog_xmin" / UInt32,
    "catalog_xmin_epoch" / UInt32,
    has_length=False,
)

REPLICATION: tuple[Message, ...] = (XLogData, PrimaryKeepalive, StandbyStatusUpdate, HotStandbyFeedback)


# ---- reading and writing ---------------------------------------------------------------------------------------------

BY_NAME: dict[str, Message] = {each.name: each for each in CATALOGUE + REPLICATION}

ANSWERS: dict[Message, Message] = {
    AuthenticationCleartextPassword: PasswordMessage,
    AuthenticationMD5Password: PasswordMessage,
    AuthenticationGSS: GSSResponse,
    AuthenticationGSSContinue: GSSResponse,
    AuthenticationSSPI: GSSResponse,
    AuthenticationSASL: SASLInitialResponse,
    AuthenticationSASLContinue: SASLResponse,
}
"""What type `p` means: it depends on the request that it answers."""

_AUTHENTICATION = {each.code: each for each in CATALOGUE if each.kind == b"R"}
_STARTUP = {each.code: each for each in CATALOGUE if not each.kind and each.code is not None}
_FRONTEND = {each.kind: each for each in CATALOGUE if "F" in each.direction and each.kind not in (b"", b"p")}
_BACKEND = {each.kind: each for each in CATALOGUE if "B" in each.direction and each.kind != b"R"}
_REPLICATION = {(each.kind, each.direction): each for each in REPLICATION}


class Decoded(NamedTuple):
    """A message that was read: what it is, and its fields."""

    message: Message
    fields: dict[str, Any]


def find(kind: bytes, body: bytes, from_frontend: bool, request: Message | None = None) -> Message:
    """Which message this is; arguments and errors are those of `decode`."""
    if from_frontend:
        found = ANSWERS.get(request or AuthenticationCleartextPassword) if kind == b"p" else _FRONTEND.get(kind)
    elif kind == b"R":
        if len(body) < 4:
            raise malformed_message("Authentication", "it ends before its code")
        code = int.from_bytes(body[:4], "big")
        found = _AUTHENTICATION.get(code)
        if found is None:
            raise malformed_message("Authentication", f"unknown authentication request {code}")
    else:
        found = _BACKEND.get(kind)
    if found is None:
        raise unknown_message(kind, from_frontend)
    return found


def decode(kind: bytes, body: bytes, from_frontend: bool, request: Message | None = None) -> Decoded:
    """Read a message.

    Args:
      kind: its type byte.
      body: what follows its length.
      request: the Authentication message that a message of type `p` answers; without one it is a PasswordMessage.

    Raises:
      MalformedMessage: there is no such message, or `body` is none of it.
    """
    found = find(kind, body, from_frontend, request)
    return Decoded(found, found.decode(body))


def decode_startup(packet: bytes) -> Decoded:
    """Read what comes before the first message with a type byte: `packet` begins with its length.

    Raises:
      MalformedMessage: `packet` is none of the four, or no StartupMessage of protocol 3.
    """
    if len(packet) < 8 or int.from_bytes(packet[:4], "big") != len(packet):
        raise malformed_message("startup packet", "its length is not what it says")
    code = int.from_bytes(packet[4:8], "big")
    found = _STARTUP.get(code, StartupMessage)
    if found is StartupMessage and code >> 16 != 3:
        raise malformed_message("StartupMessage", f"protocol {code >> 16}.{code & 0xFFFF}")
    return Decoded(found, found.decode(packet[4:]))


def decode_replication(data: bytes, from_frontend: bool) -> Decoded:
    """Read what a CopyData of streaming replication holds.

    Raises:
      MalformedMessage: it is none of `REPLICATION`.
    """
    found = _REPLICATION.get((data[:1], "F" if from_frontend else "B"))
    if found is None:
        raise unknown_message(data[:1], from_frontend)
    return Decoded(found, found.decode(data[1:]))
