"""What the cache says about statements, judged by a real server's catalog; the list itself is in `verdicts`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from pooler.cache.catalog import CATALOG_QUERY, Catalog, parse_search_path
from pooler.sql.statement import Change, classify
from tests.support.postgres import Server

HERE = Path(__file__).parent
ROLE = "visitor"


def _load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


verdicts = _load("verdicts")


class Shop:
    """A database made by shop.sql, and its catalog as a role without any rights sees it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        server.execute("create database shop")
        self.connection = psycopg.connect(server.url("shop"), autocommit=True)
        self.connection.execute((HERE / "shop.sql").read_bytes())
        self.connection.execute(f"create role {ROLE}".encode())
        self.catalog = self.read()

    def read(self, safe_functions: tuple[str, ...] = ()) -> Catalog:
        with self.connection.transaction(force_rollback=True):
            self.connection.execute(f"set local role {ROLE}".encode())
            self.connection.execute("set local search_path = other")
            rows = self.connection.execute(CATALOG_QUERY).fetchall()
        return Catalog({name: json.loads(row or "[]") for name, row in rows}, safe_functions)

    def names(self, oids: frozenset[int]) -> str:
        return " ".join(sorted(str(self.catalog.relations[oid]) for oid in oids))

    def contents(self) -> dict[str, object]:
        """What every table holds by itself."""
        query = """select md5(string_agg(t::text, ',' order by t::text)) from only "{}"."{}" t"""
        return {
            str(relation): self.connection.execute(query.format(relation.schema, relation.name).encode()).fetchall()
            for relation in self.catalog.relations.values()
            if relation.kind in "rpm" and not relation.system
        }

    def close(self) -> None:
        self.connection.close()
        self.server.execute("drop database shop")
        self.server.execute(f"drop role {ROLE}")


@pytest.fixture(scope="module", params=[16, 18])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    server = request.getfixturevalue("origin" if request.param == 18 else "origin_16")
    made = Shop(server)
    yield made
    made.close()


PATH = ("$user", "public")


def test_the_list_is_long_enough() -> None:
    assert len({statement for statement, *_ in verdicts.READS}) >= 150


@pytest.mark.parametrize(("statement", "verdict", "tables"), verdicts.READS)
def test_a_read_is_cached_or_not_for_the_reason_on_the_list(
    shop: Shop, statement: str, verdict: str, tables: str
) -> None:
    found = shop.catalog.reads(classify(statement.encode()), PATH, "nobody")
    if verdict == verdicts.CACHED:
        assert (found.reason, found.cacheable, shop.names(found.tables)) == ("", True, tables)
    else:
        assert not found.cacheable
        assert verdict in found.reason
        assert found.tables == frozenset()


@pytest.mark.parametrize("statement", [row[0] for row in verdicts.READS if row[1] == verdicts.CACHED])
def test_what_is_cached_is_what_the_server_would_answer_again(shop: Shop, statement: str) -> None:
    """The list speaks of statements that run; the same statement gives the same rows some time later."""

    def answer() -> list[str]:
        with shop.connection.transaction(force_rollback=True):
            return sorted(map(repr, shop.connection.execute(statement.encode()).fetchall()))

    assert answer() == answer()


CHANGES_NOTHING = ("LOCK", "EXPLAIN DELETE", "PREPARE", "SELECT", "ANALYZE", "BEGIN", "REFRESH", "UPDATE regions")


def _carry_out(shop: Shop, statement: str) -> None:
    if statement.startswith("COPY"):
        with shop.connection.cursor().copy(statement.encode()) as copy:
            copy.write_row((1, 1, 1))
    elif statement != "BEGIN":
        shop.connection.execute(statement.encode())
    if statement.startswith("PREPARE"):
        shop.connection.execute("DEALLOCATE ALL")  # it would outlive the transaction


@pytest.mark.parametrize(("statement", "expected"), verdicts.WRITES)
def test_a_write_reaches_what_it_really_changes(shop: Shop, statement: str, expected: str) -> None:
    """The write is carried out, and what every table holds is compared with before."""
    reach = shop.catalog.reach(classify(statement.encode()), PATH, "nobody")
    assert (verdicts.ANY if reach is None else shop.names(reach)) == expected
    if reach is None:
        return
    before = shop.contents()
    with shop.connection.transaction(force_rollback=True):
        _carry_out(shop, statement)
        after = shop.contents()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= set(expected.split())
    assert changed or statement.startswith(CHANGES_NOTHING)


@pytest.mark.parametrize("write", [row[0] for row in verdicts.WRITES if row[1] != verdicts.ANY])
def test_a_write_reaches_a_table_of_every_answer_that_it_changes(shop: Shop, write: str) -> None:
    """Every cacheable read on the list is carried out before and after."""
    reach = shop.catalog.reach(classify(write.encode()), PATH, "nobody")
    assert reach is not None
    tables = {
        read: shop.catalog.reads(classify(read.encode()), PATH, "nobody").tables
        for read, verdict, _ in verdicts.READS
        if verdict == verdicts.CACHED
    }

    def answers() -> dict[str, object]:
        return {read: sorted(map(repr, shop.connection.execute(read.encode()).fetchall())) for read in tables}

    before = answers()
    with shop.connection.transaction(force_rollback=True):
        _carry_out(shop, write)
        after = answers()
    stale = [read for read in tables if before[read] != after[read] and not tables[read] & reach]
    assert stale == []


@pytest.mark.parametrize(
    ("search_path", "tables"),
    [
        ("public", "orders"),
        ('"$user", public', "orders visitor.orders"),  # whether the role may use its schema is not known
        ("other, public", "orders other.orders"),
        ("public, other", "orders"),
        ("pg_temp, public", "orders"),
        ("missing, public", "orders"),
    ],
)
def test_a_name_means_what_the_search_path_makes_of_it(shop: Shop, search_path: str, tables: str) -> None:
    path = parse_search_path(search_path)
    found = shop.catalog.reads(classify(b"SELECT * FROM orders"), path, ROLE)
    assert (found.reason, shop.names(found.tables)) == ("", tables)


def test_an_unknown_search_path_means_every_schema(shop: Shop) -> None:
    found = shop.catalog.reads(classify(b"SELECT * FROM orders"), None)
    assert shop.names(found.tables) == "orders other.orders visitor.orders"
    assert "random" in shop.catalog.reads(classify(b"SELECT * FROM customers"), None).reason
    assert "volatile" in (shop.catalog.allows(classify(b"SELECT lower('A')")) or "")
    assert shop.catalog.allows(classify(b"SELECT upper('A')")) is None
    reach = shop.catalog.reach(classify(b"DELETE FROM orders"), None)
    assert reach is not None
    assert shop.names(reach) == "items orders other.orders visitor.orders"


@pytest.mark.parametrize("path", [("other", "public"), ("other", "pg_catalog"), ("public", "other")])
def test_a_function_of_the_same_name_on_the_search_path_counts(shop: Shop, path: tuple[str, ...]) -> None:
    assert "other.lower is volatile" in shop.catalog.reads(classify(b"SELECT lower('A')"), path).reason


@pytest.mark.parametrize("name", ["price_class", "public.price_class"])
def test_a_stable_function_is_cached_where_the_operator_says_so(shop: Shop, name: str) -> None:
    catalog = shop.read((name,))
    found = catalog.reads(classify(b"SELECT price_class(1)"), PATH)
    assert (found.reason, found.functions) == ("", {"public.price_class"})
    assert catalog.reads(classify(b"SELECT * FROM classed"), PATH).cacheable
    assert not catalog.reads(classify(b"SELECT cheapest()"), PATH).cacheable
    assert not shop.read(("dice",)).reads(classify(b"SELECT dice()"), PATH).cacheable, "a volatile one never is"


def test_a_verdict_names_the_functions_that_decide_it(shop: Shop) -> None:
    judge = shop.catalog.reads
    assert judge(classify(b"SELECT tax(1), to_char(1, '9'), lower('A')"), PATH).functions == {"public.tax", "to_char"}
    assert judge(classify(b"SELECT tax(1), dice()"), PATH).functions == {"public.dice"}


def test_a_row_lock_is_told_from_a_read() -> None:
    assert classify(b"SELECT * FROM a FOR SHARE").locks_rows
    assert classify(b"WITH x AS (SELECT * FROM a FOR UPDATE) SELECT * FROM x").locks_rows
    assert not classify(b"SELECT * FROM a").locks_rows
    assert classify(b"LOCK TABLE a").writes == {((None, "a"), Change.LOCK)}


def test_tables_of_a_name_include_what_it_is_part_of(shop: Shop) -> None:
    assert shop.names(shop.catalog.tables((None, "readings_2025"))) == "readings readings_2025 readings_2025_a"


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ('"$user", public', ("$user", "public")),
        ("A, b", ("a", "b")),
        ('"A ""x""",c', ('A "x"', "c")),
        ("", ()),
        ('""', ()),
        ('"unfinished', None),
    ],
)
def test_a_search_path_is_read_as_the_server_reads_it(setting: str, names: tuple[str, ...] | None) -> None:
    assert parse_search_path(setting) == names
