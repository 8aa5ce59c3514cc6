"""What one statement text means to a pooler and to a cache: its session effects, whether it writes, whether it may be
cached.

`Classifier` is what the hot path calls: it screens with one regular expression, remembers by text, and parses only
what it must. `classify` is the exact answer. Both fail closed: what cannot be understood pins, writes and is not
cached.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any

import postgast
from google.protobuf.message import Message

from pooler.sql.functions import READ_ONLY, SAFE, SAFE_TYPES

Name = tuple[str | None, str]
"""(schema or None, name), both as the parser folds them."""


class Effect(enum.Enum):
    """What a statement does to its session."""

    NONE = enum.auto()
    FOLLOW = enum.auto()
    """Settings, which can follow the client to another connection."""
    PIN = enum.auto()
    """State that stays on the connection."""


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One SET or RESET. `apply_sql`, the client's text, makes it so; None: back to the default. `all`: RESET ALL."""

    name: str
    apply_sql: str | None
    all: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """What a text means. Compared by identity: texts that differ only in literals may share one.

    Attributes:
      settings: with Effect.FOLLOW, what it sets.
      pin_reason: with Effect.PIN, why, in words for an operator.
      discard_all: it is DISCARD ALL, which ends every pin.
      deallocates: the prepared statement that it deallocates, as the client named it; b"" for all of them.
      changes_schema: after it a name may mean something else: DDL, or what may hide DDL.
      reads_only: it writes nothing that a cached answer could depend on.
      cacheable: its answer may be cached, if the catalog agrees about `relations`, `functions`, `columns` and
      `operators`.
      why_not: where it is not cacheable, the reason.
    """

    effect: Effect = Effect.NONE
    settings: tuple[SettingChange, ...] = ()
    pin_reason: str = ""
    discard_all: bool = False
    deallocates: bytes | None = None
    changes_schema: bool = False
    reads_only: bool = False
    cacheable: bool = False
    why_not: str = ""
    relations: frozenset[Name] = frozenset()
    functions: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()


UNKNOWN = Statement(why_not="not examined: the cache is off")
"""A text without session effects, where nobody needs to know more."""

_SCREEN = re.compile(
    rb"""(?: ^ | ; | \*/ | \n ) \s*
         (?: set | reset | listen | declare | prepare | execute | deallocate | discard | load
             | create | alter | drop | comment | grant | revoke | import | reassign | security | do | call ) \b
       | \b (?: temp | temporary | pg_temp\w* | \w*advisory\w* | set_config | currval | lastval | setseed | dblink\w*
       ) \b | pg_temp | u&\"
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TEMPORAL = re.compile(rb"now|today|tomorrow|yesterday", re.IGNORECASE)
_TEMPORAL_TEXT = re.compile("now|today|tomorrow|yesterday", re.IGNORECASE)
_ESCAPED = re.compile(rb"\b[eEuU]&?'")

# What a cacheable statement may be made of; anything else keeps it out of the cache.
_CACHEABLE_NODES = frozenset(
    """
    A_ArrayExpr A_Const A_Expr A_Indices A_Indirection A_Star Alias ArrayExpr BitString BoolExpr Boolean BooleanTest
    CaseExpr CaseWhen CoalesceExpr CollateClause ColumnRef CommonTableExpr Float FuncCall GroupingSet Integer JoinExpr
    List MinMaxExpr NamedArgExpr Node NullTest ParamRef RangeFunction RangeSubselect RangeVar ResTarget RowExpr
    SelectStmt SortBy String SubLink TypeCast TypeName WindowDef WithClause
    """.split()
)
_HARMLESS = frozenset(
    """
    CheckPointStmt ClosePortalStmt DeallocateStmt DiscardStmt FetchStmt ListenStmt LoadStmt NotifyStmt UnlistenStmt
    VacuumStmt VariableShowStmt
    """.split()
)
_DATA_ONLY = frozenset(
    "InsertStmt UpdateStmt DeleteStmt MergeStmt CopyStmt TruncateStmt PrepareStmt ExecuteStmt DeclareCursorStmt "
    "ExplainStmt TransactionStmt LockStmt RefreshMatViewStmt ReindexStmt ClusterStmt".split()
)
_WITH_HOLD = 0x0020


def classify(text: bytes) -> Statement:
    """The exact meaning of `text`. Never raises."""
    try:
        decoded = text.decode()
        statements = [item.stmt for item in postgast.parse(decoded).stmts]
    except Exception:
        tripped = _SCREEN.search(text) is not None
        effect = Effect.PIN if tripped else Effect.NONE
        return Statement(
            effect=effect,
            pin_reason="unparsable" if tripped else "",
            why_not="the parser does not understand it",
        )
    own = decoded.strip().rstrip("; \t\r\n")
    facts = [_examine(statement, own) for statement in statements]
    if not facts:
        return Statement(reads_only=True, why_not="empty")
    changes = [fact.change for fact in facts if fact.change is not None]
    pins = [fact.pin for fact in facts if fact.pin]
    if b"pg_temp" in text.lower() and not pins:
        pins = ["temporary object"]
    if changes and len(facts) > 1:
        pins.append("SET among several statements")
    why_not = facts[0].why_not if len(facts) == 1 else "several statements"
    return Statement(
        effect=Effect.PIN
        if pins or any(fact.discard_all for fact in facts)
        else Effect.FOLLOW
        if changes
        else Effect.NONE,
        settings=tuple(changes),
        pin_reason=pins[0] if pins else "",
        discard_all=len(facts) == 1 and facts[0].discard_all,
        deallocates=facts[0].deallocates if len(facts) == 1 else None,
        changes_schema=any(fact.changes_schema for fact in facts),
        reads_only=all(fact.reads_only for fact in facts),
        cacheable=not why_not,
        why_not=why_not,
        relations=frozenset(facts[0].relations - facts[0].local_names),
        functions=frozenset(facts[0].functions),
        columns=frozenset(facts[0].columns),
        operators=frozenset(facts[0].operators),
    )


class _Facts:
    """What a walk over one statement's tree has found."""

    def __init__(self) -> None:
        self.change: SettingChange | None = None
        self.pin = ""
        self.discard_all = False
        self.deallocates: bytes | None = None
        self.changes_schema = False
        self.reads_only = False
        self.why_not = ""
        self.relations: set[Name] = set()
        self.local_names: set[Name] = set()
        self.functions: set[str] = set()
        self.columns: set[str] = set()
        self.operators: set[str] = set()
        self.writes = False

    def refuse(self, reason: str) -> None:
        """Not cacheable; the first reason stands."""
        self.why_not = self.why_not or reason


def _examine(node: Message, text: str) -> _Facts:
    facts = _Facts()
    kind = node.WhichOneof("node") or ""
    statement = getattr(node, kind)
    name = statement.DESCRIPTOR.name
    _walk(statement, facts)
    if name == "SelectStmt":
        facts.reads_only = not facts.writes
        return facts
    facts.refuse(f"it is no SELECT ({name})")
    if name == "VariableSetStmt":
        facts.reads_only = True
        _examine_set(statement, text, facts)
    elif name == "TransactionStmt":
        facts.reads_only = "PREPARED" not in _enum_name(statement, "kind")
    elif name == "ExplainStmt":
        facts.reads_only = not facts.writes and all(
            option.def_elem.defname.lower() != "analyze" for option in statement.options
        )
    elif name == "DeclareCursorStmt":
        facts.reads_only = not facts.writes
        if statement.options & _WITH_HOLD:
            facts.pin = "cursor WITH HOLD"
    elif name in _HARMLESS:
        facts.reads_only = True
    facts.changes_schema = not facts.reads_only and name not in _DATA_ONLY
    if name == "ListenStmt":
        facts.pin = "LISTEN"
    elif name == "LoadStmt":
        facts.pin = "LOAD"
    elif name in ("PrepareStmt", "ExecuteStmt"):
        facts.pin = "PREPARE"
    elif name == "DeallocateStmt":
        facts.deallocates = statement.name.encode()
    elif name == "DiscardStmt":
        facts.discard_all = _enum_name(statement, "target") == "DISCARD_ALL"
    elif name == "CopyStmt" and not statement.is_from and not facts.writes and not statement.is_program:
        facts.reads_only = True
    return facts


def _examine_set(statement: Any, text: str, facts: _Facts) -> None:
    kind = _enum_name(statement, "kind")
    name = statement.name.lower()
    if statement.is_local or name in (
        "transaction",
        "transaction snapshot",
        "transaction_isolation",
        "transaction_read_only",
    ):
        return  # ends with its transaction
    if kind == "VAR_RESET_ALL":
        facts.change = SettingChange("", None, all=True)
    elif kind in ("VAR_SET_DEFAULT", "VAR_RESET"):
        facts.change = SettingChange(name, None)
    elif kind == "VAR_SET_VALUE" and name != "seed":
        facts.change = SettingChange(name, text)
    else:
        facts.pin = "SET that cannot follow"


def _enum_name(message: Any, field: str) -> str:
    value = getattr(message, field)
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[value].name)


def _walk(root: Any, facts: _Facts) -> None:
    """Visit every node under `root`."""
    stack = [root]
    while stack:
        message = stack.pop()
        name = message.DESCRIPTOR.name
        if name not in _CACHEABLE_NODES:
            _refuse_node(name, facts)
        visit = _VISITORS.get(name)
        if visit is not None:
            visit(message, facts)
        for field, value in message.ListFields():
            if field.message_type is not None:
                if field.is_repeated:
                    stack.extend(value)
                else:
                    stack.append(value)


def _refuse_node(name: str, facts: _Facts) -> None:
    if name == "LockingClause":
        facts.refuse("it locks rows (FOR UPDATE/SHARE)")
    elif name == "SQLValueFunction":
        facts.refuse("its answer depends on the time or on who asks")
    elif name == "IntoClause":
        facts.writes = True
        facts.refuse("SELECT INTO makes a table")
    elif name in ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
        facts.writes = True
        facts.refuse("it modifies data")
    else:
        facts.refuse(f"it contains {name}, which is not known to be safe")


def _names(items: Any) -> list[str]:
    return [item.string.sval for item in items]


def _visit_function(call: Any, facts: _Facts) -> None:
    parts = _names(call.funcname)
    schema, name = (parts[-2] if len(parts) > 1 else None), parts[-1]
    built_in = schema in (None, "pg_catalog")
    facts.functions.add(name)
    if not (built_in and name in SAFE):
        facts.refuse(f"function {'.'.join(parts)} is not known to depend only on its arguments")
        if not (built_in and name in READ_ONLY):
            facts.writes = True
    elif name == "age":
        facts.refuse("age() may use the current date")
    if "advisory" in name and "xact" not in name and "unlock" not in name:
        facts.pin = facts.pin or "advisory lock"
    elif name == "set_config" and not _is_true(call.args[-1] if call.args else None):
        facts.pin = facts.pin or "set_config"
    elif name in ("currval", "lastval"):
        facts.pin = facts.pin or "sequence state"
    elif name == "setseed":
        facts.pin = facts.pin or "setseed"
    elif name.startswith("dblink"):
        facts.pin = facts.pin or "dblink"


def _is_true(node: Any) -> bool:
    """Whether `node` is the literal true, in any of its spellings by the parser."""
    if node is None:
        return False
    if node.WhichOneof("node") == "type_cast":
        node = node.type_cast.arg
    if node.WhichOneof("node") != "a_const":
        return False
    constant = node.a_const
    return bool(constant.boolval.boolval) or constant.sval.sval.lower() in ("t", "true", "on", "yes", "1")


def _visit_relation(relation: Any, facts: _Facts) -> None:
    facts.relations.add((relation.schemaname or None, relation.relname))
    if relation.relpersistence == "t" or relation.schemaname.startswith("pg_temp"):
        facts.pin = facts.pin or "temporary table"
    if relation.schemaname in ("pg_catalog", "information_schema") or relation.relname.startswith("pg_"):
        facts.refuse("it reads a system catalog")


def _visit_cte(cte: Any, facts: _Facts) -> None:
    facts.local_names.add((None, cte.ctename))


def _visit_type(type_name: Any, facts: _Facts) -> None:
    parts = _names(type_name.names)
    if parts[:-1] not in ([], ["pg_catalog"]) or parts[-1] not in SAFE_TYPES:
        facts.refuse(f"it casts to type {'.'.join(parts)}")


def _visit_column(column: Any, facts: _Facts) -> None:
    last = column.fields[-1]
    if last.WhichOneof("node") == "string":
        facts.columns.add(last.string.sval)  # may be a function of the row: t.f means f(t)


def _visit_expression(expression: Any, facts: _Facts) -> None:
    if expression.name:
        facts.operators.add(_names(expression.name)[-1])


def _visit_string(string: Any, facts: _Facts) -> None:
    if _TEMPORAL_TEXT.search(string.sval):
        facts.refuse("a literal names the current time")


_VISITORS = {
    "FuncCall": _visit_function,
    "RangeVar": _visit_relation,
    "CommonTableExpr": _visit_cte,
    "TypeName": _visit_type,
    "ColumnRef": _visit_column,
    "A_Expr": _visit_expression,
    "String": _visit_string,
}


class Classifier:
    """`classify`, remembered. Call it with a text.

    Args:
      parse_always: everything is classified, because a cache must know; otherwise only texts that may have session
      effects are.
      max_entries: how many texts, and how many shapes, are remembered.
    """

    LONGEST_REMEMBERED = 8192
    """Longer texts, in bytes, are classified each time."""

    def __init__(self, *, parse_always: bool, max_entries: int = 20000) -> None:
        self._parse_always = parse_always
        self._max_entries = max_entries
        self._by_text: dict[bytes, Statement] = {}
        self._by_shape: dict[str, Statement] = {}

    def __call__(self, text: bytes) -> Statement:
        known = self._by_text.get(text)
        if known is not None:
            return known
        statement = self._classify(text)
        if len(text) <= self.LONGEST_REMEMBERED:
            _make_room(self._by_text, self._max_entries)
            self._by_text[text] = statement
        return statement

    def _classify(self, text: bytes) -> Statement:
        if _SCREEN.search(text) is not None:
            return classify(text)
        if not self._parse_always:
            return UNKNOWN
        if _TEMPORAL.search(text) is not None or _ESCAPED.search(text) is not None:
            return classify(text)
        # Nothing left that a literal could decide, so texts of one shape share one meaning.
        try:
            shape = postgast.fingerprint(text.decode()).hex
        except Exception:
            return classify(text)
        known = self._by_shape.get(shape)
        if known is None:
            _make_room(self._by_shape, self._max_entries)
            known = self._by_shape[shape] = classify(text)
        return known


def _make_room(memory: dict[Any, Statement], limit: int) -> None:
    """Forget the oldest tenth of a full memory."""
    if len(memory) >= limit:
        for key in list(memory)[: max(1, limit // 10)]:
            del memory[key]
