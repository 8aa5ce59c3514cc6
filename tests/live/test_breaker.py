"""An origin that is stopped and started: who is told what meanwhile, and what is answered all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.cached import keep
from tests.support.postgres import Server
from tests.support.process import Pgnear
from tests.support.waiting import until
from tests.support.wire import WireClient, error_fields


@pytest.fixture(scope="module")
def fragile() -> Iterator[Server]:
    """A PostgreSQL of this file's own, to be stopped."""
    with Server(installation=installed(18)) as server:
        server.execute("create table shelf (a int)")
        server.execute("insert into shelf values (1)")
        yield server


@pytest.fixture
def stopped(fragile: Server) -> Iterator[Server]:
    """The test stops it; it runs again afterwards."""
    yield fragile
    if fragile.process is None or fragile.process.poll() is not None:
        fragile.restart()


def breakers(near: Pgnear) -> dict[str, object]:
    """The row of SHOW BREAKERS."""
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        cursor = console.execute("show breakers")
        (row,) = cursor.fetchall()
        return dict(zip([column.name for column in cursor.description], row, strict=True))


def test_while_the_origin_is_down_queries_fail_at_once_and_its_return_is_found(pgnear: Start, stopped: Server) -> None:
    near = pgnear(
        url=stopped.url(), cache={"enabled": False}, breaker={"failures": 3, "retry_after": "500ms", "retry_at_most": 1}
    )
    with WireClient.logged_in(near.port) as client:
        assert client.one("select 'before'") == b"before"
        stopped.crash()
        near.wait_for_log("origin_breaker_open")
        until(lambda: near.metric("breaker_state") == 2)
        started = time.monotonic()
        answers = [client.query("select 1") for _ in range(20)]
        assert time.monotonic() - started < 2
        fields = error_fields(answers[0][0][1])
        assert (fields["S"], fields["C"]) == ("ERROR", "57P03")
        assert "Connection refused; " in fields["M"]
        assert all(frames[-1] == ("Z", b"I") for frames in answers)  # the session goes on
        shown = breakers(near)
        assert shown["state"] in ("open", "half-open")
        assert shown["opened"] == 1
        assert near.get("/readyz")[0] == 503
        assert near.metric("breaker_refusals_total") >= 1
        stopped.restart()
        near.wait_for_log("origin_breaker_closed")
        assert client.one("select 'after'") == b"after"
        assert breakers(near)["state"] == "closed"
        assert near.get("/readyz")[0] == 200


def test_a_server_that_is_down_for_long_is_found_as_soon_as_it_is_back(pgnear: Start, stopped: Server) -> None:
    """Nobody listens: asking costs nothing, so it is asked as often as in the beginning, and that is said once."""
    near = pgnear(
        url=stopped.url(),
        cache={"enabled": False},
        breaker={"failures": 2, "retry_after": "300ms", "retry_at_most": 60},
    )
    near.connect().close()
    stopped.crash()
    until(lambda: breakers(near)["failures_in_a_row"] >= 10)
    opened = [line for line in near.log_lines if line.get("event") == "origin_breaker_open"]
    assert len(opened) <= 3  # by reason: reset, refused
    stopped.restart()
    near.wait_for_log("origin_breaker_closed", within=10)


@pytest.mark.parametrize("allowed", [True, False])
def test_an_old_answer_is_served_while_the_origin_is_down_where_that_is_allowed(
    pgnear: Start, stopped: Server, allowed: bool
) -> None:
    near = pgnear(
        url=stopped.url(),
        breaker={"failures": 2},
        cache={
            "ttl": "100ms", "stale_while_revalidate": 0, "stale_if_error": 600 if allowed else 0,
            "invalidation": "writes",
        },
    )  # fmt: skip
    text = "select a from shelf"
    with near.connect(prepare_threshold=None) as reader, near.connect() as other:
        keep(near, reader, text)
        until(lambda: other.execute("select count(*) from shelf").fetchone())
        stopped.crash()
        near.wait_for_log("origin_breaker_open")
        time_is_over = time.monotonic() + 0.1
        until(lambda: time.monotonic() > time_is_over)
        if allowed:
            assert reader.execute(text).fetchone() == (1,)
            assert near.metric("stale_if_error_answers_total") == 1
            with pytest.raises(psycopg.errors.CannotConnectNow):  # what is not known cannot be answered
                other.execute("select a + 1 from shelf")
        else:
            with pytest.raises(psycopg.errors.CannotConnectNow):
                reader.execute(text)
        stopped.restart()
        near.wait_for_log("origin_breaker_closed")
        assert reader.execute(text).fetchone() == (1,)


def test_a_write_ends_an_old_answer_even_so(pgnear: Start, stopped: Server) -> None:
    near = pgnear(url=stopped.url(), breaker={"failures": 2}, cache={"stale_if_error": 600, "invalidation": "writes"})
    with near.connect() as client:
        keep(near, client, "select a from shelf")
        client.execute("update shelf set a = a")
        stopped.crash()
        near.wait_for_log("origin_breaker_open")
        with pytest.raises(psycopg.errors.CannotConnectNow):
            client.execute("select a from shelf")


def test_a_database_that_is_made_only_now_can_be_used_at_once(origin: Server, pgnear: Start) -> None:
    """The origin that says so is well: nobody is turned away later because of what was missing before."""
    near = pgnear(
        databases={"later": {"origin": origin.url("later")}},
        breaker={"failures": 2, "retry_after": 60, "retry_at_most": 60},
    )
    for _ in range(5):
        with pytest.raises(psycopg.OperationalError, match='database "later" does not exist'):
            near.connect(dsn={"dbname": "later"})
    origin.execute("create database later")
    with near.connect(dsn={"dbname": "later"}) as client:
        assert client.execute("select current_database()").fetchone() == ("later",)
