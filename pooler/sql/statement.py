"""What one statement text means to a pooler and to a cache: the vocabulary, and `classify`, the exact answer.

Lives here: `Statement` (a whole text), `Part` (one statement of it and what it does to its session once it is
complete). How they are found out: `effects` (the session), `purity` (the cache). What the hot path calls, with its
memory: `classifier`. `classify` fails closed: what cannot be understood pins, writes and is not cached.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pooler.sql import parser

if TYPE_CHECKING:
    from pooler.sql.signals import Signal
    from pooler.sql.views import Reference

Name = tuple[str | None, str]
"""(schema or None, name), both as the parser folds them."""


class Call(NamedTuple):
    """A function call as it is written: schema or None, name, number of arguments."""

    schema: str | None
    name: str
    arguments: int


class Change(enum.Enum):
    """What is done to a relation. LOCK changes nothing, but what follows in its transaction may rely on it."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    TRUNCATE_CASCADE = "truncate cascade"
    REFRESH = "refresh"
    LOCK = "lock"


class PinKind(enum.Enum):
    """State that stays on its connection. The value is the reason in words for an operator, and a metric's label."""

    TEMPORARY = "temporary object"
    LISTEN = "LISTEN"
    CURSOR = "cursor WITH HOLD"
    ADVISORY = "advisory lock"
    PREPARE = "PREPARE"
    SEQUENCE = "sequence state"
    SETTING = "setting that cannot follow"
    TOO_MUCH = "more settings than are kept"
    HIDDEN = "function or block with session effects"
    REACHED = "trigger, view, default or the like with session effects"
    LASTING = "function whose effects outlive DISCARD ALL"
    LOAD = "LOAD"
    SEED = "random seed"
    REPLICATION = "replication"
    UNPARSABLE = "unparsable"
    SESSION = "session pooling"


class Carrier(NamedTuple):
    """What reaches effects on the session without a call that shows (`sql.carriers`).

    Attributes:
      what: "operator", "type", or what is done with a relation: "read" or a `Change`'s value. name: without a schema.
    """

    what: str
    name: str


Effects = Mapping[str | Carrier, PinKind]
"""What is known to have effects on the session: functions by name, and what carries them."""

NO_EFFECTS: Effects = MappingProxyType({})

READ, REFRESH, INSERT, UPDATE = "read", Change.REFRESH.value, Change.INSERT.value, Change.UPDATE.value
EVENTS = (READ, *(change.value for change in Change if change is not Change.LOCK))
"""What a statement does with a relation."""
TRIGGER_EVENTS = {
    4: (INSERT,), 8: (Change.DELETE.value,), 16: (UPDATE,), 32: (Change.TRUNCATE.value, Change.TRUNCATE_CASCADE.value),
}  # fmt: skip
"""The same by the bits of pg_trigger.tgtype, which the parser has, too."""


class Transact(enum.Enum):
    """What a transaction control statement does."""

    COMMIT = enum.auto()
    ROLLBACK = enum.auto()
    SAVEPOINT = enum.auto()
    RELEASE = enum.auto()
    ROLLBACK_TO = enum.auto()


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One SET or RESET.

    Attributes:
      name: lower case; "" for RESET ALL.
      apply_sql: the statement that makes it so; None: back to the default.
      local: it ends with its transaction, so that it never has to follow.
    """

    name: str
    apply_sql: str | None
    local: bool = False

    @property
    def all(self) -> bool:
        return not self.name


class DefaultChange(NamedTuple):
    """ALTER ROLE or ALTER DATABASE ... SET or RESET: what `role` in `database` begins with ("" for every one).

    Attributes:
      name: of the setting, in lower case; "" for all. value: None where it is reset, or is no plain constant.
    """

    role: str
    database: str
    name: str
    value: str | None

    def concerns(self, user: str, database: str) -> bool:
        """Whether connections of `user` to `database` may begin with something else now."""
        return self.role in ("", user) and self.database in ("", database)


@dataclass(frozen=True, slots=True)
class SetConfig:
    """A call of set_config whose arguments are constants (text) or parameters (their numbers, from 1)."""

    name: str | int
    value: str | int
    local: bool | int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One statement of a text: what it does to its session once it is complete.

    Attributes:
      start, end: where it stands in the text, in bytes.
      changes: settings that it sets or resets. configs: calls of set_config that wait for their parameters.
      pins: state that it may leave on the connection; survives: the same where it fails, which no rollback takes back.
        releases: state that it may have ended.
      leaves: traces on a connection that nothing takes back (`sql.traces`).
      transact, savepoint: transaction control. discards: of DISCARD, "all", "plans", "temp" or "sequences".
      deallocates, prepares, executes: names of prepared statements, as SQL has them; b"" deallocates all of them.
    """

    start: int = 0
    end: int = 0
    changes: tuple[SettingChange, ...] = ()
    configs: tuple[SetConfig, ...] = ()
    pins: frozenset[PinKind] = frozenset()
    survives: frozenset[PinKind] = frozenset()
    leaves: frozenset[str] = frozenset()
    releases: frozenset[PinKind] = frozenset()
    transact: Transact | None = None
    savepoint: str = ""
    discards: str = ""
    deallocates: bytes | None = None
    prepares: bytes | None = None
    executes: bytes | None = None

    @property
    def named(self) -> bytes | None:
        """The prepared statement that it names, which may be one that Parse has made."""
        return self.deallocates or self.prepares or self.executes

    @property
    def has_effects(self) -> bool:
        """Whether its completion must be noticed, whatever the session has done before."""
        return bool(
            self.changes or self.configs or self.pins or self.leaves or self.releases or self.discards
            or self.deallocates is not None or self.named is not None
        )  # fmt: skip

    @property
    def resets(self) -> bool:
        """Whether it puts a setting back to what the connection began with, which may not be what its client did."""
        return any(change.apply_sql is None for change in self.changes)


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """What a text means. Compared by identity: texts that differ only in literals may share one.

    Attributes:
      parts: its statements in order, where one of them has effects or controls a transaction; else empty.
      has_effects: a part's completion must be noticed.
      begins: it opens a transaction block. isolation: the level that it asks for, or "default"; "" of other statements.
      access: "read only" or "read write", where it asks for that.
      changes_schema: after it a name may mean something else: DDL, or what may hide DDL.
      changes_defaults: how it changes what a new connection begins with (ALTER ROLE or DATABASE ... SET).
      sequences: it may give out a sequence's values, which currval and lastval remember.
      draws: it calls nextval or setval, or nobody has looked and it may insert. may_draw: or it inserts, as far as
        shows; what draws by triggers and functions only is not among them.
      recalls_sequences: it asks for such a value (currval, lastval).
      makes: what it makes that has effects on the session which will not show: functions, and what carries effects.
      leaves: traces that its parts leave, whatever their parameters. looks: it may look at such traces.
      shows: where it refers to system views that would show it the connection instead of its session.
      signal: it does nothing but cancel or terminate by a process id, which may be a client's of pgnear.
      databases: names of databases that it drops, renames or copies: nobody may be connected to them.
      reads_only: it writes nothing that a cached answer could depend on, as far as names alone can tell.
      cacheable: its answer may be cached, if the catalog agrees about everything below.
      why_not: where it is not cacheable, the reason.
      relations: names that it reads or writes; `shadowed`: those of them that may be its own WITH queries instead.
      functions: names of the functions that it calls; `calls`: the same with schema and number of arguments.
      columns: last parts of column references, which may be functions of a row.
      operators, types: names of operators and of types that it casts to, those that syntax implies included.
      writes: what it does to which relations by itself. The catalog knows what follows from it.
      unknown_reach: what it writes does not show in its text (DO, CALL, EXECUTE, DDL).
      locks_rows: it is a SELECT ... FOR UPDATE or SHARE, or holds one.
      selects: it is one SELECT, VALUES or TABLE that makes and modifies nothing by itself.
      passes: nothing of it concerns its session or its connection, but that it may begin or end transactions.
      plain: nor does it do that: no effects, no transaction control, no DDL.
      weight: bytes that it takes in memory, about.
    """

    parts: tuple[Part, ...] = ()
    has_effects: bool = False
    begins: bool = False
    isolation: str = ""
    access: str = ""
    changes_schema: bool = False
    changes_defaults: tuple[DefaultChange, ...] = ()
    sequences: bool = False
    draws: bool = False
    recalls_sequences: bool = False
    makes: frozenset[tuple[str | Carrier, PinKind]] = frozenset()
    leaves: frozenset[str] = frozenset()
    looks: bool = False
    shows: tuple[Reference, ...] = ()
    signal: Signal | None = None
    databases: frozenset[str] = frozenset()
    reads_only: bool = False
    cacheable: bool = False
    why_not: str = ""
    relations: frozenset[Name] = frozenset()
    functions: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()
    operators: frozenset[Name] = frozenset()
    shadowed: frozenset[Name] = frozenset()
    calls: frozenset[Call] = frozenset()
    types: frozenset[Name] = frozenset()
    writes: frozenset[tuple[Name, Change]] = frozenset()
    unknown_reach: bool = False
    locks_rows: bool = False
    selects: bool = False
    may_draw: bool = field(init=False)
    passes: bool = field(init=False)
    plain: bool = field(init=False)
    weight: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        passes = not (
            self.has_effects or self.changes_schema or self.changes_defaults or self.recalls_sequences
            or self.makes or self.databases or self.leaves or self.looks or self.shows or self.signal is not None
        )  # fmt: skip
        inserts = any(change is Change.INSERT for _, change in self.writes)
        object.__setattr__(self, "may_draw", self.draws or inserts)
        object.__setattr__(self, "passes", passes)
        object.__setattr__(self, "plain", passes and not (self.parts or self.begins or self.isolation))
        object.__setattr__(self, "weight", self._weigh())

    def _weigh(self) -> int:
        names = (
            self.relations, self.functions, self.columns, self.operators, self.shadowed, self.calls, self.types,
            self.writes, self.shows, self.databases, self.leaves,
        )  # fmt: skip
        said = sum(len(change.apply_sql or "") for part in self.parts for change in part.changes)
        return 800 + 140 * sum(map(len, names)) + 500 * len(self.parts) + 2 * said

    @property
    def writes_to(self) -> frozenset[Name]:
        """The relations that it writes by itself."""
        return frozenset(name for name, _ in self.writes)

    @property
    def deallocates(self) -> bytes | None:
        """The prepared statement that it deallocates and does nothing else; b"" for all of them."""
        return self.parts[0].deallocates if len(self.parts) == 1 else None


UNKNOWN = Statement(sequences=True, unknown_reach=True, why_not="not examined: the cache is off")
"""A text without session effects, where nobody needs to know more."""

UNKNOWN_DRAWING = replace(UNKNOWN, draws=True, looks=True)
"""The same of one that may draw from sequences."""

UNKNOWN_LOOKING = replace(UNKNOWN, looks=True)
"""The same of one that may look at what others have left on its connection."""


def classify(text: bytes, *, known: Effects = NO_EFFECTS, suspicious: bool = True) -> Statement:
    """The exact meaning of `text`. Never raises.

    Args:
      known: functions that have effects on the session which their call does not show, and what carries such effects.
      suspicious: whether an unparsable text may have session effects.
    """
    from pooler.sql import effects, made, purity, signals, traces, views  # they speak this module's vocabulary

    try:
        raw = parser.statements(text)
    except parser.TooLong as error:
        return _unexamined(text, str(error), suspicious=suspicious)
    except Exception:
        pins = frozenset({PinKind.UNPARSABLE} if suspicious else ())
        part = Part(0, len(text), pins=pins, survives=pins)
        return Statement(
            parts=(part,) if suspicious else (),
            has_effects=suspicious,
            unknown_reach=True,
            why_not="the parser does not understand it",
        )
    if not raw:
        return Statement(reads_only=True, why_not="empty")
    facts = [purity.examine(item.stmt) for item in raw]
    parts: tuple[Part, ...] = ()
    makes: made.Made = {}
    for item, fact in zip(raw, facts, strict=True):
        parts += (effects.part_of(item.stmt, fact, text, *_extent(item, text), known),)
        more = made.made_by(fact, known)
        if more:
            makes |= more
            known = {**known, **more}
    parts = tuple(
        replace(part, leaves=traces.left_by(part, effects.names_set(fact)))
        for part, fact in zip(parts, facts, strict=True)
    )
    matters = any(part.has_effects or part.transact is not None for part in parts)
    why_not = facts[0].why_not if len(facts) == 1 else "several statements"
    if parts[0].pins:
        why_not = why_not or "it may change its session"
    return Statement(
        parts=parts if matters else (),
        has_effects=any(part.has_effects for part in parts),
        begins=any(fact.begins for fact in facts),
        isolation=facts[0].isolation if len(facts) == 1 else "",
        access=facts[0].access if len(facts) == 1 else "",
        changes_schema=any(fact.changes_schema for fact in facts),
        changes_defaults=tuple(fact.default_change for fact in facts if fact.default_change is not None),
        sequences=any(fact.sequences for fact in facts),
        draws=any(fact.draws for fact in facts),
        recalls_sequences=any(PinKind.SEQUENCE in part.pins for part in parts),
        makes=frozenset(makes.items()),
        leaves=frozenset().union(*(part.leaves for part in parts)),
        looks=traces.looks(text) is not None,
        shows=views.references(text, facts),
        signal=signals.signal_of(raw),
        databases=frozenset().union(*(fact.databases for fact in facts)),
        reads_only=all(fact.reads_only for fact in facts),
        cacheable=not why_not,
        why_not=why_not,
        relations=frozenset().union(*(fact.relations for fact in facts)),
        functions=frozenset().union(*(fact.functions for fact in facts)),
        columns=frozenset().union(*(fact.columns for fact in facts)),
        operators=frozenset().union(*(fact.operators for fact in facts)),
        shadowed=frozenset().union(*(fact.relations & fact.local_names for fact in facts)),
        calls=frozenset().union(*(fact.called for fact in facts)),
        types=frozenset().union(*(fact.types for fact in facts)),
        writes=frozenset().union(*(fact.written for fact in facts)),
        unknown_reach=any(fact.unknown_reach for fact in facts),
        locks_rows=any(fact.locks_rows for fact in facts),
        selects=len(facts) == 1 and facts[0].selects,
    )


_LONGEST_SEARCHED = 1 << 20
_LOOKS = (b"current_setting", b"current_schema", b"pg_my_temp_schema")
_INTO = re.compile(rb"\b(?:(insert|merge)\s+)?into\b", re.IGNORECASE)


def _unexamined(text: bytes, why: str, *, suspicious: bool) -> Statement:
    """What a text must be taken for that PostgreSQL may well understand, and pgnear does not look at."""
    from pooler.sql import traces

    pins = frozenset({PinKind.UNPARSABLE} if suspicious else ())
    part = Part(0, len(text), pins=pins, survives=pins)
    part = replace(part, leaves=traces.left_by(part))
    is_huge = len(text) > _LONGEST_SEARCHED
    makes_table = is_huge or any(found[1] is None for found in _INTO.finditer(text))  # SELECT ... INTO
    return Statement(
        parts=(part,) if suspicious else (),
        has_effects=suspicious,
        leaves=part.leaves,
        changes_schema=suspicious or makes_table,
        sequences=True,
        draws=True,
        looks=any(word in text.lower() for word in _LOOKS) if is_huge else traces.looks(text) is not None,
        unknown_reach=True,
        why_not=why,
    )


def _extent(item: Any, text: bytes) -> tuple[int, int]:
    """Where one statement stands in its text, in bytes."""
    start = item.stmt_location
    return start, start + item.stmt_len if item.stmt_len else len(text)
