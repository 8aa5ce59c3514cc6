"""Texts that would end the process in the parser, or keep everybody waiting: none does, and none is misjudged."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from time import process_time

import pytest

from pooler.sql import parser
from pooler.sql.classifier import Classifier
from pooler.sql.shape import shape, shortened
from pooler.sql.statement import Change, PinKind

DEEP = {
    "operators": "select 1" + "+1" * 100_000,
    "operators in 32 kB": "select 1" + "+1" * 16_000,
    "operators in 16 kB": "select 1" + "+1" * 8_180,
    "casts": "select 1" + "::int" * 100_000,
    "lists": "select 1" + " in (1)" * 100_000,
    "words": "select 1" + " is null" * 100_000,
    "collations": "select a" + ' collate "C"' * 50_000,
    "unions": "select 1" + " union select 1" * 100_000,
    "joins": "select 1 from a" + " join a using (x)" * 50_000,
    "cross joins": "select 1 from a" + " cross join a" * 50_000,
    "parentheses": "select " + "(" * 100_000 + "1" + ")" * 100_000,
    "parentheses that stay open": "select " + "(" * 1_000_000,
    "NOT": "select " + "not " * 250_000 + "true",
    "signs": "select " + "- " * 100_000 + "1",
    "functions": "select " + "f(" * 50_000 + "1" + ")" * 50_000,
    "CASE": "select " + "case when true then " * 20_000 + "1" + " end" * 20_000,
    "arrays": "select " + "array[" * 10_000 + "1" + "]" * 10_000,
    "subselects": "select " + "(select " * 10_000 + "1" + ")" * 10_000,
    "subscripts": "select a" + "[1]" * 100_000,
    "PREPARE": "prepare a as " * 20_000 + "select 1",
    "EXPLAIN": "explain " * 50_000 + "select 1",
    "CTEs": "with a as (" * 5_000 + "select 1" + ") select 1" * 5_000,
}


def test_no_depth_of_nesting_ends_the_process() -> None:
    """In a process of its own, since one that fails takes its process with it: libpg_query had no end to its stack."""
    code = (
        "from tests.pooler.sql.test_hostile_texts import DEEP\n"
        "from pooler.sql import parser\n"
        "from pooler.sql.classifier import Classifier\n"
        "for name, text in DEEP.items():\n"
        "    print(name, flush=True)\n"
        "    Classifier(parse_always=True)(text.encode())\n"
        "    Classifier(parse_always=False)(b'set a.b = 1;' + text.encode())\n"
        "    parser.fingerprint(text.encode())\n"
        "    parser.normalized(text.encode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-500:])


SLOW = {
    "newlines": b"select 1" + b"\n" * 1_000_000,
    "blanks": b"select 1" + b" " * 1_000_000,
    "newlines and blanks": b"select 1" + b"\n \t" * 300_000,
    "comments in comments": b"/*" * 20_000 + b"*/" * 20_000 + b"select 1",
    "comments in comments in 32 kB": b"/*" * 8_000 + b"*/" * 8_000 + b"select 1",
    "signs": b"select " + b"+-" * 15_000 + b"1",
    "calls of set_config": b"select " + b"set_config('a','b',true)," * 1_200 + b"1",
    "SETs": b"set a.b=1;" * 3_000,
    "statements": b"select 1;" * 200_000,
    "quotes": b"select " + b"'" * 1_000_001,
    "an element": b"select 1 where 1 in (" + b"1," * 500_000 + b"1)",
    "lists of almost enough": b"select 1 where " + b" and ".join([b"1 in (" + b"1," * 99 + b"1)"] * 2_000),
    "60 MB of words": b"insert into t values (E'\\\\" + b"x " * 30_000_000,
    "a value with every word": b"insert into t values (E'\\\\" + b"temp template set x" * 100_000 + b"')",
}


@pytest.mark.parametrize("name", SLOW)
def test_no_text_takes_a_time_that_grows_with_its_square(name: str) -> None:
    """A newline in place of a blank between statements took minutes for 20 kB; everybody waited."""
    for always in (True, False):
        began = process_time()
        Classifier(parse_always=always)(SLOW[name])
        assert process_time() - began < 5


# ---- what is not examined --------------------------------------------------------------------------------------------


def test_a_text_that_is_too_long_is_taken_for_whatever_it_may_be() -> None:
    columns = ", ".join(f"column_{n} + 1" for n in range(3000)).encode()
    classify = Classifier(parse_always=True)
    read = classify(b"select " + columns + b" from t")
    assert not read.cacheable
    assert not read.reads_only
    assert read.unknown_reach
    assert "too long" in read.why_not
    assert not read.has_effects
    assert classify(b"select " + columns + b" into u from t").changes_schema
    assert not classify(b"insert into u select " + columns + b" from t").changes_schema
    scripted = classify(b"set search_path = x; select " + columns)
    assert scripted.parts[0].pins == {PinKind.UNPARSABLE}
    assert scripted.changes_schema
    assert scripted.leaves


@pytest.mark.parametrize(
    "begin",
    [
        "select 1;\n  set a = 1", "x\n\n\tlisten c", "*/ set a = 1", "create temp table a()",
        "create TEMPORARY table a()", "select a_advisory_b()", "select set_config('a', 'b', false)", "select pgv_set()",
        'select u&"a"', "select dblink_connect('')", "select LASTVAL()",
    ],
)  # fmt: skip
def test_a_long_text_is_screened_for_the_same_words_as_a_short_one(begin: str) -> None:
    for padding in ("", " , '" + "x" * 10_000 + "'"):
        statement = Classifier(parse_always=False, session_functions=frozenset({"Remember"}))
        assert statement((begin + "$$" + padding).encode()).has_effects, padding
        assert statement((" , remember()" + "$$" + padding).encode()).has_effects
        assert not statement(("select template, distemper, reset_all" + "$$" + padding).encode()).has_effects


# ---- long lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select 1 where a in (" + "1, " * 200 + "2)", "select 0 where a in (0)"),
        ("values " + "(1, 'a', null, -2.5)," * 200 + "(1, 'a', true, 2)", "values (0, '', null, -0.0)"),
        ("values " + ",".join(f"(${n}, ${n}::text)" for n in range(200)), "values ($1, $1::text)"),
        ("select f(" + "1," * 99 + "1)", "select f(" + "0," * 99 + "0)"),
        ("select " + "a$1, a$2, " * 200 + "a", "select " + "a$1, a$2, " * 200 + "a"),
        ("select date " + "'x'," * 200 + "'y'", "select date ''"),
        ("select " + "1, " * 200 + "1 + b", "select 0 + b"),
        ("select " + "1, " * 200 + "1e5", "select 0, 1e5"),
        ("select b-" + "1, " * 200 + "a", "select b-0, a"),
        ("select f(" + "now(), " * 200 + "1)", "select f(" + "now(), " * 200 + "0)"),
    ],
)  # fmt: skip
def test_a_long_list_of_literals_means_what_one_of_them_does(text: str, expected: str) -> None:
    form = shape(text.encode())
    assert form is not None
    assert shortened(form) == expected.encode()


def test_a_long_list_is_understood_whatever_its_length() -> None:
    classify = Classifier(parse_always=True)
    read = classify(b"select * from t where id in (" + b"1234," * 100_000 + b"1)")
    assert read.cacheable
    assert read.relations == {(None, "t")}
    write = classify(b"insert into t (a, b) values " + b"(1, 'it''s')," * 50_000 + b"(1, null)")
    assert write.writes == {((None, "t"), Change.INSERT)}
    assert not write.unknown_reach
    bound = b", ".join(b"($%d, $%d::varchar)" % (n, n + 1) for n in range(1, 60_000, 2))
    assert classify(b"insert into t (a, b) values " + bound).writes == {((None, "t"), Change.INSERT)}


def test_what_cannot_be_parsed_has_no_fingerprint() -> None:
    text = b"select " + b"a + " * parser.LONGEST + b"a"
    assert parser.fingerprint(text) == parser.normalized(text) == ""


HEAVY = {
    "names": lambda number: "select " + ", ".join(f"col_{number}_{each}" for each in range(500)),
    "functions": lambda number: "select " + ", ".join(f"f_{number}_{each}({each})" for each in range(300)),
    "settings": lambda number: f"set application_name = '{number} {'x' * 8000}'",
    "comments": lambda number: f"select {number} /* {'x' * 8000} */ from t",
    "numbers": lambda number: f"select {number}, " + ", ".join(map(str, range(1000))) + f" from t{number}",
}


@pytest.mark.parametrize("kind", HEAVY)
def test_what_is_remembered_of_texts_is_bounded_in_bytes(kind: str) -> None:
    """It was in entries alone: 20,000 texts of 500 names each took 1.5 GB."""
    limit = 1 << 20
    classifier = Classifier(parse_always=True, max_bytes=limit)
    tracemalloc.start()
    try:
        for number in range(60):
            classifier(HEAVY[kind](number).encode())
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.25 * limit


def test_texts_that_were_asked_for_last_are_still_remembered_when_there_is_no_room_for_all() -> None:
    classifier = Classifier(parse_always=True, max_bytes=4 << 20)
    texts = [HEAVY["names"](number).encode() for number in range(40)]
    for text in texts:
        classifier(text)
    assert texts[-1] in classifier.remembered
    assert texts[0] not in classifier.remembered
