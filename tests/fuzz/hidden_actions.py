"""Actions of which little shows: half of it holds although it fails, effects inside of others, cancel requests."""

from __future__ import annotations

from tests.fuzz.actions import Action, Draw, carried, executed, group, pick
from tests.fuzz.script import Message

FAILS = "1 / (id - 1) from public.word where id = 1"
"""The end of a SELECT that fails when it is executed, behind what its first columns have done."""

QUIET = "analyze, costs off, timing off, summary off, buffers off"


@group("half done", 4)
def half_done(draw: Draw, client: int) -> Action:
    """A statement or a text that fails when it has done something."""
    raising = "raise exception 'half-way'; end $$"
    name, text = pick(
        draw,
        [
            ("lock", f"select pg_advisory_lock({100 + client}), {FAILS}"),
            ("try lock", f"select pg_try_advisory_lock(1), {FAILS}"),
            ("set_config", f"select set_config('timezone', 'Asia/Tokyo', false), {FAILS}"),
            ("custom", f"select set_config('app.tenant', 'a', false), {FAILS}"),
            ("nextval", f"select nextval('public.seq{client}'), {FAILS}"),
            ("do commits", f"do $$ begin perform set_config('work_mem', '5MB', false); commit; {raising}"),
            ("do locks", f"do $$ begin perform pg_advisory_lock({100 + client}); {raising}"),
            ("do makes", f"do $$ begin create temp table tmp (a int); commit; {raising}"),
            ("procedure", "call public.remember_and_fail('work_mem', '5MB')"),
            ("function", f"select public.remember('work_mem', '5MB'), {FAILS}"),
            ("prepare", "prepare q1 as select 'half'; select 1/0"),
            ("deallocate", "deallocate q1; select 1/0"),
            ("listen", "listen ch; select 1/0"),
            ("committed listen", "begin; listen ch; commit; select 1/0"),
            ("temp", "create temp table tmp (a int); select 1/0"),
            ("at commit", f"begin; set work_mem to '6MB'; insert into public.late{client} values (1), (1); commit"),
            ("late", f"insert into public.late{client} values (2), (2)"),
            ("close all", "close all; select 1/0"),
            ("discard in text", "select 1; discard all"),
            ("unlisten", "unlisten *; select 1/0"),
        ],
    )
    return name, [("Query", text)] if ";" in text and not text.startswith("do") else carried(draw, text)


@group("inside", 3)
def inside(draw: Draw, client: int) -> Action:
    """Effects on the session inside of other statements."""
    name, value = pick(draw, [("timezone", "Asia/Tokyo"), ("work_mem", "5MB"), ("app.tenant", "b")])
    call = f"set_config('{name}', '{value}', false)"
    form, text = pick(
        draw,
        [
            ("explain", f"explain ({QUIET}) select {call}"),
            ("cte", f"with c as materialized (select {call} as v) select v from c"),
            ("values", f"values ({call})"),
            ("returning", f"update public.t{client} set v = v where id = 1 returning {call}"),
            ("insert", f"insert into public.t{client} select 20, {call}"),
            ("copy", f"copy (select {call}) to stdout"),
            ("case", f"select case when {client} > 5 then {call} end"),
            ("subquery", f"select (select {call})"),
            ("union", f"select {call} union all select 'x'"),
            ("limit", f"select {call} limit 0"),
            ("twice", f"select {call}, set_config('{name}', current_setting('{name}'), false)"),
            ("procedure", f"call public.remember_it('{name}', '{value}')"),
            ("lock in cte", f"with c as materialized (select pg_advisory_lock({100 + client})) select 1 from c"),
            ("execute", "execute q1"),
            ("prepare", f"prepare q1 as select {call}"),
            ("cursor", f"declare cur cursor for select {call}"),
            ("fetch", "fetch 1 from cur"),
        ],
    )
    return form, carried(draw, text)


@group("called", 2)
def called(draw: Draw, client: int) -> Action:
    """Functions with effects, called by FunctionCall."""
    name, call = pick(
        draw,
        [
            ("set_config", ("FunctionCall", 2078, ("work_mem", "5MB", "false"))),
            ("custom", ("FunctionCall", 2078, ("app.tenant", "a", "false"))),
            ("lock", ("FunctionCall", 2880, (str(100 + client),))),
            ("try lock", ("FunctionCall", 2882, ("1",))),
            ("unlock", ("FunctionCall", 2884, (str(100 + client),))),
            ("unlock shared key", ("FunctionCall", 2884, ("1",))),
            ("wrong", ("FunctionCall", 2880, ("x",))),
        ],
    )
    return name, [call]


@group("hidden write", 2)
def hidden_write(draw: Draw, client: int) -> Action:
    """Writes that a cache must notice."""
    table = f"public.t{client}"
    name, text = pick(
        draw,
        [
            ("do", f"do $$ begin update {table} set v = v || 'd'; end $$"),
            ("function", f"select public.touch('{table}')"),
            ("cte", f"with w as (insert into {table} values (30, 'w') returning id) select id from w"),
            ("cte delete", f"with w as (delete from {table} where id > 1 returning id) select count(*) from w"),
            ("copy", f"copy (update {table} set v = v || 'c' returning id) to stdout"),
            ("explain", f"explain ({QUIET}) delete from {table} where id > 1"),
            ("read", f"select id, v from {table} order by id"),
            ("read another's", f"select id, v from public.t{(client + 1) % 3} order by id"),
            ("count another's", f"select count(*) from public.t{(client + 2) % 3}"),
        ],
    )
    return name, carried(draw, text)


@group("cancel", 3)
def cancel(draw: Draw, client: int) -> Action:
    """Cancel requests: while a query runs, and at any other time, when they must hit nothing."""
    sleep = "select pg_sleep(20)"
    lock = f"select pg_advisory_lock({100 + client}), pg_sleep(20)"
    sends: list[Message]
    name, sends = pick(
        draw,
        [
            ("at rest", []),
            ("a query", [("Query", sleep)]),
            ("a text", [("Query", f"set timezone to 'Asia/Tokyo'; {sleep}")]),
            ("a batch", [*executed("select 1"), *executed(sleep), *executed("select 'skipped'"), ("Sync",)]),
            ("a lock", [("Query", lock)]),
            ("a block", [("Query", f"begin; {sleep}")]),
            ("a DO", [("Query", "do $$ begin perform pg_sleep(20); end $$")]),
            ("a COPY out", [("Query", f"copy ({sleep}) to stdout")]),
        ],
    )
    return name, [*sends, ("Cancel",), *pick(draw, [[], [], [("Query", "select 'behind'")] if sends else []])]


@group("timeout", 1)
def timeout(draw: Draw, client: int) -> Action:
    text = pick(
        draw,
        [
            "set statement_timeout to '30ms'; select pg_sleep(20)",
            "begin; set local statement_timeout to '30ms'; select pg_sleep(20)",
            f"begin; set local statement_timeout to '30ms'; select pg_advisory_lock({100 + client}), pg_sleep(20)",
        ],
    )
    return "statement", [("Query", text)]


@group("load", 1)
def load(draw: Draw, client: int) -> Action:
    return "load", carried(draw, pick(draw, ["load 'plpgsql'", "load 'no_such_library'"]))
