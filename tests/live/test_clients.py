"""Every client works as on a private connection: psycopg, asyncpg, pg8000, psql and pgbench, on PostgreSQL 16 and 18.

With PGNEAR_TEST_DIRECT=1 the same tests run against PostgreSQL itself, which shows that they ask for nothing that it
does not give.
"""

from __future__ import annotations

import asyncio
import datetime
import decimal
import os
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
import pg8000.native
import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Start
from tests.support.postgres import PASSWORD, Server
from tests.support.process import Pgnear, running
from tests.support.waiting import together, until
from tests.support.wire import WireClient, frame, query


class Place:
    """Where clients connect: pgnear, or the origin itself with PGNEAR_TEST_DIRECT."""

    def __init__(self, origin: Server, near: Pgnear | None) -> None:
        self.origin = origin
        self.near = near
        self.port = near.port if near is not None else origin.port

    @property
    def keywords(self) -> dict[str, Any]:
        return {
            "host": "127.0.0.1", "port": self.port, "user": "postgres", "password": PASSWORD, "database": "postgres",
        }  # fmt: skip

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        options = {"autocommit": True, "connect_timeout": 10, **more}
        keywords = self.keywords
        return psycopg.connect(dbname=keywords.pop("database"), **keywords, **options)

    def tool(
        self, name: str, *arguments: str, text: str | None = None, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """psql or pgbench of the origin's version."""
        done = subprocess.run(
            [str(self.origin.bin / name), *arguments],
            env={
                "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD,
                "PGDATABASE": "postgres", "PATH": "/usr/bin:/bin", "PSQLRC": "/dev/null",
            },
            input=text,
            capture_output=True,
            text=True,
            timeout=100,
        )  # fmt: skip
        if ok:
            assert done.returncode == 0, done.stderr
        return done

    def psql(self, *arguments: str, text: str | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.tool("psql", "-X", "-v", "ON_ERROR_STOP=1", "-At", *arguments, text=text, ok=ok)


@pytest.fixture(scope="module", params=["18", "16"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    origin: Server = request.getfixturevalue("origin" if request.param == "18" else "origin_16")
    if os.environ.get("PGNEAR_TEST_DIRECT"):
        yield Place(origin, None)
        return
    with running(origin.url(), pool_size=4) as near:
        yield Place(origin, near)


@pytest.fixture
def name(place: Place) -> Iterator[str]:
    """The name of a table (id int primary key, word text, at timestamptz default now()), empty, made past pgnear."""
    made = f"words_{uuid.uuid4().hex[:8]}"
    place.origin.execute(f"create table {made} (id int primary key, word text, at timestamptz default now())")
    yield made
    place.origin.execute(f"drop table {made} cascade")


# ---- psycopg ---------------------------------------------------------------------------------------------------------


def test_psycopg_runs_simple_queries(place: Place) -> None:
    with place.connect() as connection:
        cursor = connection.execute("select 1 as a, 'x' as b; select 2")
        assert cursor.fetchall() == [(1, "x")]
        assert [column.name for column in cursor.description or ()] == ["a", "b"]
        assert cursor.nextset()
        assert cursor.fetchall() == [(2,)]
        assert connection.execute("").statusmessage is None
        assert connection.execute(b"/* nothing */ ;").statusmessage is None


@pytest.mark.parametrize("binary", [False, True])
def test_psycopg_carries_values_of_every_kind(place: Place, binary: bool) -> None:
    values: list[Any] = [
        1, -(2**40), "text with ' and \\ and \u20ac", b"\0\1\xff" * 9, None, True, decimal.Decimal("12345.678900"),
        1.5, ["a", 'b"c', None], datetime.date(2024, 2, 29), uuid.UUID(int=7), Jsonb({"a": [1, None]}),
        datetime.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=datetime.UTC), datetime.timedelta(days=3, seconds=4),
    ]  # fmt: skip
    types = {list: "text[]", str: "text"}
    marks = ", ".join(
        f"{'%b' if binary else '%t'}" + (f"::{types[type(value)]}" if type(value) in types else "") for value in values
    )
    with place.connect() as connection:
        cursor = connection.cursor(binary=binary)
        row = cursor.execute(f"select {marks}".encode(), values).fetchone()
        assert row is not None
        assert list(row) == [value.obj if isinstance(value, Jsonb) else value for value in values]


def test_psycopg_prepares_statements(place: Place) -> None:
    with place.connect(prepare_threshold=1) as connection:
        for number in range(10):
            assert connection.execute("select %s::int + 1", (number,), prepare=True).fetchone() == (number + 1,)
            assert connection.execute("select %s::text || '!'", (str(number),)).fetchone() == (f"{number}!",)
        connection.prepared_max = 1  # statements are deallocated from here on
        for number in range(10):
            assert connection.execute(f"select {number}, %s::int".encode(), (1,)).fetchone() == (number, 1)


def test_psycopg_pipelines(place: Place, name: str) -> None:
    with place.connect() as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("select %s::int", (number,)) for number in range(200)]
            pipeline.sync()
            connection.execute(f"insert into {name} (id) values (1)".encode())
        assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(200)]
        assert connection.execute(f"select id from {name}".encode()).fetchall() == [(1,)]


def test_an_error_in_a_pipeline_aborts_the_rest_up_to_the_sync(place: Place) -> None:
    with place.connect() as connection, connection.pipeline() as pipeline:
        assert connection.execute("select 1").fetchone() == (1,)
        failing = connection.execute("select 1 / %s", (0,))
        following = connection.execute("select 3")
        with pytest.raises(psycopg.errors.DivisionByZero):
            failing.fetchone()
        with pytest.raises((psycopg.errors.PipelineAborted, psycopg.ProgrammingError)):  # as psycopg's version has it
            following.fetchone()
        pipeline.sync()
        assert connection.execute("select 4").fetchone() == (4,)


def test_executemany_and_returning(place: Place, name: str) -> None:
    with place.connect() as connection:
        cursor = connection.cursor()
        cursor.executemany(
            f"insert into {name} (id, word) values (%s, %s) returning id".encode(),
            [(number, str(number)) for number in range(100)],
            returning=True,
        )
        returned = [cursor.fetchone()]
        while cursor.nextset():
            returned.append(cursor.fetchone())
        assert returned == [(number,) for number in range(100)]


@pytest.mark.parametrize("binary", [False, True])
def test_copy_in_and_out(place: Place, name: str, binary: bool) -> None:
    form = "(format binary)" if binary else ""
    with place.connect() as connection:
        with connection.cursor().copy(f"copy {name} (id, word) from stdin {form}".encode()) as copy:
            copy.set_types(["int4", "text"])
            for number in range(5000):
                copy.write_row((number, "w" * (number % 50)))
        with connection.cursor().copy(
            f"copy (select id, word from {name} order by id) to stdout {form}".encode()
        ) as out:
            out.set_types(["int4", "text"])
            rows = list(out.rows())
        assert rows == [(number, "w" * (number % 50)) for number in range(5000)]
        assert connection.execute(f"select count(*) from {name}".encode()).fetchone() == (5000,)


def test_a_copy_that_fails_leaves_the_connection_usable(place: Place, name: str) -> None:
    def copy_in(connection: psycopg.Connection[Any], parts: Iterator[bytes]) -> None:
        with connection.cursor().copy(f"copy {name} (id) from stdin".encode()) as copy:
            for part in parts:
                copy.write(part)

    def given_up() -> Iterator[bytes]:
        yield b"1\n"
        raise ZeroDivisionError

    with place.connect() as connection:
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            copy_in(connection, iter([b"not a number\n" * 10] * 3000))
        assert connection.execute("select 1").fetchone() == (1,)
        with pytest.raises(ZeroDivisionError):
            copy_in(connection, given_up())
        assert connection.execute(f"select count(*) from {name}".encode()).fetchone() == (0,)


def test_a_client_that_is_ahead_of_a_copy_that_fails_is_read_to_the_end(place: Place, name: str) -> None:
    """Its connection was given back while its input was paused for that connection's sake, and nobody resumed it."""
    empty = frame("d") * 2_000_000  # no frame is ever half sent, which would keep the connection
    with WireClient.logged_in(place.port) as client, ThreadPoolExecutor(1) as threads:
        client.send(query(f"copy {name} (id) from stdin"))
        client.receive_until("G")
        [[backend]] = place.origin.execute("select pid from pg_stat_progress_copy where relid = %s::regclass", name)
        os.kill(backend, signal.SIGSTOP)
        sending = threads.submit(client.send, frame("d", b"no number\n") + empty + frame("c"))
        until(lambda: not select.select([], [client.socket], [], 0.5)[1])  # everybody on the way is full
        os.kill(backend, signal.SIGCONT)
        assert ("Z", b"I") in client.receive_until()
        sending.result()
        assert client.one("select 1") == b"1"


def test_errors_arrive_whole(place: Place, name: str) -> None:
    with place.connect() as connection:
        connection.execute(f"insert into {name} (id) values (1)".encode())
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            connection.execute(f"insert into {name} (id) values (%s)".encode(), (1,))
        diagnosis = caught.value.diag
        assert (diagnosis.severity, diagnosis.sqlstate, diagnosis.table_name) == ("ERROR", "23505", name)
        assert diagnosis.message_detail == "Key (id)=(1) already exists."
        with pytest.raises(psycopg.errors.SyntaxError) as caught:
            connection.execute("select 1 +")
        assert caught.value.diag.statement_position == "11"
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_failed_transaction_stays_failed_until_rollback(place: Place, name: str) -> None:
    with place.connect(autocommit=False) as connection:
        connection.execute(f"insert into {name} (id) values (1)".encode())
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("select nothing")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("select 1")
        connection.rollback()
        assert connection.execute(f"select count(*) from {name}".encode()).fetchone() == (0,)


def test_savepoints_and_nested_transactions(place: Place, name: str) -> None:
    with place.connect() as connection:
        with connection.transaction():
            connection.execute(f"insert into {name} (id) values (1)".encode())
            with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
                connection.execute(f"insert into {name} (id) values (1)".encode())
            connection.execute(f"insert into {name} (id) values (2)".encode())
        assert connection.execute(f"select array_agg(id order by id) from {name}".encode()).fetchone() == ([1, 2],)


def test_notices_arrive(place: Place) -> None:
    heard: list[tuple[str | None, str | None]] = []
    with place.connect() as connection:
        connection.add_notice_handler(lambda notice: heard.append((notice.severity, notice.message_primary)))
        connection.execute("do $$ begin raise notice 'one'; raise warning 'two'; end $$")
        assert heard == [("NOTICE", "one"), ("WARNING", "two")]


def test_server_side_cursors_in_a_transaction(place: Place) -> None:
    with place.connect(autocommit=False) as connection, connection.cursor("walk") as cursor:
        cursor.itersize = 100
        cursor.execute("select generate_series(1, 1000)")
        assert [row[0] for row in cursor] == list(range(1, 1001))
    with place.connect(autocommit=False) as connection, connection.cursor("scroll", scrollable=True) as cursor:
        cursor.execute("select generate_series(1, 10)")
        cursor.scroll(5)
        assert cursor.fetchone() == (6,)
        cursor.scroll(-3)
        assert cursor.fetchone() == (4,)


def test_cursors_with_hold_outlive_their_transaction(place: Place) -> None:
    with place.connect() as connection, connection.cursor("held", withhold=True) as cursor:
        cursor.execute("select generate_series(1, 10)")
        assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
        assert connection.execute("select 1").fetchone() == (1,)
        assert cursor.fetchmany(2) == [(4,), (5,)]


def test_rows_are_streamed_one_by_one(place: Place) -> None:
    with place.connect() as connection:
        rows = connection.cursor().stream("select n, repeat('x', 100) from generate_series(1, %s) n", (20000,))
        assert sum(row[0] for row in rows) == 20000 * 20001 // 2


def test_large_values_go_both_ways(place: Place) -> None:
    value = os.urandom(8 << 20)
    with place.connect() as connection:
        cursor = connection.cursor(binary=True)
        row = cursor.execute("select %b::bytea, length(%b::bytea)", (value, value)).fetchone()
        assert row == (value, len(value))


def test_sql_level_prepare_execute_and_deallocate(place: Place) -> None:
    with place.connect() as connection:
        connection.execute("prepare plan(int) as select $1 * 2")
        assert connection.execute("execute plan(21)").fetchone() == (42,)
        connection.execute("deallocate plan")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            connection.execute("execute plan(21)")


def test_parameter_status_follows_set(place: Place) -> None:
    with place.connect() as connection:
        assert (
            connection.info.parameter_status(
                "server_version",
            )
            is not None
        )
        connection.execute("set timezone to 'Asia/Tokyo'")
        assert connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
        connection.execute("set application_name to 'somebody else'")
        assert connection.info.parameter_status("application_name") == "somebody else"


def test_client_encoding_follows_its_client(place: Place) -> None:
    with place.connect(client_encoding="latin1") as latin, place.connect() as utf:
        for _ in range(3):
            assert latin.execute("select 'caf\u00e9'").fetchone() == ("caf\u00e9",)
            assert utf.execute("select 'caf\u00e9 \u20ac'").fetchone() == ("caf\u00e9 \u20ac",)


def test_psycopg_async(place: Place) -> None:
    async def work() -> list[Any]:
        keywords = place.keywords
        keywords["dbname"] = keywords.pop("database")
        async with await psycopg.AsyncConnection.connect(**keywords, autocommit=True) as connection:
            async with connection.pipeline():
                cursors = [await connection.execute("select %s::int", (number,)) for number in range(10)]
            return [await cursor.fetchone() for cursor in cursors]

    assert asyncio.run(work()) == [(number,) for number in range(10)]


# ---- asyncpg ---------------------------------------------------------------------------------------------------------


def asyncpg_run(place: Place, work: Any) -> Any:
    async def whole() -> Any:
        connection = await asyncpg.connect(**place.keywords, timeout=40, command_timeout=40)
        try:
            return await work(connection)
        finally:
            await connection.close(timeout=40)

    return asyncio.run(whole())


def test_asyncpg_fetches_with_and_without_parameters(place: Place) -> None:
    async def work(connection: Any) -> None:
        assert await connection.fetchval("select 1") == 1
        for number in range(5):
            assert await connection.fetchval("select $1::int + 1", number) == number + 1
        assert await connection.execute("select 1; select 2") == "SELECT 1"
        rows = await connection.fetch("select n, n::text as word from generate_series(1, 1000) n")
        assert (rows[999]["n"], rows[999]["word"]) == (1000, "1000")
        values = await connection.fetchrow(
            "select $1::text[], $2::jsonb, $3::timestamptz, $4::numeric, $5::bytea",
            ["a", None], '{"a": 1}', datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), decimal.Decimal("1.50"), b"\0",
        )  # fmt: skip
        assert values[0] == ["a", None]
        assert values[4] == b"\0"

    asyncpg_run(place, work)


def test_asyncpg_prepares_introspects_and_iterates(place: Place, name: str) -> None:
    async def work(connection: Any) -> None:
        await connection.execute(f"create type mood_{name} as enum ('glad', 'sad')")
        try:
            statement = await connection.prepare(f"select $1::mood_{name}, $2::int[]")
            assert tuple(await statement.fetchrow("glad", [1, 2])) == ("glad", [1, 2])
            assert [attribute.type.kind for attribute in statement.get_attributes()] == ["scalar", "array"]
            async with connection.transaction():
                seen = [row[0] async for row in connection.cursor("select generate_series(1, 300)", prefetch=50)]
            assert seen == list(range(1, 301))
        finally:
            await connection.execute(f"drop type mood_{name}")

    asyncpg_run(place, work)


def test_asyncpg_transactions_errors_and_notices(place: Place, name: str) -> None:
    async def work(connection: Any) -> None:
        heard: list[str] = []
        connection.add_log_listener(lambda _, message: heard.append(message.message))
        await connection.execute("do $$ begin raise notice 'hello'; end $$")
        transaction = connection.transaction()
        await transaction.start()
        await connection.executemany(f"insert into {name} (id) values ($1)", [(1,), (2,)])
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(f"insert into {name} (id) values (1)")
        await transaction.rollback()
        assert await connection.fetchval(f"select count(*) from {name}") == 0
        async with connection.transaction(isolation="serializable", readonly=True):
            assert await connection.fetchval("show transaction_isolation") == "serializable"
            assert await connection.fetchval("show transaction_read_only") == "on"
        assert await connection.fetchval("show transaction_read_only") == "off"
        assert heard == ["hello"]

    asyncpg_run(place, work)


def test_asyncpg_copies_records(place: Place, name: str) -> None:
    async def work(connection: Any) -> None:
        records = [(number, f"word {number}") for number in range(3000)]
        await connection.copy_records_to_table(name, records=records, columns=["id", "word"])
        out: list[bytes] = []

        async def sink(data: bytes) -> None:
            out.append(data)

        await connection.copy_from_query(f"select id from {name} order by id", output=sink)
        assert b"".join(out) == b"".join(b"%d\n" % number for number in range(3000))

    asyncpg_run(place, work)


def test_asyncpg_hears_notifications(place: Place) -> None:
    async def work(connection: Any) -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()
        await connection.add_listener("news", lambda _c, _pid, _channel, payload: heard.put_nowait(payload))
        other = await asyncpg.connect(**place.keywords, timeout=40)
        await other.execute("notify news, 'it rains'")
        assert await asyncio.wait_for(heard.get(), 10) == "it rains"
        await connection.remove_listener("news", lambda *_: None)
        await other.close()

    asyncpg_run(place, work)


def test_an_asyncpg_pool_shares_few_connections(place: Place) -> None:
    """Its pool resets each connection with a long list of statements whenever one comes back."""

    async def work() -> None:
        async with asyncpg.create_pool(**place.keywords, min_size=8, max_size=16, timeout=40) as pool:

            async def one(number: int) -> int:
                async with pool.acquire() as connection, connection.transaction():
                    return int(await connection.fetchval("select $1::int", number))

            assert await asyncio.gather(*(one(number) for number in range(100))) == list(range(100))

    asyncio.run(work())


# ---- pg8000 ----------------------------------------------------------------------------------------------------------


def test_pg8000_native(place: Place, name: str) -> None:
    connection = pg8000.native.Connection(**place.keywords, timeout=40)
    try:
        assert connection.run("select 1") == [[1]]
        assert connection.run("select :a::int + 1, :b::text", a=1, b="x") == [[2, "x"]]
        statement = connection.prepare("select cast(:n as int) * 2")
        assert [statement.run(n=number) for number in range(5)] == [[[number * 2]] for number in range(5)]
        statement.close()
        connection.run("start transaction")
        connection.run(f"insert into {name} (id, word) values (1, 'one')")
        connection.run("rollback")
        with pytest.raises(pg8000.native.DatabaseError) as caught:
            connection.run("select 1 / 0")
        assert caught.value.args[0]["C"] == "22012"
        assert connection.run(f"select count(*) from {name}") == [[0]]
    finally:
        connection.close()


def test_pg8000_dbapi_with_copy(place: Place, name: str, tmp_path: Path) -> None:
    connection = pg8000.dbapi.connect(**place.keywords, timeout=40)
    try:
        cursor = connection.cursor()
        source = tmp_path / "in"
        source.write_text("1\tone\n2\ttwo\n")
        with source.open("rb") as stream:
            cursor.execute(f"copy {name} (id, word) from stdin", stream=stream)
        connection.commit()
        cursor.execute(f"select word from {name} where id = %s", (2,))
        assert [list(row) for row in cursor.fetchall()] == [["two"]]
        with (tmp_path / "out").open("wb") as stream:
            cursor.execute(f"copy {name} (id) to stdout", stream=stream)
        assert (tmp_path / "out").read_bytes() == b"1\n2\n"
        connection.rollback()
    finally:
        connection.close()


# ---- psql ------------------------------------------------------------------------------------------------------------


def test_psql_queries_scripts_and_variables(place: Place) -> None:
    assert place.psql("-c", "select 1", "-c", "select 'two'").stdout == "1\ntwo\n"
    script = """
        \\set n 41
        select :n + 1;
        select 'a' as x, 'b' as y \\gset
        \\echo :x:y
        select 'select ' || g from generate_series(1, 3) g \\gexec
        begin;
        create temp table scratch as select 7 as a;
        select a from scratch;
        commit;
    """
    assert place.psql("-q", text=script).stdout.split() == ["42", "ab", "1", "2", "3", "7"]


def test_psql_describes(place: Place, name: str) -> None:
    described = place.tool("psql", "-X", "-A", "-c", f"\\d {name}").stdout
    assert "word|text" in described
    assert f'"{name}_pkey" PRIMARY KEY' in described
    assert f"public|{name}|table|postgres" in place.psql("-c", "\\dt").stdout
    for command in ("\\l", "\\du", "\\df pg_catalog.abs", "\\dn", "\\conninfo"):
        assert place.psql("-c", command).stdout, command


def test_psql_copies(place: Place, name: str, tmp_path: Path) -> None:
    source = tmp_path / "words"
    source.write_text("1\tone\n2\ttwo\n")
    assert place.psql("-c", f"\\copy {name} (id, word) from '{source}'").stdout == "COPY 2\n"
    assert place.psql("-c", f"copy {name} (id, word) to stdout").stdout == source.read_text()
    assert place.psql("-q", text=f"copy {name} (id, word) from stdin;\n3\tthree\n\\.\nselect 'after';\n").stdout == (
        "after\n"
    )


def test_psql_tells_errors_and_notices(place: Place) -> None:
    done = place.psql("-c", "select 1 / 0", ok=False)
    assert done.returncode == 1
    assert "division by zero" in done.stderr
    assert "NOTICE:  heard" in place.psql("-c", "do $$ begin raise notice 'heard'; end $$").stderr


def test_psql_uses_the_extended_protocol_and_pipelines(place: Place) -> None:
    assert place.psql(text="select $1 || $2 \\bind a b \\g\n").stdout == "ab\n"
    if "PostgreSQL) 16" in place.psql("-V").stdout:
        pytest.skip("this psql has no \\startpipeline")
    script = """
        \\startpipeline
        select $1::int \\bind 1 \\sendpipeline
        select $1::int \\bind 2 \\sendpipeline
        \\syncpipeline
        select 3 \\parse three
        \\bind_named three \\sendpipeline
        \\endpipeline
        \\bind_named three \\g
        \\close_prepared three
    """
    assert place.psql("-q", text=script).stdout.split() == ["1", "2", "3", "3"]


# ---- pgbench ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(place: Place) -> Place:
    place.tool("pgbench", "-i", "-q", "-s", "1")
    return place


@pytest.mark.parametrize("connect", [(), ("-C",)], ids=["keep", "reconnect"])
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_fails_no_transaction(bench: Place, mode: str, connect: tuple[str, ...]) -> None:
    transactions = "8" if connect else "60"
    done = bench.tool("pgbench", "-n", "-M", mode, "-c", "12", "-j", "2", "-t", transactions, *connect)
    assert "number of failed transactions: 0 (0.000%)" in done.stdout
    assert f"number of transactions actually processed: {12 * int(transactions)}/" in done.stdout
    assert "error" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_selects_fail_no_transaction(bench: Place, mode: str) -> None:
    done = bench.tool("pgbench", "-n", "-S", "-M", mode, "-c", "12", "-j", "2", "-t", "200")
    assert "number of failed transactions: 0 (0.000%)" in done.stdout


def test_pgbench_pipelines(bench: Place, tmp_path: Path) -> None:
    script = tmp_path / "pipeline.sql"
    script.write_text(
        "\\startpipeline\nselect 1;\nselect abalance from pgbench_accounts where aid = 7;\n"
        "begin;\nupdate pgbench_tellers set tbalance = tbalance + 1 where tid = 1;\ncommit;\n\\endpipeline\n"
    )
    for mode in ("extended", "prepared"):
        done = bench.tool("pgbench", "-n", "-M", mode, "-c", "6", "-t", "50", "-f", str(script))
        assert "number of failed transactions: 0 (0.000%)" in done.stdout


def test_the_books_balance_after_pgbench(bench: Place) -> None:
    """Money is neither made nor lost: no transaction was run twice, halved or mixed with another's."""
    bench.tool("pgbench", "-n", "-M", "prepared", "-c", "12", "-j", "2", "-t", "40")
    sums = bench.origin.execute(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers "
        "where true), (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)"
    )[0]
    assert sums[0] == sums[2] == sums[3]


# ---- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_libpq_connects_with_either_protocol_version(place: Place, version: str) -> None:
    if psycopg.pq.version() < 180000:
        pytest.skip("this libpq speaks protocol 3.0 only")
    with place.connect(max_protocol_version=version) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_newer_protocol_and_unknown_extensions_are_negotiated_down(near: Pgnear) -> None:
    with WireClient.logged_in(near.port, minor=9999, **{"_pq_.unheard_of": "1"}) as client:
        kind, body = client.greeting[0]
        assert kind == "v"
        assert body == (3 << 16 | 2).to_bytes(4, "big") + b"\0\0\0\1" + b"_pq_.unheard_of\0"
        assert len(client.secret) > 4
        assert client.one("select 1") == b"1"


def test_protocol_3_2_gives_a_long_cancel_key_and_3_0_a_short_one(near: Pgnear) -> None:
    with WireClient.logged_in(near.port, minor=2) as new, WireClient.logged_in(near.port) as old:
        assert 4 < len(new.secret) <= 256
        assert "v" not in [kind for kind, _ in new.greeting]
        assert len(old.secret) == 4


def test_clients_connect_by_ipv6_and_unix_socket(pgnear: Start, tmp_path: Path) -> None:
    path = tmp_path / ".s.PGSQL.5433"
    near = pgnear(listen=f"127.0.0.1:0,[::1]:0,unix:{path}")
    ports = [address.rpartition(":")[2] for address in near.addresses]
    for host, port in (("127.0.0.1", ports[0]), ("::1", ports[1]), (str(tmp_path), "5433")):
        with near.connect(dsn={"host": host, "port": port}) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    near.stop()
    assert not path.exists()


def test_two_databases_have_two_pools(origin: Server, pgnear: Start) -> None:
    origin.execute("drop database if exists second")
    origin.execute("create database second")
    near = pgnear(databases={"other": {"origin": origin.url("second"), "pool_size": 1}})
    with near.connect(dsn={"dbname": "other"}) as other, near.connect() as first:
        assert other.execute("select current_database()").fetchone() == ("second",)
        assert first.execute("select current_database()").fetchone() == ("postgres",)
    assert near.metric("pool_size", pool="other") == 1


def test_fifty_clients_connect_at_once(near: Pgnear) -> None:
    def work(number: int) -> object:
        with near.connect() as connection:
            return connection.execute("select %s::int", (number,)).fetchone()

    assert together(50, work) == [(number,) for number in range(50)]
