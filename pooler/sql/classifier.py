"""`classify`, remembered: what the hot path calls with every statement text.

It remembers by text, by template and by shape, screens new shapes with one regular expression for the words that can
change a session, and parses only what it must. Texts of one `shape` share one `Statement` where no literal could
matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pooler.sql.functions import RUNS_RELATIONS
from pooler.sql.memory import Memory
from pooler.sql.reached import is_word
from pooler.sql.screen import may_affect_session, may_affect_session_folded
from pooler.sql.shape import counts_only, separates, shape, shortened, template
from pooler.sql.statement import (
    NO_EFFECTS,
    READ,
    UNKNOWN,
    UNKNOWN_DRAWING,
    UNKNOWN_LOOKING,
    Carrier,
    Effects,
    PinKind,
    Statement,
    classify,
)  # fmt: skip
from pooler.sql.traces import looks

_WORD = re.compile(rb"[\w\x80-\xff]+")
MOST_MET_ONCE = 5000
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
        self._configured: Effects = dict.fromkeys(session_functions, PinKind.HIDDEN)
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
        self._met_once: set[int] = set()
        """Hashes of texts whose template was known and that are not remembered themselves."""
        self.when_changed: Callable[[], None] = _nothing
        """Called when texts that were classified before may mean something else."""
        self.additions = 0
        """How often `add_effects` has been told anything."""
        self._effects: Effects = NO_EFFECTS
        self._found: dict[str, Effects] = {}
        self._made: dict[str, Effects] = {}
        self._suspects: re.Pattern[bytes] | None = None
        self._suspect_words: frozenset[bytes] = frozenset()
        self._look_for(self._configured)

    @property
    def configured(self) -> Effects:
        """What the operator has named."""
        return self._configured

    def found_effects(self, database: str, found: Effects, *, complete: bool = True) -> bool:
        """The catalog of `database` shows these functions and carriers to have effects on the session; whether that is
        new. `complete`: it has all that was made before, too, as far as that has come to be.
        """
        is_new = self._found.get(database, NO_EFFECTS) != found
        self._found[database] = found
        if complete:
            self._made.pop(database, None)
        self._look_for(_worst(self._configured, *self._found.values(), *self._made.values()))
        return is_new

    def add_effects(self, database: str, made: Iterable[tuple[str | Carrier, PinKind]]) -> None:
        """Somebody is making such functions or carriers in `database`; its catalog is read again later."""
        self.additions += 1
        self._made[database] = _worst(self._made.get(database, NO_EFFECTS), dict(made))
        self._look_for(_worst(self._effects, self._made[database]))

    def _look_for(self, effects: Effects) -> None:
        if effects == self._effects:
            return
        self._effects = effects
        names = {(key if isinstance(key, str) else key.name).lower() for key in effects}
        if any(isinstance(key, Carrier) and key.what == READ for key in effects):
            names |= RUNS_RELATIONS
        # Functions are looked for anywhere in a text, relations as words: their names may be short.
        anywhere = {key.lower() for key in effects if isinstance(key, str)}
        anywhere |= {name for name in names if not is_word(name)}
        pattern = b"|".join(re.escape(name.encode()).replace(b'"', b'""?') for name in sorted(anywhere))
        self._suspects = re.compile(rb"(?:" + pattern + rb")", re.IGNORECASE) if anywhere else None
        self._suspect_words = frozenset(name.encode() for name in names - anywhere)
        self._texts.clear()
        self._by_shape.clear()
        self._by_template.clear()
        self.when_changed()

    def __call__(self, text: bytes) -> Statement:
        known = self.remembered.get(text)
        if known is not None:
            return known
        known = self._by_template.known.get(template(text)) if len(text) <= self.LONGEST_REMEMBERED else None
        if known is not None:
            self._met(text, known)
            return known
        statement = self._classify(text)
        self.recalls_seen = self.recalls_seen or statement.recalls_sequences
        self.looks_seen = self.looks_seen or statement.looks
        self.signals_seen = self.signals_seen or statement.signal is not None
        if len(text) <= self.LONGEST_REMEMBERED:
            self._texts.keep(text, statement, statement.weight)
        return statement

    def _met(self, text: bytes, known: Statement) -> None:
        """A text of a known template has come. Only one that comes again is remembered: most have numbers of their own,
        and to remember and forget each costs more than to look at its template.
        """
        mark = hash(text)
        if mark in self._met_once:
            self._texts.keep(text, known, known.weight)
        elif len(self._met_once) < MOST_MET_ONCE:
            self._met_once.add(mark)
        else:
            self._met_once = {mark}

    def _classify(self, text: bytes) -> Statement:
        if len(text) > self.LONGEST_REMEMBERED:
            return self._classify_long(text)
        form = shape(text)
        if form is None:
            return self._examine(text, screened=self._may_affect_session(text))
        shapes = self._by_shape.known
        known = shapes[form] if form in shapes else self._learn(form, text)
        if known is None:
            return self._examine(text, screened=self._may_affect_session(form))
        if counts_only(text):
            self._by_template.keep(template(text), known, known.weight)
        return known

    def _classify_long(self, text: bytes) -> Statement:
        """A text that is not remembered. Where its length is that of its lists, one of their elements says as much."""
        form = shape(text) if len(text) <= self.LONGEST_TAKEN_APART else None
        folded = (text if form is None else form).lower()
        screened = may_affect_session_folded(folded) or self.names_suspect(folded)
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
        return may_affect_session(text) or self.names_suspect(text)

    def names_suspect(self, text: bytes) -> bool:
        """Whether there may be the name of a function or a carrier in `text`."""
        if self._suspects is not None and self._suspects.search(text) is not None:
            return True
        return bool(self._suspect_words) and not self._suspect_words.isdisjoint(
            word[:63] for word in _WORD.findall(text.lower())
        )

    def _examine(self, text: bytes, *, screened: bool) -> Statement:
        if screened:
            return classify(text, known=self._effects)
        if self._parse_always or len(text) > self.LONGEST_TAKEN_APART:
            return classify(text, suspicious=False)
        return _unexamined(text)


def _nothing() -> None:
    pass


def _worst(*found: Effects) -> dict[str | Carrier, PinKind]:
    """All of them; of a name that is there twice, what lasts longer."""
    both: dict[str | Carrier, PinKind] = {}
    for each in found:
        both |= {name: kind for name, kind in each.items() if both.get(name) is not PinKind.LASTING}
    return both


def _unexamined(text: bytes) -> Statement:
    """What is known of a text without parsing it."""
    if _MAY_DRAW.search(text) is not None:
        return UNKNOWN_DRAWING
    return UNKNOWN if looks(text) is None else UNKNOWN_LOOKING
