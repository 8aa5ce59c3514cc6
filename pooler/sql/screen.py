"""Which texts may have effects on their session, by sight: one look for the words that such a text must have.

Lives here: the words, and how they are looked for; calls that may name another client's process (`signals`) have them,
too. Not here: what a text that has one means (`statement`), names of functions that only a database or its operator
knows (`classifier`).
"""

from __future__ import annotations

import re

_SCREEN = re.compile(
    rb"""(?: ^ | ; | \*/ | \n ) [ \t\r\f\v]*+
         (?: set | reset | listen | unlisten | declare | close | prepare | execute | deallocate | discard | load
             | create | alter | drop | comment | grant | revoke | import | reassign | security | do | call
             | begin | start | commit | end | rollback | abort | savepoint | release ) \b
       | \b (?: temp | temporary | pg_settings | pg_prepared_statements
              | set_config | currval | lastval | setseed | set_limit | pg_replication_origin_session_setup
              | pg_ (?: cancel | terminate ) _backend
              | pg_backup_start | pg_start_backup | pg_ (?: create | copy ) _ (?: logical | physical ) _replication_slot
              | query_to_xml \w* | ts_stat | ts_rewrite | crosstab \w* | connectby | xpath_table ) \b
       | \b (?: dblink | pgv_ | dbms_ | utl_file | plvlex | plvdate )
       | advisory | pg_temp | u&\"
    """,
    re.IGNORECASE | re.VERBOSE,
)

"""Each line of blanks is looked at once: a newline begins anew."""

_BEGINS = re.compile(_SCREEN.pattern.partition(b"| \\b")[0], re.VERBOSE)
_BEGINS_WITHIN = re.compile(_BEGINS.pattern.replace(b"^ |", b"", 1), re.VERBOSE)
_WORDS = [
    re.compile(pattern)
    for pattern in (
        rb"temp(?<!\wtemp)(?:orary)?\b", rb"pg_settings\b", rb"pg_prepared_statements\b", rb"set_config\b",
        rb"currval\b", rb"lastval\b", rb"setseed\b", rb"set_limit\b", rb"pg_replication_origin_session_setup\b",
        rb"pg_(?:backup_start|start_backup)\b", rb"pg_(?:create|copy)_(?:logical|physical)_replication_slot\b",
        rb"query_to_xml", rb"ts_stat\b", rb"ts_rewrite\b", rb"crosstab", rb"connectby\b", rb"xpath_table\b",
        rb"pg_(?:cancel|terminate)_backend\b", rb"utl_file", rb"dblink", rb"pgv_", rb"dbms_", rb"plvlex", rb"plvdate",
        rb"advisory", rb"pg_temp", rb'u&"',
    )
]  # fmt: skip
"""`_SCREEN` for long texts in lower case: patterns that begin with a literal are looked for some ten times faster."""


def may_affect_session(text: bytes) -> bool:
    """Whether there is a word in `text` that there is in every text with effects on its session."""
    return _SCREEN.search(text) is not None


def may_affect_session_folded(folded: bytes) -> bool:
    """The same of a long text, in lower case."""
    return (
        _BEGINS.match(folded) is not None
        or _BEGINS_WITHIN.search(folded) is not None
        or any(word.search(folded) is not None for word in _WORDS)
    )
