"""pgoutput, the messages of logical replication: a readable catalogue, and a cheap reader of what was committed.

Two faces. The catalogue (`PLAIN`, `STREAMED`, `decode`) declares every message of proto_version 1 and 2 with construct,
for tests, traces and people. The reader of the actual stream is `Transactions`: it looks at types and relation OIDs
only, and says at each Commit which tables changed. `CopyFrames` splits the bytes of the connection for it, and keeps
no more of a large row than its head.

What carries these messages (XLogData, keepalives) is in `protocol.messages`; what a change means is not decided here.

DDL is not in this stream. A table's new definition shows as a Relation message in front of the next change of its rows.

Source: PostgreSQL documentation, "Logical Streaming Replication Protocol" and "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from construct import Array, If, Struct, this

from protocol.errors import malformed_message, unknown_message
from protocol.fields import (
    Int8,
    Int32,
    Int64,
    Message,
    String,
    UInt32,
    UInt64,
    Value,
    byte1,
    counted,
    message,
    one_of,
)
from protocol.framing import HEADER_BYTES, frame_end
from protocol.messages import Decoded
from protocol.responses import MalformedMessage

EPOCH_SECONDS = 946_684_800
"""2000-01-01 UTC, where the protocol's clocks begin, on the clock that begins in 1970."""

# ---- the catalogue ---------------------------------------------------------------------------------------------------

_TUPLE = counted(Struct("kind" / byte1("nutb"), "data" / If(lambda column: column.kind in "tb", Value)))
"""TupleData: each column NULL (n), unchanged and not sent (u), text (t) or binary (b)."""


def _declare(*head: Any) -> tuple[Message, ...]:
    """The messages that stand inside a transaction; `head` is the xid, between Stream Start and Stream Stop."""
    return (
        message(
            "Message",
            "B",
            b"M",
            *head,
            "flags" / one_of(Int8, 0, 1),  # 1: it is part of its transaction
            "lsn" / UInt64,
            "prefix" / String,
            "content" / Value,
            has_length=False,
        ),
        message(
            "Relation",
            "B",
            b"R",
            *head,
            "relation_id" / UInt32,
            "namespace" / String,  # empty for pg_catalog
            "relation_name" / String,
            "replica_identity" / byte1("dnfi"),  # pg_class.relreplident
            "columns"
            / counted(
                Struct(
                    "flags" / one_of(Int8, 0, 1),
                    "name" / String,
                    "data_type_oid" / UInt32,
                    "type_modifier" / Int32,
                )
            ),
            has_length=False,
        ),
        message(
            "Type",
            "B",
            b"Y",
            *head,
            "data_type_oid" / UInt32,
            "namespace" / String,
            "type_name" / String,
            has_length=False,
        ),
        message(
            "Insert", "B", b"I", *head, "relation_id" / UInt32, "marker" / byte1("N"), "new" / _TUPLE, has_length=False
        ),
        message(
            "Update",
            "B",
            b"U",
            *head,
            "relation_id" / UInt32,
            "marker" / byte1("KON"),  # the old key, the old row, or at once the new row
            "old" / If(this.marker != "N", _TUPLE),
            "new_marker" / If(this.marker != "N", byte1("N")),
            "new" / _TUPLE,
            has_length=False,
        ),
        message(
            "Delete", "B", b"D", *head, "relation_id" / UInt32, "marker" / byte1("KO"), "old" / _TUPLE, has_length=False
        ),
        message(
            "Truncate",
            "B",
            b"T",
            *head,
            "relation_count" / UInt32,
            "options" / Int8,  # 1 for CASCADE, 2 for RESTART IDENTITY
            "relation_ids" / Array(this.relation_count, UInt32),
            has_length=False,
        ),
    )


Begin = message(
    "Begin", "B", b"B", "final_lsn" / UInt64, "commit_time" / Int64, "xid" / UInt32, has_length=False
)  # fmt: skip

Commit = message(
    "Commit",
    "B",
    b"C",
    "flags" / Int8,
    "commit_lsn" / UInt64,
    "end_lsn" / UInt64,
    "commit_time" / Int64,
    has_length=False,
)

Origin = message("Origin", "B", b"O", "commit_lsn" / UInt64, "name" / String, has_length=False)

StreamStart = message("Stream Start", "B", b"S", "xid" / UInt32, "first_segment" / one_of(Int8, 0, 1), has_length=False)

StreamStop = message("Stream Stop", "B", b"E", has_length=False)

StreamCommit = message(
    "Stream Commit",
    "B",
    b"c",
    "xid" / UInt32,
    "flags" / Int8,
    "commit_lsn" / UInt64,
    "end_lsn" / UInt64,
    "commit_time" / Int64,
    has_length=False,
)

StreamAbort = message("Stream Abort", "B", b"A", "xid" / UInt32, "sub_xid" / UInt32, has_length=False)

_BETWEEN = (Begin, Commit, Origin, StreamStart, StreamStop, StreamCommit, StreamAbort)

PLAIN: tuple[Message, ...] = (*_BETWEEN, *_declare())
"""Outside of Stream Start and Stream Stop."""

STREAMED: tuple[Message, ...] = (*_BETWEEN, *_declare("xid" / UInt32))
"""Between Stream Start and Stream Stop, where a change tells its transaction."""

_PLAIN = {each.kind: each for each in PLAIN}
_STREAMED = {each.kind: each for each in STREAMED}


def decode(data: bytes, *, streamed: bool = False) -> Decoded:
    """Read a message: what one XLogData holds.

    Args:
      streamed: whether it stands between Stream Start and Stream Stop.

    Raises:
      MalformedMessage: it is none of the catalogue.
    """
    found = (_STREAMED if streamed else _PLAIN).get(data[:1])
    if found is None:
        raise unknown_message(data[:1], from_frontend=False)
    return Decoded(found, found.decode(data[1:]))


# ---- the bytes of the connection -------------------------------------------------------------------------------------

MAX_FRAME_BYTES = 0x7FFFFFFF
"""PostgreSQL's own limit is 1 GB; a row of that size passes, and is not kept."""

WHOLE_BYTES = 1 << 20
"""Frames up to this size are given whole. Only rows and application messages are larger: a Relation message of 1,600
columns has some 120 kB."""

HEAD_BYTES = 256
"""What is given of a larger frame's body: enough for the type, an xid and an OID, or a message's prefix."""


class CopyFrames:
    """Splits what arrives into frames, in bounded memory: a frame over `WHOLE_BYTES` is given by its head."""

    __slots__ = ("_rest", "_skip")

    def __init__(self) -> None:
        self._rest = b""
        self._skip = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that are whole with `data`, as (type byte, body).

        Raises:
          FrameError: a length field under 4.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._rest:
            data = self._rest + data
        frames: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            stop = frame_end(data, position, MAX_FRAME_BYTES)
            body = position + HEADER_BYTES
            if stop <= end:
                frames.append((data[position], data[body:stop]))
                position = stop
            elif stop - body > WHOLE_BYTES and end - body >= HEAD_BYTES:
                frames.append((data[position], data[body : body + HEAD_BYTES]))
                self._skip = stop - end
                position = end
            else:
                break
        self._rest = data[position:]
        return frames


_xlog_data = struct.Struct("!QQq").unpack_from
_keepalive = struct.Struct("!Qqb").unpack_from
_status_update = struct.Struct("!cQQQqb").pack

XLOG_DATA_BYTES = 25
"""Of an XLogData message, before pgoutput's message begins."""


class Position(NamedTuple):
    """What XLogData and Primary keepalive messages say of the server: where it is, on its own clock.

    Attributes:
      lsn: WAL byte position. server_time: microseconds since 2000. reply_requested: whether it wants a status now.
    """

    lsn: int
    server_time: int
    reply_requested: bool


def position_of(data: bytes) -> Position:
    """The position in what a CopyData holds.

    Raises:
      MalformedMessage: it is neither XLogData nor a Primary keepalive.
    """
    try:
        if data[:1] == b"w":
            start, end, time = _xlog_data(data, 1)
            return Position(max(start, end), time, False)
        if data[:1] == b"k":
            end, time, requested = _keepalive(data, 1)
            return Position(end, time, requested != 0)
    except struct.error:
        raise malformed_message("XLogData" if data[:1] == b"w" else "PrimaryKeepalive", "it is too short") from None
    raise unknown_message(data[:1], from_frontend=False)


def status_update(lsn: int, now: float, *, reply_requested: bool) -> bytes:
    """A whole CopyData frame with a Standby status update: everything up to `lsn` may be forgotten.

    Args:
      now: seconds since 1970.
    """
    clock = int((now - EPOCH_SECONDS) * 1_000_000)
    body = _status_update(b"r", lsn, lsn, lsn, clock, reply_requested)
    return b"d" + (len(body) + 4).to_bytes(4, "big") + body


# ---- what was committed ----------------------------------------------------------------------------------------------

OUR_PREFIX = b"pgnear\0"
"""`pg_logical_emit_message(true, 'pgnear', ...)`: the origin says that something has changed that is not in the
stream."""

MAX_STREAMED = 10_000
"""Large transactions under way at once. More than an origin has connections is no stream that can be believed."""

MAX_RELATIONS = 100_000
"""Definitions remembered (as hashes); past that all are forgotten, and seen as new."""


class Committed(NamedTuple):
    """What one transaction has changed.

    Attributes:
      tables: OIDs of ordinary tables and partitions; None where they were too many to count, or not told.
      definitions_changed: a table has another definition than when its rows last changed.
      end_lsn: where its commit ends in the WAL. commit_time: microseconds since 2000, the origin's clock; both are 0
        for a message that belongs to no transaction.
    """

    tables: frozenset[int] | None
    definitions_changed: bool
    end_lsn: int
    commit_time: int


class _Open:
    """A transaction whose commit has not come."""

    __slots__ = ("definitions_changed", "tables")

    def __init__(self) -> None:
        self.tables: set[int] | None = set()
        self.definitions_changed = False

    def add(self, table: int, most: int) -> None:
        if self.tables is not None:
            self.tables.add(table)
            if len(self.tables) > most:
                self.tables = None

    def committed(self, end_lsn: int, commit_time: int) -> Committed:
        tables = None if self.tables is None else frozenset(self.tables)
        return Committed(tables, self.definitions_changed, end_lsn, commit_time)


_relation_at = struct.Struct("!I").unpack_from
_commit_at = struct.Struct("!bQQq").unpack_from
_stream_commit_at = struct.Struct("!IbQQq").unpack_from
_two_ids_at = struct.Struct("!II").unpack_from
_truncate_at = struct.Struct("!Ib").unpack_from

_BEGIN, _COMMIT, _ORIGIN, _TYPE, _MESSAGE = b"BCOYM"
_STREAM_START, _STREAM_STOP, _STREAM_COMMIT, _STREAM_ABORT = b"SEcA"
_RELATION, _TRUNCATE = b"RT"
_ROW_KINDS = frozenset(b"IUD")


class Transactions:
    """Reads pgoutput's messages in order and says at each commit what it changed; a rollback says nothing.

    Args:
      max_tables: past so many tables a transaction's are not counted any more.
    """

    __slots__ = ("_definitions", "_last", "_max_tables", "_open", "_segment", "_streamed")

    def __init__(self, max_tables: int = 1000) -> None:
        self._max_tables = max_tables
        self._open: _Open | None = None
        self._segment = False
        """Between Stream Start and Stream Stop: changes bear an xid, and `_open` is one of `_streamed`."""
        self._streamed: dict[int, _Open] = {}
        self._definitions: dict[int, int] = {}
        self._last = -1
        """The table that the message before changed: rows of one statement need no look at the set."""

    def read(self, data: bytes, start: int = 0) -> Committed | None:
        """Take the message that begins at `start`; what has been committed with it, if that is what it says.

        The message of a row may be cut off behind its first 256 bytes (`CopyFrames`).

        Raises:
          MalformedMessage: it is none, or none that can stand here.
        """
        try:
            kind = data[start]
            if kind in _ROW_KINDS:
                table = _relation_at(data, start + (5 if self._segment else 1))[0]
                if table != self._last:
                    self._inside(kind).add(table, self._max_tables)
                    self._last = table
                return None
            return self._read_other(kind, data, start + 1)
        except (struct.error, IndexError):
            raise malformed_message("pgoutput message", "it is too short") from None

    def _inside(self, kind: int) -> _Open:
        if self._open is None:
            raise _misplaced(kind, "outside a transaction")
        return self._open

    def _read_other(self, kind: int, data: bytes, body: int) -> Committed | None:
        if kind == _COMMIT:
            if self._segment:
                raise _misplaced(kind, "inside a streamed segment")
            _, _, end_lsn, time = _commit_at(data, body)
            done = self._inside(kind).committed(end_lsn, time)
            self._leave()
            return done
        if kind == _BEGIN:
            if self._open is not None:
                raise _misplaced(kind, "inside a transaction")
            self._open = _Open()
        elif kind == _RELATION:
            self._define(data, body + (4 if self._segment else 0))
        elif kind == _TRUNCATE:
            self._truncate(data, body + (4 if self._segment else 0))
        elif kind == _MESSAGE:
            return self._message(data, body + (4 if self._segment else 0))
        elif kind in (_STREAM_START, _STREAM_STOP, _STREAM_COMMIT, _STREAM_ABORT):
            return self._read_stream(kind, data, body)
        elif kind != _ORIGIN and kind != _TYPE:
            raise unknown_message(bytes((kind,)), from_frontend=False)
        return None

    def _leave(self) -> None:
        self._open = None
        self._segment = False
        self._last = -1

    def _define(self, data: bytes, body: int) -> None:
        inside = self._inside(_RELATION)
        table = _relation_at(data, body)[0]
        definition = hash(data[body:])
        known = self._definitions.get(table)
        if known is not None and known != definition:
            inside.definitions_changed = True
        elif known is None and len(self._definitions) >= MAX_RELATIONS:
            self._definitions.clear()
        self._definitions[table] = definition

    def _truncate(self, data: bytes, body: int) -> None:
        inside = self._inside(_TRUNCATE)
        count = _truncate_at(data, body)[0]
        if len(data) - body - 5 != 4 * count:
            raise malformed_message("Truncate", f"{count} tables in {len(data) - body - 5} bytes")
        for table in struct.unpack_from(f"!{count}I", data, body + 5):
            inside.add(table, self._max_tables)
        self._last = -1

    def _message(self, data: bytes, body: int) -> Committed | None:
        if not data.startswith(OUR_PREFIX, body + 9):
            return None
        if data[body] & 1:
            inside = self._inside(_MESSAGE)
            inside.tables, inside.definitions_changed = None, True
            return None
        return Committed(None, True, 0, 0)

    def _read_stream(self, kind: int, data: bytes, body: int) -> Committed | None:
        if kind == _STREAM_STOP:
            if not self._segment:
                raise _misplaced(kind, "outside a streamed segment")
            self._leave()
            return None
        if self._open is not None:
            raise _misplaced(kind, "inside a transaction")
        xid = _relation_at(data, body)[0]
        if kind == _STREAM_START:
            if len(self._streamed) >= MAX_STREAMED and xid not in self._streamed:
                raise malformed_message("Stream Start", f"{MAX_STREAMED} transactions are streamed already")
            self._open = self._streamed.setdefault(xid, _Open())
            self._segment = True
        elif kind == _STREAM_COMMIT:
            _, _, _, end_lsn, time = _stream_commit_at(data, body)
            done = self._streamed.pop(xid, None)
            if done is None:
                raise _misplaced(kind, "of a transaction that was not streamed")
            return done.committed(end_lsn, time)
        else:
            xid, sub_xid = _two_ids_at(data, body)
            if xid == sub_xid:  # a subtransaction's tables stay: one too many is harmless
                self._streamed.pop(xid, None)
        return None


def _misplaced(kind: int, where: str) -> MalformedMessage:
    name = next(each.name for each in PLAIN if each.kind[0] == kind)
    return malformed_message(name, where)
