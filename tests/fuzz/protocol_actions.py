"""Actions of the protocol itself: statements and portals, pipelines, several statements in one Query, COPY."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.actions import Action, Draw, carried, executed, group, pick
from tests.fuzz.script import Message

STATEMENTS = ["s1", "s2", "s3"]
TEXTS = [
    "select {client}",
    "select $1::int + 1",
    "select id, v from word where id = $1",
    "select id, v from public.t{client} order by id",
    "select * from public.t{client} order by id",
    "update public.t{client} set v = $1 where id = 1",
    "select current_setting('timezone')",
    "set timezone to 'Asia/Tokyo'",
    "selec",
    "select * from no_such_table",
    "",
    "begin",
    "commit",
    "rollback",
]


def _text(draw: Draw, client: int) -> str:
    return str(pick(draw, TEXTS)).format(client=client)


def _values(draw: Draw) -> tuple[str | None, ...]:
    return tuple(pick(draw, [(), ("1",), ("2",), (None,), ("x",), ("1", "2")]))


@group("statement", 8)
def statement(draw: Draw, client: int) -> Action:
    return _use(draw, client, pick(draw, STATEMENTS))


@group("unnamed statement", 3)
def unnamed_statement(draw: Draw, client: int) -> Action:
    return _use(draw, client, "")


def _use(draw: Draw, client: int, name: str) -> Action:
    """One use of a statement that may or may not be prepared, Sync included."""
    use = pick(draw, ["parse", "bind", "describe", "close", "parse and run", "describe portal", "binary"])
    messages: list[Message]
    if use == "parse":
        messages = [("Parse", name, _text(draw, client), pick(draw, [(), (23,), (25,)]))]
    elif use == "bind":
        messages = [("Bind", "", name, _values(draw)), ("Execute", "")]
    elif use == "describe":
        messages = [("Describe", "S", name)]
    elif use == "close":
        messages = [("Close", "S", name)]
    elif use == "describe portal":
        messages = [("Bind", "", name, _values(draw)), ("Describe", "P", ""), ("Execute", "")]
    elif use == "binary":
        messages = [("Bind", "", name, _values(draw), (1,)), ("Describe", "P", ""), ("Execute", "")]
    else:
        messages = [("Parse", name, _text(draw, client)), ("Bind", "", name, _values(draw)), ("Execute", "")]
    return use, [*messages, ("Sync",)]


@group("portal", 4)
def portal(draw: Draw, client: int) -> Action:
    """Portals with row limits; a Flush leaves the batch open."""
    name = pick(draw, ["p1", "", "p2"])
    use = pick(draw, ["open", "more", "all", "close", "describe", "open and close"])
    rows = pick(
        draw,
        [
            "select id, v from public.word order by id",
            "select id, v from public.word order by id",
            f"update public.t{client} set v = v || 'p' returning id, v",
            "select set_config('timezone', 'Asia/Tokyo', false) from public.word",
            "set timezone to 'Asia/Tokyo'",
            "select 10 / (3 - id) from public.word order by id",
            "begin",
        ],
    )
    messages: list[Message]
    if use == "open":
        messages = [("Parse", "", rows), ("Bind", name, ""), ("Execute", name, 2)]
    elif use == "more":
        messages = [("Execute", name, 2)]
    elif use == "all":
        messages = [("Execute", name)]
    elif use == "close":
        messages = [("Close", "P", name)]
    elif use == "describe":
        messages = [("Describe", "P", name)]
    else:
        messages = [("Parse", "", rows), ("Bind", name, ""), ("Execute", name, 1), ("Close", "P", name)]
    return use, [*messages, *pick(draw, [[("Sync",)], [("Flush",)], []])]


@group("flush", 3)
def flush(draw: Draw, client: int) -> Action:
    """An unfinished batch, or the end of one."""
    name = pick(draw, [*STATEMENTS, ""])
    use = pick(draw, ["sync", "parse", "run", "describe", "flush", "fail", "close"])
    messages: list[Message]
    if use == "sync":
        return use, [("Sync",)]
    if use == "parse":
        messages = [("Parse", name, _text(draw, client))]
    elif use == "run":
        messages = [*executed(_text(draw, client))]
    elif use == "describe":
        messages = [("Describe", "S", name)]
    elif use == "fail":
        messages = executed("select 1/0")
    elif use == "close":
        messages = [("Close", "S", name)]
    else:
        messages = []
    return use, [*messages, ("Flush",)]


@group("pipeline", 4)
def pipeline(draw: Draw, client: int) -> Action:
    """Several batches in one write, some of which fail."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(2, 4))):
        part = pick(
            draw,
            ["run", "fail", "prepare", "use", "two", "begin", "commit", "insert", "set", "savepoint", "query", "call",
             "portal", "copy", "local"],
        )  # fmt: skip
        if part in ("query", "call") and messages:
            messages.append(("Sync",))
        name = pick(draw, STATEMENTS)
        messages += {
            "run": executed("select 1"),
            "fail": executed("select 1/0") + executed("select 'skipped'"),
            "prepare": [("Parse", name, _text(draw, client)), ("Describe", "S", name)],
            "use": [("Bind", "", name, _values(draw)), ("Execute", "")],
            "two": executed(f"update public.t{client} set v = v || '.'") + executed("select 2"),
            "begin": executed("begin"),
            "commit": executed("commit"),
            "insert": executed(f"insert into public.t{client} values (3, 'piped')"),
            "set": executed("set timezone to 'Asia/Tokyo'"),
            "local": executed("set local timezone to 'Asia/Tokyo'"),
            "savepoint": executed(pick(draw, ["savepoint a", "rollback to a", "release a"])),
            "query": [("Query", pick(draw, ["select 'simple'", "reset timezone", "begin; select 1/0", "rollback"]))],
            "call": [("FunctionCall", 177, ("40", "2"))],
            "portal": [
                ("Parse", "", "select id from public.word order by id"),
                ("Bind", "p1", ""),
                ("Execute", "p1", 2),
            ],
            "copy": executed("copy (select 10 / (4 - id) from public.word order by id) to stdout"),
        }[part]
        messages += pick(draw, [[("Sync",)], [("Sync",)], [("Flush",)], []])
    return "pipeline", [*messages, ("Sync",)]


@group("pipelined parse", 2)
def pipelined_parse(draw: Draw, client: int) -> Action:
    """Batches in one write that only close and prepare, of which a pooler may know the answers."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        name = pick(draw, STATEMENTS)
        messages += [("Close", "S", name), ("Parse", name, "select 'anew'"), ("Sync",)]
    return "prepare", [*messages, *executed("select 1"), ("Sync",)]


@group("set in batch", 2)
def set_in_batch(draw: Draw, client: int) -> Action:
    """A SET in one implicit transaction with others, or bound and not executed."""
    setting: list[Message] = executed("set timezone to 'Asia/Tokyo'")
    name, messages = pick(
        draw,
        [
            ("alone", setting),
            ("then fails", [*setting, *executed("select 1/0")]),
            ("not executed", setting[:-1]),
            ("committed, then fails", [*executed("begin"), *setting, *executed("commit"), *executed("select 1/0")]),
            ("begun", [*executed("begin"), *setting]),
        ],
    )
    return name, [*messages, ("Sync",)]


@group("query in batch", 1)
def query_in_batch(draw: Draw, client: int) -> Action:
    """A simple Query or a FunctionCall behind messages without a Sync."""
    name, message = pick(
        draw, [("query", ("Query", "select 'simple'")), ("function call", ("FunctionCall", 177, ("40", "2")))]
    )
    return name, [*executed("select 1"), message, *pick(draw, [[], [("Sync",)]])]


@group("multi", 4)
def multi(draw: Draw, client: int) -> Action:
    """Several statements in one Query: an implicit transaction, unless they say otherwise."""
    parts = draw(
        st.lists(
            st.sampled_from(
                [
                    "select 1",
                    "set timezone to 'Asia/Tokyo'",
                    f"insert into public.t{client} values (5, 'multi')",
                    "select 1/0",
                    "begin",
                    "commit",
                    "rollback",
                    "savepoint a",
                    "rollback to a",
                    "set local work_mem to '3MB'",
                    "reset timezone",
                    "set app.tenant to 'b'",
                    "selec",
                    "",
                    "select v from public.word where id = 3",
                ]
            ),
            min_size=2,
            max_size=4,
        )
    )
    return "several", [("Query", "; ".join(parts))]


@group("copy", 4)
def copy(draw: Draw, client: int) -> Action:
    return _copy(draw, client, extended=False)


@group("copy extended", 2)
def copy_extended(draw: Draw, client: int) -> Action:
    return _copy(draw, client, extended=True)


def _copy(draw: Draw, client: int, *, extended: bool) -> Action:
    table = f"public.t{client}"
    use = pick(
        draw,
        [
            "out",
            "in",
            "in fails",
            "in bad row",
            "start",
            "go on",
            "end",
            "fail",
            "out query",
            "in duplicate",
            "out fails",
            "out returning",
            "in no table",
            "and more",
        ],
    )
    into = f"copy {table} from stdin"
    if use == "out":
        return use, carried(draw, f"copy {table} to stdout")
    if use == "out query":
        return use, carried(draw, "copy (select id, v from public.word order by id) to stdout (format csv)")
    if use == "out fails":
        return use, carried(draw, "copy (select 10 / (4 - id) from public.word order by id) to stdout")
    if use == "out returning":
        return use, carried(draw, f"copy (update {table} set v = v || 'o' returning id) to stdout")
    if use == "and more":
        text = f"set timezone to 'Asia/Tokyo'; {into}; select 'behind'; copy {table} to stdout"
        return use, [("Query", text), ("CopyData", pick(draw, ["21\tx\n", "bad\n"])), ("CopyDone",)]
    if use == "in no table":
        return use, carried(draw, "copy no_such_table from stdin")
    if use == "go on":
        return use, [("CopyData", pick(draw, ["6\tsix\n", "bad row\n", "7\tse"]))]
    if use == "end":
        return use, [("CopyDone",), ("Sync",)]
    if use == "fail":
        return use, [("CopyFail", "gave up"), ("Sync",)]
    begin: list[Message] = [*executed(into), ("Sync",)] if extended else [("Query", into)]
    if use == "start":
        return use, begin
    data = {"in": "8\teight\n", "in fails": "8\teight\n", "in bad row": "x\ty\n", "in duplicate": "1\tone\n"}[use]
    end: Message = ("CopyFail", "no more") if use == "in fails" else ("CopyDone",)
    return use, [*begin, ("CopyData", data), end, *([("Sync",)] if extended else [])]


@group("function call", 1)
def function_call(draw: Draw, client: int) -> Action:
    name, call = pick(
        draw,
        [
            ("int4pl", ("FunctionCall", 177, ("40", "2"))),
            ("unknown", ("FunctionCall", 1, ())),
        ],
    )
    return name, [call]
