"""One parse serves all texts of a shape: what is set aside never decides what a text means."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pooler.sql.classifier import Classifier
from pooler.sql.shape import counts_only, separates, shape, template
from pooler.sql.statement import Statement, classify


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM t WHERE a = 1", "SELECT * FROM t WHERE a = 0"),
        ("SELECT * FROM t WHERE a = 'x'", "SELECT * FROM t WHERE a = ''"),
        ("SELECT 'it''s', ''", "SELECT '', ''"),
        ("SELECT '--', '/* x */', '\"', '$$'", "SELECT '', '', '', ''"),
        ("SELECT 1.5, .5, 1., -7, 1e5", "SELECT 0.0, .5, 0., -0, 1e5"),
        ("SELECT 123456789, 1234567890, 12345678901234567890", "SELECT 0, 00, 00"),
        ("SELECT t1.c2 FROM orders_2024 AS t1", "SELECT t1.c2 FROM orders_2024 AS t1"),
        ("SELECT t12345678901 FROM a", "SELECT t12345678901 FROM a"),
        ('SELECT "a1"."b" FROM "2024" WHERE x=3', 'SELECT "a1"."b" FROM "2024" WHERE x=0'),
        ("SELECT $1, $23, 4", "SELECT $1, $23, 0"),
        ("SELECT a[1], x::int, date '2024-01-01'", "SELECT a[0], x::int, date ''"),
        ("/* route=/a */ SELECT 1 /* traceparent='00-1' */", " SELECT 0 "),
        ("SELECT 1 /* 7 */;", "SELECT 0 "),
        ("SELECT 'snowfall unknown'", "SELECT ''"),
        ("SELECT grün7 FROM t WHERE a = 'ü'", "SELECT grün7 FROM t WHERE a = ''"),
    ],
)
def test_literals_are_set_aside(text: str, expected: str) -> None:
    assert shape(text.encode()) == expected.encode()


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT E'a'", b"SELECT e'a\\'b'", b"SELECT U&'a'", b"SELECT B'1'", b"SELECT x'1f'", b"SELECT N'a'",
        b"SELECT 'a\\'", b"SELECT $$a$$", b"SELECT $q$a$q$", b"SELECT 1 -- 'a", b"SELECT /* ' */ 1",
        b"SELECT /* /* */ 1 */ 2", b"SELECT 'open", b'SELECT "open', b'SELECT "a 1"', b'SELECT "a\'b"',
        b"SELECT 1 + /* ' */ 2", b"SELECT a @-- '\n b", b"/* a /* b */ */ SELECT 1", b"SELECT '/*' */",
        b"SELECT 'now'", b"SELECT 'TODAY 12:00'", b"SELECT ' Yesterday'", b"SELECT '12:00 tomorrow'",
        b"SELECT 'pg_temp.x'", b"SELECT '\xff'",
    ],
)  # fmt: skip
def test_a_text_that_is_not_surely_understood_has_no_shape(text: bytes) -> None:
    assert shape(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT x::float(53)",
        "SELECT x::char(3)",
        "SELECT x::time(3)",
        "SELECT interval(3) '1'",
        "SELECT x::int[9999999999]",
    ],
)
def test_a_number_that_is_part_of_a_type_is_no_ordinary_literal(text: str) -> None:
    formed = shape(text.encode())
    assert formed is not None
    assert not separates(formed)


def test_tables_that_differ_in_digits_are_not_taken_for_each_other() -> None:
    """PostgreSQL's fingerprints are equal for these, so that one table's meaning was used for the other."""
    classifier = Classifier(parse_always=True)
    for name in ("orders_2024", "orders_2025"):
        assert classifier(f"SELECT * FROM {name} WHERE id = 1".encode()).relations == {(None, name)}


def test_one_statement_serves_all_texts_of_a_shape() -> None:
    classifier = Classifier(parse_always=True)
    first = classifier(b"SELECT * FROM t WHERE id = 1 AND name = 'a'")
    assert first.cacheable
    assert classifier(b"SELECT * FROM t WHERE id = 99 AND name = 'b''c'") is first
    assert classifier(b"SELECT * FROM t WHERE id = 99 AND name = 'now'") is not first


def test_a_settings_value_is_never_set_aside() -> None:
    classifier = Classifier(parse_always=True)
    one, two = (classifier(f"SET work_mem = '{size}MB'".encode()) for size in (1, 2))
    assert one.parts[0].changes != two.parts[0].changes


def test_words_in_a_literal_do_not_look_like_session_effects() -> None:
    """The text is not parsed anew for each literal with a word like "temp" in it."""
    classifier = Classifier(parse_always=True)
    first = classifier(b"SELECT * FROM t WHERE name = 'a'")
    assert classifier(b"SELECT * FROM t WHERE name = '; set x = 1; create temp table'") is first


def test_texts_of_one_template_are_not_looked_at_again() -> None:
    classifier = Classifier(parse_always=True)
    first = classifier(b"UPDATE t SET a = a + 1234 WHERE b = 17")
    assert classifier(b"UPDATE t SET a = a + 4711 WHERE b = 42") is first
    assert classifier(b"UPDATE t SET a = a + 4711 WHERE c = 42") is not first


@pytest.mark.parametrize("text", ["SELECT a FROM t1 WHERE b = 2", "SELECT $1, 2", "SELECT '1', 2", "SELECT 1e5"])
def test_digits_that_are_no_numbers_make_no_template(text: str) -> None:
    assert not counts_only(text.encode())


# ---- any text ----------------------------------------------------------------------------------------------------

_FRAGMENTS = st.sampled_from(
    (
        """SELECT|FROM|WHERE|AND|,|(|)|*|=|<|-|--|/*|*/|/|+|::|.|..|;|\n|a|b1|t|orders_2024|"a"|"A b"|'|''|\\|$1|$$"""
        "|$q$|E|e'|U&'|B'1'|now|now()|count(*)|f(1)|f(1, 2)|date|interval|float(2)|float(30)|char(2)|int[3]|LIMIT"
        "|ORDER BY 1|x::char(9999999999)|FOR UPDATE|INTO|INSERT INTO t VALUES|SET|temp|set_config('a', 'b', false)"
        "|UNION|WITH a AS (SELECT 1)|age(a)|age(a, b)|[1]|[|]|:|@|#|é|ß1|0x1F|1_000|1e5|1.|.5"
    ).split("|")
)
_LITERALS = st.one_of(
    st.integers(0, 10**12).map(str),
    st.decimals(0, 10**6, places=2).map(str),
    st.sampled_from(["0", "00", "007", "2147483648", "1.5.6", "99999999999999999999"]),
    st.text("ab'\"\\-/*$ 1;nowtday\né", max_size=8).map(lambda text: "'" + text.replace("'", "''") + "'"),
    st.sampled_from(["'now'", "'today'", "'snow'", "'x' 'y'", "'a''b'", "''", "'pg_temp'", "E'a'", "$$1$$"]),
)
_TEXTS = st.lists(st.one_of(_FRAGMENTS, _LITERALS), min_size=1, max_size=12).flatmap(
    lambda parts: st.lists(st.sampled_from([" ", " ", " ", ""]), min_size=len(parts), max_size=len(parts)).map(
        lambda gaps: "SELECT " + "".join(part + gap for part, gap in zip(parts, gaps, strict=True))
    )
)
_TEMPLATES = st.sampled_from(
    [
        "SELECT a, b FROM t WHERE id = {} AND name = {}",
        "SELECT f({}), g({}, {}) FROM t1 LIMIT {}",
        "SELECT x::numeric({}), x::float({}), x::char({}) FROM t",
        "SELECT a[{}], date {} , {}::int4, b{} FROM orders_2024 WHERE a IN ({},{})",
        "INSERT INTO t VALUES ({}, {}), (-{}, $1)",
        'SELECT "a"."b1" FROM "t" WHERE "a"."b1" = {} OR a<{} AND b>-{}',
        "UPDATE t SET a={} WHERE b={} /* c={} */",
        "SELECT t{}, a.b{} FROM orders{} a, é{} WHERE id = {}",
        "SELECT a --{}\n, {} FROM t",
        "SELECT a /*{}*/, {} FROM t",
        "SELECT a FROM t WHERE b = U&{} UESCAPE '!' AND c = {}",
        'SELECT "a {}", "{}", "b{}" FROM t',
        "SELECT interval {} day, interval({}) {}, time({}) {}",
        "SELECT {}{}, {}.{}, t{}, {}e5",
        "SET x = {}",
        "SELECT {}; SELECT {}",
    ]
)


_WHOLE = st.integers(0, 10**11).map(str)
_QUOTED = st.sampled_from(["'a'", "'b'", "'n!006fw'", "'now'", "'x\ny'", "'--'", "'/*'", "'*/'", "'\"'"])
_VALUES = st.one_of(*(st.lists(kind, min_size=1, max_size=6) for kind in (_WHOLE, _QUOTED, _LITERALS)))


def _filled(template: str, values: list[str]) -> str:
    parts = template.split("{}")
    return parts[0] + "".join(values[position % len(values)] + part for position, part in enumerate(parts[1:]))


def _meaning(statement: Statement) -> tuple[object, ...]:
    return tuple(
        tuple(map(dataclasses.astuple, statement.parts)) if field.name == "parts" else getattr(statement, field.name)
        for field in dataclasses.fields(statement)
    )


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        st.lists(_TEXTS, min_size=1, max_size=3),
        st.builds(
            lambda template, values: [_filled(template, each) for each in values],
            _TEMPLATES,
            st.lists(_VALUES, min_size=2, max_size=4),
        ),
    )
)
def test_a_text_means_by_its_shape_what_it_means_by_itself(texts: list[str]) -> None:
    classifier = Classifier(parse_always=True)
    for text in texts:
        remembered = classifier(text.encode())
        exact = classify(text.encode())
        if remembered.has_effects or exact.cacheable or not exact.has_effects:
            assert _meaning(remembered) == _meaning(exact)
        else:  # an unparsable text in which nothing looks like an effect
            assert remembered.why_not == exact.why_not == "the parser does not understand it"


@settings(max_examples=1500, deadline=None)
@given(_TEMPLATES, st.lists(_VALUES, min_size=2, max_size=6))
def test_texts_of_one_shape_mean_the_same(template: str, values: list[list[str]]) -> None:
    meanings: dict[bytes, tuple[object, ...]] = {}
    for each in values:
        text = _filled(template, each).encode()
        formed = shape(text)
        if formed is not None and separates(formed) and b"SET" not in formed:
            meaning = _meaning(classify(text, suspicious=False))
            assert meanings.setdefault(formed, meaning) == meaning


@settings(max_examples=1500, deadline=None)
@given(st.one_of(_TEXTS, st.builds(_filled, _TEMPLATES, _VALUES)), st.randoms(use_true_random=False))
def test_texts_of_one_template_have_one_shape(text: str, random: Random) -> None:
    one = text.encode()
    other = bytes(random.choice(b"0123456789") if 0x30 <= byte <= 0x39 else byte for byte in one)
    formed = shape(one)
    if formed is not None and counts_only(one):
        assert template(other) == template(one)
        assert shape(other) == formed
