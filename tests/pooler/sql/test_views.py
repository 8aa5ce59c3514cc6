"""References to system views that show a session, and places in a text that pgnear has changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooler.sql.statement import classify
from pooler.sql.traces import looks_closely
from pooler.sql.views import edited, place_before

VIEW = "pg_prepared_statements"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"select name from {VIEW}", f"select name from (Q) AS {VIEW}"),
        (f"select p.name from x, Pg_Catalog . {VIEW} p", "select p.name from x, (Q) p"),
        (f"table {VIEW}; select 'ü'", f"SELECT * FROM (Q) AS {VIEW}; select 'ü'"),
        (f"select 'ü', 1 from {VIEW} a, {VIEW} b", "select 'ü', 1 from (Q) a, (Q) b"),
        (f"insert into t select name from {VIEW}", f"insert into t select name from (Q) AS {VIEW}"),
        (f"declare c cursor for select 1 from {VIEW}", f"declare c cursor for select 1 from (Q) AS {VIEW}"),
        ("select source from pg_settings", "select source from (Q) AS pg_settings"),
        ("select setting from pg_settings", None),
        (f"select name from other.{VIEW}", None),
        (f"create view v as select * from {VIEW}", None),
        (f"prepare q as select * from {VIEW}", None),
        (f"with {VIEW} as (select 1) select * from {VIEW}", None),
        ("update pg_settings set setting = reset_val where name = 'x'", None),
        (f"select '{VIEW}'", None),
    ],
)
def test_a_query_takes_the_place_of_a_view_where_it_is_read(text: str, expected: str | None) -> None:
    references = classify(text.encode()).shows
    changed = edited(text.encode(), [reference.by(b"Q") for reference in references]).decode()
    assert changed == (text if expected is None else expected)


@given(
    parts=st.lists(st.tuples(st.text("aü€", max_size=3), st.text("xé", min_size=1, max_size=3)), max_size=4),
    tail=st.text("aü€", max_size=3),
    new=st.text("yö", max_size=6),
)
def test_places_are_those_of_the_text_before(parts: list[tuple[str, str]], tail: str, new: str) -> None:
    text, changed = "", ""
    edits: list[tuple[int, int, bytes]] = []
    origins: list[int] = []
    for kept, old in parts:
        origins += range(len(text) + 1, len(text) + len(kept) + 1)
        text += kept
        origins += [len(text) + 1] * len(new)
        changed += kept + new
        start = len(text.encode())
        text += old
        edits.append((start, len(text.encode()), new.encode()))
    origins += range(len(text) + 1, len(text) + len(tail) + 1)
    text, changed = text + tail, changed + tail
    assert edited(text.encode(), edits).decode() == changed
    assert [place_before(text.encode(), edits, place + 1) for place in range(len(changed))] == origins


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select current_setting('app.tenant', true)", True),
        ("select current_setting( $1 )", True),
        ("show app.tenant", True),
        ('SHOW "app" . tenant', True),
        ("select current_schemas(true)", True),
        ("select current_setting('timezone')", False),
        ("show timezone", False),
        ("select 1", False),
    ],
)
def test_who_looks_at_what_others_leave_is_seen(text: str, expected: bool) -> None:
    statement = classify(text.encode())
    assert (statement.looks and looks_closely(text.encode()) is not None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set app.tenant to 'a'", {"app.tenant"}),
        ("set local App.Tenant to 'a'", {"app.tenant"}),
        ("select set_config('app.tenant', $1, true)", {"app.tenant"}),
        ("select set_config($1, $2, true)", set()),  # its Bind says more
        ("select set_config(n, 'a', true) from t", {"?"}),
        ("create temp table t (a int)", {"pg_temp"}),
        ("set timezone to 'UTC'", set()),
    ],
)
def test_what_a_statement_leaves_for_good_is_seen(text: str, expected: set[str]) -> None:
    assert classify(text.encode()).leaves == expected
