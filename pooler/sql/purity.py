"""What a statement reads and writes, and why its answer may not be cached: one walk over its syntax tree.

Lives here: facts that concern the cache, and the calls that `effects` looks at too. Not here: what the origin's
catalog says about the names (`pooler.cache.catalog`).
"""

from __future__ import annotations

import re
from typing import Any

from pooler.sql.functions import READ_ONLY, SAFE, SAFE_TYPES
from pooler.sql.statement import Name

_TEMPORAL = re.compile("now|today|tomorrow|yesterday", re.IGNORECASE)

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
_SEQUENCE_FUNCTIONS = frozenset({"nextval", "setval"})


class Facts:
    """What a walk over one statement's tree has found.

    Attributes:
      node: the statement's own node, `name` its type.
      calls: every function call, as its node. temporary: it names a temporary relation.
      executes: the prepared statement that it executes. databases: see `Statement`.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.name: str = node.DESCRIPTOR.name
        self.begins = False
        self.changes_schema = False
        self.changes_defaults = False
        self.reads_only = False
        self.writes = False
        self.sequences = False
        self.temporary = False
        self.executes = ""
        self.databases: set[str] = set()
        self.why_not = ""
        self.calls: list[Any] = []
        self.relations: set[Name] = set()
        self.local_names: set[Name] = set()
        self.functions: set[str] = set()
        self.columns: set[str] = set()
        self.operators: set[str] = set()

    def refuse(self, reason: str) -> None:
        """Not cacheable; the first reason stands."""
        self.why_not = self.why_not or reason


def examine(raw: Any) -> Facts:
    """The facts of one statement: `raw` is its `Node`."""
    statement = getattr(raw, raw.WhichOneof("node"))
    facts = Facts(statement)
    _walk(statement, facts)
    name = facts.name
    if name == "SelectStmt":
        facts.reads_only = not facts.writes
    else:
        facts.refuse(f"it is no SELECT ({name})")
        _examine_command(statement, name, facts)
    facts.changes_schema = not (facts.reads_only or facts.temporary or name in _DATA_ONLY or name == "SelectStmt")
    facts.changes_defaults = name in ("AlterRoleSetStmt", "AlterDatabaseSetStmt")
    facts.sequences = not facts.reads_only or bool(facts.functions & _SEQUENCE_FUNCTIONS)
    return facts


def _examine_command(statement: Any, name: str, facts: Facts) -> None:
    if name == "VariableSetStmt" or name in _HARMLESS:
        facts.reads_only = True
    elif name == "TransactionStmt":
        kind = enum_name(statement, "kind")
        facts.reads_only = "PREPARED" not in kind
        facts.begins = kind in ("TRANS_STMT_BEGIN", "TRANS_STMT_START")
    elif name == "ExplainStmt":
        analyzes = any(option.def_elem.defname.lower() == "analyze" for option in statement.options)
        facts.reads_only = not (facts.writes and analyzes)
    elif name == "DeclareCursorStmt":
        facts.reads_only = not facts.writes
    elif name == "DropdbStmt":
        facts.databases.add(statement.dbname)
    elif name == "RenameStmt" and enum_name(statement, "rename_type") == "OBJECT_DATABASE":
        facts.databases.add(statement.subname)
    elif name == "CreatedbStmt":
        facts.databases |= {
            option.def_elem.arg.string.sval for option in statement.options if option.def_elem.defname == "template"
        }
    elif name == "CopyStmt":
        facts.reads_only = not (statement.is_from or facts.writes or statement.is_program)


def enum_name(message: Any, field: str) -> str:
    """The name of an enumeration field's value."""
    value = getattr(message, field)
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[value].name)


def names(items: Any) -> list[str]:
    """The parts of a qualified name."""
    return [item.string.sval for item in items]


def _walk(root: Any, facts: Facts) -> None:
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


def _refuse_node(name: str, facts: Facts) -> None:
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


def _visit_function(call: Any, facts: Facts) -> None:
    parts = names(call.funcname)
    schema, name = (parts[-2] if len(parts) > 1 else None), parts[-1]
    built_in = schema in (None, "pg_catalog")
    facts.functions.add(name)
    facts.calls.append(call)
    if not (built_in and name in SAFE):
        facts.refuse(f"function {'.'.join(parts)} is not known to depend only on its arguments")
        if not (built_in and name in READ_ONLY):
            facts.writes = True
    elif name == "age":
        facts.refuse("age() may use the current date")


def _visit_relation(relation: Any, facts: Facts) -> None:
    facts.relations.add((relation.schemaname or None, relation.relname))
    if relation.relpersistence == "t" or relation.schemaname.startswith("pg_temp"):
        facts.temporary = True
    if relation.schemaname in ("pg_catalog", "information_schema") or relation.relname.startswith("pg_"):
        facts.refuse("it reads a system catalog")


def _visit_cte(cte: Any, facts: Facts) -> None:
    facts.local_names.add((None, cte.ctename))


def _visit_type(type_name: Any, facts: Facts) -> None:
    parts = names(type_name.names)
    if parts[:-1] not in ([], ["pg_catalog"]) or parts[-1] not in SAFE_TYPES:
        facts.refuse(f"it casts to type {'.'.join(parts)}")


def _visit_column(column: Any, facts: Facts) -> None:
    last = column.fields[-1]
    if last.WhichOneof("node") == "string":
        facts.columns.add(last.string.sval)  # may be a function of the row: t.f means f(t)


def _visit_expression(expression: Any, facts: Facts) -> None:
    if expression.name:
        facts.operators.add(names(expression.name)[-1])


def _visit_string(string: Any, facts: Facts) -> None:
    if _TEMPORAL.search(string.sval):
        facts.refuse("a literal names the current time")


def _visit_execute(statement: Any, facts: Facts) -> None:
    facts.executes = statement.name


_VISITORS = {
    "ExecuteStmt": _visit_execute,
    "FuncCall": _visit_function,
    "RangeVar": _visit_relation,
    "CommonTableExpr": _visit_cte,
    "TypeName": _visit_type,
    "ColumnRef": _visit_column,
    "A_Expr": _visit_expression,
    "String": _visit_string,
}
