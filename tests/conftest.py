"""Fixtures that reach real servers, for the tests of every folder: PostgreSQL, and pgnear processes in front of it.

A PostgreSQL lives for the whole session. A pgnear lives for one test (`pgnear`), because most tests are about its
settings; tests that only use it share one per file (a fixture of their own over `support.process.running`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from pooler.embedded import installed
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.waiting import deadline

Start = Callable[..., Pgnear]

TEST_SECONDS = 120.0
"""No test takes longer, whatever it waits for."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with deadline(TEST_SECONDS):
        yield


def _server(version: int) -> Iterator[Server]:
    with Server(installation=installed(version), settings={"max_connections": "200"}) as server:
        yield server


@pytest.fixture(scope="session")
def origin() -> Iterator[Server]:
    """PostgreSQL 18."""
    yield from _server(18)


@pytest.fixture(scope="session")
def origin_16() -> Iterator[Server]:
    """PostgreSQL 16."""
    yield from _server(16)


@pytest.fixture
def direct(origin: Server) -> Iterator[psycopg.Connection]:
    """A connection of the superuser past pgnear."""
    with origin.connect() as connection:
        yield connection


@pytest.fixture
def pgnear(origin: Server) -> Iterator[Start]:
    """Start pgnear: `pgnear(pool_size=1, cache={"ttl": "1s"})`; `url` for another origin. Stopped and checked."""
    with ExitStack() as stack:

        def start(*flags: str, url: str | None = None, **settings: Any) -> Pgnear:
            return stack.enter_context(running(url or origin.url(), *flags, **settings))

        yield start


@pytest.fixture
def near(pgnear: Start) -> Pgnear:
    """A pgnear with every default."""
    return pgnear()


_tables = iter(range(1, 1 << 30))


@pytest.fixture
def table(direct: psycopg.Connection) -> Iterator[str]:
    """A new table (id int primary key, v int) with rows (1, 10), (2, 20), (3, 30), there before pgnear starts."""
    name = f"t{next(_tables)}"
    direct.execute(f"create table {name} (id int primary key, v int)".encode())
    direct.execute(f"insert into {name} values (1, 10), (2, 20), (3, 30)".encode())
    yield name
    direct.execute("set lock_timeout = '5s'")
    direct.execute(f"drop table {name} cascade".encode())
