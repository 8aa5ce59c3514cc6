"""What a FunctionCall does to its session: which functions are known by their OIDs, what is read of its arguments."""

from __future__ import annotations

from struct import pack
from typing import Any, cast

import pytest

from pooler import function_call
from pooler.function_call import FIRST_USER_OID
from pooler.sql.functions import BUILT_IN_PINS, RUNS_TEXT, SLOT_MAKERS
from pooler.sql.statement import Part, PinKind
from pooler.sql.traces import UNKNOWN
from tests.support.postgres import Server

SET_CONFIG = 2078
NOBODY = cast(Any, None)


def call(*arguments: bytes | None, formats: tuple[int, ...] = (), oid: int = SET_CONFIG) -> bytes:
    """The body of a FunctionCall."""
    body = pack(f"!IH{len(formats)}HH", oid, len(formats), *formats, len(arguments))
    for argument in arguments:
        body += pack("!i", -1) if argument is None else pack("!i", len(argument)) + argument
    return body + pack("!H", 0)


def setting(body: bytes) -> Part:
    return function_call._setting(body, int.from_bytes(body[4:6], "big"))


def test_the_functions_known_by_their_oids_are_those_that_statements_are_known_by(origin: Server) -> None:
    """One missing would leave its effects to the next client of the connection."""
    known = function_call._PARTS
    calls = "select oid::int, proname from pg_proc where oid < 16384 and (proname = any (%s) or oid = any (%s))"
    found = dict(cast(Any, origin.execute(calls, [*BUILT_IN_PINS, *SLOT_MAKERS, *RUNS_TEXT], list(known))))
    assert {oid: name for oid, name in found.items() if oid not in known} == {}
    for oid, name in found.items():
        if name in BUILT_IN_PINS:
            assert known[oid].pins == {PinKind[BUILT_IN_PINS[name]]}, name
        elif name in SLOT_MAKERS:
            assert known[oid].pins == {PinKind.REPLICATION}, name
        elif name in RUNS_TEXT:
            assert known[oid].pins == {PinKind.HIDDEN}, name
        else:
            assert name.startswith("pg_advisory_unlock"), name
            assert (known[oid].pins, known[oid].releases) == (frozenset(), {PinKind.ADVISORY})


def test_every_function_that_unlocks_is_known(origin: Server) -> None:
    unlocks = origin.execute(
        "select oid::int from pg_proc where proname like 'pg_advisory_unlock%%' and oid < %s", 16384
    )
    assert {oid for (oid,) in unlocks} <= function_call._PARTS.keys()


def test_the_functions_that_draw_are_nextval_and_setval(origin: Server) -> None:
    drawing = origin.execute("select oid::int from pg_proc where proname in ('nextval', 'setval') and oid < %s", 16384)
    assert {oid for (oid,) in drawing} == function_call._DRAWS
    ((oid,),) = origin.execute("select 'set_config'::regproc::oid::int")
    assert oid == function_call._SET_CONFIG == SET_CONFIG


def test_what_outlives_a_failure_is_what_no_rollback_takes_back() -> None:
    for part in function_call._PARTS.values():
        assert part.survives == part.pins - {PinKind.SETTING, PinKind.SEQUENCE}


@pytest.mark.parametrize(
    ("body", "leaves"),
    [
        (call(b"work_mem", b"5MB", b"false"), set()),
        (call(b"app.tenant", b"a", b"false"), {"app.tenant"}),
        (call(b"App.Tenant", b"a", b"false"), {"app.tenant"}),
        (call(b"app.tenant", b"a", b"\0", formats=(1,)), {"app.tenant"}),
        (call(b"app.tenant", b"a", b"\0", formats=(0, 0, 1)), {"app.tenant"}),
        (call(None, b"a", b"false"), {UNKNOWN}),
        (call(), {UNKNOWN}),
        (call("app.größe".encode(), b"a", b"false"), {"app.größe"}),
        (call(b"app.\xff", b"a", b"false"), {"app.�"}),
    ],
)
def test_set_config_pins_and_leaves_the_name_of_a_custom_setting(body: bytes, leaves: set[str]) -> None:
    part = setting(body)
    assert (part.pins, part.survives, part.leaves) == ({PinKind.SETTING}, frozenset(), leaves)


@pytest.mark.parametrize("length", range(6))
def test_a_message_that_ends_before_its_oid_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        function_call.submit(NOBODY, b"F\0\0\0\x09" + bytes(length), 0, 5 + length)


@pytest.mark.parametrize("end", range(6, len(call(b"app.tenant", b"a", b"false")), 3))
def test_what_is_cut_short_is_the_origins_to_refuse(end: int) -> None:
    """Nothing is read past a message's end; it pins all the same, since nobody knows what the origin makes of it."""
    assert setting(call(b"app.tenant", b"a", b"false")[:end]).pins == {PinKind.SETTING}


def test_functions_of_ones_own_may_do_anything() -> None:
    assert FIRST_USER_OID == 16384
    assert function_call._UNKNOWN.pins == function_call._UNKNOWN.survives == {PinKind.HIDDEN}
    assert function_call._UNKNOWN.leaves == {UNKNOWN}
