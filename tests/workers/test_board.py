"""The board between workers: what one puts up all others hear, whatever was lost on the way, and counts are sums."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooler.workers import board as boards
from pooler.workers.board import (
    ALL,
    CATALOG,
    CLIENTS,
    DATABASE,
    MOST_TABLES,
    REPLICATION,
    RING,
    SCHEMA,
    TABLE,
    Board,
    Item,
    number_of,
)

SHOP = number_of("shop")


class Listening(NamedTuple):
    board: Board
    heard: list[Item]

    def hears(self) -> list[Item]:
        self.heard.clear()
        self.board.hear()
        return list(self.heard)


def listening(fd: int, index: int, count: int) -> Listening:
    board, heard = Board.open(fd, index, count), list[Item]()
    board.on_news = heard.extend
    return Listening(board, heard)


@pytest.fixture
def fd() -> Iterator[int]:
    """Memory for two workers."""
    fd = boards.create(2)
    yield fd
    os.close(fd)


@pytest.fixture
def two(fd: int) -> tuple[Board, Listening]:
    return Board.open(fd, 0, 2), listening(fd, 1, 2)


def test_what_one_worker_puts_up_the_other_hears_once(two: tuple[Board, Listening]) -> None:
    one, other = two
    assert other.hears() == []
    one.put_tables("shop", [7, 4_000_000_000])
    one.put_database("shop")
    one.put_catalog("shop")
    one.put_schema("shop")
    one.put_everything()
    assert other.hears() == [
        Item(TABLE, SHOP, 7),
        Item(TABLE, SHOP, 4_000_000_000),
        Item(DATABASE, SHOP, 0),
        Item(CATALOG, SHOP, 0),
        Item(SCHEMA, SHOP, 0),
        ALL,
    ]
    assert other.hears() == []


def test_nobody_hears_what_it_has_put_up_itself(two: tuple[Board, Listening]) -> None:
    one, other = two
    other.board.put_database("shop")
    assert other.hears() == []
    one.put_database("shop")
    assert other.hears() == [Item(DATABASE, SHOP, 0)]


def test_the_parent_is_heard_by_all_workers(fd: int) -> None:
    workers = [listening(fd, index, 2) for index in range(2)]
    parent = Board.open(fd, 2, 2)
    parent.put_everything()
    assert [each.hears() for each in workers] == [[ALL], [ALL]]


def test_who_is_more_than_a_ring_behind_takes_it_for_everything(two: tuple[Board, Listening]) -> None:
    one, other = two
    for _ in range(RING):
        one.put_tables("shop", [7])
    assert len(other.hears()) == RING
    for _ in range(RING + 1):
        one.put_tables("shop", [7])
    assert other.hears() == [ALL]
    one.put_tables("shop", [7])
    assert other.hears() == [Item(TABLE, SHOP, 7)]


def test_numbers_go_on_round_and_round(two: tuple[Board, Listening]) -> None:
    one, other = two
    for table in range(40 * RING):
        one.put_tables("shop", [table])
        if table % 5000 == 0:
            other.hears()
    other.hears()
    one.put_tables("shop", [7])
    assert other.hears() == [Item(TABLE, SHOP, 7)]


def test_an_item_that_is_not_there_yet_is_taken_for_everything(fd: int, two: tuple[Board, Listening]) -> None:
    """Some processors may show the head before the item."""
    one, other = two
    memory = mmap.mmap(fd, boards.size_for(2))
    one.put_tables("shop", [7])
    place = memory.find((TABLE << 44 | SHOP << 32 | 7).to_bytes(8, "little"))
    assert place > 0
    memory[place : place + 8] = bytes(8)
    assert other.hears() == [ALL]


def test_an_item_that_was_written_over_meanwhile_is_taken_for_everything(two: tuple[Board, Listening]) -> None:
    one, other = two
    one.put_tables("shop", [7])
    head = one._head
    for _ in range(RING):
        one.put_tables("shop", [8])
    one._words[0] = head  # what the other has read of the head is from before
    assert other.hears() == [ALL]


def test_a_lap_that_gives_the_same_numbers_again_is_noticed(
    two: tuple[Board, Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader was stopped between the head and the items, and the writer put up many rings full."""
    one, other = two
    one.put_tables("shop", [7])
    since = other.board._since

    def much_later(writer: int, seen: int, head: int) -> list[Item]:
        for _ in range(boards._NUMBER_MASK + 1):
            one.put_tables("shop", [8])
        return since(writer, seen, head)

    monkeypatch.setattr(other.board, "_since", much_later)
    assert other.hears() == [ALL]


def test_news_that_could_not_be_taken_come_again(two: tuple[Board, Listening]) -> None:
    one, other = two

    def fail(news: object) -> None:
        raise RuntimeError

    other.board.on_news = fail
    one.put_database("shop")
    with pytest.raises(RuntimeError):
        other.board.hear()
    other.board.on_news = other.heard.extend
    assert other.hears() == [Item(DATABASE, SHOP, 0)]


def test_many_tables_are_put_up_as_the_whole_database(two: tuple[Board, Listening]) -> None:
    one, other = two
    one.put_tables("shop", range(MOST_TABLES))
    assert len(other.hears()) == MOST_TABLES
    one.put_tables("shop", range(MOST_TABLES + 1))
    assert other.hears() == [Item(DATABASE, SHOP, 0)]


@pytest.mark.parametrize("table", ["orders", -1, 1 << 32, None])
def test_what_is_no_oid_is_put_up_as_the_whole_database(two: tuple[Board, Listening], table: object) -> None:
    one, other = two
    one.put_tables("shop", [7, table])
    assert other.hears() == [Item(DATABASE, SHOP, 0)]


def test_a_worker_that_takes_a_dead_ones_place_goes_on_where_that_ended(fd: int) -> None:
    first, other = Board.open(fd, 0, 2), listening(fd, 1, 2)
    first.put_tables("shop", [7])
    second = listening(fd, 0, 2)
    second.board.put_tables("shop", [8])
    assert other.hears() == [Item(TABLE, SHOP, 7), Item(TABLE, SHOP, 8)]
    assert second.hears() == []  # what was put up before it began concerns nothing that it has


@given(st.lists(st.tuples(st.integers(0, 2), st.one_of(st.just("hear"), st.integers(1, 1000))), max_size=60))
def test_everybody_hears_each_item_of_all_others_in_order(steps: list[tuple[int, object]]) -> None:
    fd = boards.create(2)
    try:
        several = [listening(fd, index, 2) for index in range(3)]
        put: list[list[int]] = [[], [], []]
        heard: list[list[int]] = [[], [], []]
        for who, what in steps:
            if isinstance(what, int):
                several[who].board.put_tables("shop", [what * 3 + who])
                put[who].append(what * 3 + who)
            else:
                heard[who] += [item.table for item in several[who].hears()]
        for who, each in enumerate(several):
            heard[who] += [item.table for item in each.hears()]
            for other in range(3):
                expected = put[other] if other != who else []
                assert [table for table in heard[who] if table % 3 == other] == expected
    finally:
        os.close(fd)


def test_counts_are_sums_over_all_workers(fd: int) -> None:
    one, other = Board.open(fd, 0, 2), Board.open(fd, 1, 2)
    one.set_count(CLIENTS, 3)
    other.set_count(CLIENTS, 4)
    other.set_count(REPLICATION, 1)
    assert (one.others_have(CLIENTS), other.others_have(CLIENTS)) == (4, 3)
    assert (one.others_have(REPLICATION), other.others_have(REPLICATION)) == (1, 0)
    assert one.enter("192.0.2.1") == 1
    assert other.enter("192.0.2.1") == 2
    assert other.enter("192.0.2.2") == 1
    one.leave("192.0.2.1")
    assert other.enter("192.0.2.1") == 2


def test_what_a_dead_worker_counted_is_gone_and_all_that_others_keep_is_over(fd: int) -> None:
    one, other, parent = Board.open(fd, 0, 2), listening(fd, 1, 2), Board.open(fd, 2, 2)
    one.set_count(CLIENTS, 3)
    one.enter("192.0.2.1")
    parent.worker_lost(0)
    assert other.hears() == [ALL]
    assert other.board.others_have(CLIENTS) == 0
    assert other.board.enter("192.0.2.1") == 1


def test_processes_see_each_others_news(fd: int) -> None:
    other = listening(fd, 1, 2)
    pid = os.fork()
    if not pid:
        Board.open(fd, 0, 2).put_tables("shop", [7])
        os._exit(0)
    os.waitpid(pid, 0)
    assert other.hears() == [Item(TABLE, SHOP, 7)]


def test_without_memfd_there_is_a_file_that_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = boards.create(2)
    try:
        assert os.fstat(fd).st_nlink == 0
        Board.open(fd, 0, 2).put_database("shop")
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_the_backends_of_a_dead_worker_are_known_once(fd: int) -> None:
    one, other, parent = Board.open(fd, 0, 2), Board.open(fd, 1, 2), Board.open(fd, 2, 2)
    one.set_backends([("shop", 100), ("shop", 4_194_304), ("blog", 7)])
    one.set_backends([("shop", 100), ("blog", 7)])
    other.set_backends([("shop", 8)])
    assert parent.worker_lost(0) == [(SHOP, 100), (number_of("blog"), 7)]
    assert parent.worker_lost(0) == []
    one = Board.open(fd, 0, 2)
    one.set_backends([("shop", pid) for pid in range(1, boards.BACKENDS + 10)])
    assert len(parent.worker_lost(0)) == boards.BACKENDS
    assert parent.worker_lost(1) == [(SHOP, 8)]
