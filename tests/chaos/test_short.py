"""Some of `make chaos` and a moment of `make soak`: the bank's books are right, and nothing is kept in the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.bank import Bank, audit
from tests.chaos.matrix import run_fault
from tests.chaos.rig import Rig, bank_server, rig
from tests.chaos.soak import soak
from tests.support.postgres import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with bank_server() as running:
        yield running


def test_the_books_are_right_after_connections_break_and_a_backend_is_killed(server: Server) -> None:
    outcome = run_fault(server, "kill_backend", tellers=4)
    assert not outcome.wrong
    assert outcome.acknowledged


def test_the_books_are_right_after_the_primary_is_killed_and_its_standby_promoted(server: Server) -> None:
    outcome = run_fault(server, "promote", tellers=4)
    assert not outcome.wrong
    assert outcome.acknowledged


def test_the_books_are_right_after_a_worker_is_killed(server: Server) -> None:
    outcome = run_fault(server, "kill_worker", tellers=4)
    assert not outcome.wrong
    assert outcome.acknowledged


def test_the_auditor_finds_what_is_wrong(server: Server) -> None:
    """A proof that cannot fail is none: books that were tampered with are found out."""

    def tampered(made: Rig, statement: str) -> str:
        with Bank(made.connect, 2) as bank:
            bank.wait_until_all_work(30)
        assert not audit(bank, made.ask)
        server.execute(statement)
        return " ".join(audit(bank, made.ask))

    with rig(server) as made:
        lost = "delete from transfer where id = (select max(id) from transfer)"
        assert "acknowledged transfers are lost" in tampered(made, lost)


def test_after_a_soak_everything_is_where_it_was(server: Server) -> None:
    assert not soak(server, 4, tellers=3, seed=1, pause=(0.5, 1.5))
