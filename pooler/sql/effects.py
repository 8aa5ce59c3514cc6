"""What a statement does to its session: settings, state that stays on the connection, transaction control.

Lives here: reading one parsed statement into a `Part`. Not here: what the session makes of it (`pooler.state`).
"""

from __future__ import annotations

from typing import Any

from pooler.sql.functions import BUILT_IN_PINS, PIN_PREFIXES, RUNS_RELATIONS, RUNS_TEXT, SLOT_MAKERS
from pooler.sql.made import body_kind
from pooler.sql.purity import Facts, enum_name, names
from pooler.sql.reached import in_body, reached_by
from pooler.sql.screen import may_affect_session
from pooler.sql.statement import NO_EFFECTS, READ, Carrier, Effects, Part, PinKind, SetConfig, SettingChange, Transact

_LOCAL_NAMES = frozenset({"transaction", "transaction snapshot", "transaction_isolation", "transaction_read_only"})
_LISTS = frozenset(
    "search_path temp_tablespaces session_preload_libraries local_preload_libraries unix_socket_directories".split()
)
"""SET quotes their elements, set_config does not."""
_TRANSACT = {
    "TRANS_STMT_COMMIT": Transact.COMMIT,
    "TRANS_STMT_PREPARE": Transact.COMMIT,
    "TRANS_STMT_ROLLBACK": Transact.ROLLBACK,
    "TRANS_STMT_SAVEPOINT": Transact.SAVEPOINT,
    "TRANS_STMT_RELEASE": Transact.RELEASE,
    "TRANS_STMT_ROLLBACK_TO": Transact.ROLLBACK_TO,
}
_RELEASES = {
    "DropStmt": frozenset({PinKind.TEMPORARY}),
    "DropOwnedStmt": frozenset({PinKind.TEMPORARY}),
    "UnlistenStmt": frozenset({PinKind.LISTEN}),
    "ClosePortalStmt": frozenset({PinKind.CURSOR}),
    "FetchStmt": frozenset[PinKind](),
    "DeallocateStmt": frozenset({PinKind.PREPARE}),
}
_DISCARDED = {
    "DISCARD_ALL": frozenset(
        {
            PinKind.TEMPORARY, PinKind.LISTEN, PinKind.CURSOR, PinKind.ADVISORY, PinKind.PREPARE, PinKind.SEQUENCE,
            PinKind.SETTING, PinKind.TOO_MUCH, PinKind.HIDDEN, PinKind.REACHED, PinKind.UNPARSABLE,
        }
    ),
    "DISCARD_TEMP": frozenset({PinKind.TEMPORARY}),
    "DISCARD_SEQUENCES": frozenset({PinKind.SEQUENCE}),
    "DISCARD_PLANS": frozenset[PinKind](),
}  # fmt: skip
_NOT_TRANSACTIONAL = frozenset({PinKind.ADVISORY, PinKind.SEED, PinKind.REPLICATION, PinKind.HIDDEN, PinKind.LASTING})
_HOLD = 0x0020


def part_of(raw: Any, facts: Facts, text: bytes, start: int, end: int, known: Effects = NO_EFFECTS) -> Part:
    """The `Part` of one statement.

    Args:
      raw: its `Node`. text: what it stands in, from byte `start` to byte `end`.
      known: functions with hidden effects on the session, and what carries such effects.
    """
    statement, name = facts.node, facts.name
    own = text[start:end].decode().strip().rstrip("; \t\r\n")
    changes: tuple[SettingChange, ...] = ()
    pins, releases, configs = _calls(facts, known)
    reached = set(reached_by(facts, known))
    if reached:
        pins |= {PinKind.REACHED} | (reached & {PinKind.LASTING})
    survives = _surviving(pins, facts, known)
    deallocates = prepares = None
    discards = ""
    if name == "VariableSetStmt":
        changes, pinned = _read_set(statement, own)
        pins |= pinned
    elif name == "DoStmt":
        kind = body_kind(statement.args, known)
        if kind is not None:
            pins.add(kind)
            survives.add(kind)  # it may commit half-way
    elif name == "UpdateStmt" and any(relation == "pg_settings" for _, relation in facts.relations):
        pins.add(PinKind.HIDDEN)  # SET by another name
    elif name == "DeclareCursorStmt" and statement.options & _HOLD:
        pins.add(PinKind.CURSOR)
    elif name == "ListenStmt":
        pins.add(PinKind.LISTEN)
    elif name == "LoadStmt":
        pins.add(PinKind.LOAD)
    elif name == "PrepareStmt":
        if pins or configs:  # they happen whenever it is executed, which does not show
            pins, configs = {PinKind.HIDDEN}, []
        pins.add(PinKind.PREPARE)
        prepares = statement.name.encode()
    elif name == "DeallocateStmt":
        deallocates = statement.name.encode()
    elif name == "DiscardStmt":
        target = enum_name(statement, "target")
        discards = target.removeprefix("DISCARD_").lower()
        releases |= _DISCARDED[target]
    releases |= _RELEASES.get(name, frozenset())
    if facts.temporary or b"pg_temp" in text.lower():
        pins.add(PinKind.TEMPORARY)
    literal = tuple(_as_change(config) for config in configs if not _has_parameter(config))
    return Part(
        start=start,
        end=end,
        changes=changes + literal,
        configs=tuple(config for config in configs if _has_parameter(config)),
        pins=frozenset(pins),
        survives=frozenset(survives),
        releases=frozenset(releases),
        transact=_TRANSACT.get(enum_name(statement, "kind")) if name == "TransactionStmt" else None,
        savepoint=statement.savepoint_name if name == "TransactionStmt" else "",
        discards=discards,
        deallocates=deallocates,
        prepares=prepares,
        executes=facts.executes.encode() or None,
    )


# ---- SET and RESET ---------------------------------------------------------------------------------------------------


def _read_set(statement: Any, text: str) -> tuple[tuple[SettingChange, ...], set[PinKind]]:
    """The changes of a SET or RESET whose text is `text`, or the pin where it cannot follow."""
    kind = enum_name(statement, "kind")
    name = statement.name.lower()
    if kind == "VAR_SET_MULTI" and name == "session characteristics":
        return _characteristics(statement), set()
    if name in _LOCAL_NAMES:
        return (), set()
    if statement.is_local:
        return (SettingChange(name, text, local=True),), set()
    if kind == "VAR_RESET_ALL":
        return (SettingChange("", None),), set()
    if kind in ("VAR_SET_DEFAULT", "VAR_RESET"):
        return (SettingChange(name, None),), set()
    if name == "seed":
        return (), {PinKind.SEED}
    if "\\" in text:  # what it means depends on standard_conforming_strings
        return (), {PinKind.SETTING}
    if kind == "VAR_SET_VALUE" and text.isascii():
        return (SettingChange(name, text),), set()
    if kind == "VAR_SET_VALUE" and len(statement.args) == 1 and name not in _LISTS:
        value = _constant(statement.args[0])
        if isinstance(value, str):
            return (SettingChange(name, set_config_sql(name, value)),), set()
    return (), {PinKind.SETTING}  # SET x FROM CURRENT, and what cannot be said again in any client_encoding


def _characteristics(statement: Any) -> tuple[SettingChange, ...]:
    """SET SESSION CHARACTERISTICS AS TRANSACTION ... sets the defaults of its modes."""
    changes = []
    for item in statement.args:
        constant = item.def_elem.arg.a_const
        value = constant.sval.sval or ("on" if constant.ival.ival else "off")
        name = f"default_{item.def_elem.defname}"
        changes.append(SettingChange(name, f"SET {name} TO '{value}'"))
    return tuple(changes)


def set_config_sql(name: str, value: str) -> str:
    """The statement that sets `name` as set_config does, which reads a list as a list."""
    return f"SELECT pg_catalog.set_config({quote_literal(name)},{quote_literal(value)},false)"


def quote_literal(value: str) -> str:
    """`value` as a string literal in ASCII that reads the same whatever the connection's settings say."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    if not escaped.isascii():
        escaped = "".join(c if c.isascii() else f"\\U{ord(c):08x}" for c in escaped)
    return f"E'{escaped}'"


# ---- function calls --------------------------------------------------------------------------------------------------


def _calls(facts: Facts, known: Effects) -> tuple[set[PinKind], set[PinKind], list[SetConfig]]:
    """(pins, releases, calls of set_config that can follow) of a statement's function calls."""
    pins: set[PinKind] = set()
    releases: set[PinKind] = set()
    configs: list[SetConfig] = []
    columns = _columns(facts)
    for call in facts.calls:
        schema, name = ["", *names(call.funcname)][-2:]
        if name == "set_config":
            config = _set_config(call) if _said(call) in columns else None
            if config is not None:
                configs.append(config)
            elif _constant(call.args[-1] if call.args else None) not in _TRUE:
                pins.add(PinKind.SETTING)
        elif name in known:
            pins.add(known[name])
        elif name in RUNS_RELATIONS:
            if any(isinstance(key, Carrier) and key.what == READ for key in known):
                pins.add(PinKind.REACHED)
        elif name.startswith("pg_advisory_unlock"):
            releases.add(PinKind.ADVISORY)
        elif (kind := BUILT_IN_PINS.get(name)) is not None:
            pins.add(PinKind[kind])
        elif name in SLOT_MAKERS:
            if _is_temporary(call):
                pins.add(PinKind.REPLICATION)
        elif name in RUNS_TEXT:
            if not _runs_harmless(call, known) and not (name == "ts_rewrite" and len(call.args) == 3):
                pins.add(PinKind.HIDDEN)
        elif name.startswith(PIN_PREFIXES) or schema.startswith(PIN_PREFIXES):
            pins.add(PinKind.HIDDEN)
    return pins, releases, configs


def _is_temporary(call: Any) -> bool:
    """Whether the replication slot that is made may be a temporary one."""
    named = [each.named_arg_expr for each in call.args if each.WhichOneof("node") == "named_arg_expr"]
    third = [each.arg for each in named if each.name == "temporary"] or list(call.args[2 : len(call.args) - len(named)])
    said = _constant(third[0]) if third else "false"
    return not isinstance(said, str) or said in _TRUE


def _runs_harmless(call: Any, known: Effects) -> bool:
    """Whether all that a function is given to run is there to be read, and has no effects on the session."""
    for argument in call.args:
        kind = argument.WhichOneof("node")
        text = _constant(argument.named_arg_expr.arg if kind == "named_arg_expr" else argument)
        if isinstance(text, int) or (text is None and kind != "a_const"):
            return False
        if may_affect_session((text or "").lower().encode()) or in_body(text or "", known) is not None:
            return False
    return True


def _surviving(pins: set[PinKind], facts: Facts, known: Effects) -> set[PinKind]:
    """Those of a statement's `pins` that hold although it failed: PostgreSQL does not take their state back."""
    survives = pins & _NOT_TRANSACTIONAL
    if PinKind.REACHED in pins:
        survives.add(PinKind.ADVISORY)
    if PinKind.HIDDEN in pins and facts.name != "CallStmt":
        called = {names(call.funcname)[-1] for call in facts.calls}
        if called & known.keys():  # a function cannot commit, but it may lock
            survives.add(PinKind.ADVISORY)
            if not any(name.startswith(PIN_PREFIXES) or name in BUILT_IN_PINS for name in called):
                survives.discard(PinKind.HIDDEN)
    return survives


_TRUE = ("t", "true", "on", "yes", "y", "1")


def names_set(facts: Facts) -> list[str | None]:
    """The settings that its calls of set_config name; None for each that does not show, not even when it is bound."""
    found: list[str | None] = []
    columns = _columns(facts)
    for call in facts.calls:
        if names(call.funcname)[-1] == "set_config":
            name = _constant(call.args[0] if call.args else None)
            if isinstance(name, str):
                found.append(name.lower())
            elif not (_said(call) in columns and _set_config(call)):
                found.append(None)
    return found


def _columns(facts: Facts) -> frozenset[bytes]:
    """The calls that are a column of a plain SELECT without anything that could keep them from running once."""
    node = facts.node
    if not facts.calls or node.DESCRIPTOR.name != "SelectStmt":
        return frozenset()
    if {field.name for field, _ in node.ListFields()} - {"target_list", "limit_option", "op"}:
        return frozenset()
    return frozenset(_said(target.res_target.val.func_call) for target in node.target_list)


def _said(call: Any) -> bytes:
    """A call as what it can be found by."""
    return bytes(call.SerializeToString(deterministic=True))


def _set_config(call: Any) -> SetConfig | None:
    arguments = [_constant(argument) for argument in call.args]
    if len(arguments) != 3 or any(argument is None for argument in arguments):
        return None
    name, value, local = arguments
    assert name is not None
    assert value is not None
    assert local is not None
    if isinstance(name, str):
        name = name.lower()
    return SetConfig(name, value, local in _TRUE if isinstance(local, str) else local)


def _constant(node: Any) -> str | int | None:
    """A literal's text or a parameter's number; None for anything else. Casts of either are looked through."""
    if node is None:
        return None
    kind = node.WhichOneof("node")
    if kind == "type_cast":
        return _constant(node.type_cast.arg)
    if kind == "param_ref":
        return int(node.param_ref.number)
    if kind != "a_const" or node.a_const.isnull:
        return None
    constant = node.a_const
    if constant.HasField("boolval"):
        return "true" if constant.boolval.boolval else "false"
    return str(constant.sval.sval) if constant.HasField("sval") else None


def _has_parameter(config: SetConfig) -> bool:
    return any(type(field) is int for field in (config.name, config.value, config.local))


def _as_change(config: SetConfig) -> SettingChange:
    name, value = str(config.name), str(config.value)
    return SettingChange(name, set_config_sql(name, value), local=bool(config.local))


def resolve(config: SetConfig, parameters: list[bytes | None]) -> SettingChange | None:
    """The change that `config` makes with these parameter values (text, or a binary boolean); None if unreadable."""

    def read(field: str | int) -> str | None:
        if isinstance(field, str):
            return field
        raw = parameters[field - 1] if field <= len(parameters) else None
        return raw.decode(errors="replace") if raw is not None else None

    name, value = read(config.name), read(config.value)
    local: bool | None
    if type(config.local) is bool:
        local = config.local
    else:
        word = read(config.local)
        local = None if word is None else word == "\1" or word.lower() in _TRUE
    if name is None or value is None or local is None or "\0" in name or "\0" in value:
        return None
    return SettingChange(name.lower(), set_config_sql(name.lower(), value), local=local)
