"""What the body of a function or a DO block does to the session of its caller, as far as its text shows.

One pattern for both sides: Python's, for bodies that pass through pgnear, and PostgreSQL's, for those in pg_proc.
"""

from __future__ import annotations

import re

from pooler.sql.functions import LIBRARIES_WITH_SESSIONS
from pooler.sql.statement import PinKind

_HIDDEN = (
    r"""(^|;|[^|\s]\s*'|\$\$|{b}begin|{b}then|{b}else|{b}loop)\s*"""
    r"""(set\s+(session\s+)?(?!local{b})(?!transaction{b})(?!constraints{b})|reset\s|listen\s|unlisten\s|load\s|"""
    r"""prepare\s|deallocate\s|discard\s|create\s+(local\s+|global\s+)?temp)"""
    r"""|{b}set_config\s*\([^;]*,\s*(false|'f[^']*'|'off'|'0')\s*\)"""
    r"""|{b}into\s+(local\s+)?temp|{b}with\s+hold{b}|{b}pg_(try_)?advisory_lock|{b}set_limit\s*\("""
)
_LASTING = (
    r"""{b}(setseed|dblink_connect(_u)?|pg_backup_start|pg_replication_origin_session_setup)\s*\("""
    r"""|{b}pg_(create|copy)_(logical|physical)_replication_slot\s*\([^;]*{b}t(rue)?{b}"""
)
_KEPT_BY_LANGUAGE = {
    "plpython": (r"{b}[GS]D{b}", r"plpy\.prepare"),
    "plperl": (r"[%$]_SHARED{b}", r"spi_prepare"),
    "pltcl": (r"{b}(GD|global|upvar|variable){b}", r"spi_prepare"),
}
"""By the beginning of a language's name: where a body keeps what its connection remembers, and a sign that it is only
its plans."""

_POSTGRES_BOUNDARY = r"\y"


def _ours(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(pattern.replace("{b}", r"\b"), flags)


_hidden, _lasting = _ours(_HIDDEN, re.IGNORECASE), _ours(_LASTING, re.IGNORECASE)
_kept = {language: (_ours(keeps), _ours(plans)) for language, (keeps, plans) in _KEPT_BY_LANGUAGE.items()}


def effects_of(body: str, language: str = "") -> PinKind | None:
    """What a body in `language` leaves on its caller's session."""
    if _lasting.search(body) is not None:
        return PinKind.LASTING
    for beginning, (keeps, plans) in _kept.items():
        if language.startswith(beginning) and keeps.search(body) is not None and plans.search(body) is None:
            return PinKind.LASTING
    return PinKind.HIDDEN if _hidden.search(body) is not None else None


def _matches(pattern: str, *, operator: str = "~*") -> str:
    return f"b.body OPERATOR(pg_catalog.{operator}) $pattern${pattern.replace('{b}', _POSTGRES_BOUNDARY)}$pattern$"


_KEEPS = " OR ".join(
    f"l.lanname OPERATOR(pg_catalog.~) '^{language}' AND {_matches(keeps, operator='~')}"
    f" AND NOT {_matches(plans, operator='~')}"
    for language, (keeps, plans) in _KEPT_BY_LANGUAGE.items()
)
_IN_C = " OR ".join(
    f"p.probin OPERATOR(pg_catalog.~) '\\y{library}' AND p.proname OPERATOR(pg_catalog.~) '^({functions})$'"
    for library, functions in LIBRARIES_WITH_SESSIONS.items()
)

SESSION_FUNCTIONS_QUERY = f"""
SELECT f.oid, f.proname, f.lasting FROM (
  SELECT p.oid, p.proname, is_text AND {_matches(_HIDDEN)} AS hidden,
         is_text AND ({_matches(_LASTING)} OR {_KEEPS}) OR l.lanname OPERATOR(pg_catalog.=) 'c' AND ({_IN_C}) AS lasting
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang,
         LATERAL (SELECT l.lanname OPERATOR(pg_catalog.<>) ALL (ARRAY['c', 'internal']::pg_catalog.name[])
                      AS is_text) t,
         LATERAL (SELECT CASE WHEN p.prosrc OPERATOR(pg_catalog.=) '' AND l.lanname OPERATOR(pg_catalog.=) 'sql'
                              THEN pg_catalog.pg_get_functiondef(p.oid) ELSE p.prosrc END AS body) b
   WHERE n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'
     AND p.prokind OPERATOR(pg_catalog.=) ANY (ARRAY['f', 'p']::pg_catalog."char"[])
) f WHERE f.hidden OR f.lasting
"""
"""OID and name of functions and procedures with effects on the session, and whether these outlive DISCARD ALL (t or f).

What calls them, or reaches them otherwise, is found by `carriers`.
"""
