"""Calls of pg_cancel_backend and pg_terminate_backend that are a whole statement: whom they name, and how.

Lives here: recognising them, and reading their arguments. Not here: what is done about them (`pooler.signals`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

CANCEL = "pg_cancel_backend"
TERMINATE = "pg_terminate_backend"

INT2, INT4, INT8 = 21, 23, 20
"""Their types' OIDs, of which 0 leaves the choice to PostgreSQL."""
_SIZES = {INT2: 2, INT4: 4, INT8: 8}
_CASTS = {"int2": INT2, "int4": INT4, "int8": INT8}
_WIDTHS = (INT2, INT4, INT8)

_DIGITS = re.compile(rb"[0-9]{1,18}")
_LONGEST_NAME = 63

_ALLOWED = {
    "SelectStmt": {"target_list", "limit_option", "op"},
    "ResTarget": {"name", "val", "location"},
    "FuncCall": {"funcname", "args", "funcformat", "location"},
}
"""What the nodes of such a statement have, and no more."""


class Call(NamedTuple):
    """What one execution asks for: `timeout` in milliseconds is how long a termination is waited for."""

    function: str
    pid: int
    timeout: int = 0


class Parameter(NamedTuple):
    """An argument that comes with Bind: its number from 1, the type that PostgreSQL gives it, and those it takes."""

    number: int
    type: int
    takes: tuple[int, ...]


class Signal(NamedTuple):
    """The statement. `column` is what its result's is called."""

    function: str
    column: bytes
    pid: int | Parameter
    timeout: int | Parameter = 0

    def types(self, said: bytes) -> list[int] | None:
        """The types of its parameters, where a Parse says `said` of them; None where PostgreSQL must judge that."""
        declared = _oids(said)
        if declared is None:
            return None
        wanted = {each.number: each for each in (self.pid, self.timeout) if isinstance(each, Parameter)}
        if sorted(wanted) != list(range(1, len(wanted) + 1)) or len(declared) > len(wanted):
            return None
        declared += [0] * (len(wanted) - len(declared))
        types = []
        for number, oid in enumerate(declared, 1):
            if oid not in (0, *wanted[number].takes):
                return None
            types.append(oid or wanted[number].type)
        return types

    def call(self, types: Sequence[int] = (), values: Sequence[tuple[int, bytes | None]] = ()) -> Call | None:
        """The call with these parameters, each (format, value); None where PostgreSQL must judge it."""
        if len(types) != len(values):
            return None
        read = [_number(oid, *value) for oid, value in zip(types, values, strict=True)]
        numbers = []
        for argument in (self.pid, self.timeout):
            if not isinstance(argument, Parameter):
                number: int | None = argument
            elif argument.number > len(read):
                return None
            else:
                number = read[argument.number - 1]
            if number is None or number < 0:
                return None
            numbers.append(number)
        return Call(self.function, *numbers)


def _oids(said: bytes) -> list[int] | None:
    """The type OIDs at the end of a Parse."""
    count = int.from_bytes(said[:2], "big")
    if len(said) != 2 + 4 * count:
        return None
    return [int.from_bytes(said[at : at + 4], "big") for at in range(2, len(said), 4)]


def _number(oid: int, code: int, value: bytes | None) -> int | None:
    if value is None:
        return None
    if code == 0:
        return int(value) if _DIGITS.fullmatch(value) else None
    if code != 1 or len(value) != _SIZES[oid]:
        return None
    return int.from_bytes(value, "big", signed=True)


def signal_of(raw: Sequence[Any]) -> Signal | None:
    """What a text means, of which `raw` are the statements, where it is nothing but such a call."""
    if len(raw) != 1 or raw[0].stmt.WhichOneof("node") != "select_stmt":
        return None
    select = raw[0].stmt.select_stmt
    if not _is_bare(select) or len(select.target_list) != 1:
        return None
    target = select.target_list[0].res_target
    if not _is_bare(target) or target.val.WhichOneof("node") != "func_call":
        return None
    call = target.val.func_call
    names = [name.string.sval for name in call.funcname]
    if not _is_bare(call) or (len(names) > 1 and names[:-1] != ["pg_catalog"]):
        return None
    function = names[-1]
    if function not in (CANCEL, TERMINATE) or not 1 <= len(call.args) <= (1 if function == CANCEL else 2):
        return None
    column = target.name or function
    if not column.isascii() or len(column) > _LONGEST_NAME:
        return None
    arguments = [_argument(call.args[0], INT4)]
    if len(call.args) == 2:
        arguments.append(_argument(call.args[1], INT8))
    if None in arguments:
        return None
    return Signal(function, column.encode(), *arguments)  # type: ignore[arg-type]


def _is_bare(node: Any) -> bool:
    return {found.name for found, _ in node.ListFields()} <= _ALLOWED[node.DESCRIPTOR.name]


def _argument(node: Any, wanted: int) -> int | Parameter | None:
    """A constant or a parameter, cast or not, that can be given to an argument of type `wanted`."""
    kind, given = node.WhichOneof("node"), wanted
    takes = _WIDTHS[: _WIDTHS.index(wanted) + 1]  # what PostgreSQL widens by itself
    if kind == "type_cast":
        to = node.type_cast.type_name
        names = [name.string.sval for name in to.names]
        given = _CASTS.get(names[-1], 0) if names[:-1] in ([], ["pg_catalog"]) and not to.array_bounds else 0
        if given not in takes:
            return None
        takes, node = _WIDTHS, node.type_cast.arg
        kind = node.WhichOneof("node")
    if kind == "param_ref":
        return Parameter(node.param_ref.number, given, takes)
    if kind != "a_const":
        return None
    return _constant(node.a_const)


def _constant(constant: Any) -> int | None:
    kind = constant.WhichOneof("val")
    if kind == "ival":
        return int(constant.ival.ival)
    if kind == "sval" and _DIGITS.fullmatch(constant.sval.sval.encode()):
        return int(constant.sval.sval)
    return None
