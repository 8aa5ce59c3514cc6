"""Reads that a replica answers, and that nobody can tell from the primary's answers, however far behind it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.standby import Standby
from tests.support.waiting import until


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    with Server(installation=installed(18)) as server:
        server.execute("create table shelf (id int primary key, v int)")
        server.execute("create table other (v int)")
        server.execute("insert into shelf select i, 0 from generate_series(1, 1000) i")
        yield server


@pytest.fixture(scope="module")
def standby(primary: Server) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


@pytest.fixture
def near(pgnear: Start, primary: Server, standby: Standby, tmp_path: Path) -> Pgnear:
    """With the standby for a replica, which has the primary's password."""
    path = tmp_path / "pgnear.toml"
    path.write_text(
        f'[[replica]]\nurl = "postgresql://postgres@127.0.0.1:{standby.port}/postgres"\nmax_lag = "60s"\n'
        '[cache]\ninvalidation = "writes"\n'
    )
    near = pgnear("--config", str(path), url=primary.url())
    near.wait_until_it_caches()
    until(lambda: near.metric("replica_usable") == 1)
    return near


def reads(near: Pgnear) -> float:
    return near.metric("replica_reads_total")


@contextmanager
def behind(standby: Standby) -> Iterator[None]:
    """The standby receives the log and does not replay it."""
    standby.execute("select pg_wal_replay_pause()")
    until(lambda: standby.execute("select pg_get_wal_replay_pause_state()") == [("paused",)])
    try:
        yield
    finally:
        standby.execute("select pg_wal_replay_resume()")


def test_reads_that_may_be_cached_go_to_the_replica_and_are_cached(near: Pgnear, standby: Standby) -> None:
    with near.connect(prepare_threshold=None) as client:
        number = iter(range(1, 1000))

        def taken() -> bool:
            before = reads(near)
            client.execute("select v from shelf where id = %s", (next(number),))
            return reads(near) > before

        until(taken)  # the first finds no connection there
        last = next(number) - 1
        before, hits = reads(near), near.metric("cache_hits_total")
        assert client.execute("select v from shelf where id = %s", (last,)).fetchone() == (0,)
        assert near.metric("cache_hits_total") == hits + 1
        assert reads(near) == before
        assert client.info.parameter_status("in_hot_standby") == "off"
        for text in (
            "select pg_is_in_recovery()", "select v from shelf where id = 1 for update", "select now()",
            "insert into other values (1)",
        ):  # fmt: skip
            client.execute(text)
        with client.transaction():
            client.execute("select v from shelf where id = 999")
        assert reads(near) == before
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        (row,) = console.execute("show replicas").fetchall()
        assert row[1:3] == (f"127.0.0.1:{standby.port}", "yes")
        assert row[6] >= 1


@pytest.mark.parametrize("by", ["the same client", "another client"])
def test_what_was_written_through_pgnear_is_read_however_far_behind_the_replica_is(
    near: Pgnear, primary: Server, standby: Standby, by: str
) -> None:
    with near.connect(prepare_threshold=None) as reader, near.connect() as another:
        writer = reader if by == "the same client" else another
        with behind(standby):
            for written in range(1, 30):
                writer.execute("update shelf set v = %s where id = 5", (written,))
                assert reader.execute("select v from shelf where id = 5").fetchone() == (written,)
            writer.execute("insert into shelf values (-1, 7)")
            assert reader.execute("select v from shelf where id = -1").fetchone() == (7,)
            assert standby.execute("select count(*) from shelf where v > 0") == [(0,)]
            number = iter(range(1000))

            def other_taken() -> bool:
                before = reads(near)
                reader.execute("select count(*) from other where v < %s", (-next(number),))
                return reads(near) > before

            until(other_taken, what="what nobody has written meanwhile is still read there")
        until(lambda: standby.execute("select v from shelf where id = 5") == [(29,)])
        writer.execute("delete from shelf where id = -1")
        writer.execute("update shelf set v = 0")
        assert reader.execute("select v from shelf where id = 5").fetchone() == (0,)
        place = iter(range(100, 900))

        def taken() -> bool:
            before = reads(near)
            assert reader.execute("select v from shelf where id = %s", (next(place),)).fetchone() == (0,)
            return reads(near) > before

        until(taken, what="once it has caught up it is asked again")


def test_the_console_shows_the_pools_of_replicas_too(near: Pgnear) -> None:
    """SHOW POOLS failed: a replica's pool has no credentials of its own to tell of."""
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        shown = [row[0] for row in console.execute("show pools")]
    assert shown[0] == "postgres"
    assert shown[1].startswith("postgres at ")


def test_a_replica_that_is_too_far_behind_is_named_with_the_reason(
    pgnear: Start, primary: Server, standby: Standby, tmp_path: Path
) -> None:
    """`usable: no` alone sent operators to the source."""
    path = tmp_path / "pgnear.toml"
    path.write_text(
        f'[[replica]]\nurl = "postgresql://postgres@127.0.0.1:{standby.port}/postgres"\nmax_lag = "1500ms"\n'
    )
    near = pgnear("--config", str(path), url=primary.url())
    until(lambda: near.metric("replica_usable") == 1)
    with behind(standby):
        primary.execute("insert into other values (1)")
        until(lambda: any("s behind, and max_lag is 1.5 s" in str(line.get("problem")) for line in near.log_lines))
        with near.connect(dsn={"dbname": "pgnear"}) as console:
            cursor = console.execute("show replicas")
            row = dict(zip([column.name for column in cursor.description], cursor.fetchone(), strict=True))
        assert row["usable"] == "no"
        assert "max_lag is 1.5 s" in row["problem"]
    until(lambda: near.metric("replica_usable") == 1)


def test_a_replica_that_is_lost_or_promoted_is_not_asked(near: Pgnear, standby: Standby) -> None:
    standby.crash()
    until(lambda: near.metric("replica_usable") == 0)
    with near.connect() as client:
        assert client.execute("select v from shelf where id = 901").fetchone() == (0,)
    standby.restart()
    until(lambda: near.metric("replica_usable") == 1)
    standby.promote()  # the last test of this file that needs it
    near.wait_for_log("replica", usable=False, problem="it is no standby")
    with near.connect() as client:
        before = reads(near)
        assert client.execute("select v from shelf where id = 902").fetchone() == (0,)
        assert reads(near) == before
