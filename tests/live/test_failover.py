"""Several hosts: which one a query reaches, and what becomes of clients when a primary is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pooler.embedded import installed
from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear
from tests.support.proxy import Proxy
from tests.support.standby import Standby, follow
from tests.support.waiting import Background, until


@pytest.fixture
def primary() -> Iterator[Server]:
    with Server(installation=installed(18)) as server:
        server.execute("create table ledger (a int)")
        yield server


@pytest.fixture
def standby(primary: Server) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


def url(*servers: Server | Proxy, **query: str) -> str:
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    more = "&".join(f"{name}={value}" for name, value in query.items())
    return f"postgresql://postgres:{PASSWORD.replace(' ', '%20')}@{hosts}/postgres?{more}"


def where(near: Pgnear) -> int:
    """The port of the server that answers a query now; 0 where there is none."""
    try:
        with near.connect() as connection:
            (port,) = connection.execute("select current_setting('port')::int").fetchone()
            return int(port)
    except psycopg.OperationalError:
        return 0


OFF = {"enabled": False}
QUICK = {"failures": 2, "retry_after": "200ms", "retry_at_most": "500ms"}


def test_each_of_target_session_attrs_reaches_the_server_that_it_names(
    pgnear: Start, primary: Server, standby: Standby
) -> None:
    for attrs, port in {"primary": primary.port, "prefer-standby": standby.port}.items():
        near = pgnear(url=url(standby, primary, target_session_attrs=attrs), min_pool_size=0, cache=OFF)
        assert where(near) == port, attrs
    near = pgnear(url=url(primary, target_session_attrs="standby"), min_pool_size=0, cache=OFF)
    with pytest.raises(psycopg.OperationalError, match="not what target_session_attrs=standby asks for"):
        near.connect()
    near = pgnear(url=url(primary, target_session_attrs="prefer-standby"), min_pool_size=0, cache=OFF)
    assert where(near) == primary.port


def test_a_lost_primary_is_followed_by_the_promoted_standby(pgnear: Start, primary: Server, standby: Standby) -> None:
    """Clients stay connected; a query that was not sent when the primary went goes to the new one."""
    near = pgnear(url=url(primary, standby, target_session_attrs="read-write"), cache=OFF, breaker=QUICK)
    with near.connect() as client:
        client.execute("set timezone to 'Asia/Tokyo'")
        client.execute("insert into ledger values (1)")
        until(lambda: standby.execute("select a from ledger") == [(1,)])
        primary.crash()
        with pytest.raises(psycopg.OperationalError) as refused:
            client.execute("insert into ledger values (2)")
        assert refused.value.sqlstate in ("08001", "57P03")
        standby.promote()

        def written() -> bool:
            try:
                client.execute("insert into ledger values (3)")
                return True
            except psycopg.errors.CannotConnectNow:
                return False
            except psycopg.errors.SqlclientUnableToEstablishSqlconnection:
                return False

        until(written, what="the promoted server is not found")
        assert client.execute("show timezone").fetchone() == ("Asia/Tokyo",)
    assert standby.execute("select a from ledger order by a") == [(1,), (3,)]
    assert where(near) == standby.port


def test_when_the_first_host_is_down_the_next_one_serves_and_nothing_fails(pgnear: Start, primary: Server) -> None:
    with Proxy(primary.port) as proxy:
        near = pgnear(url=url(proxy, primary), cache=OFF, pool_size=1)
        with near.connect() as client:
            client.execute("select 1")
            assert _host(near) == f"127.0.0.1:{proxy.port}"
            proxy.refuse()
            proxy.cut()
            client.execute("select 2")
            assert _host(near) == f"127.0.0.1:{primary.port}"
        assert near.metric("origin_connect_failures_total") == 0
        near.wait_for_log("origin_host_passed_over", host=f"127.0.0.1:{proxy.port}")


def _origins(near: Pgnear) -> list[Any]:
    with near.connect(dsn={"dbname": "pgnear"}) as console:
        return list(console.execute("show origins").fetchall())


def _host(near: Pgnear) -> str:
    return str(_origins(near)[0][-1])


def test_a_server_that_becomes_read_only_is_left(pgnear: Start, primary: Server) -> None:
    """Its connections drain, those at work when they are done; until it can be written to there is no other."""
    near = pgnear(url=url(primary, target_session_attrs="read-write"), cache=OFF, breaker=QUICK)
    with near.connect() as busy, near.connect() as client:
        client.execute("set default_transaction_read_only = on")  # a client's own wish is none of the server's
        client.execute("set default_transaction_read_only = off")
        client.execute("reset default_transaction_read_only")
        assert near.metric("origin_role_changes_total") == 0
        busy.execute("begin")
        busy.execute("insert into ledger values (1)")
        primary.execute("alter system set default_transaction_read_only = on")
        primary.execute("select pg_reload_conf()")

        def refused() -> bool:
            try:
                client.execute("select 1")
                return False
            except psycopg.OperationalError as error:
                return "target_session_attrs=read-write" in str(error)

        until(refused)
        assert near.metric("origin_role_changes_total") >= 1
        busy.execute("commit")
        with primary.connect() as direct:
            direct.execute("set default_transaction_read_only = off")
            direct.execute("alter system reset default_transaction_read_only")
            direct.execute("select pg_reload_conf()")
        until(lambda: where(near) == primary.port)
    assert primary.execute("select a from ledger") == [(1,)]


def test_a_promoted_server_is_left_by_those_who_want_a_standby(
    pgnear: Start, primary: Server, standby: Standby
) -> None:
    near = pgnear(url=url(standby, primary, target_session_attrs="standby"), cache=OFF, breaker=QUICK, min_pool_size=1)
    assert where(near) == standby.port
    standby.promote()
    until(lambda: where(near) == 0)  # the report comes with the next answer
    near.wait_for_log("origin_role_changed", host=f"127.0.0.1:{standby.port}")


def test_a_server_that_becomes_read_only_is_left_by_connections_that_nobody_uses(
    pgnear: Start, primary: Server, standby: Standby
) -> None:
    """A server tells of it with an answer only: a client's first statement used to be that, and failed with 25006."""
    near = pgnear(url=url(primary, standby, target_session_attrs="read-write"), cache=OFF, breaker=QUICK)
    with near.connect() as client:
        client.execute("insert into ledger values (1)")
        until(lambda: standby.execute("select a from ledger") == [(1,)])
        primary.execute("alter system set default_transaction_read_only = on")
        primary.execute("select pg_reload_conf()")
        near.wait_for_log("origin_role_changed", host=f"127.0.0.1:{primary.port}")
        standby.promote()
        until(lambda: where(near) == standby.port)
        client.execute("insert into ledger values (2)")
    assert standby.execute("select a from ledger order by a") == [(1,), (2,)]
    assert primary.execute("select a from ledger") == [(1,)]


def test_a_primary_that_comes_back_as_a_standby_is_not_written_to(
    pgnear: Start, primary: Server, standby: Standby
) -> None:
    near = pgnear(url=url(primary, standby, target_session_attrs="primary"), cache=OFF, breaker=QUICK)
    with near.connect() as client:
        client.execute("insert into ledger values (1)")
        assert primary.process is not None
        primary.process.send_signal(signal.SIGINT)
        primary.process.wait(30)
        standby.promote()
        follow(primary, standby)
        until(lambda: where(near) == standby.port)
        client.execute("insert into ledger values (2)")
        until(lambda: primary.execute("select a from ledger order by a") == [(1,), (2,)])
        assert client.execute("select current_setting('port')::int").fetchone() == (standby.port,)


def test_with_prefer_standby_connections_go_back_to_a_standby_that_is_back(
    pgnear: Start, primary: Server, standby: Standby
) -> None:
    near = pgnear(url=url(primary, standby, target_session_attrs="prefer-standby"), cache=OFF, breaker=QUICK)
    assert where(near) == standby.port
    standby.crash()
    until(lambda: where(near) == primary.port)
    with near.connect() as busy:
        busy.execute("begin")
        busy.execute("insert into ledger values (1)")
        standby.restart()
        until(lambda: where(near) == standby.port)
        near.wait_for_log("standby_is_back", host=f"127.0.0.1:{standby.port}")
        busy.execute("insert into ledger values (2)")  # what is at work finishes where it is
        busy.execute("commit")
    assert primary.execute("select count(*) from ledger") == [(2,)]
    until(lambda: {row[-1] for row in _origins(near)} == {f"127.0.0.1:{standby.port}"})


def test_a_connection_that_is_asked_for_its_role_grows_no_younger(pgnear: Start, primary: Server) -> None:
    """And one that does not answer is closed."""
    with Proxy(primary.port) as proxy:
        near = pgnear(
            url=url(proxy, target_session_attrs="read-write"), cache=OFF, min_pool_size=0, origin_idle_timeout="3s"
        )
        assert where(near)
        passed = proxy.passed_from_origin
        until(lambda: proxy.passed_from_origin > passed, what="it is not asked")
        until(lambda: near.metric("pool_idle") == 0, within=10)
        assert where(near)
        proxy.vanish()
        near.wait_for_log("origin_connection_lost", reason="no answer within 5 s", within=20)


def test_a_cancel_goes_to_the_host_that_does_the_work(pgnear: Start, primary: Server, standby: Standby) -> None:
    near = pgnear(url=url(standby, primary, target_session_attrs="primary"), cache=OFF)
    with near.connect() as connection:
        work = Background(lambda: connection.execute("select pg_sleep(60) /* failover */"))
        active = "select count(*) from pg_stat_activity where query like '%/* failover */' and state = 'active'"
        until(lambda: primary.execute(active + " and pid <> pg_backend_pid()")[0][0])
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            work.result()
