"""pgoutput: the catalogue against examples by hand and any bytes, and the cheap reader against the catalogue."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages, pgoutput
from protocol.fields import Message
from protocol.framing import frame
from protocol.pgoutput import PLAIN, STREAMED, Committed, CopyFrames, Transactions
from protocol.responses import FrameError, MalformedMessage
from tests.protocol.strategies import EACH, STRINGS

BY_NAME = {each.name: each for each in PLAIN}
STREAMED_BY_NAME = {each.name: each for each in STREAMED}

XIDS = st.integers(1, 5)
TABLES = st.integers(16384, 16390)
UINT64 = st.integers(0, 2**64 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)


def made(name: str, /, *, streamed: bool = False, **fields: Any) -> bytes:
    """A message, with what its fields have in common left out."""
    message = (STREAMED_BY_NAME if streamed else BY_NAME)[name]
    usual: dict[str, Any] = {
        "Begin": {"final_lsn": 100, "commit_time": 7, "xid": 1},
        "Commit": {"flags": 0, "commit_lsn": 90, "end_lsn": 100, "commit_time": 7},
        "Stream Start": {"first_segment": 1},
        "Stream Commit": {"flags": 0, "commit_lsn": 90, "end_lsn": 100, "commit_time": 7},
        "Insert": {"marker": "N", "new": [{"kind": "t", "data": b"1"}]},
        "Update": {"marker": "N", "old": None, "new_marker": None, "new": [{"kind": "n", "data": None}]},
        "Delete": {"marker": "K", "old": [{"kind": "t", "data": b"1"}]},
        "Truncate": {"options": 0},
        "Relation": {"namespace": "public", "relation_name": "t", "replica_identity": "d", "columns": []},
        "Message": {"flags": 1, "lsn": 1, "content": b""},
    }.get(name, {})
    if name == "Truncate":
        usual["relation_count"] = len(fields["relation_ids"])
    if streamed and "xid" not in fields and "xid" in message.fields:
        fields["xid"] = 1
    return message.encode(**(usual | fields))


# ---- the catalogue ---------------------------------------------------------------------------------------------------

ROW = st.lists(
    st.fixed_dictionaries({"kind": st.sampled_from("nu"), "data": st.none()})
    | st.fixed_dictionaries({"kind": st.sampled_from("tb"), "data": st.binary(max_size=9)}),
    max_size=3,
)
COLUMNS = st.lists(
    st.fixed_dictionaries(
        {
            "flags": st.sampled_from([0, 1]),
            "name": STRINGS,
            "data_type_oid": TABLES,
            "type_modifier": st.integers(-1, 100),
        }
    ),
    max_size=3,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "xid": XIDS,
    "sub_xid": XIDS,
    "relation_id": TABLES,
    "data_type_oid": TABLES,
    "flags": st.sampled_from([0, 1]),
    "first_segment": st.sampled_from([0, 1]),
    "options": st.integers(0, 3),
    "prefix": STRINGS,
    "namespace": STRINGS,
    "relation_name": STRINGS,
    "type_name": STRINGS,
    "name": STRINGS,
    "content": st.binary(max_size=9),
    "columns": COLUMNS,
    "new": ROW,
    "old": ROW,
    "commit_time": INT64,
    "replica_identity": st.sampled_from("dnfi"),
}


@st.composite
def fields_of(draw: st.DrawFn, message: Message) -> dict[str, Any]:
    """Fields that `message` can have."""
    if message.name == "Truncate":
        tables = draw(st.lists(TABLES, max_size=4))
        more = {"relation_count": len(tables), "relation_ids": tables, "options": draw(FIELDS["options"])}
        return more | ({"xid": draw(XIDS)} if "xid" in message.fields else {})
    values = {name: draw(FIELDS.get(name, UINT64)) for name in message.fields if "marker" not in name}
    if message.name == "Insert":
        values["marker"] = "N"
    elif message.name == "Delete":
        values["marker"] = draw(st.sampled_from("KO"))
    elif message.name == "Update":
        values["marker"] = draw(st.sampled_from("KON"))
        values["new_marker"] = None if values["marker"] == "N" else "N"
        values["old"] = None if values["marker"] == "N" else values["old"]
    return values


EXAMPLES = [
    ("Begin", "'B' 0000000000000064 0000000000000007 00000001", {}),
    ("Commit", "'C' 00 000000000000005a 0000000000000064 0000000000000007", {}),
    ("Insert", "'I' 00004000 'N' 0001 't' 00000001 '1'", {"relation_id": 16384}),
    ("Update", "'U' 00004000 'N' 0001 'n'", {"relation_id": 16384}),
    ("Delete", "'D' 00004000 'K' 0001 't' 00000001 '1'", {"relation_id": 16384}),
    ("Truncate", "'T' 00000002 00 00004000 00004001", {"relation_ids": [16384, 16385]}),
    (
        "Relation",
        "'R' 00004000 'public' 00 't' 00 'd' 0001 01 'id' 00 00000017 ffffffff",
        {
            "relation_id": 16384,
            "columns": [{"flags": 1, "name": "id", "data_type_oid": 23, "type_modifier": -1}],
        },
    ),
    (
        "Type",
        "'Y' 00004005 'public' 00 'mood' 00",
        {"data_type_oid": 16389, "namespace": "public", "type_name": "mood"},
    ),
    ("Origin", "'O' 0000000000000009 'there' 00", {"commit_lsn": 9, "name": "there"}),
    ("Message", "'M' 01 0000000000000001 'pgnear' 00 00000002 'hi'", {"prefix": "pgnear", "content": b"hi"}),
    ("Stream Start", "'S' 00000001 01", {"xid": 1}),
    ("Stream Stop", "'E'", {}),
    ("Stream Commit", "'c' 00000001 00 000000000000005a 0000000000000064 0000000000000007", {"xid": 1}),
    ("Stream Abort", "'A' 00000001 00000002", {"xid": 1, "sub_xid": 2}),
]


def wire(text: str) -> bytes:
    parts = re.findall(r"'([^']*)'|([0-9a-f]+)", text)
    return b"".join(quoted.encode() if quoted else bytes.fromhex(digits) for quoted, digits in parts)


@pytest.mark.parametrize(("name", "hexadecimal", "fields"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_a_message_written_out_by_hand(name: str, hexadecimal: str, fields: dict[str, Any]) -> None:
    raw = wire(hexadecimal)
    assert made(name, **fields) == raw
    message, decoded = pgoutput.decode(raw)
    assert message.name == name
    assert decoded.items() >= fields.items()


def test_every_message_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == BY_NAME.keys() == STREAMED_BY_NAME.keys()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", BY_NAME)
@EACH
@given(data=st.data())
def test_any_fields_come_back_as_they_were_sent(name: str, streamed: bool, data: st.DataObject) -> None:
    message = (STREAMED_BY_NAME if streamed else BY_NAME)[name]
    fields = data.draw(fields_of(message))
    assert pgoutput.decode(message.encode(**fields), streamed=streamed) == (message, fields)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(b"BCORYIUDTMSEcAx"), body=st.binary(max_size=40), streamed=st.booleans())
def test_any_bytes_are_a_message_or_raise_malformed_message(kind: int, body: bytes, streamed: bool) -> None:
    raw = bytes((kind,)) + body
    try:
        message, fields = pgoutput.decode(raw, streamed=streamed)
    except MalformedMessage:
        return
    assert message.encode(**fields) == raw


# ---- the reader ------------------------------------------------------------------------------------------------------


def committed(*stream: bytes, max_tables: int = 1000) -> list[Committed]:
    reader = Transactions(max_tables)
    return [event for data in stream if (event := reader.read(data)) is not None]


def test_a_commit_names_each_table_that_changed_once() -> None:
    (event,) = committed(
        made("Begin"),
        made("Relation", relation_id=16384),
        made("Insert", relation_id=16384),
        made("Insert", relation_id=16384),
        made("Update", relation_id=16385),
        made("Delete", relation_id=16384),
        made("Truncate", relation_ids=[16386, 16387]),
        made("Commit"),
    )
    assert event == Committed(frozenset({16384, 16385, 16386, 16387}), False, 100, 7)


def test_nothing_is_said_before_the_commit() -> None:
    assert committed(made("Begin"), made("Insert", relation_id=16384)) == []


def test_one_table_too_many_is_the_whole_database() -> None:
    changes = [made("Insert", relation_id=16384 + number) for number in range(3)]
    assert committed(made("Begin"), *changes, made("Commit"), max_tables=3)[0].tables == {16384, 16385, 16386}
    assert committed(made("Begin"), *changes, made("Commit"), max_tables=2)[0].tables is None
    truncate = made("Truncate", relation_ids=[1, 2, 3])
    assert committed(made("Begin"), truncate, made("Commit"), max_tables=2)[0].tables is None


def test_a_new_definition_is_told_of_and_the_same_one_again_is_not() -> None:
    column = {"flags": 0, "name": "v", "data_type_oid": 23, "type_modifier": -1}
    old, new = (made("Relation", relation_id=16384, columns=columns) for columns in ([], [column]))
    other = made("Relation", relation_id=16385)
    events = committed(
        *(message for relation in (old, old, other, new, new) for message in (made("Begin"), relation, made("Commit")))
    )
    assert [event.definitions_changed for event in events] == [False, False, False, True, False]


def test_streamed_transactions_interleave_and_only_the_committed_one_counts() -> None:
    events = committed(
        made("Stream Start", xid=1),
        made("Relation", streamed=True, relation_id=16384),
        made("Insert", streamed=True, relation_id=16384),
        made("Stream Stop"),
        made("Stream Start", xid=2),
        made("Insert", streamed=True, xid=2, relation_id=16385),
        made("Stream Stop"),
        made("Begin"),
        made("Insert", relation_id=16386),
        made("Commit"),
        made("Stream Start", xid=1, first_segment=0),
        made("Truncate", streamed=True, xid=3, relation_ids=[16387]),
        made("Stream Stop"),
        made("Stream Abort", xid=1, sub_xid=3),
        made("Stream Abort", xid=2, sub_xid=2),
        made("Stream Commit", xid=1),
    )
    assert [event.tables for event in events] == [{16386}, {16384, 16387}]


def test_a_message_of_the_origin_to_pgnear_means_everything_may_have_changed() -> None:
    ours = made("Message", prefix="pgnear", content=b"drop table")
    theirs = made("Message", prefix="pgnearer", content=b"pgnear")
    everything = Committed(None, True, 100, 7)
    assert committed(made("Begin"), theirs, made("Commit")) == [Committed(frozenset(), False, 100, 7)]
    assert committed(made("Begin"), ours, made("Commit")) == [everything]
    assert committed(made("Message", prefix="pgnear", flags=0)) == [Committed(None, True, 0, 0)]
    streamed = made("Message", streamed=True, prefix="pgnear")
    assert committed(
        made("Stream Start", xid=1), streamed, made("Stream Stop"), made("Stream Commit", xid=1)
    ) == [everything]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([made("Insert", relation_id=1)], "malformed Insert: outside a transaction"),
        ([made("Commit")], "malformed Commit: outside a transaction"),
        ([made("Begin"), made("Begin")], "malformed Begin: inside a transaction"),
        ([made("Begin"), made("Stream Start", xid=1)], "malformed Stream Start: inside a transaction"),
        ([made("Stream Start", xid=1), made("Commit")], "malformed Commit: inside a streamed segment"),
        ([made("Stream Stop")], "malformed Stream Stop: outside a streamed segment"),
        ([made("Stream Commit", xid=1)], "malformed Stream Commit: of a transaction that was not streamed"),
        ([made("Begin"), b"T" + bytes.fromhex("0000000200") + b"\0" * 4], "malformed Truncate: 2 tables in 4 bytes"),
        ([b"I\0"], "too short"),
        ([b""], "too short"),
        ([b"x"], "invalid backend message type 'x'"),
    ],
)
def test_what_cannot_stand_there_is_malformed(stream: list[bytes], words: str) -> None:
    with pytest.raises(MalformedMessage, match=re.escape(words)):
        committed(*stream)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[frozenset[int]]]:
    """Transactions, and which tables each of them changes."""
    stream, expected = [], []
    for tables in draw(st.lists(st.lists(TABLES, max_size=6), max_size=5)):
        changes = [made(draw(st.sampled_from(["Insert", "Update", "Delete"])), relation_id=table) for table in tables]
        stream += [made("Begin"), *changes, made("Commit")]
        expected.append(frozenset(tables))
    return stream, expected


@given(case=streams())
def test_the_reader_finds_what_the_catalogue_wrote(case: tuple[list[bytes], list[frozenset[int]]]) -> None:
    stream, expected = case
    assert [event.tables for event in committed(*stream)] == expected


@settings(max_examples=500, deadline=None)
@given(case=streams(), data=st.data())
def test_garbage_in_the_stream_raises_malformed_message_and_nothing_else(
    case: tuple[list[bytes], list[frozenset[int]]], data: st.DataObject
) -> None:
    stream, _ = case
    garbage = data.draw(st.lists(st.sampled_from(b"BCORYIUDTMSEcA").flatmap(_followed_by_anything), max_size=5))
    mixed = data.draw(st.permutations(stream + garbage))
    try:
        committed(*mixed)
    except MalformedMessage:
        pass


def _followed_by_anything(kind: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=30).map(lambda body: bytes((kind,)) + body)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_copy_data_has_a_position_or_raises_malformed_message(data: bytes) -> None:
    for raw in (data, b"w" + data, b"k" + data):
        try:
            pgoutput.position_of(raw)
        except MalformedMessage:
            pass


def test_positions_and_status_updates_are_those_of_the_catalogue() -> None:
    data = messages.XLogData.encode(wal_start=5, server_wal_end=9, server_time=3, wal_data=b"B")
    assert pgoutput.position_of(data) == (9, 3, False)
    assert data[pgoutput.XLOG_DATA_BYTES :] == b"B"
    alive = messages.PrimaryKeepalive.encode(server_wal_end=9, server_time=3, reply_requested=1)
    assert pgoutput.position_of(alive) == (9, 3, True)
    status = pgoutput.status_update(9, pgoutput.EPOCH_SECONDS + 2.5, reply_requested=True)
    assert status[:1] == b"d"
    assert messages.decode_replication(status[5:], from_frontend=True).fields == {
        "wal_write_position": 9,
        "wal_flush_position": 9,
        "wal_apply_position": 9,
        "client_time": 2_500_000,
        "reply_requested": 1,
    }


# ---- frames ----------------------------------------------------------------------------------------------------------


@given(bodies=st.lists(st.binary(max_size=30), max_size=8), data=st.data())
def test_any_split_of_the_bytes_gives_the_same_frames(bodies: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(frame(b"d", body) for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    frames = CopyFrames()
    found = [
        each for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True) for each in frames.feed(raw[start:end])
    ]
    assert found == [(ord("d"), body) for body in bodies]


@pytest.mark.parametrize("chunk", [1000, 65536, 1 << 24])
def test_a_huge_row_is_passed_over_in_bounded_memory_and_its_table_is_known(chunk: int) -> None:
    row = made("Insert", relation_id=16390, new=[{"kind": "t", "data": b"x" * (3 << 20)}])
    xlog = messages.XLogData.encode(wal_start=5, server_wal_end=9, server_time=3, wal_data=row)
    raw = frame(b"d", xlog) + frame(b"d", b"behind it")
    frames = CopyFrames()
    found = []
    for start in range(0, len(raw), chunk):
        found += frames.feed(raw[start : start + chunk])
        assert len(frames._rest) <= max(chunk, 1000)
    (_, head), behind = found
    assert behind == (ord("d"), b"behind it")
    reader = Transactions()
    reader.read(made("Begin"))
    reader.read(head, pgoutput.XLOG_DATA_BYTES)
    event = reader.read(made("Commit"))
    assert event is not None
    assert event.tables == {16390}


@pytest.mark.parametrize("length", [0, 3, -1])
def test_an_impossible_length_is_a_frame_error(length: int) -> None:
    with pytest.raises(FrameError):
        CopyFrames().feed(b"d" + length.to_bytes(4, "big", signed=True))
