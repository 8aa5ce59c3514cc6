"""The shelf of answers that are ready to be sent: bounded, and never with more than the store has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pooler.cache.ready import MAX_RESPONSE_BYTES, READY_BYTES, Ready, Shelf, View

ROOM = 10
EACH = 4 + 6 + READY_BYTES


@pytest.fixture
def shelf() -> Shelf:
    """With room for `ROOM` answers as `put` makes them."""
    return Shelf(ROOM * EACH)


def view_of(shelf: Shelf, user: str = "app", catalog: object = "catalog") -> View:
    return shelf.view("shop", user, "settings", "reports", catalog)


def put(shelf: Shelf, view: View, number: int, entry: Any = None) -> Any:
    entry = entry or SimpleNamespace(ready=None)
    namespace: Any = None
    shelf.put(view, b"%04d" % number, Ready(entry, namespace, b"answer", None))
    return entry


def test_when_it_is_full_the_oldest_go(shelf: Shelf) -> None:
    view = view_of(shelf)
    for number in range(ROOM + 3):
        put(shelf, view, number)
    assert list(view.answers) == [b"%04d" % number for number in range(3, ROOM + 3)]
    assert shelf.bytes == ROOM * EACH


def test_an_answer_that_is_put_again_is_the_newest(shelf: Shelf) -> None:
    view = view_of(shelf)
    for number in (*range(ROOM), 0, ROOM):
        put(shelf, view, number)
    assert b"0000" in view.answers
    assert b"0001" not in view.answers
    assert shelf.bytes == ROOM * EACH


def test_where_other_views_take_the_room_all_of_them_begin_anew(shelf: Shelf) -> None:
    full, other = view_of(shelf), view_of(shelf, "other")
    for number in range(ROOM):
        put(shelf, full, number)
    put(shelf, other, 0)
    assert not full.answers
    assert not other.answers
    assert shelf.bytes == 0
    assert full.catalog is None  # a session that still has it asks for a new one
    assert view_of(shelf) is not full


def test_an_entry_takes_with_it_all_that_it_answers_and_nothing_else(shelf: Shelf) -> None:
    one, two = view_of(shelf), view_of(shelf, "other")
    entry = put(shelf, one, 0)
    put(shelf, two, 1, entry)
    newer = put(shelf, one, 2)
    shelf.put(one, b"0000", Ready(newer, one.answers[b"0000"].namespace, b"answer", None))  # asked again since
    shelf.forget(entry)
    assert set(one.answers) == {b"0000", b"0002"}
    assert not two.answers
    assert shelf.bytes == 2 * EACH


def test_another_catalog_leaves_nothing(shelf: Shelf) -> None:
    put(shelf, view_of(shelf), 0)
    assert not view_of(shelf, catalog="another").answers
    assert shelf.bytes == 0


def test_a_long_answer_is_not_for_it() -> None:
    shelf = Shelf(1 << 30)
    view = view_of(shelf)
    entry: Any = SimpleNamespace(ready=None)
    namespace: Any = None
    shelf.put(view, b"long", Ready(entry, namespace, b"x" * (MAX_RESPONSE_BYTES + 1), None))
    assert not view.answers
    assert shelf.bytes == 0
