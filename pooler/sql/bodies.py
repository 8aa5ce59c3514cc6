"""What the body of a function or a DO block does to the session of its caller, as far as its text shows.

One pattern for both sides: Python's, for bodies that pass through pgnear, and PostgreSQL's, for those in pg_proc.
"""

from __future__ import annotations

import re

_PATTERN = (
    r"""(^|;|'|\$\$|{b}begin|{b}then|{b}else|{b}loop)\s*"""
    r"""(set\s+(session\s+)?(?!local{b})(?!transaction{b})(?!constraints{b})|reset\s|listen\s|unlisten\s|load\s|"""
    r"""prepare\s|deallocate\s|discard\s|create\s+(local\s+|global\s+)?temp)"""
    r"""|{b}set_config\s*\([^;]*,\s*(false|'f[^']*'|'off'|'0')\s*\)"""
    r"""|{b}into\s+(local\s+)?temp|{b}with\s+hold{b}|{b}pg_(try_)?advisory_lock|{b}setseed{b}"""
)

_POSTGRES_BOUNDARY = r"\y"

hides_effects = re.compile(_PATTERN.replace("{b}", r"\b"), re.IGNORECASE).search
"""Finds what has effects on the session in a body."""

SESSION_FUNCTIONS_QUERY = f"""
SELECT DISTINCT p.proname FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
 WHERE n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'
   AND l.lanname OPERATOR(pg_catalog.<>) ALL (ARRAY['c', 'internal']::pg_catalog.name[])
   AND p.prosrc OPERATOR(pg_catalog.~*) $pattern${_PATTERN.replace("{b}", _POSTGRES_BOUNDARY)}$pattern$
"""
"""One column: the names of functions and procedures whose body has effects on the session."""
