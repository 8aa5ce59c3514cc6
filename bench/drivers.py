"""Clients whose waiting is measured: psycopg, asyncpg and psql, each with the same few things to do.

Every question asks for another key, so that no cache knows the answer, unless it asks for `CACHED_KEY`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

QUESTION = "select abalance from pgbench_accounts where aid = {}"
PREPARED = "select bid from pgbench_accounts where aid = {}"
CACHED_KEY = 1
_keys = count(CACHED_KEY + 1)


def new_key() -> int:
    """A key that nobody has asked for."""
    return next(_keys)


@dataclass(frozen=True)
class Address:
    """Where a driver connects to. `prepares`: whether a named statement can be used there."""

    port: int
    password: str
    tls: bool
    bin: Path
    prepares: bool = True


class Driver(ABC):
    """A connection, made by `connect`; one of each kind measures one rig."""

    name: str

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def connect(self) -> None: ...

    @abstractmethod
    def ask(self, key: int) -> None:
        """One query, and what this driver's users must do behind it."""

    @abstractmethod
    def transact(self, key: int) -> None:
        """BEGIN, one query, COMMIT."""

    @abstractmethod
    def execute_prepared(self, key: int) -> None:
        """The same statement each time, prepared at its first use."""

    @abstractmethod
    def close(self) -> None: ...


class Psycopg(Driver):
    """libpq through psycopg 3; statements have parameters and are unnamed."""

    name = "psycopg, autocommit"
    autocommit = True

    def connect(self) -> None:
        self.connection = psycopg.connect(
            host="127.0.0.1", port=self.address.port, user="postgres", password=self.address.password,
            dbname="postgres", sslmode="require" if self.address.tls else "disable", gssencmode="disable",
            autocommit=self.autocommit, prepare_threshold=1_000_000,
        )  # fmt: skip

    def ask(self, key: int) -> None:
        self._execute(QUESTION, key)

    def transact(self, key: int) -> None:
        with self.connection.transaction():
            self.connection.execute(QUESTION.format("%s").encode(), (key,)).fetchall()

    def execute_prepared(self, key: int) -> None:
        self._execute(PREPARED, key, prepare=True)

    def _execute(self, text: str, key: int, *, prepare: bool | None = None) -> None:
        self.connection.execute(text.format("%s").encode(), (key,), prepare=prepare).fetchall()

    def close(self) -> None:
        self.connection.close()


class PsycopgDefault(Psycopg):
    """As psycopg does without being told: each query begins a transaction, which must be committed."""

    name = "psycopg, default"
    autocommit = False

    def _execute(self, text: str, key: int, *, prepare: bool | None = None) -> None:
        super()._execute(text, key, prepare=prepare)
        self.connection.commit()


class Asyncpg(Driver):
    """asyncpg; every statement is prepared, and a text's second use needs no more than its execution."""

    name = "asyncpg"

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._loop = asyncio.new_event_loop()
        self._prepared: Any = None

    def connect(self) -> None:
        self.connection = self._loop.run_until_complete(
            asyncpg.connect(
                host="127.0.0.1", port=self.address.port, user="postgres", password=self.address.password,
                database="postgres", ssl="require" if self.address.tls else "disable",
                statement_cache_size=100 if self.address.prepares else 0,
            )
        )  # fmt: skip
        self._prepared = None

    def ask(self, key: int) -> None:
        self._loop.run_until_complete(self.connection.fetch(QUESTION.format("$1"), key))

    def transact(self, key: int) -> None:
        async def work() -> None:
            async with self.connection.transaction():
                await self.connection.fetch(QUESTION.format("$1"), key)

        self._loop.run_until_complete(work())

    def execute_prepared(self, key: int) -> None:
        async def work() -> None:
            if self._prepared is None:
                self._prepared = await self.connection.prepare(PREPARED.format("$1"))
            await self._prepared.fetch(key)

        self._loop.run_until_complete(work())

    def close(self) -> None:
        self._loop.run_until_complete(self.connection.close())


class Psql(Driver):
    """A psql that reads from a pipe; to connect is to start it. Prepared statements are SQL's PREPARE and EXECUTE."""

    name = "psql"

    def connect(self) -> None:
        self._prepared = False
        mode = "require" if self.address.tls else "disable"
        where = ["-h", "127.0.0.1", "-p", str(self.address.port), "-U", "postgres", "postgres"]
        self._process = subprocess.Popen(
            [str(self.address.bin / "psql"), "-qAtX", *where],
            env={**os.environ, "PGPASSWORD": self.address.password, "PGSSLMODE": mode, "PGGSSENCMODE": "disable"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, key: int) -> None:
        self._say(QUESTION.format(key))

    def transact(self, key: int) -> None:
        self._say("begin", QUESTION.format(key), "commit")

    def execute_prepared(self, key: int) -> None:
        first = [] if self._prepared else ["prepare p (int) as " + PREPARED.format("$1")]
        self._prepared = True
        self._say(*first, f"execute p ({key})")

    def _say(self, *statements: str) -> None:
        """Have it carry them out one after another.

        Raises:
          EOFError: it ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("".join(f"{text};\n" for text in statements) + "\\echo done\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline()) != "done\n":
            if not line:
                raise EOFError("psql ended")

    def close(self) -> None:
        self._process.communicate(timeout=20)


DRIVERS: tuple[type[Driver], ...] = (Psycopg, PsycopgDefault, Asyncpg, Psql)
