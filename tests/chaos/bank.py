"""A bank whose tellers are clients of pgnear: transfers between accounts, and books of what became of each.

A transfer has an id of its own, inserted in the transaction that moves the money. It is acknowledged when COMMIT was
answered, refused when an error came before COMMIT was sent, unknown when one came after. Not here: what breaks.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

ACCOUNTS = 40
INITIAL = 1000
PATIENCE_SECONDS = 3.0

SCHEMA = f"""
create table account (id int primary key, balance bigint not null);
insert into account select n, {INITIAL} from generate_series(1, {ACCOUNTS}) n;
create table transfer (
    id bigint primary key, teller int not null, source int not null, sink int not null, amount int not null
);
"""


@dataclass
class Books:
    """What one teller knows of its transfers."""

    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    errors: dict[str, int] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    """Answers that were not its own."""
    last_acknowledged: float = 0.0
    longest_pause: float = 0.0


class Teller(threading.Thread):
    """One client: transfers until it is told to stop, with a new connection after each error."""

    def __init__(self, number: int, connect: Callable[[], Any], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.books = Books()
        self._connect = connect
        self._ending = stop
        self._connection: Any = None
        self._busy_since = 0.0
        self._chance = random.Random(number)
        self._next = number << 40
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.problem = error

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                with self._connect() as connection:
                    connection.autocommit = True
                    self._connection = connection
                    while not self._ending.is_set():
                        self._busy_since = time.monotonic()
                        self._look(connection)
                        self._transfer(connection)
            except psycopg.Error as error:
                self._note(error)
                self._ending.wait(0.05)

    def lose_patience(self) -> None:
        """Hang up where an answer takes too long, as an application's own timeout does."""
        connection, since = self._connection, self._busy_since
        if connection is None or connection.closed or time.monotonic() - since < PATIENCE_SECONDS:
            return
        try:
            with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
                sock.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error):
            pass

    def _note(self, error: psycopg.Error) -> None:
        kind = error.sqlstate or "connection"
        self.books.errors[kind] = self.books.errors.get(kind, 0) + 1

    def _look(self, connection: Any) -> None:
        """Read something that only this teller asks for, prepared and cached as it comes."""
        mark = self.number * 1000 + self._chance.randrange(5)
        row = connection.execute("select %s::int, balance from account where id = %s", (mark, 1 + mark % 7)).fetchone()
        if row is None or row[0] != mark:
            self.books.strangers.append(f"asked for {mark}, was given {row}")

    def _transfer(self, connection: Any) -> None:
        self._next += 1
        mine, books = self._next, self.books
        source, sink = self._chance.sample(range(1, ACCOUNTS + 1), 2)
        amount = self._chance.randrange(1, 20)
        try:
            connection.execute("begin")
            entry = (mine, self.number, source, sink, amount)
            connection.execute("insert into transfer values (%s, %s, %s, %s, %s)", entry)
            for account, change in sorted(((source, -amount), (sink, amount))):  # in order: no deadlocks
                connection.execute("update account set balance = balance + %s where id = %s", (change, account))
        except psycopg.Error:
            books.refused.add(mine)
            raise
        try:
            connection.execute("commit")
        except psycopg.Error:
            books.unknown.add(mine)
            raise
        books.acknowledged.add(mine)
        now = time.monotonic()
        if books.last_acknowledged:
            books.longest_pause = max(books.longest_pause, now - books.last_acknowledged)
        books.last_acknowledged = now


class Bank:
    """Tellers at work."""

    def __init__(self, connect: Callable[[], Any], tellers: int, first: int = 1) -> None:
        self._stop = threading.Event()
        self.tellers = [Teller(number, connect, self._stop) for number in range(first, first + tellers)]

    def __enter__(self) -> Bank:
        for teller in self.tellers:
            teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for teller in self.tellers:
            teller.join(60)

    def wait_until_all_work(self, within: float) -> float:
        """Seconds until each teller has had a transfer acknowledged that it had not now.

        Raises:
          AssertionError: not within so many seconds.
        """
        began = time.monotonic()
        while any(teller.books.last_acknowledged < began for teller in self.tellers):
            waiting = [teller.number for teller in self.tellers if teller.books.last_acknowledged < began]
            assert time.monotonic() - began < within, f"tellers {waiting} have not recovered within {within:g} s"
            assert all(teller.is_alive() for teller in self.tellers), [teller.problem for teller in self.tellers]
            for teller in self.tellers:
                teller.lose_patience()
            threading.Event().wait(0.005)
        return time.monotonic() - began

    @property
    def acknowledged(self) -> int:
        return sum(len(teller.books.acknowledged) for teller in self.tellers)

    @property
    def errors(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for teller in self.tellers:
            for kind, count in list(teller.books.errors.items()):
                found[kind] = found.get(kind, 0) + count
        return found


def audit(bank: Bank, ask: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    """What is wrong with the books, asked of the origin past pgnear when all tellers have stopped; [] if nothing is."""
    wrong = []
    there = {row[0] for row in ask("select id from transfer")}
    for teller in bank.tellers:
        books = teller.books
        if teller.problem is not None:
            wrong.append(f"teller {teller.number} stopped: {teller.problem!r}")
        if lost := books.acknowledged - there:
            wrong.append(f"teller {teller.number}: {len(lost)} acknowledged transfers are lost")
        if ghosts := books.refused & there:
            wrong.append(f"teller {teller.number}: {len(ghosts)} transfers were made that were never committed")
        wrong += [f"teller {teller.number}: {each}" for each in books.strangers[:3]]
    (total,) = ask("select sum(balance) from account")[0]
    if total != ACCOUNTS * INITIAL:
        wrong.append(f"the balances' sum is {total}, not {ACCOUNTS * INITIAL}")
    uneven = ask(
        f"""select a.id from account a where balance <> {INITIAL}
            + coalesce((select sum(amount) from transfer where sink = a.id), 0)
            - coalesce((select sum(amount) from transfer where source = a.id), 0)"""
    )
    if uneven:
        wrong.append(f"balances that their transfers do not explain: {uneven}")
    return wrong
