"""`classify`, remembered: what the hot path calls with every statement text.

It remembers by text, by template and by shape, screens new shapes with one regular expression for the words that can
change a session, and parses only what it must. Texts of one `shape` share one `Statement` where no literal could
matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pooler.sql.memory import Memory
from pooler.sql.screen import may_affect_session, may_affect_session_folded
from pooler.sql.shape import counts_only, separates, shape, shortened, template
from pooler.sql.statement import NO_FUNCTIONS, UNKNOWN, UNKNOWN_DRAWING, UNKNOWN_LOOKING, PinKind, Statement, classify
from pooler.sql.traces import looks

_MAY_DRAW = re.compile(rb"\b(?:insert|merge|copy|nextval|setval)\b", re.IGNORECASE)


class Classifier:
    """Call it with a text.

    Args:
      parse_always: everything is classified, because a cache must know; otherwise only texts that may have session
        effects are.
      session_functions: names of functions that have effects on the session which their call does not show.
      max_entries: how many texts, and how many shapes, are remembered. max_bytes: what they may take, all together;
        what texts share is counted for each of them.
    """

    LONGEST_REMEMBERED = 8192
    """Longer texts, in bytes, are classified each time."""
    LONGEST_TAKEN_APART = 4 << 20
    """Of longer ones nobody looks at the shape."""

    def __init__(
        self,
        *,
        parse_always: bool,
        session_functions: frozenset[str] = frozenset(),
        max_entries: int = 20000,
        max_bytes: int = 128 << 20,
    ) -> None:
        self._parse_always = parse_always
        self._configured = dict.fromkeys(session_functions, PinKind.HIDDEN)
        self.recalls_seen = False
        """Whether anybody has ever asked for currval or lastval: until then nobody looks for it."""
        self.looks_seen = False
        """Whether anybody has ever looked at what may be another client's trace: the same."""
        self.signals_seen = False
        """Whether anybody has ever cancelled or terminated by SQL: the same."""
        self._texts: Memory[Statement] = Memory(max_entries, max_bytes // 2)
        self.remembered = self._texts.known
        """What texts mean that were asked for before, for those who cannot wait for an answer."""
        self._by_shape: Memory[Statement | None] = Memory(max_entries, max_bytes // 4)
        """None: its texts differ in what they mean."""
        self._by_template: Memory[Statement] = Memory(max_entries, max_bytes // 4)
        """Of texts in which only numbers may differ."""
        self._session_functions: Mapping[str, PinKind] = NO_FUNCTIONS
        self._found: dict[str, Mapping[str, PinKind]] = {}
        self._suspects: re.Pattern[bytes] | None = None
        self._look_for(self._configured)

    def found_functions(self, database: str, found: Mapping[str, PinKind]) -> None:
        """The catalog of `database` shows these functions to have effects on the session: they, and no others."""
        self._found[database] = found
        self._look_for(_worst(self._configured, *self._found.values()))

    def add_functions(self, made: Iterable[tuple[str, PinKind]]) -> None:
        """Somebody is making such functions; the catalog is read again later."""
        self._look_for(_worst(self._session_functions, dict(made)))

    def _look_for(self, names: Mapping[str, PinKind]) -> None:
        if names == self._session_functions:
            return
        self._session_functions = names
        words = b"|".join(re.escape(name.encode()) for name in sorted(names))
        self._suspects = re.compile(rb"(?:" + words + rb")", re.IGNORECASE) if names else None
        self._texts.clear()
        self._by_shape.clear()
        self._by_template.clear()

    def __call__(self, text: bytes) -> Statement:
        known = self.remembered.get(text)
        if known is not None:
            return known
        statement = self._classify(text)
        self.recalls_seen = self.recalls_seen or statement.recalls_sequences
        self.looks_seen = self.looks_seen or statement.looks
        self.signals_seen = self.signals_seen or statement.signal is not None
        if len(text) <= self.LONGEST_REMEMBERED:
            self._texts.keep(text, statement, statement.weight)
        return statement

    def _classify(self, text: bytes) -> Statement:
        if len(text) > self.LONGEST_REMEMBERED:
            return self._classify_long(text)
        pattern = template(text)
        known = self._by_template.known.get(pattern)
        if known is not None:
            return known
        form = shape(text)
        if form is None:
            return self._examine(text, screened=self._may_affect_session(text))
        shapes = self._by_shape.known
        known = shapes[form] if form in shapes else self._learn(form, text)
        if known is None:
            return self._examine(text, screened=self._may_affect_session(form))
        if counts_only(text):
            self._by_template.keep(pattern, known, known.weight)
        return known

    def _classify_long(self, text: bytes) -> Statement:
        """A text that is not remembered. Where its length is that of its lists, one of their elements says as much."""
        form = shape(text) if len(text) <= self.LONGEST_TAKEN_APART else None
        folded = (text if form is None else form).lower()
        screened = may_affect_session_folded(folded) or any(
            name.lower().encode() in folded for name in self._session_functions
        )
        if form is not None and separates(form):
            short = shortened(form)
            if len(short) <= self.LONGEST_REMEMBERED:
                meaning = self._by_shape.known.get(short)
                if meaning is None:
                    meaning = self._examine(short, screened=screened)
                if not (meaning.parts or meaning.shows):  # which stand somewhere in the text
                    self._by_shape.keep(short, meaning, meaning.weight)
                    return meaning
        return self._examine(text, screened=screened)

    def _learn(self, form: bytes, text: bytes) -> Statement | None:
        """Classify the first text of a shape, and remember it for the others where their literals cannot matter."""
        screened = self._may_affect_session(form)
        known = None if screened or not separates(form) else self._examine(text, screened=False)
        self._by_shape.keep(form, known, known.weight if known is not None else 0)
        return known

    def _may_affect_session(self, text: bytes) -> bool:
        return may_affect_session(text) or (self._suspects is not None and self._suspects.search(text) is not None)

    def _examine(self, text: bytes, *, screened: bool) -> Statement:
        if screened:
            return classify(text, session_functions=self._session_functions)
        if self._parse_always or len(text) > self.LONGEST_TAKEN_APART:
            return classify(text, suspicious=False)
        return _unexamined(text)


def _worst(*found: Mapping[str, PinKind]) -> dict[str, PinKind]:
    """All of them; of a name that is there twice, what lasts longer."""
    both: dict[str, PinKind] = {}
    for each in found:
        both |= {name: kind for name, kind in each.items() if both.get(name) is not PinKind.LASTING}
    return both


def _unexamined(text: bytes) -> Statement:
    """What is known of a text without parsing it."""
    if _MAY_DRAW.search(text) is not None:
        return UNKNOWN_DRAWING
    return UNKNOWN if looks(text) is None else UNKNOWN_LOOKING
