"""Writers and readers over rows that carry versions, and what they see.

A row has one writer, which counts its version up. The writer publishes a version as *done* behind the completion of
its commit; a reader takes note of what is done, asks, and must not get less:

    own        the writer reads its row behind its write, over and over: another version than it wrote is a violation
    others     a reader of the same pgnear, whose query begins behind the completion: the same
    past       versions written past pgnear: how long an older one is still served is measured, from the completion on
               to the first answer that has it

What a failed write did is not known: its row is read past pgnear, and counted on from there.

Lives here: `Observed` and the loops. Not here: servers and faults (`faults`), the verdict (`__main__`).
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import psycopg

from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.wire import SYNC, Frame, Refused, WireClient, bind, describe, execute, parse, query

TABLES = ("able", "baker", "charlie", "dog")
"""Row number n is in one of these; a write to one leaves what was read from the others."""

PAST = 1000
"""From this number on, rows that are written past pgnear only. They are in a table of their own."""

PAST_TABLE = "past"
ROWS = 40
SCHEMA = "".join(
    f"""
create table {table} (id int primary key, version bigint not null, filler text);
insert into {table} select n, 0, 'row ' || n from generate_series(1, {ROWS}) n;
insert into {table} select {PAST} + n, 0, 'row ' || n from generate_series(1, {ROWS}) n;
create view {table}_seen as select id, version from {table};
"""
    for table in (*TABLES, PAST_TABLE)
)
READS = (
    "select version from {table} where id = {row}",
    "select max(version)::bigint from {table} where id in ({row})",
    "select version from {table}_seen where id = {row}",
    "with one as (select * from {table} where id = {row}) select version from one",
)
ROLLED_BACK = 1000000000
"""Versions from here on are written and rolled back: nobody may ever see one."""

SETTLED_SECONDS = 0.15
"""Before a write past pgnear, so that the repetition of the invalidation before (`stream.ECHO_SECONDS`) is over."""

AT_ONCE = 16
"""Connections of a thread that read at the same time."""

MOST_ROUNDS = 20
"""A writer's row is read by all of them up to so many times before it writes again."""

WRITES = ("update", "transaction", "rollback first", "cte", "savepoint", "pipeline", "prepared")


class Broken(Exception):
    """A read has failed."""


@dataclass
class Observed:
    """Counts and times of one run; every list is appended to by many threads."""

    own_reads: int = 0
    other_reads: int = 0
    writes: int = 0
    failures: int = 0
    hits: int = 0
    violations: list[str] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def table_of(row: int) -> str:
    """Where a row is."""
    return PAST_TABLE if row >= PAST else TABLES[row % len(TABLES)]


def reading(form: str, row: int) -> bytes:
    """One of `READS` for a row."""
    return form.format(table=table_of(row), row=row).encode()


class Workload:
    """The loops of one run over one pgnear; `stop` ends them all.

    Attributes:
      done: by row, the version whose commit was completed, as its writer was told.
    """

    def __init__(self, near: Pgnear, server: Server, seed: int) -> None:
        self.near = near
        self.server = server
        self.seed = seed
        self.seen = Observed()
        self.done: dict[int, int] = {}
        self.stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, seconds: float, *, writers: int, readers: int, measures: int) -> None:
        """All loops for so long."""
        for row in range(1, writers + 1):
            self.done[row] = 0
        loops = [(self.write, row) for row in range(1, writers + 1)]
        loops += [(self.read, number) for number in range(readers)]
        loops += [(self.measure, PAST + number) for number in range(1, measures + 1)]
        for loop, number in loops:
            thread = threading.Thread(target=self._guarded, args=(loop, number), daemon=True)
            thread.start()
            self._threads.append(thread)
        self.stopped.wait(seconds)
        self.stopped.set()
        for thread in self._threads:
            thread.join(30)
            if thread.is_alive():
                self.seen.violations.append("a loop does not end")

    def _guarded(self, loop: object, number: int) -> None:
        try:
            while not self.stopped.is_set():
                try:
                    with self.near.connect() as client:
                        assert callable(loop)
                        loop(client, number)
                except (psycopg.Error, Broken, Refused, OSError, EOFError):  # a fault; the next connection goes on
                    self.seen.add(failures=1)
                    self.stopped.wait(0.05)
        except BaseException as error:
            self.seen.violations.append(f"{loop} ended: {error!r}")

    # ---- through pgnear ----------------------------------------------------------------------------------------------

    def write(self, client: psycopg.Connection, row: int) -> None:
        """Count the version of `row` up, in all ways, and read it."""
        with Several(self.near, AT_ONCE) as several:
            self._write(client, row, several)

    def _write(self, client: psycopg.Connection, row: int, several: Several) -> None:
        chance = random.Random(f"{self.seed} {row}")
        version = self._true_version(row)
        self.done[row] = version
        while not self.stopped.is_set():
            version += 1
            write_one(client, chance.choice(WRITES), row, version)
            self.done[row] = version
            got = client.execute(reading(chance.choice(READS), row)).fetchone()
            self.seen.add(writes=1, own_reads=1)
            if got is None or got[0] != version:
                self.seen.violations.append(f"row {row}: its writer got {got} behind its write of {version}")
            for _ in range(chance.randrange(1, MOST_ROUNDS)):
                versions = several.versions([(form, row) for form in chance.choices(READS, k=AT_ONCE)])
                self.seen.add(own_reads=AT_ONCE)
                if wrong := set(versions) - {version}:
                    self.seen.violations.append(f"row {row}: {wrong} was read behind the completion of {version}")
            self.stopped.wait(chance.random() ** 4 * 0.1)  # so that readers find something to keep

    def read(self, client: psycopg.Connection, number: int) -> None:
        """Ask for rows of others."""
        chance = random.Random(f"{self.seed} reader {number}")
        rows = list(self.done)
        with Several(self.near, AT_ONCE) as several:
            while not self.stopped.is_set():
                asked = list(zip(chance.choices(READS, k=AT_ONCE), chance.choices(rows, k=AT_ONCE), strict=True))
                done = [self.done[row] for _, row in asked]
                versions = several.versions(asked)
                self.seen.add(other_reads=AT_ONCE)
                for (_, row), least, got in zip(asked, done, versions, strict=True):
                    self._check_other(row, least, got)
                row = chance.choice(rows)
                query, least = reading(chance.choice(READS), row), self.done[row]
                one = client.execute(query, prepare=chance.random() < 0.5).fetchone()
                self.seen.add(other_reads=1)
                self._check_other(row, least, one[0] if one is not None else None)

    def _check_other(self, row: int, done: int, got: int | None) -> None:
        if got is None or not done <= got < ROLLED_BACK:
            self.seen.violations.append(f"row {row}: a reader got {got} behind the completion of {done}")

    # ---- past pgnear -------------------------------------------------------------------------------------------------

    def measure(self, client: psycopg.Connection, row: int) -> None:
        """Write past pgnear, and ask until the answer has it."""
        query = reading(READS[0], row)
        with self.server.connect() as past:
            while not self.stopped.is_set():
                version = self._true_version(row) + 1
                self.stopped.wait(SETTLED_SECONDS)
                for _ in range(3):
                    client.execute(query)
                past.execute(f"update {PAST_TABLE} set version = %s where id = %s".encode(), (version, row))
                committed = time.perf_counter()
                while True:
                    asked = time.perf_counter()
                    got = client.execute(query).fetchone()
                    if got is not None and got[0] >= version:
                        self.seen.staleness.append(max(asked - committed, 0.0))
                        break
                    if self.stopped.is_set():
                        return
                    self.stopped.wait(0.0005)

    def _true_version(self, row: int) -> int:
        while True:
            try:
                (version,) = self.server.execute(f"select version from {table_of(row)} where id = %s", row)[0]
            except psycopg.Error:  # the server is down
                if self.stopped.wait(0.1):
                    return 0
            else:
                assert isinstance(version, int)
                return version


class Several:
    """Connections of one thread that ask at the same time: cheaper than a thread each, and just as concurrent.

    Each is a client of its own to pgnear, so that each may be answered from the cache or wait for another's answer.
    """

    def __init__(self, near: Pgnear, count: int) -> None:
        self._clients: list[WireClient] = []
        try:
            for _ in range(count):
                self._clients.append(WireClient.logged_in(near.port))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.hang_up()

    def versions(self, asked: list[tuple[str, int]]) -> list[int | None]:
        """The answers to reads (form, row), one for each connection, half of them by the extended protocol.

        Raises:
          Broken: one of them has failed.
        """
        for place, (client, (form, row)) in enumerate(zip(self._clients, asked, strict=True)):
            text = reading(form, row).decode()
            client.send(*((query(text),) if place % 2 else (parse(text), bind(), describe(), execute(), SYNC)))
        return [_version(client.receive_until("Z")) for client in self._clients]


def _version(frames: list[Frame]) -> int | None:
    got = None
    for kind, body in frames:
        if kind == "D":
            got = int(body[6:])
        elif kind == "E":
            raise Broken
    return got


def write_one(client: psycopg.Connection, how: str, row: int, version: int) -> None:
    """Give `row` its `version` and commit."""
    table = table_of(row)
    update = f"update {table} set version = {version} where id = {row}".encode()
    with_parameters = f"update {table} set version = %s where id = %s".encode()
    if how == "update":
        client.execute(update)
    elif how == "prepared":
        client.execute(with_parameters, (version, row), prepare=True)
    elif how == "cte":
        client.execute(b"with w as (" + update + b" returning version) select version from w")
    elif how == "pipeline":
        with client.pipeline():
            client.execute(b"begin")
            client.execute(with_parameters, (version, row))
            client.execute(b"commit")
    elif how == "transaction":
        with client.transaction():
            client.execute(with_parameters, (version - 1, row))
            client.execute(update)
    elif how == "savepoint":
        with client.transaction():
            client.execute(b"savepoint s")
            client.execute(with_parameters, (0, row))
            client.execute(b"rollback to s")
            client.execute(update)
    else:
        client.execute(b"begin")
        client.execute(with_parameters, (version + ROLLED_BACK, row))
        client.execute(reading(READS[0], row))
        client.execute(b"rollback")
        client.execute(update)
