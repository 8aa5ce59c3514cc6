"""An answer from the cache is the origin's, byte for byte: hundreds of SELECTs, all types, both formats, some settings.

Every statement is asked three times: of the origin, through pgnear for the first time, and again; and that the last
answers came from the cache is counted. Compared are all frames up to ReadyForQuery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pooler.embedded import installed
from tests.support.cached import hits
from tests.support.postgres import Server
from tests.support.process import Pgnear, running
from tests.support.wire import SYNC, Frame, WireClient, bind, describe, error_fields, execute, parse, query

VALUES = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "float4": ["1.1", "-0", "NaN", "Infinity", "1e-37"],
    "float8": ["0.30000000000000004", "-0", "NaN", "-Infinity", "1e-307", "12345678.123456789"],
    "numeric": ["0", "-1.50", "NaN", "Infinity", "123456789012345678901234567890.123456789"],
    "numeric(10,3)": ["1.5", "-99999.999"],
    "text": ["", " ", "it's", "naïve ☃ 𝄞", "line\nline\ttab", "back\\slash", "NULL"],
    "varchar(5)": ["", "abcde"],
    "char(5)": ["ab", ""],
    '"char"': ["a", ""],
    "name": ["a_name"],
    "bytea": ["", "\\x00ff10", "\\xdeadbeef5c27"],
    "date": ["2024-02-29", "infinity", "-infinity", "0044-03-15 BC"],
    "time": ["00:00:00", "23:59:59.999999", "24:00:00"],
    "timetz": ["12:00:00+05:30"],
    "timestamp": ["2024-03-31 02:30:00", "infinity", "0044-03-15 12:00:00 BC"],
    "timestamptz": ["2024-03-31 01:30:00.123456+00", "-infinity", "1900-01-01 00:00:00+00"],
    "interval": ["1 year 2 mons 3 days 04:05:06.789", "-1 day +02:00", "0"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a":  [1, 2, {"b": null}], "a": 2}', "null", '"x"'],
    "jsonb": ['{"a":  [1, 2, {"b": null}], "z": 1.50, "y": "\\u00e9"}', "null", "[]"],
    "jsonpath": ["$.a[*] ? (@ > 1)"],
    "inet": ["192.168.0.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "money": ["12.50", "-1234567.89"],
    "bit(4)": ["1010"],
    "varbit": ["", "101010101"],
    "point": ["(1.5,-2)"],
    "line": ["{1,2,3}"],
    "lseg": ["[(0,0),(1,1)]"],
    "box": ["(1,1),(0,0)"],
    "path": ["((0,0),(1,1))", "[(0,0),(1,1)]"],
    "polygon": ["((0,0),(1,1),(1,0))"],
    "circle": ["<(0,0),2>"],
    "tsvector": ["'a':1A 'fat':2,4B"],
    "tsquery": ["'fat' & !'rat':AB"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "int8range": ["(1,5]"],
    "numrange": ["(1.5,2.5]", "empty"],
    "daterange": ["[2024-01-01,2024-12-31]", "[2024-01-01,infinity)"],
    "tsrange": ["[2024-01-01 00:00,2024-01-02 00:00)"],
    "tstzrange": ["[2024-01-01 00:00+00,2024-01-02 00:00+00)"],
    "int4multirange": ["{}", "{[1,3),[5,7)}"],
    "datemultirange": ["{[2024-01-01,2024-02-01)}"],
    "oid": ["4294967295"],
    "xid": ["1"],
    "xid8": ["18446744073709551615"],
    "tid": ["(1,2)"],
    "pg_lsn": ["16/B374D848"],
    "mood": ["sad", "very happy"],
    "positive": ["7"],
    "label": ["short"],
    "pair": ['(1,"a, b")', "(,)", '(2,"")'],
    "nested": ['("(1,x)","{1,2}")'],
    "int4[]": ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"],
    "text[]": ['{a,"b c","",NULL,"NULL","q\\"q"}'],
    "float8[]": ["{0.1,NaN,-0}"],
    "timestamptz[]": ['{"2024-03-31 01:30:00+00",infinity}'],
    "bytea[]": ['{"\\\\xdead"}'],
    "jsonb[]": ['{"{\\"a\\": 1}",null}'],
    "mood[]": ['{sad,"very happy"}'],
    "pair[]": ['{"(1,a)","(,)"}'],
    "int4range[]": ['{"[1,3)",empty}'],
    "uuid[]": ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"],
}
"""By type, what a row each has; every column has a NULL too."""

TYPES = list(VALUES)


def _schema() -> Iterator[str]:
    yield "create type mood as enum ('sad', 'ok', 'very happy')"
    yield "create domain positive as int check (value > 0)"
    yield "create domain label as varchar(8) not null"
    yield "create type pair as (n int, t text)"
    yield "create type nested as (p pair, a int[])"
    for number, name in enumerate(TYPES):
        yield f"create table {table(number)} (id int primary key, v {name})"
        for row, value in enumerate(VALUES[name]):
            quoted = value.replace("'", "''")
            yield f"insert into {table(number)} values ({row}, '{quoted}')"
        if name != "label":
            yield f"insert into {table(number)} values (99, null)"
    yield "create table word (id int primary key, w text, n int, at timestamptz)"
    yield """insert into word select n, 'word ' || n, nullif(n % 7, 0),
             '2024-01-01 00:00+00'::timestamptz + n * '7 h'::interval from generate_series(1, 60) n"""
    yield "create table nothing (a int, b text)"
    yield 'create table "Quoted Name" ("Column One" int, "select" text)'
    yield "insert into \"Quoted Name\" values (1, 'x')"
    yield "create table wide (" + ", ".join(f"c{n} int default {n}" for n in range(120)) + ")"
    yield "insert into wide default values"
    yield "create view long_word as select id, w from word where length(w) > 6"
    yield "create function twice(n int) returns int immutable language sql return n * 2"


def table(number: int) -> str:
    """The name of the table of a type; in letters."""
    return f"of_{chr(97 + number // 26)}{chr(97 + number % 26)}"


EXPRESSIONS = """
select 1
select 1, 2, 3
select 1 as "A name", null as b
select null
select ''
select 'it''s'
select 1.50, 1e3, -0.0
select true and null
select 'abc' like 'a%'
values (1, 'a'), (2, 'b'), (3, null)
table nothing
select * from nothing
select from word limit 3
select * from wide
select * from "Quoted Name"
select "Column One", "select" from "Quoted Name"
select * from word order by id
select * from word order by id desc limit 5 offset 3
select w from word where id = 7
select w from word where id = -7
select w from word where id in (1, 2, 3) order by 1
select w from word where w like 'word 1%' order by id
select w from word where n is null order by id
select n, count(*) from word group by n order by n nulls first
select n, count(*), sum(id), avg(id), min(w), max(w) from word group by n having count(*) > 2 order by n
select distinct n from word order by n
select distinct on (n) n, id from word order by n, id desc
select id, row_number() over (order by id), sum(id) over (partition by n order by id) from word order by id
select rank() over (order by n), lag(id, 1) over (order by id) from word order by id
select a.id, b.id from word a join word b on b.id = a.id + 1 order by 1 limit 5
select a.id, b.a from word a left join nothing b on b.a = a.id order by 1 limit 5
select * from word a full join nothing b on b.a = a.id order by a.id limit 3
select a.id from word a where exists (select 1 from word b where b.id = a.id * 2) order by 1
select a.id from word a where a.id not in (select id from word where id > 5) order by 1
select id, (select max(b.id) from word b where b.n = a.n) from word a order by id
with w as (select id from word where id < 5) select count(*) from w
with recursive r(n) as (select 1 union all select n + 1 from r where n < 10) select n from r
select 1 union select 2 union all select 2 order by 1
select id from word intersect select n from word order by 1
select id from word except select n from word order by 1
select * from generate_series(1, 20) n
select n, n * n from generate_series(-3, 3) n order by n
select * from unnest(array[3, 1, 2]) with ordinality
select w, l.x from word, lateral (select n * 2 as x) l order by id limit 5
select array_agg(id order by id desc) from word where id < 10
select string_agg(w, ', ' order by id) from word where id < 5
select json_agg(w order by id) from word where id < 4
select jsonb_object_agg(id, w) from word where id < 4
select row(1, 'a', null)
select row(id, w) from word where id < 4 order by id
select word from word where id < 4 order by id
select array(select id from word where id < 4 order by id)
select (row(1, 'x')::pair).t
select array[row(1, 'a')::pair, null]
select '{"a": {"b": [1, 2]}}'::jsonb #> '{a,b}'
select '{"a": 1}'::jsonb -> 'a', '{"a": 1}'::jsonb ->> 'a'
select '{"a": 1}'::jsonb @> '{"a": 1}'
select jsonb_path_query('{"a": [1, 2, 3]}', '$.a[*] ? (@ > 1)')
select jsonb_pretty('{"a": [1, 2]}')
select * from jsonb_each('{"a": 1, "b": null}')
select int4range(1, 5) * int4range(3, 9), int4range(1, 5) @> 3
select upper('straße'), lower('ÀÉ'), initcap('hello world')
select length('☃'), octet_length('☃'), reverse('abc')
select repeat('ab', 3), lpad('x', 5, '-'), trim('  x  ')
select substring('abcdef' from 2 for 3), position('c' in 'abc'), overlay('abc' placing 'X' from 2)
select regexp_replace('a1b2', '[0-9]', '#', 'g'), 'abc' ~ '^a'
select split_part('a,b,c', ',', 2), string_to_array('a,b,,c', ',')
select md5('x'), encode('\\xdead'::bytea, 'base64'), decode('3q0=', 'base64')
select abs(-5), sign(-2.5), round(2.5), round(2.345, 2), trunc(-2.7), ceil(1.1), floor(-1.1)
select 7 / 2, 7 % 3, 7.0 / 2, 2 ^ 10, |/ 16, 5 & 3, 5 | 3, 5 # 3, ~5, 1 << 4
select 1::float8 / 3, 1::float4 / 3, 1::numeric / 3
select sqrt(2::float8), exp(1::float8), ln(10::numeric), pi()
select greatest(1, null, 3), least(2, 1), coalesce(null, 5), nullif(1, 1)
select case when id < 3 then 'low' else w end from word order by id limit 5
select cast('12' as int), '2024-01-01'::date, '1 day'::interval
select '2024-01-31'::date + 1, '2024-01-31'::date - '2024-01-01'::date
select '2024-01-31'::timestamp + '1 month'::interval
select extract(year from '2024-02-29'::date), date_part('dow', '2024-02-29'::timestamp)
select date_trunc('month', '2024-02-29 12:00'::timestamp)
select justify_interval('35 days 25 hours'::interval)
select make_date(2024, 2, 29), make_interval(days => 3)
select point(1, 2) <-> point(4, 6), box '((0,0),(2,2))' @> point '(1,1)'
select inet '10.1.2.3/8' << inet '10.0.0.0/7', host(inet '10.1.2.3/8')
select to_tsvector('simple', 'a fat cat') @@ to_tsquery('simple', 'fat & cat')
select b'1010' | b'0101', x'ff'::bit(8)::int
select twice(21), twice(id) from word order by id limit 3
select * from long_word order by id
select count(*), count(n), count(distinct n) from word
select percentile_cont(0.5) within group (order by id) from word
select mode() within group (order by n) from word
select grouping(n), n, count(*) from word group by rollup (n) order by 1, 2
select n, id % 2, count(*) from word group by cube (n, id % 2) order by 1, 2
select id, w collate "C" from word order by w collate "C" limit 5
select at at time zone 'Asia/Tokyo' from word order by id limit 3
select at from word order by id limit 5
select at::text, at::date, at::time from word order by id limit 5
select max(at) - min(at) from word
select 'a' || 1, 'a' || null, array[1] || 2, array[1, 2] @> array[1]
select array_length(array[[1, 2], [3, 4]], 2), cardinality('{}'::int[]), array_position(array['a', 'b'], 'b')
select (array[1, 2, 3])[2], (array[1, 2, 3])[2:3], (array[1, 2, 3])[9]
select num_nulls(1, null), 1 is distinct from null, null is null
select $$dollar quoted$$, E'tab\\there', U&'d\\0061t\\+000061'
select /* a comment */ 1 -- and another
select  1 ;
SELECT ID FROM WORD WHERE ID = 3
select w from only word where id = 4
select w from public.word where id = 5
select "w" from "word" where "id" = 6
select w as w1, w as w1 from word where id = 8
select sum(id) filter (where n > 3), every(id > 0), bool_or(n is null) from word
select any_value(1) from word
select ntile(4) over (order by id), first_value(w) over (order by id) from word order by id limit 9
select repeat('x', 100000)
select id, repeat('y', 1000) from word order by id
select * from (values (1, 'one'), (2, 'two')) as v(n, t) where n > 1
select 'very happy'::mood > 'sad'::mood, 'ok'::mood::text
select 5::positive + 1, 5::positive
select '{1,2}'::int[]::text, array[1.5, 2]::int[]
""".strip().splitlines()

REFUSED = """
select * from unnest(array[1, 2, null], array['a', 'b', 'c']) as u(a, b)
select * from jsonb_to_recordset('[{"a": 1}, {"a": 2, "b": "x"}]') as x(a int, b text)
select enum_range(null::mood)
select now() is not null, random() < 2
select to_char(at, 'YYYY-MM-DD HH24:MI TZ') from word order by id limit 5
select count(*) > 100 from pg_proc
select * from word where id = 3 for update
""".strip().splitlines()
"""Equal, though not from the cache."""

PARAMETERS: list[tuple[str, list[bytes | None], list[int]]] = [
    ("select w from word where id = $1::int", [b"7"], []),
    ("select w from word where id = $1::int", [b"\0\0\0\7"], [1]),
    ("select w from word where id = $1::int", [None], []),
    ("select w from word where id = any($1::int[]) order by id", [b"{1,2,3}"], [0]),
    ("select w from word where w = $1::text and id > $2::int", [b"word 8", b"\0\0\0\1"], [0, 1]),
    ("select id from word where at < $1::timestamptz order by id", [b"2024-01-03 00:00"], []),
    ("select $1::text, $2::bytea", ["naïve".encode(), b"\0\1\xff"], [0, 1]),
    ("select $1::text", [b""], []),
    ("select $1::numeric / 3, $1::numeric", [b"10"], []),
    ("select $1::date + $2::int", [b"2024-02-28", b"2"], []),
]

ERRORS = """
select 1 / 0
select 10 / (n - 3) from word order by id
select nothing_of_this_name
select * from no_such_table
select * from word where
select 'x'::int
select '{1'::int[]
select 300::int2 * 300::int2
select (-1)::positive
select 'angry'::mood
select '{"a": }'::json
select w from word group by n
select sum(w) from word
select unknown_function(1)
select id from word where id = 'a'
select array[1, 'a']
select (select id from word)
select 'abc' ~ '('
select substring('a' from 1 for -1)
select '2024-13-01'::date
select $1 + 1
selec 1
select sqrt(-1::float8)
select 'infinity'::numeric % 0
""".strip().splitlines()

SETTINGS = {
    "defaults": {},
    "German and Tokyo": {"TimeZone": "Asia/Tokyo", "DateStyle": "German", "IntervalStyle": "iso_8601"},
    "old formats": {"extra_float_digits": "-3", "bytea_output": "escape", "IntervalStyle": "sql_standard"},
    "SQL dates, New York": {"TimeZone": "America/New_York", "DateStyle": "SQL, DMY", "client_encoding": "LATIN1"},
}
Ask = Callable[[WireClient, str], list[Frame]]


def _extended(result_format: int) -> Ask:
    def ask(client: WireClient, text: str) -> list[Frame]:
        return client.ask(parse(text), bind(result_formats=[result_format]), describe(), execute(), SYNC)

    return ask


ASKS: dict[str, Ask] = {
    "simple": lambda client, text: client.ask(query(text)),
    "extended, text": _extended(0),
    "extended, binary": _extended(1),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(installation=installed(18)) as origin:
        with origin.connect() as connection:
            for statement in _schema():
                connection.execute(statement.encode())
        yield origin


@pytest.fixture(scope="module")
def near(server: Server) -> Iterator[Pgnear]:
    with running(server.url(), cache={"ttl": "300s"}) as started:
        started.wait_until_it_caches()
        yield started


def corpus() -> list[str]:
    """All statements that are cached and give no error."""
    columns = [f"select v from {table(number)} order by id" for number in range(len(TYPES))]
    texts = [f"select id, v::text from {table(number)} order by id desc" for number in range(len(TYPES))]
    texts += [f"select array_agg(v order by id) from {table(number)}" for number in range(len(TYPES))]
    return columns + texts + EXPRESSIONS


def test_the_corpus_has_hundreds_of_statements() -> None:
    assert len(set(corpus())) == len(corpus())
    assert len(corpus()) + len(ERRORS) >= 300


@pytest.mark.parametrize("way", ASKS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_cached_answer_is_the_origins_byte_for_byte(near: Pgnear, server: Server, settings: str, way: str) -> None:
    ask = ASKS[way]
    parameters = SETTINGS[settings]
    with (
        WireClient.logged_in(server.port, **parameters) as direct,
        WireClient.logged_in(near.port, **parameters) as first,
        WireClient.logged_in(near.port, **parameters) as second,
    ):
        for text in REFUSED:
            expected = ask(direct, text)
            assert [ask(client, text) for client in (first, second, first)] == [expected] * 3, text
        for text in ERRORS:
            expected = ask(direct, text)
            assert expected[-2][0] == "E", text
            assert [ask(client, text) for client in (first, second, first)] == [expected] * 3, text
        expected_of = {}
        for text in corpus():
            expected_of[text] = expected = ask(direct, text)
            errors = [error_fields(body)["M"] for kind, body in expected if kind == "E"]
            assert ask(first, text) == expected, text
            if not errors:
                assert ask(first, text) == expected, text
        asked = [text for text in expected_of if _answers(expected_of[text])]
        before = hits(near)
        answers = {text: ask(second, text) for text in asked}
        counted = hits(near) - before
        assert [text for text in asked if answers[text] != expected_of[text]] == []
        if counted != len(asked):
            pytest.fail(f"not from the cache: {_missed(near, second, ask, asked)}")


@pytest.mark.parametrize("result_format", [0, 1], ids=["text", "binary"])
@pytest.mark.parametrize("settings", ["defaults", "German and Tokyo", "old formats"])
def test_a_cached_answer_to_parameters_is_the_origins_byte_for_byte(
    near: Pgnear, server: Server, settings: str, result_format: int
) -> None:
    parameters = SETTINGS[settings]
    with (
        WireClient.logged_in(server.port, **parameters) as direct,
        WireClient.logged_in(near.port, **parameters) as first,
        WireClient.logged_in(near.port, **parameters) as second,
    ):
        for name, (text, values, formats) in enumerate(PARAMETERS):
            unnamed = (
                parse(text), bind(values=values, formats=formats, result_formats=[result_format]), describe(),
                execute(), SYNC,
            )  # fmt: skip
            prepare = parse(text, f"s{name}"), describe("S", f"s{name}"), SYNC
            named = bind(f"s{name}", values, formats=formats, result_formats=[result_format]), execute(), SYNC
            described = direct.ask(*prepare)
            assert [first.ask(*prepare), second.ask(*prepare)] == [described, described]
            for messages in (unnamed, named):
                expected = direct.ask(*messages)
                assert _answers(expected), text
                assert first.ask(*messages) == expected, text
                before = hits(near)
                assert second.ask(*messages) == expected, text
                assert hits(near) == before + 1, text


def _answers(frames: list[Frame]) -> bool:
    return all(kind != "E" for kind, _ in frames)


def _missed(near: Pgnear, client: WireClient, ask: Ask, texts: list[str]) -> list[str]:
    missed = []
    for text in texts:
        before = hits(near)
        ask(client, text)
        if hits(near) == before:
            missed.append(text)
    return missed
