"""`classify`, remembered: what the hot path calls with every statement text.

It screens with one regular expression for the words that can change a session, remembers by text, and parses only
what it must. Texts that differ only in literals share one `Statement` where nothing in a literal could matter.
"""

from __future__ import annotations

import re
from typing import Any

import postgast

from pooler.sql.statement import UNKNOWN, Statement, classify

_SCREEN = re.compile(
    rb"""(?: ^ | ; | \*/ | \n ) \s*
         (?: set | reset | listen | unlisten | declare | close | prepare | execute | deallocate | discard | load
             | create | alter | drop | comment | grant | revoke | import | reassign | security | do | call
             | begin | start | commit | end | rollback | abort | savepoint | release ) \b
       | \b (?: temp | temporary | pg_settings
              | \w*advisory\w* | set_config | currval | lastval | setseed | dblink\w* | pgv_\w*
                | dbms_\w* | plvlex\w* | plvdate\w* | set_limit
                | pg_replication_origin_session_setup ) \b
       | pg_temp | u&\"
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TEMPORAL = re.compile(rb"now|today|tomorrow|yesterday", re.IGNORECASE)
_ESCAPED = re.compile(rb"\b[eEuU]&?'")


class Classifier:
    """Call it with a text.

    Args:
      parse_always: everything is classified, because a cache must know; otherwise only texts that may have session
        effects are.
      session_functions: names of functions that have effects on the session which their call does not show.
      max_entries: how many texts, and how many shapes, are remembered.
    """

    LONGEST_REMEMBERED = 8192
    """Longer texts, in bytes, are classified each time."""

    def __init__(
        self, *, parse_always: bool, session_functions: frozenset[str] = frozenset(), max_entries: int = 20000
    ) -> None:
        self._parse_always = parse_always
        self._max_entries = max_entries
        self._configured = session_functions
        self.recalls_seen = False
        """Whether anybody has ever asked for currval or lastval: until then nobody looks for it."""
        self._by_text: dict[bytes, Statement] = {}
        self._by_shape: dict[str, Statement] = {}
        self._session_functions: frozenset[str] = frozenset()
        self._found: dict[str, frozenset[str]] = {}
        self._suspects: re.Pattern[bytes] | None = None
        self._look_for(session_functions)

    def found_functions(self, database: str, found: frozenset[str]) -> None:
        """The catalog of `database` shows these functions to have effects on the session: they, and no others."""
        self._found[database] = found
        self._look_for(self._configured.union(*self._found.values()))

    def add_functions(self, made: frozenset[str]) -> None:
        """Somebody is making such functions; the catalog is read again later."""
        self._look_for(self._session_functions | made)

    def _look_for(self, names: frozenset[str]) -> None:
        if names == self._session_functions:
            return
        self._session_functions = names
        words = b"|".join(re.escape(name.encode()) for name in sorted(names))
        self._suspects = re.compile(rb"(?:" + words + rb")", re.IGNORECASE) if names else None
        self._by_text.clear()
        self._by_shape.clear()

    def __call__(self, text: bytes) -> Statement:
        known = self._by_text.get(text)
        if known is not None:
            return known
        statement = self._classify(text)
        self.recalls_seen = self.recalls_seen or statement.recalls_sequences
        if len(text) <= self.LONGEST_REMEMBERED:
            _make_room(self._by_text, self._max_entries)
            self._by_text[text] = statement
        return statement

    def _classify(self, text: bytes) -> Statement:
        screened = _SCREEN.search(text) is not None
        if screened or (self._suspects is not None and self._suspects.search(text) is not None):
            return classify(text, session_functions=self._session_functions)
        if not self._parse_always:
            return UNKNOWN
        if _TEMPORAL.search(text) is not None or _ESCAPED.search(text) is not None:
            return classify(text, suspicious=False)
        # Nothing left that a literal could decide, so texts of one shape share one meaning.
        try:
            shape = postgast.fingerprint(text.decode()).hex
        except Exception:
            return classify(text, suspicious=False)
        known = self._by_shape.get(shape)
        if known is None:
            _make_room(self._by_shape, self._max_entries)
            known = self._by_shape[shape] = classify(text, suspicious=False)
        return known


def _make_room(memory: dict[Any, Statement], limit: int) -> None:
    """Forget the oldest tenth of a full memory."""
    if len(memory) >= limit:
        for key in list(memory)[: max(1, limit // 10)]:
            del memory[key]
