"""Prepared statements: what is remembered of them is bounded in bytes, for a scope and for a client."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from pooler.session import Session
from pooler.sql.statement import classify
from pooler.statements import PARSES_BYTES, PreparedStatements
from protocol.responses import PgError
from tests.support.compiled import needs_stand_ins


def heavy(number: int) -> bytes:
    """Little text, and much to know about it."""
    return ("select " + ", ".join(f"c{number}_{each}" for each in range(200))).encode()


def test_parse_messages_that_are_remembered_are_bounded_in_bytes() -> None:
    known = PreparedStatements()
    scope = known.scope("shop", 0, ())
    for number in range(400):
        text = heavy(number)
        scope.remember(text, known.intern(text, b"\0\0", classify(text), scope))
        assert sum(len(frame) + prepared.weight for frame, prepared in scope.parses.items()) <= PARSES_BYTES
    assert scope.parses


@needs_stand_ins
def test_a_clients_statements_are_bounded_by_what_is_known_about_them() -> None:
    known = PreparedStatements()
    scope = known.scope("shop", 0, ())
    limits = SimpleNamespace(max_client_statements=5000, max_message_bytes=1 << 20)
    session: Any = SimpleNamespace(statements={}, service=SimpleNamespace(config=limits))

    def prepare(number: int) -> None:
        text = heavy(number)
        Session.remember(session, b"s%d" % number, known.intern(text, b"\0\0", classify(text), scope))

    for number in range(25):
        prepare(number)
    with pytest.raises(PgError, match="prepared statements"):
        deque(map(prepare, range(25, 50)), maxlen=0)
