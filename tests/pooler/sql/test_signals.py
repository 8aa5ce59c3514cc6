"""Which texts cancel or terminate by a process id and do nothing else, and how their parameters are read."""

from __future__ import annotations

import pytest

from pooler.sql.classifier import Classifier
from pooler.sql.signals import CANCEL, TERMINATE, Call
from pooler.sql.statement import classify

INT2, INT4, INT8, TEXT = 21, 23, 20, 25


def types(*oids: int) -> bytes:
    return len(oids).to_bytes(2, "big") + b"".join(oid.to_bytes(4, "big") for oid in oids)


@pytest.mark.parametrize(
    ("text", "call", "column"),
    [
        ("select pg_cancel_backend(4194304)", Call(CANCEL, 4194304), CANCEL),
        (" SELECT  Pg_Catalog.PG_Cancel_Backend ( 4194304 ) ; -- so", Call(CANCEL, 4194304), CANCEL),
        ("select pg_cancel_backend('4194304'::int) as x", Call(CANCEL, 4194304), "x"),
        ("select pg_terminate_backend(cast(4194304 as int4), 100) \"X y\"", Call(TERMINATE, 4194304, 100), "X y"),
        ("select pg_terminate_backend(4194304, 5::bigint)", Call(TERMINATE, 4194304, 5), TERMINATE),
    ],
)  # fmt: skip
def test_a_constant_is_read(text: str, call: Call, column: str) -> None:
    signal = classify(text.encode()).signal
    assert signal is not None
    assert (signal.call(), signal.column) == (call, column.encode())


@pytest.mark.parametrize(
    "text",
    [
        "select pg_cancel_backend(pg_backend_pid())",
        "select pg_cancel_backend(4194304 + 1)",
        "select pg_cancel_backend(4194304::bigint)",
        "select pg_cancel_backend(4194304::text::int)",
        "select pg_cancel_backend(4194304, 5)",
        "select pg_cancel_backend(null)",
        "select pg_cancel_backend()",
        "select pg_cancel_backend(99999999999999)",
        "select pg_terminate_backend(4194304, timeout => 5)",
        "select pg_terminate_backend(pid => 4194304)",
        "select pg_cancel_backend(variadic array[4194304])",
        "select pg_cancel_backend(4194304) filter (where true)",
        "select pg_cancel_backend(4194304) over ()",
        "select other.pg_cancel_backend(4194304)",
        'select "PG_CANCEL_BACKEND"(4194304)',
        "select pg_cancel_backend(4194304), 1",
        "select pg_cancel_backend(4194304) from t",
        "select pg_cancel_backend(4194304) where false",
        "select pg_cancel_backend(4194304) limit 0",
        "select pg_cancel_backend(4194304) order by 1",
        "select pg_cancel_backend(4194304) for update",
        "select distinct pg_cancel_backend(4194304)",
        "select pg_cancel_backend(4194304) union select true",
        "select pg_cancel_backend(4194304) into t",
        "with a as (select 1) select pg_cancel_backend(4194304)",
        "select 1; select pg_cancel_backend(4194304)",
        "values (pg_cancel_backend(4194304))",
        "explain select pg_cancel_backend(4194304)",
        "select pg_cancel_backend(pid) from pg_stat_activity",
        "select (pg_cancel_backend(4194304)).x",
        "select not pg_cancel_backend(4194304)",
        "select pg_cancel_backend(4194304) as é",
        "select 'pg_cancel_backend(4194304)'",
    ],
)
def test_what_does_more_or_is_computed_is_the_origins(text: str) -> None:
    assert classify(text.encode()).signal is None


def test_a_negative_number_is_the_origins() -> None:
    signal = classify(b"select pg_terminate_backend(4194304, -1)").signal
    assert signal is not None
    assert signal.call() is None


@pytest.mark.parametrize(
    ("text", "said", "resolved"),
    [
        ("select pg_cancel_backend($1)", types(), [INT4]),
        ("select pg_cancel_backend($1)", types(0), [INT4]),
        ("select pg_cancel_backend($1)", types(INT2), [INT2]),
        ("select pg_cancel_backend($1)", types(INT8), None),
        ("select pg_cancel_backend($1)", types(TEXT), None),
        ("select pg_cancel_backend($1)", types(INT4, INT4), None),
        ("select pg_cancel_backend($1::int)", types(INT8), [INT8]),
        ("select pg_cancel_backend($1::int)", types(TEXT), None),
        ("select pg_cancel_backend($2)", types(), None),
        ("select pg_terminate_backend($2, $1)", types(INT4), [INT4, INT4]),
        ("select pg_terminate_backend($1, $2)", types(), [INT4, INT8]),
        ("select pg_cancel_backend($1)", types()[:1], None),
    ],
)
def test_a_parameter_has_the_type_that_postgresql_gives_it(text: str, said: bytes, resolved: list[int] | None) -> None:
    signal = classify(text.encode()).signal
    assert signal is not None
    assert signal.types(said) == resolved


@pytest.mark.parametrize(
    ("oid", "value", "pid"),
    [
        (INT4, (0, b"4194304"), 4194304),
        (INT4, (1, b"\0\x40\0\0"), 4194304),
        (INT8, (1, b"\0\0\0\0\0\x40\0\0"), 4194304),
        (INT4, (1, b"\x80\x40\0\0"), None),
        (INT4, (1, b"\0\0\0\0\0\x40\0\0"), None),
        (INT4, (0, b"-1"), None),
        (INT4, (0, b"\xd9\xa1"), None),
        (INT4, (0, b""), None),
        (INT4, (0, None), None),
        (INT4, (2, b"4194304"), None),
    ],
)
def test_a_parameter_is_read_or_left_to_postgresql(oid: int, value: tuple[int, bytes | None], pid: int | None) -> None:
    signal = classify(b"select pg_cancel_backend($1)").signal
    assert signal is not None
    assert signal.call([oid], [value]) == (None if pid is None else Call(CANCEL, pid))
    assert signal.call([oid], []) is None


def test_whose_process_it_is_is_not_forgotten_between_texts_of_one_shape() -> None:
    for parse_always in (True, False):
        classifier = Classifier(parse_always=parse_always)
        assert not classifier.signals_seen
        for pid in (4194304, 4194305, 7, 4194304):
            signal = classifier(b"select pg_cancel_backend(%d)" % pid).signal
            assert signal is not None
            assert signal.call() == Call(CANCEL, pid)
        assert classifier.signals_seen
