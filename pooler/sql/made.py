"""What DDL adds to what is known to have effects on the session, until the origin's catalog has been read again.

Lives here: the functions and the carriers that one statement makes. Not here: what the catalog says (`carriers`).

What does not show in the statement waits for the catalog: DDL in a DO block or a function, a foreign key's cascade, a
column of a domain that gets its check afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pooler.sql.bodies import effects_of
from pooler.sql.purity import Facts, enum_name, names
from pooler.sql.reached import in_body, reached_by, worst
from pooler.sql.statement import EVENTS, INSERT, READ, REFRESH, TRIGGER_EVENTS, UPDATE, Carrier, Effects, PinKind

_RULE_EVENTS = {"CMD_SELECT": READ, "CMD_UPDATE": "update", "CMD_INSERT": INSERT, "CMD_DELETE": "delete"}
_RELATIONS = frozenset({"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE"})

Made = dict[str | Carrier, PinKind]


def made_by(facts: Facts, known: Effects) -> Made:
    """The functions and carriers that a statement makes, and what they leave on a session."""
    make = _MAKERS.get(facts.name)
    return make(facts, known) if make is not None else {}


def _kind(facts: Facts, known: Effects, own: str | None = None) -> PinKind | None:
    """What the calls, relations (but its `own`), operators and types in a statement lead to."""
    found = set(reached_by(facts, known, executed=False, but=own))
    called = [known[name] for call in facts.calls if (name := names(call.funcname)[-1]) in known]
    found.update(called)
    if set_config_stays(facts):
        found.add(PinKind.HIDDEN)
    return worst(found)


def set_config_stays(facts: Facts) -> bool:
    """Whether a call of a built-in function in an expression has effects."""
    return any(effects_of(_spelled(call)) is not None for call in facts.calls)


def _spelled(call: Any) -> str:
    """A call as a body would have it, as far as its effects depend on it."""
    last = call.args[-1] if call.args else None
    while last is not None and last.WhichOneof("node") == "type_cast":
        last = last.type_cast.arg
    is_true = False
    if last is not None and last.WhichOneof("node") == "a_const":
        is_true = last.a_const.boolval.boolval or last.a_const.sval.sval.lower() in ("t", "true", "on", "yes", "y", "1")
    return f"{names(call.funcname)[-1]}(x, {'true' if is_true else 'false'})"


def _all(name: str, events: Iterable[str], kind: PinKind | None) -> Made:
    return {Carrier(event, name): kind for event in events} if kind is not None else {}


def _as_others(name: str, others: Iterable[str], known: Effects, *, writes_only: bool = False) -> Made:
    """What is known of `others`, for `name`."""
    events = [event for event in EVENTS if not (writes_only and event in (READ, REFRESH))]
    return {
        Carrier(event, name): kind
        for event in events
        for other in others
        if other != name and (kind := known.get(Carrier(event, other))) is not None
    }


def _function(facts: Facts, known: Effects) -> Made:
    kind = worst([body_kind(facts.node.options, known), _kind(facts, known)])
    return {names(facts.node.funcname)[-1]: kind} if kind is not None else {}


def body_kind(options: Any, known: Effects) -> PinKind | None:
    """What the bodies among the options of a DO or a CREATE FUNCTION leave on the session."""
    language, bodies = "", []
    for option in options:
        argument = option.def_elem.arg
        if option.def_elem.defname == "language":
            language = argument.string.sval.lower()
        elif option.def_elem.defname == "as":
            found = [item.string.sval for item in argument.list.items]
            bodies += found or [argument.string.sval]
    return worst([*(effects_of(body, language) for body in bodies), *(in_body(body, known) for body in bodies)])


def _trigger(facts: Facts, known: Effects) -> Made:
    kind = worst([known.get(names(facts.node.funcname)[-1]), _kind(facts, known, facts.node.relation.relname)])
    events = [event for bit, each in TRIGGER_EVENTS.items() if facts.node.events & bit for event in each]
    return _all(facts.node.relation.relname, events, kind)


def _view(facts: Facts, known: Effects) -> Made:
    name = facts.node.view.relname
    tables = [other for _, other in facts.relations]
    return _all(name, [READ], _kind(facts, known)) | _as_others(name, tables, known, writes_only=True)


def _materialized(facts: Facts, known: Effects) -> Made:
    return _all(facts.node.into.rel.relname, [REFRESH], _kind(facts, known))


def _rule(facts: Facts, known: Effects) -> Made:
    return _all(
        facts.node.relation.relname,
        [_RULE_EVENTS[enum_name(facts.node, "event")]],
        _kind(facts, known, facts.node.relation.relname),
    )


def _policy(facts: Facts, known: Effects) -> Made:
    return _all(
        facts.node.table.relname, [READ, INSERT, UPDATE, "delete"], _kind(facts, known, facts.node.table.relname)
    )


def _table(facts: Facts, known: Effects) -> Made:
    """Of CREATE TABLE and ALTER TABLE: defaults, checks, domains; parents, partitions and LIKE."""
    name = facts.node.relation.relname
    others = [other for _, other in facts.relations]
    made = _all(name, [INSERT, UPDATE], _kind(facts, known, name)) | _as_others(name, others, known)
    for other in others if facts.name == "AlterTableStmt" else ():  # ATTACH PARTITION, INHERIT: the other way round
        made |= _as_others(other, [name], known | made)  # type: ignore[operator]
    return made


def _domain(facts: Facts, known: Effects) -> Made:
    named = facts.node.domainname if facts.name == "CreateDomainStmt" else facts.node.type_name
    return _all(names(named)[-1], ["type"], _kind(facts, known))


def _defined(facts: Facts, known: Effects) -> Made:
    """CREATE OPERATOR and CREATE AGGREGATE."""
    name, kind = names(facts.node.defnames)[-1], enum_name(facts.node, "kind")
    given = [each.def_elem.arg.type_name.names for each in facts.node.definition]
    leads = worst(known.get(names(each)[-1]) for each in given if each)
    if leads is None or kind not in ("OBJECT_OPERATOR", "OBJECT_AGGREGATE"):
        return {}
    return {Carrier("operator", name) if kind == "OBJECT_OPERATOR" else name: leads}


def _cast(facts: Facts, known: Effects) -> Made:
    function = names(facts.node.func.objname)
    kind = known.get(function[-1]) if function else None
    ends = (facts.node.sourcetype, facts.node.targettype)
    mine = [names(end.names)[-1] for end in ends if names(end.names)[0] != "pg_catalog"]
    return {Carrier("type", name): kind for name in mine} if kind is not None else {}


def _renamed(facts: Facts, known: Effects) -> Made:
    node, kind = facts.node, enum_name(facts.node, "rename_type")
    if kind in _RELATIONS:
        return _as_others(node.newname, [node.relation.relname], known)
    if kind in ("OBJECT_FUNCTION", "OBJECT_PROCEDURE", "OBJECT_ROUTINE"):
        before = known.get(names(node.object.object_with_args.objname)[-1])
        return {node.newname: before} if before is not None else {}
    return {}


_MAKERS = {
    "AlterDomainStmt": _domain,
    "AlterPolicyStmt": _policy,
    "AlterTableStmt": _table,
    "CreateCastStmt": _cast,
    "CreateDomainStmt": _domain,
    "CreateFunctionStmt": _function,
    "CreatePolicyStmt": _policy,
    "CreateStmt": _table,
    "CreateTableAsStmt": _materialized,
    "CreateTrigStmt": _trigger,
    "DefineStmt": _defined,
    "RenameStmt": _renamed,
    "RuleStmt": _rule,
    "ViewStmt": _view,
}
