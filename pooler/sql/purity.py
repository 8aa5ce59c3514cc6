"""What a statement reads and writes, and why its answer may not be cached: one walk over its syntax tree.

Lives here: facts that concern the cache, and the calls that `effects` looks at too. Not here: what the origin's
catalog says about the names (`pooler.cache.catalog`).
"""

from __future__ import annotations

import re
from typing import Any

from pooler.sql.functions import ARGUMENTS_DECIDE, LOOK_UP_TYPES, READ_ONLY, SAFE
from pooler.sql.statement import Call, Change, DefaultChange, Name

TEMPORAL_WORD = r"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])"
"""Where a literal has one of these words, as whole words, its value as a date or time depends on the current time."""

_TEMPORAL = re.compile(TEMPORAL_WORD, re.IGNORECASE)

# What a cacheable statement may be made of; anything else keeps it out of the cache.
_CACHEABLE_NODES = frozenset(
    """
    A_ArrayExpr A_Const A_Expr A_Indices A_Indirection A_Star Alias ArrayExpr BitString BoolExpr Boolean BooleanTest
    CTECycleClause CTESearchClause CaseExpr CaseWhen CoalesceExpr CollateClause ColumnRef CommonTableExpr Float
    FuncCall GroupingFunc GroupingSet Integer JoinExpr List MinMaxExpr NamedArgExpr Node NullTest ParamRef
    RangeFunction RangeSubselect RangeVar ResTarget RowExpr SQLValueFunction SelectStmt SortBy String SubLink TypeCast
    TypeName WindowDef WithClause
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
_TEMPORARY_MAKERS = frozenset("CreateStmt CreateTableAsStmt CreateSeqStmt ViewStmt SelectStmt".split())
_UNSEEN = frozenset({"DoStmt", "CallStmt", "ExecuteStmt"})
_SESSION_VIEWS = frozenset({"pg_prepared_statements", "pg_settings"})
_ROW_VERSIONS = frozenset({"xmin", "xmax", "cmin", "cmax", "ctid"})
_SEQUENCE_FUNCTIONS = frozenset({"nextval", "setval"})
_WHO_ASKS = frozenset(
    "SVFOP_CURRENT_ROLE SVFOP_CURRENT_USER SVFOP_USER SVFOP_SESSION_USER SVFOP_CURRENT_CATALOG".split()
)
"""CURRENT_USER and the like: database, user and role are part of the cache key."""
_BETWEEN = ("<", "<=", ">", ">=")


class Facts:
    """What a walk over one statement's tree has found.

    Attributes:
      node: the statement's own node, `name` its type.
      calls: every function call, as its node. temporary: it names a temporary relation; `makes_temporary`: as
        something to be made.
      shown: references to views that show a session, as their nodes. local_names: of its WITH queries.
      executes: the prepared statement that it executes.
      called, written and the rest: `calls`, `writes` and so on of `Statement`.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.name: str = node.DESCRIPTOR.name
        self.begins = False
        self.isolation = self.access = ""
        self.changes_schema = False
        self.default_change: DefaultChange | None = None
        self.reads_only = False
        self.writes = False
        self.sequences = False
        self.draws = False
        self.temporary = False
        self.makes_temporary = False
        self.makes_table = False
        self.unknown_reach = False
        self.locks_rows = False
        self.selects = False
        self.executes = ""
        self.databases: set[str] = set()
        self.why_not = ""
        self.calls: list[Any] = []
        self.shown: list[Any] = []
        self.relations: set[Name] = set()
        self.local_names: set[Name] = set()
        self.functions: set[str] = set()
        self.columns: set[str] = set()
        self.operators: set[Name] = set()
        self.called: set[Call] = set()
        self.types: set[Name] = set()
        self.written: set[tuple[Name, Change]] = set()

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
        facts.selects = not (facts.written or facts.makes_table)
    else:
        facts.refuse(f"it is no SELECT ({name})")
        _examine_command(statement, name, facts)
    temporary = facts.temporary and (facts.makes_temporary or name not in _TEMPORARY_MAKERS)
    facts.changes_schema = facts.makes_table or not (
        facts.reads_only or temporary or name in _DATA_ONLY or name == "SelectStmt"
    )
    facts.unknown_reach |= facts.changes_schema or name in _UNSEEN
    if name in ("AlterRoleSetStmt", "AlterDatabaseSetStmt"):
        facts.default_change = _default_change(statement, name)
    facts.draws = bool(facts.functions & _SEQUENCE_FUNCTIONS)
    facts.sequences = not facts.reads_only or facts.draws
    return facts


def _isolation(statement: Any) -> str:
    """The isolation level that a BEGIN asks for; "default" where it names none."""
    for option in statement.options:
        if option.def_elem.defname == "transaction_isolation":
            return str(option.def_elem.arg.a_const.sval.sval)
    return "default"


def _access(statement: Any) -> str:
    """READ ONLY or READ WRITE of a BEGIN, in lower case; "" where it says neither."""
    access = ""
    for option in statement.options:
        if option.def_elem.defname == "transaction_read_only":
            access = "read only" if option.def_elem.arg.a_const.ival.ival else "read write"
    return access


def _default_change(statement: Any, name: str) -> DefaultChange:
    """What an ALTER ROLE or ALTER DATABASE ... SET changes; a role that it does not name may be any."""
    setting = statement.setstmt
    value = _plain_value(setting.args[0].a_const) if len(setting.args) == 1 else None
    return DefaultChange(
        role=statement.role.rolename if name == "AlterRoleSetStmt" else "",
        database=statement.database if name == "AlterRoleSetStmt" else statement.dbname,
        name=setting.name.lower(),
        value=value,
    )


def _plain_value(constant: Any) -> str | None:
    if constant.HasField("ival"):
        return str(constant.ival.ival)
    return str(constant.sval.sval) if constant.HasField("sval") else None


def _examine_command(statement: Any, name: str, facts: Facts) -> None:
    if name == "VariableSetStmt" or name in _HARMLESS:
        facts.reads_only = True
    elif name == "TransactionStmt":
        kind = enum_name(statement, "kind")
        facts.reads_only = "PREPARED" not in kind
        facts.unknown_reach = kind == "TRANS_STMT_COMMIT_PREPARED"
        facts.begins = kind in ("TRANS_STMT_BEGIN", "TRANS_STMT_START")
        if facts.begins:
            facts.isolation, facts.access = _isolation(statement), _access(statement)
    elif name == "ExplainStmt":
        analyzes = any(option.def_elem.defname.lower() == "analyze" for option in statement.options)
        facts.reads_only = not (facts.writes and analyzes)
        if not analyzes:
            _not_executed(facts)
    elif name == "PrepareStmt":
        _not_executed(facts)
    elif name == "DeclareCursorStmt":
        facts.reads_only = not facts.writes
    elif name == "DropdbStmt":
        facts.databases.add(statement.dbname)
    elif name == "RenameStmt" and enum_name(statement, "rename_type") == "OBJECT_DATABASE":
        facts.databases.add(statement.subname)
    elif name == "CreatedbStmt":
        named = {each.def_elem.arg.string.sval for each in statement.options if each.def_elem.defname == "template"}
        facts.databases |= (named - {""}) or {"template1"}
    elif name == "CopyStmt":
        facts.reads_only = not (statement.is_from or facts.writes or statement.is_program)
        facts.unknown_reach = statement.is_program
        if statement.is_from:
            _write(statement.relation, Change.INSERT, facts)
    elif name == "TruncateStmt":
        cascades = enum_name(statement, "behavior") == "DROP_CASCADE"
        for item in statement.relations:
            _write(item.range_var, Change.TRUNCATE_CASCADE if cascades else Change.TRUNCATE, facts)
    elif name == "LockStmt":
        for item in statement.relations:
            _write(item.range_var, Change.LOCK, facts)
    elif name == "RefreshMatViewStmt":
        _write(statement.relation, Change.REFRESH, facts)
    elif name in ("CreateStmt", "CreateSeqStmt"):
        _makes(statement.relation if name == "CreateStmt" else statement.sequence, facts)
    elif name == "ViewStmt":
        _makes(statement.view, facts)


def _not_executed(facts: Facts) -> None:
    """What the statement holds does not happen now."""
    facts.called.clear()
    facts.written.clear()
    facts.locks_rows = facts.makes_table = False


def _is_temporary(relation: Any) -> bool:
    return bool(relation.relpersistence == "t" or relation.schemaname.startswith("pg_temp"))


def _makes(relation: Any, facts: Facts) -> None:
    facts.makes_temporary = _is_temporary(relation)


def _name(relation: Any) -> Name:
    return relation.schemaname or None, relation.relname


def _write(relation: Any, change: Change, facts: Facts) -> None:
    if not _is_temporary(relation):
        facts.written.add((_name(relation), change))


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
        facts.locks_rows = True
        facts.refuse("it locks rows (FOR UPDATE/SHARE)")
    elif name == "IntoClause":
        facts.writes = True
        facts.refuse("SELECT INTO makes a table")
    elif name in ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
        facts.writes = True
        facts.refuse("it modifies data")
    else:
        facts.refuse(f"it contains {name}, which is not known to be safe")


def _visit_function(call: Any, facts: Facts) -> None:
    schema, name = _qualified(call.funcname)
    built_in = schema in (None, "pg_catalog")
    ordered = len(call.agg_order) if call.agg_within_group else 0
    facts.functions.add(name)
    facts.calls.append(call)
    facts.called.add(Call(schema, name, len(call.args) + ordered))
    if built_in and name in READ_ONLY:
        if name not in ARGUMENTS_DECIDE:
            facts.refuse(f"function {name} is not known to depend only on its arguments")
    elif not (built_in and name in SAFE):
        facts.writes = True


def _qualified(items: Any) -> Name:
    """(schema or None, name) of a qualified name."""
    parts = names(items)
    return (parts[-2] if len(parts) > 1 else None), parts[-1]


def _visit_value_function(function: Any, facts: Facts) -> None:
    if enum_name(function, "op") not in _WHO_ASKS:
        facts.refuse("its answer depends on the time or on the search_path")


def _visit_relation(relation: Any, facts: Facts) -> None:
    if _is_temporary(relation):
        facts.temporary = True
        facts.refuse("it names a temporary relation")
        return
    facts.relations.add(_name(relation))
    if relation.relname in _SESSION_VIEWS and relation.schemaname in ("", "pg_catalog") and relation.inh:
        facts.shown.append(relation)
    if relation.schemaname in ("pg_catalog", "information_schema") or relation.relname.startswith("pg_"):
        facts.refuse("it reads a system catalog")


def _visit_cte(cte: Any, facts: Facts) -> None:
    facts.local_names.add((None, cte.ctename))


def _visit_type(type_name: Any, facts: Facts) -> None:
    if not type_name.names:
        return
    schema, name = _qualified(type_name.names)
    facts.types.add((schema, name))
    if schema in (None, "pg_catalog") and name in LOOK_UP_TYPES:
        facts.refuse(f"it casts to type {name}, which looks a name up in the system catalogs")


def _visit_column(column: Any, facts: Facts) -> None:
    last = column.fields[-1]
    if last.WhichOneof("node") == "string":
        if last.string.sval in _ROW_VERSIONS:
            facts.refuse(f"column {last.string.sval} changes without a write")  # by a lock, VACUUM FULL, CLUSTER
        facts.columns.add(last.string.sval)  # may be a function of the row: t.f means f(t)


def _visit_indirection(indirection: Any, facts: Facts) -> None:
    facts.columns |= {item.string.sval for item in indirection.indirection if item.WhichOneof("node") == "string"}


def _visit_expression(expression: Any, facts: Facts) -> None:
    if "BETWEEN" in enum_name(expression, "kind"):
        facts.operators |= {(None, name) for name in _BETWEEN}
    elif expression.name:
        facts.operators.add(_qualified(expression.name))


def _visit_sublink(sublink: Any, facts: Facts) -> None:
    if sublink.oper_name:
        facts.operators.add(_qualified(sublink.oper_name))
    elif sublink.HasField("testexpr"):
        facts.operators.add((None, "="))


def _visit_case(case: Any, facts: Facts) -> None:
    if case.HasField("arg"):
        facts.operators.add((None, "="))


def _visit_join(join: Any, facts: Facts) -> None:
    if join.using_clause or join.is_natural:
        facts.operators.add((None, "="))


def _visit_sort(sort: Any, facts: Facts) -> None:
    if sort.use_op:
        facts.operators.add(_qualified(sort.use_op))


def _visit_constant(constant: Any, facts: Facts) -> None:
    if constant.HasField("sval") and _TEMPORAL.search(constant.sval.sval):
        facts.refuse("a literal names the current time")


def _visit_into(into: Any, facts: Facts) -> None:
    _makes(into.rel, facts)
    facts.makes_table = not facts.makes_temporary


def _visit_insert(insert: Any, facts: Facts) -> None:
    _write(insert.relation, Change.INSERT, facts)
    if insert.HasField("on_conflict_clause"):
        _write(insert.relation, Change.UPDATE, facts)


def _visit_update(update: Any, facts: Facts) -> None:
    _write(update.relation, Change.UPDATE, facts)


def _visit_delete(delete: Any, facts: Facts) -> None:
    _write(delete.relation, Change.DELETE, facts)


def _visit_merge(merge: Any, facts: Facts) -> None:
    for change in (Change.INSERT, Change.UPDATE, Change.DELETE):
        _write(merge.relation, change, facts)


def _visit_execute(statement: Any, facts: Facts) -> None:
    facts.executes = statement.name


_VISITORS = {
    "A_Const": _visit_constant,
    "A_Expr": _visit_expression,
    "A_Indirection": _visit_indirection,
    "CaseExpr": _visit_case,
    "ColumnRef": _visit_column,
    "CommonTableExpr": _visit_cte,
    "DeleteStmt": _visit_delete,
    "ExecuteStmt": _visit_execute,
    "FuncCall": _visit_function,
    "InsertStmt": _visit_insert,
    "IntoClause": _visit_into,
    "JoinExpr": _visit_join,
    "MergeStmt": _visit_merge,
    "RangeVar": _visit_relation,
    "SQLValueFunction": _visit_value_function,
    "SortBy": _visit_sort,
    "SubLink": _visit_sublink,
    "TypeName": _visit_type,
    "UpdateStmt": _visit_update,
}
