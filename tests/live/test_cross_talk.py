"""Nobody ever gets another's answer: thousands of transactions of many clients on a few connections.

Every client has a mark and numbers its questions; every answer must carry both, in rows, in error messages and in COPY
data alike. Clients use every protocol shape at random, and some cancel, and some vanish, while others work.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.conftest import Start
from tests.support import wire
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import together, until
from tests.support.wire import SYNC, Frame, WireClient, bind, close, describe, error_fields, execute, parse

CLIENTS = 40
ROUNDS = 700
"""Of each client; a round is one transaction, some are several."""

POOL_SIZE = 4

VANISH_WHILE_SERVED = False
"""Off while test_a_client_that_vanishes_while_it_is_served_does_not_hang_another fails: everybody else would hang."""

CANCELED = "57014"
_MARKED = re.compile(r'invalid input syntax for type integer: "mark (\d+) question (\d+)"')


class Asked(NamedTuple):
    """Whose question, and which; as text the two columns that an answer must have."""

    mark: int
    question: int

    def __str__(self) -> str:
        return f"{self.mark}, {self.question}"

    @property
    def unreadable(self) -> str:
        """An expression that fails, and names the question in its error."""
        return f"'mark {self.mark} question {self.question}'::int"


class Witness:
    """A client with a mark. `work` asks; `wrong` collects the answers that were not its own.

    Attributes:
      written: questions whose row it committed. unsure: those of which it did not hear.
      counts: transactions by kind.
    """

    def __init__(self, mark: int, port: int, *, cancels: bool, vanishes: bool) -> None:
        self.mark = mark
        self.question = 0
        self.written: set[int] = set()
        self.unsure: set[int] = set()
        self.wrong: list[object] = []
        self.counts: Counter[str] = Counter()
        self._port = port
        self._random = random.Random(mark)
        self._cancels = cancels
        self._prepared = False
        self._connect()
        self._kinds: list[Callable[[], None]] = [
            self.simple, self.several, self.transaction, self.writes, self.extended, self.prepared, self.pipelined,
            self.fails, self.copies, self.wide, self.setting,
        ]  # fmt: skip
        if cancels:
            self._kinds += [self.canceled, self.canceled_too_late]
        if vanishes:
            self._kinds += [self.vanishes]

    def work(self, rounds: int) -> Witness:
        for _ in range(rounds):
            kind = self._random.choice(self._kinds)
            self.counts[kind.__name__] += 1
            kind()
            if len(self.wrong) > 5:
                break
        self._wire.terminate()
        return self

    # ---- asking and checking -----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._wire = WireClient.logged_in(self._port, options=f"-c app.mark={self.mark}")
        self._prepared = False

    def _new(self) -> Asked:
        self.question += 1
        return Asked(self.mark, self.question)

    def _check(self, frames: list[Frame], *expected: Asked, errors: int = 0) -> None:
        """The rows and marked errors among `frames` are those `expected`, in order."""
        told: list[Asked] = []
        for kind, body in frames:
            if kind == "D":
                mark, question = wire.rows([(kind, body)])[0][:2]
                told.append(Asked(int(mark or 0), int(question or 0)))
            elif kind == "d":
                mark, question = body.split(b"\t")[:2]
                told.append(Asked(int(mark), int(question)))
            elif kind == "E":
                message = error_fields(body)["M"]
                marked = _MARKED.fullmatch(message)
                told.append(Asked(int(marked[1]), int(marked[2])) if marked else Asked(-1, -1))
                errors -= 1
                if marked is None:
                    self.wrong.append((self.mark, self.question, message))
        if told != list(expected) or errors:
            self.wrong.append((expected, told, errors))

    def _ask(self, text: str) -> list[Frame]:
        return self._wire.query(text)

    # ---- kinds of transactions ---------------------------------------------------------------------------------------

    def simple(self) -> None:
        asked = self._new()
        self._check(self._ask(f"select {asked}"), asked)

    def several(self) -> None:
        first, second = self._new(), self._new()
        self._check(self._ask(f"select {first}; select {second}"), first, second)

    def transaction(self) -> None:
        self._ask("begin")
        for _ in range(3):
            asked = self._new()
            self._check(self._ask(f"select {asked}, random()"), asked)
        self._ask(self._random.choice(["commit", "rollback"]))

    def writes(self) -> None:
        asked = self._new()
        self._ask("begin")
        self._check(self._ask(f"insert into told values ({asked}) returning mark, question"), asked)
        if self._random.random() < 0.7:
            self._ask("commit")
            self.written.add(asked[1])
        else:
            self._ask("rollback")

    def extended(self) -> None:
        asked = self._new()
        values = [str(number).encode() for number in asked]
        text = "select $1::int, $2::int, now()"
        self._check(self._wire.ask(parse(text), bind("", values), describe(), execute(), SYNC), asked)

    def prepared(self) -> None:
        """A name that all clients use, for a text that is each client's own."""
        asked = self._new()
        messages = [] if self._prepared else [parse(f"select {self.mark}, $1::int, random()", "s")]
        self._prepared = True
        self._check(self._wire.ask(*messages, bind("s", [str(asked[1]).encode()]), execute(), SYNC), asked)
        if self._random.random() < 0.1:
            self._wire.ask(close("S", "s"), SYNC)
            self._prepared = False

    def pipelined(self) -> None:
        """Batches in one write; the one in the middle fails half way, and says whose it was."""
        questions = [self._new() for _ in range(4)]
        first, second, failed, last = questions
        self._wire.send(
            *_batch(f"select {first}"), *_batch(f"select {second}, random()"), SYNC,
            *_batch(f"select {failed.unreadable}"), *_batch("select 0, 0"), SYNC,
            *_batch(f"select {last}, random()"), SYNC,
        )  # fmt: skip
        frames = [frame for _ in range(3) for frame in self._wire.receive_until("Z")]
        self._check(frames, *questions, errors=1)

    def fails(self) -> None:
        asked = self._new()
        self._check(self._ask(f"select {asked.unreadable}"), asked, errors=1)

    def copies(self) -> None:
        asked = self._new()
        self._check(self._ask(f"copy (select {asked}, now()) to stdout"), asked)

    def wide(self) -> None:
        asked = self._new()
        text = f"select {asked}, repeat('x', 2000), random() from generate_series(1, 30)"
        self._check(self._ask(text), *[asked] * 30)

    def setting(self) -> None:
        asked = self._new()
        self._check(self._ask(f"select current_setting('app.mark'), {asked[1]}"), asked)

    def canceled(self) -> None:
        """The query is canceled, or it was faster; either way only this one."""
        asked = self._new()
        self._wire.send(wire.query(f"select {asked}, pg_sleep(0.01)"))
        with WireClient(self._port) as canceler:
            canceler.send(wire.cancel_request(self._wire.pid, self._wire.secret))
            canceler.receive_all()  # until it has been dealt with
        frames = self._wire.receive_until("Z")
        codes = [error_fields(body)["C"] for kind, body in frames if kind == "E"]
        if codes != [CANCELED]:
            self._check(frames, asked)

    def canceled_too_late(self) -> None:
        """The cancel comes when the query has ended, and others may have the connection: only the asker may feel it."""
        self.simple()
        with WireClient(self._port) as canceler:
            canceler.send(wire.cancel_request(self._wire.pid, self._wire.secret))
            asked = self._new()
            frames = self._ask(f"select {asked}, random()")
            canceler.receive_all()
        codes = [error_fields(body)["C"] for kind, body in frames if kind == "E"]
        if codes != [CANCELED]:
            self._check(frames, asked)

    def vanishes(self) -> None:
        """Leaves without a word, in a transaction or with an answer on its way, and comes back."""
        asked = self._new()
        how = self._random.choice(["in a transaction", "in a batch", *["before the answer"] * VANISH_WHILE_SERVED])
        if how == "in a transaction":
            self._ask("begin")
            self._ask(f"insert into told values ({asked})")
        elif how == "before the answer":
            self._wire.send(wire.query(f"insert into told values ({asked}) returning pg_sleep(0.005)"))
            self.unsure.add(asked[1])
        else:
            self._wire.send(*_batch(f"insert into told values ({asked})"), wire.FLUSH)
        if self._random.random() < 0.5:
            self._wire.reset()
        else:
            self._wire.hang_up()
        self._connect()


def _batch(text: str) -> tuple[bytes, bytes, bytes]:
    return parse(text), bind(), execute()


@pytest.fixture
def near(pgnear: Start, origin: Server) -> Iterator[Pgnear]:
    origin.execute("create table told (mark int, question int)")
    yield pgnear(pool_size=POOL_SIZE, pool_wait_timeout="30s")
    origin.execute("drop table told")


def test_nobody_ever_gets_anothers_answer(near: Pgnear, origin: Server) -> None:
    everybody_is_there = threading.Barrier(CLIENTS)

    def run(number: int) -> Witness:
        witness = Witness(number + 1, near.port, cancels=number % 4 == 1, vanishes=number % 4 == 2)
        everybody_is_there.wait(40)
        return witness.work(ROUNDS)

    witnesses = [witness for witness in together(CLIENTS, run) if isinstance(witness, Witness)]
    assert [witness.wrong for witness in witnesses if witness.wrong] == []
    counts = sum((witness.counts for witness in witnesses), Counter())
    assert counts.total() == CLIENTS * ROUNDS
    assert min(counts.values()) > 20, counts

    until(lambda: near.metric("pool_busy") == 0, what="a connection is not given back")
    there = Counter(origin.execute("select mark, question from told"))
    assert max(there.values()) == 1, "a row was written twice"
    for witness in witnesses:
        found = {question for mark, question in there if mark == witness.mark}
        assert witness.written <= found <= witness.written | witness.unsure


def test_a_client_that_vanishes_while_it_is_served_does_not_hang_another(pgnear: Start) -> None:
    """Its query may end before the cancel that pgnear sends for it: the connection is then another client's already."""
    near = pgnear(pool_size=1)
    with WireClient.logged_in(near.port) as other:
        for question in range(200):
            vanishing = WireClient.logged_in(near.port)
            vanishing.send(wire.query("select random()"))
            vanishing.hang_up()
            answer = other.query(f"select {question}, random(), pg_sleep(0.002)")
            assert [row[0] for row in wire.rows(answer)] == [str(question).encode()]
