"""Actions on settings, roles and transactions: what can follow a client from connection to connection."""

from __future__ import annotations

from tests.fuzz.actions import Action, Draw, carried, group, pick

VALUES: dict[str, list[str]] = {
    "timezone": ["'Asia/Tokyo'", "'America/New_York'", "UTC", "-3", "'Nowhere/Bogus'"],
    "application_name": ["'one'", "'two words'", "'it''s'", "''"],
    "search_path": ["other, public", "public", "pg_catalog", '"$user", public', "''"],
    "intervalstyle": ["iso_8601", "sql_standard"],
    "bytea_output": ["escape", "hex"],
    "extra_float_digits": ["0", "-2", "99"],
    "work_mem": ["'5MB'", "1234", "'1234kB'", "'nonsense'"],
    "lock_timeout": ["'7s'", "7100"],
    "client_encoding": ["'LATIN1'", "'UTF8'", "SQL_ASCII"],
    "client_min_messages": ["error", "debug1", "warning"],
    "default_transaction_isolation": ["serializable", "'repeatable read'"],
    "default_transaction_read_only": ["on", "off"],
    "row_security": ["off", "on"],
    "enable_seqscan": ["off", "on"],
    "plan_cache_mode": ["force_generic_plan"],
    "statement_timeout": ["'20s'", "0"],
    "geqo": ["off"],
    "xmloption": ["document"],
    "no_such_setting": ["1"],
    "server_version": ["'1'"],
    "max_connections": ["5"],
}
CUSTOM = ["'a'", "'b'", "'it''s'", "''"]


def _setting(draw: Draw) -> tuple[str, str]:
    name = pick(draw, list(VALUES))
    return name, pick(draw, VALUES[name])


@group("set", 8)
def set_session(draw: Draw, client: int) -> Action:
    name, value = _setting(draw)
    form = pick(
        draw, ["set {} to {}", "SET {} = {}", "set session {} to {}", "/* why */ set {} to {};", "Set\n{} To {}"]
    )
    return f"set {name}", carried(draw, form.format(name, value))


@group("set special", 3)
def set_special(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("time zone", "set time zone 'Europe/Paris'"),
            ("time zone local", "set time zone local"),
            ("time zone interval", "set time zone interval '-08:00' hour to minute"),
            ("names", "set names 'LATIN1'"),
            ("names default", "set names default"),
            ("schema", "set schema 'other'"),
            ("xml option", "set xml option document"),
            ("quoted", "set \"TimeZone\" to 'Asia/Tokyo'"),
            ("from current", "set timezone from current"),
            ("seed", "set seed to 0.5"),
        ],
    )
    return name, carried(draw, text)


@group("date style", 1)
def date_style(draw: Draw, client: int) -> Action:
    """DateStyle has two parts, and a SET of one keeps the other."""
    value = pick(draw, ["'ISO, DMY'", "'SQL, MDY'", "German", "YMD", "iso", "default"])
    return "set", carried(draw, f"set datestyle to {value}")


@group("string syntax", 1)
def string_syntax(draw: Draw, client: int) -> Action:
    """What a literal in a SET means depends on other settings."""
    name, text = pick(
        draw,
        [
            ("off", "set standard_conforming_strings to off"),
            ("on", "set standard_conforming_strings to on"),
            ("backslash", "set application_name to 'back\\slash'"),
        ],
    )
    return name, carried(draw, text)


@group("privileged setting", 1)
def privileged_setting(draw: Draw, client: int) -> Action:
    """A setting that the role of a later SET ROLE could not make."""
    value = pick(draw, ["replica", "origin", "default"])
    return "set", carried(draw, f"set session_replication_role to {value}")


@group("update of pg_settings", 1)
def update_settings(draw: Draw, client: int) -> Action:
    return "update", carried(draw, "update pg_settings set setting = '4321' where name = 'work_mem'")


@group("reset", 4)
def reset(draw: Draw, client: int) -> Action:
    name = pick(draw, list(VALUES))
    form = pick(draw, ["reset {}", "set {} to default", "set session {} = default"])
    return f"{form.split()[0]} {name} default", carried(draw, form.format(name))


@group("reset all", 1)
def reset_all(draw: Draw, client: int) -> Action:
    return "reset all", carried(draw, "reset all")


@group("local", 4)
def set_local(draw: Draw, client: int) -> Action:
    name, value = _setting(draw)
    return f"set local {name}", carried(draw, f"set local {name} to {value}")


@group("custom", 4)
def custom(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("set", "set app.tenant to {}"),
            ("set local", "set local app.tenant to {}"),
            ("reset", "reset app.tenant"),
            ("default", "set app.tenant to default"),
            ("upper case", "set App.Tenant to {}"),
            ("another", 'set "app".note to {}'),
            ("as alice", "set role alice"),
            ("read rows", "select tenant, v from public.tenant_row order by 1, 2"),
        ],
    )
    return name, carried(draw, text.format(pick(draw, CUSTOM)) if "{}" in text else text)


@group("unknown custom", 1)
def unknown_custom(draw: Draw, client: int) -> Action:
    """A custom setting that nobody has set is unknown, and not empty."""
    name, text = pick(
        draw,
        [
            ("current_setting", "select current_setting('app.tenant')"),
            ("show", "show app.tenant"),
            ("or null", "select current_setting('app.tenant', true)"),
            ("is null", "select current_setting('app.note', true) is null"),
        ],
    )
    return name, carried(draw, text)


@group("role", 4)
def role(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("set role", "set role alice"),
            ("set role none", "set role none"),
            ("reset role", "reset role"),
            ("set local role", "set local role alice"),
            ("set role unknown", "set role nobody_here"),
            ("set role default", "set role to default"),
        ],
    )
    return name, carried(draw, text)


@group("session authorization", 2)
def session_authorization(draw: Draw, client: int) -> Action:
    text = pick(
        draw,
        [
            "set session authorization bob",
            "set session authorization default",
            "reset session authorization",
            "set local session authorization alice",
        ],
    )
    return text, carried(draw, text)


@group("characteristics", 2)
def characteristics(draw: Draw, client: int) -> Action:
    what = pick(
        draw, ["isolation level serializable", "read only", "read write", "isolation level repeatable read, read only"]
    )
    form = pick(
        draw,
        [
            "set session characteristics as transaction {}",
            "set transaction {}",
            "begin transaction {}",
            "start transaction {}",
        ],
    )
    return form.removesuffix(" {}"), carried(draw, form.format(what))


@group("set_config", 4)
def set_config(draw: Draw, client: int) -> Action:
    name = pick(draw, ["timezone", "app.tenant", "search_path", "application_name", "role", "DateStyle"])
    value = {
        "timezone": "Asia/Tokyo",
        "app.tenant": "a",
        "search_path": "other, public",
        "application_name": "by function",
        "role": "alice",
        "DateStyle": "German",
    }[name]
    local = pick(draw, ["false", "true"])
    form = pick(draw, ["literal", "qualified", "parameters", "from rows", "named arguments"])
    if form == "parameters":
        return "parameters", [
            ("Parse", "", "select set_config($1, $2, $3)"),
            ("Bind", "", "", (name, value, local)),
            ("Execute", ""),
            ("Sync",),
        ]
    text = {
        "literal": f"select set_config('{name}', '{value}', {local})",
        "qualified": f"select pg_catalog.set_config('{name}', '{value}', {local})",
        "from rows": f"select set_config('{name}', v, {local}) from (values ('{value}')) as x (v)",
        "named arguments": f"select 1 where set_config('{name}', '{value}', {local}) is null",
    }[form]
    return form, carried(draw, text)


@group("hidden set", 1)
def hidden_set(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("do", "do $$ begin perform set_config('timezone', 'Asia/Tokyo', false); end $$"),
            ("do set", "do $$ begin set timezone to 'Asia/Tokyo'; end $$"),
            ("function", "select public.remember('app.tenant', 'b')"),
            ("function call", None),
        ],
    )
    if text is None:
        return name, [("FunctionCall", 2078, ("timezone", "Asia/Tokyo", "false"))]
    return name, carried(draw, text)


@group("transaction", 10)
def transaction(draw: Draw, client: int) -> Action:
    text = pick(
        draw,
        [
            "begin", "commit", "rollback", "begin", "commit", "rollback", "savepoint a", "rollback to a", "release a",
            "savepoint b", "rollback to savepoint b", "end", "abort", "start transaction",
        ],
    )  # fmt: skip
    return text, carried(draw, text)


@group("chain", 1)
def chain(draw: Draw, client: int) -> Action:
    text = pick(draw, ["commit and chain", "rollback and chain"])
    return text, carried(draw, text)


@group("prepared transaction", 1)
def prepared_transaction(draw: Draw, client: int) -> Action:
    text = pick(
        draw, [f"prepare transaction 'p{client}'", f"commit prepared 'p{client}'", f"rollback prepared 'p{client}'"]
    )
    return text.removesuffix(f" 'p{client}'"), carried(draw, text)


@group("error", 3)
def error(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("division", "select 1/0"),
            ("syntax", "selec 1"),
            ("relation", "select * from no_such_table"),
            ("unique", f"insert into public.t{client} values (1, 'again')"),
            ("permission", "alter system set work_mem = 'x'"),
            ("raise", "do $$ begin raise exception 'text' using errcode = '22012', detail = 'd', hint = 'h'; end $$"),
        ],
    )
    return name, carried(draw, text)


@group("look", 4)
def look_around(draw: Draw, client: int) -> Action:
    name, text = pick(
        draw,
        [
            ("show", "show timezone"),
            ("show search_path", "show search_path"),
            ("show transaction_isolation", "show transaction isolation level"),
            ("user", "select current_user, session_user"),
            ("word", "select v from word order by id"),
            ("time", "select '2020-03-04 05:06:07+00'::timestamptz"),
            ("float", "select 0.1::float8 + 0.2::float8"),
            ("bytea", "select '\\x00ff'::bytea"),
            ("interval", "select '1 day 2 hours'::interval"),
            ("string", "select 'back\\\\slash'"),
            ("notice", "do $$ begin raise notice 'seen'; raise debug 'deep'; end $$"),
            ("activity", "select application_name from pg_stat_activity where pid = pg_backend_pid()"),
        ],
    )
    return name, carried(draw, text)


@group("defaults", 1)
def defaults(draw: Draw, client: int) -> Action:
    text = pick(
        draw,
        [
            "alter role postgres set timezone to 'Europe/Paris'",
            "alter database postgres set work_mem to '9MB'",
            "alter role postgres reset all",
        ],
    )
    return " ".join(text.split()[:2]), carried(draw, text)


@group("connection", 3)
def connection(draw: Draw, client: int) -> Action:
    act = pick(draw, ["terminate", "hang up", "reset", "connect"])
    return act, [("connect", {}) if act == "connect" else (act,)]


@group("startup", 3)
def startup(draw: Draw, client: int) -> Action:
    parameters = pick(
        draw,
        [
            {"options": "-c timezone=Asia/Tokyo"},
            {"options": "-c app.tenant=a --work_mem=6MB"},
            {"options": "-c search_path=other,public"},
            {"TimeZone": "America/New_York", "application_name": "named"},
            {"client_encoding": "LATIN1", "DateStyle": "German"},
            {"options": "-c role=alice"},
            {"options": "-c default_transaction_isolation=serializable"},
            {"options": "-c app.tenant=a\\ b"},
            {"options": "-c no_such_setting=1"},
            {"options": "-c work_mem=nonsense"},
            {"client_encoding": "nonsense"},
            {"options": "-c client_min_messages=debug1"},
        ],
    )
    return "connect", [("connect", parameters)]
