"""An origin that logs pgnear in and then lies: it may give any answer, but it stops nobody, and the truth is enough to
go on."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from pooler.embedded import installed
from tests.support.liar import Liar
from tests.support.postgres import Server
from tests.support.process import running
from tests.support.standby import Standby
from tests.support.waiting import until

LIES, LIES_OF_THE_REPLICA = 300, 6
MEMORY_BYTES = 64 << 20


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    with Server(installation=installed(18), settings={"wal_level": "logical"}) as server:
        server.execute("create table shelf (id int primary key, v int)")
        server.execute("insert into shelf select i, 0 from generate_series(1, 100) i")
        yield server


@pytest.fixture(scope="module")
def standby(primary: Server) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


STATEMENTS = (
    "select v from shelf where id = {n}",
    "update shelf set v = v + 1 where id = {n}",
    "set application_name = 'a{n}'",
    "create temporary table if not exists t{n} (a int)",
    "listen channel",
    "select set_config('app.x', '{n}', false)",
    "discard all",
    "copy (select generate_series(1, 500)) to stdout",
    "do $$ begin end $$",
)


def _one_client(port: int, stop: threading.Event, seed: int, password: str) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        try:
            with psycopg.connect(
                host="127.0.0.1", port=port, user="postgres", password=password, dbname="postgres", autocommit=True,
                connect_timeout=5, sslmode="disable",
            ) as client:  # fmt: skip
                for _ in range(20):
                    text = chance.choice(STATEMENTS).format(n=chance.randrange(1, 100))
                    if text.startswith("copy"):
                        with client.cursor() as cursor, cursor.copy(text) as copy:
                            copy.read()
                    else:
                        client.execute(text)
        except Exception:
            stop.wait(0.01)  # what it hears may be nonsense


@pytest.mark.slow
def test_an_origin_that_lies_behind_its_login_stops_nobody(primary: Server, standby: Standby, tmp_path: Path) -> None:
    """One frame in fifty of the primary's, and a third of the replica's, also of what pgnear asks on its own: the
    catalog, positions, the stream. The process goes on in its memory, and is right again when the origin is. (A replica
    whose position was no number ended the process.)"""
    with Liar(primary.port, 1) as first, Liar(standby.port, 2) as second:
        path = tmp_path / "pgnear.toml"
        path.write_text(
            f'[[replica]]\nurl = "postgresql://postgres@127.0.0.1:{second.port}/postgres?sslmode=disable"\n'
            'max_lag = "60s"\n'
            '[cache]\ninvalidation = "stream"\nnotify_channel = "pgnear"\n'
        )
        url = f"postgresql://postgres:{quote(primary.password)}@127.0.0.1:{first.port}/postgres?sslmode=disable"
        with running(
            url, "--config", str(path), origin_connect_timeout="1s", query_timeout="500ms", pool_wait_timeout="1s"
        ) as near:
            until(lambda: near.metric("replica_usable") == 1)
            memory = near.peak_memory()
            stop = threading.Event()
            clients = [
                threading.Thread(target=_one_client, args=(near.port, stop, seed, primary.password), daemon=True)
                for seed in range(6)
            ]
            for each in clients:
                each.start()
            first.share, second.share = 0.02, 0.3

            def enough() -> bool:
                return first.told >= LIES and second.told >= LIES_OF_THE_REPLICA

            until(lambda: near.process.poll() is not None or enough(), within=90)
            assert near.process.poll() is None, near.log_lines[-20:]
            first.share = second.share = 0.0
            stop.set()
            for each in clients:
                each.join(20)

            def right_again() -> bool:
                try:
                    with near.connect() as client:
                        return bool(client.execute("select sum(id) from shelf").fetchone() == (5050,))
                except psycopg.Error:
                    return False

            until(right_again)
            until(lambda: near.metric("replica_usable") == 1)
            assert near.peak_memory() - memory < MEMORY_BYTES
