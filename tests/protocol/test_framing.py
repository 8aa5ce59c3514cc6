"""Frames come out the same however their bytes arrive, and a length that lies is an error before it costs anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages as m
from protocol.framing import (
    HEADER_BYTES,
    FrameReader,
    bad_length,
    command_complete,
    data_row,
    frame,
    frame_end,
    query,
)
from protocol.responses import FrameError, MalformedMessage, PgError

LIMIT = 1000
FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8)
QUIET = settings(deadline=None)


def read(reader: FrameReader) -> list[tuple[int, bytes]]:
    """Every frame that is whole."""
    return list(iter(reader.next, None))


@QUIET
@given(frames=FRAMES, data=st.data())
def test_any_split_of_a_stream_gives_the_same_frames(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(bytes([kind]), body) for kind, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = FrameReader(LIMIT)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        found += read(reader)
    assert found == frames
    assert reader.rest == b""


@QUIET
@given(frames=FRAMES)
def test_walking_with_frame_end_visits_the_same_frames(frames: list[tuple[int, bytes]]) -> None:
    stream = b"".join(frame(bytes([kind]), body) for kind, body in frames)
    position, found = 0, []
    while position < len(stream):
        end = frame_end(stream, position, LIMIT)
        found.append((stream[position], stream[position + HEADER_BYTES : end]))
        position = end
    assert found == frames
    assert position == len(stream)


@QUIET
@given(stream=st.binary(max_size=200), data=st.data())
def test_any_bytes_give_the_same_frames_and_the_same_error_however_split(stream: bytes, data: st.DataObject) -> None:
    def outcome(cuts: list[int]) -> tuple[list[tuple[int, bytes]], str | None]:
        reader = FrameReader(100)
        found: list[tuple[int, bytes]] = []
        try:
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                reader.feed(stream[start:end])
                while (one := reader.next()) is not None:
                    found.append(one)
        except FrameError as error:
            return found, error.message
        return found, None

    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    assert outcome(cuts) == outcome([])


@pytest.mark.parametrize("length", [0, 1, 3, -1, -(2**31)])
def test_a_length_that_does_not_count_itself_is_a_violation(length: int) -> None:
    reader = FrameReader(LIMIT)
    reader.feed(b"Q" + length.to_bytes(4, "big", signed=True))
    with pytest.raises(FrameError, match=f"invalid message length {length} in a message of type 'Q'") as caught:
        reader.next()
    assert caught.value.sqlstate == "08P01"


@pytest.mark.parametrize("length", [LIMIT + 1, 2**31 - 1])
def test_a_length_over_the_limit_is_refused_by_its_header_alone(length: int) -> None:
    """Nobody waits for two gigabytes, or keeps them: the error comes with the fifth byte."""
    header = b"d" + length.to_bytes(4, "big")
    reader = FrameReader(LIMIT)
    reader.feed(header[:4])
    assert reader.next() is None
    reader.feed(header[4:])
    with pytest.raises(FrameError, match=f"declares {length} bytes, more than the {LIMIT} that are allowed") as caught:
        reader.next()
    assert (caught.value.sqlstate, isinstance(caught.value, PgError)) == ("54000", True)
    assert "max_message_bytes" in (caught.value.hint or "")


def test_the_limit_itself_is_allowed() -> None:
    whole = frame(b"d", b"x" * (LIMIT - 4))
    reader = FrameReader(LIMIT)
    reader.feed(whole)
    assert reader.next() == (ord("d"), b"x" * (LIMIT - 4))
    with pytest.raises(FrameError):
        frame_end(frame(b"d", b"x" * (LIMIT - 3)), 0, LIMIT)


def test_what_no_frame_has_taken_is_the_rest() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(b"S", b"") + b"Q\0\0")
    assert reader.next() == (ord("S"), b"")
    assert (reader.next(), reader.rest) == (None, b"Q\0\0")


@pytest.mark.parametrize(("kind", "shown"), [(ord("Q"), "'Q'"), (0, r"'\\x00'"), (255, r"'\\xff'"), (10, r"'\\x0a'")])
def test_an_unprintable_type_is_shown_as_hex(kind: int, shown: str) -> None:
    with pytest.raises(FrameError, match=shown):
        raise bad_length(kind, 3, LIMIT)


@QUIET
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_query_is_the_catalogues(text: str) -> None:
    assert query(text) == query(text.encode()) == m.Query.encode(string=text)


@QUIET
@given(tag=st.text(st.characters(exclude_characters="\0", codec="ascii")))
def test_command_complete_is_the_catalogues(tag: str) -> None:
    assert command_complete(tag.encode()) == m.CommandComplete.encode(command_tag=tag)


@QUIET
@given(body=st.binary())
def test_frame_is_the_catalogues(body: bytes) -> None:
    assert frame(b"d", body) == m.CopyData.encode(data=body)


@given(columns=st.lists(st.none() | st.binary(max_size=40), max_size=20))
def test_a_data_row_is_read_as_the_catalogue_writes_it_and_no_shorter_one_is(columns: list[bytes | None]) -> None:
    """A row that promised 65,535 columns in two bytes was believed."""
    body = m.DataRow.encode(values=columns)[HEADER_BYTES:]
    assert data_row(body) == columns
    if columns:
        with pytest.raises(MalformedMessage):
            data_row(body[:-1])
        with pytest.raises(MalformedMessage):
            data_row(b"\xff\xff" + body[2:])
