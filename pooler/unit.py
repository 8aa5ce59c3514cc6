"""What an origin connection still owes: one `Unit` for everything up to one ReadyForQuery.

Lives here: which answers of a unit the client gets, which are swallowed because pgnear asked for them, which are made
up because the origin was never asked. Not here: reading frames (`origin`), choosing what to send (`session`,
`extended`).

A plain unit (most of them) looks at few frames: everything else passes in runs. A unit with `steps` follows each
message that was sent, one with `parts` each statement of a simple Query; one with `capture` copies the rows for the
cache; one with `swallow` is pgnear's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from pooler.sql.statement import Part
from protocol.framing import BEGUN_FRAMES
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.cache.advice import Study
    from pooler.cache.flight import Flight, Flights
    from pooler.cache.policy import Policy
    from pooler.histogram import Histogram
    from pooler.origin import Origin
    from pooler.session import Session
    from pooler.statements import Prepared

(
    BIND_COMPLETE, CLOSE_COMPLETE, COMMAND_COMPLETE, COPY_BOTH, COPY_IN, COPY_OUT, DATA_ROW, EMPTY_QUERY, ERROR,
    FUNCTION_RESULT, NO_DATA, NOTICE, NOTIFICATION, PARAMETER_DESCRIPTION, PARAMETER_STATUS, PARSE_COMPLETE,
    PORTAL_SUSPENDED, ROW_DESCRIPTION,
) = b"23CWGHDIEVnNAtS1sT"  # fmt: skip
READY: Final = 0x5A
"""Z, as a number: compiled, a literal costs nothing and a module's name a look-up."""

ALL: Final = frozenset(range(256))
PLAIN: Final = frozenset({ERROR, PARAMETER_STATUS, READY, COPY_IN, COPY_BOTH, NOTIFICATION})
"""Frames that even a plain unit looks at."""
WATCHFUL = PLAIN | {COMMAND_COMPLETE}
"""The same for a session with a write or a SET under way: completions matter too."""
SCRIPTED = WATCHFUL | {
    BIND_COMPLETE, CLOSE_COMPLETE, COPY_OUT, EMPTY_QUERY, FUNCTION_RESULT, NO_DATA, NOTICE, PARAMETER_DESCRIPTION,
    PARSE_COMPLETE, PORTAL_SUSPENDED, ROW_DESCRIPTION,
}  # fmt: skip
"""With steps: all that an answer may begin with, as answers of pgnear's own may have to come before it."""

PARSED: Final = frozenset({PARSE_COMPLETE})

HIDDEN = Part()
"""Stands for a statement that pgnear has added to a client's text: the client sees nothing of it."""

# What a step waits for. A step is (kind, forward?, argument, undo | None). The argument is what is made up (MADE_UP, or
# in place of an error: FAIL), the Prepared (PARSE, DESCRIBE; UNNAMED: a client's Parse without a name), the client's
# name for its statement (BIND) or the Part that is complete with it (EXECUTE).
PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, MADE_UP, FAIL, UNNAMED = range(8)
COMPLETES = {
    PARSE_COMPLETE: PARSE,
    BIND_COMPLETE: BIND,
    ROW_DESCRIPTION: DESCRIBE,
    NO_DATA: DESCRIBE,
    COMMAND_COMPLETE: EXECUTE,
    PORTAL_SUSPENDED: EXECUTE,
    EMPTY_QUERY: EXECUTE,
    CLOSE_COMPLETE: CLOSE,
}
Step = tuple[int, bool, Any, Any]


class Capture:
    """A cacheable answer on its way to the client, copied as it passes.

    Attributes:
      key, database, stamp, sent_at: where it belongs, and when its query was sent: on the store's clock, in seconds.
      policy, tables: how long it may be served, and the OIDs of the tables that it was read from.
      prepared: the statement.
      flight: those who wait for this answer, told by `fail` or `give_up` where it comes to nothing.
      rows: DataRow frames. size: their bytes.
    """

    __slots__ = (
        "database", "flight", "flights", "key", "parameter_description", "policy", "prepared", "row_description",
        "rows", "sent_at", "size", "stamp", "tables", "tag",
    )  # fmt: skip

    def __init__(
        self,
        database: str,
        key: Any,
        stamp: int,
        sent_at: float,
        policy: Policy,
        tables: Iterable[Any],
        prepared: Prepared,
    ) -> None:
        self.prepared = prepared
        self.policy = policy
        self.tables = tables
        self.flight: Flight | None = None
        self.flights: Flights | None = None
        self.database = database
        self.key = key
        self.stamp = stamp
        self.sent_at = sent_at
        self.rows: list[bytes] = []
        self.size = 0
        self.row_description: bytes | None = None
        self.parameter_description: bytes | None = None
        self.tag: bytes | None = None

    def fail(self) -> None:
        """There is no answer: one of those who wait asks next."""
        flight, self.flight = self.flight, None
        if flight is not None and self.flights is not None:
            self.flights.failed(flight)

    def give_up(self) -> None:
        """The answer is not one to share: all who wait ask for themselves."""
        flight, self.flight = self.flight, None
        if flight is not None and self.flights is not None:
            self.flights.disperse(flight)


class Unit:
    """Everything that is owed up to one ReadyForQuery.

    Attributes:
      notable: frame types that must be looked at; all others pass in runs.
      synced: the Sync (or Query) that ends it was sent.
      simple: it came as a Query message.
      failed: an ErrorResponse was read; the origin skips to the Sync.
      parts: the statements of a simple Query that must be followed, in order.
      silent: its ReadyForQuery is not passed on: that of the unit behind it, pgnear's own (`announces`), is.
      rows: with `swallow`, the frames that `done` wants to read: DataRow, RowDescription, NoData.
      done: with `swallow`, called at its ReadyForQuery.
      study: where it counts as a read, and a hash of what was asked.
      parsed: without steps, the statement of the unnamed Parse that it begins with, until that is answered.
      prefix: what the client gets in front of the answer, for what the origin was not asked; BIND_COMPLETE the other
        way around: the origin gives it, and the client gets it not. again: where a kept statement stood in for a
        Parse or a Query, that statement, and the request as its client sent it.
    """

    __slots__ = (
        "again",
        "announces",
        "capture",
        "done",
        "error",
        "failed",
        "latency",
        "notable",
        "parsed",
        "parts",
        "prefix",
        "rows",
        "silent",
        "simple",
        "started",
        "steps",
        "study",
        "swallow",
        "synced",
        "unopened",
    )

    def __init__(self, started: float, latency: Histogram | None, *, simple: bool = False) -> None:
        self.started = started
        self.latency = latency
        self.simple = simple
        self.notable = PLAIN
        self.synced = True
        self.swallow = False
        self.failed = False
        self.silent = False
        self.announces = False
        self.parts: deque[Part] | None = None
        self.steps: deque[Step] | None = None
        self.capture: Capture | None = None
        self.error: PgError | None = None
        self.rows: list[bytes] = []
        self.done: Callable[[Unit], None] | None = None
        self.study: tuple[Study, int] | None = None
        self.parsed: Prepared | None = None
        self.prefix = b""
        self.again: tuple[Prepared, bytes] | None = None
        self.unopened: Callable[[], None] | None = None

    @classmethod
    def own(cls, done: Callable[[Unit], None] | None = None) -> Unit:
        """A unit of pgnear's own: the client sees none of it."""
        unit = cls(0.0, None)
        unit.swallow = True
        unit.notable = ALL
        unit.done = done
        return unit

    def follow(self, parts: list[Part]) -> None:
        """Follow the statements of a simple Query."""
        self.parts = deque(parts)
        self.notable = ALL if HIDDEN in parts else self.notable | WATCHFUL

    def script(self, steps: list[Step], *, hides_rows: bool = False) -> None:
        """Follow `steps` too, behind those it has. `hides_rows`: some of them give rows that are not the client's."""
        if self.steps is None:
            self.steps = deque(steps)
        else:
            self.steps.extend(steps)
        self.notable = ALL if hides_rows else self.notable | SCRIPTED

    def begin_with(self, prepared: Prepared) -> None:
        """Its first message parses `prepared` without a name: whether that came to pass must be known if it fails."""
        self.parsed = prepared
        self.notable |= PARSED

    def begin(self, data: bytes) -> int:
        """The answer begins with `data`, and what its `prefix` answers was not the client's: how many bytes of it are
        not, either.
        """
        prefix, self.prefix = self.prefix, b""
        unopened, self.unopened = self.unopened, None  # it knows its session, which this unit may outlive
        if data[: len(prefix)] == prefix:
            return len(prefix)
        if prefix == BEGUN_FRAMES:
            self.script([(PARSE, False, None, None), (BIND, False, b"", None), (EXECUTE, False, None, unopened)])
            return 0
        self.script([(BIND, False, b"", None), (DESCRIBE, True, None, None), (EXECUTE, True, None, None)])
        return 0

    def take_made_up(self) -> bytes:
        """The answers at the head that no frame of the origin stands for."""
        steps = self.steps
        made_up = b""
        while steps and steps[0][0] == MADE_UP:
            made_up += steps.popleft()[2]
        return made_up

    def notice(self, origin: Origin, kind: int, frame: bytes) -> bool:
        """Take one notable frame, other than ReadyForQuery; says whether the client gets it."""
        if self.swallow:
            if kind == ERROR:
                self.failed = True
                self.error = PgError.from_payload(frame[5:])
            elif kind in (DATA_ROW, ROW_DESCRIPTION, NO_DATA) and self.capture is None and not self.failed:
                self.rows.append(frame)
            if self.capture is not None and not self.failed:
                self._copy(self.capture, kind, frame, origin)
            return False
        if kind == ERROR:
            self.drop_capture()
            return self._fail(origin, frame)
        if kind == PARSE_COMPLETE:
            self.parsed = None
        forward = True
        if self.steps and not self.failed:
            forward = self._follow_step(origin, kind, frame)
        elif self.parts:
            forward = self._follow_part(origin.session, kind, frame)
        if self.capture is not None:
            self._copy(self.capture, kind, frame, origin)
        return forward

    def _follow_part(self, session: Session | None, kind: int, frame: bytes) -> bool:
        assert self.parts is not None
        part = self.parts[0]
        if kind in (COMMAND_COMPLETE, FUNCTION_RESULT):
            self.parts.popleft()
            if session is not None and part is not HIDDEN:
                session.complete(part, _tag(frame))
        return part is not HIDDEN or kind not in (COMMAND_COMPLETE, ROW_DESCRIPTION, DATA_ROW)

    def _follow_step(self, origin: Origin, kind: int, frame: bytes) -> bool:
        assert self.steps is not None
        step_kind, forward, argument, _ = self.steps[0]
        if COMPLETES.get(kind) != step_kind and not (step_kind == UNNAMED and kind == PARSE_COMPLETE):
            if kind == PARAMETER_DESCRIPTION and step_kind == DESCRIBE and argument is not None:
                argument.parameter_description = frame
                return forward
            if kind == NOTICE:
                return forward or self._is_about_the_clients()
            # The rows of what pgnear has added are not the client's either.
            return kind != DATA_ROW or step_kind != EXECUTE or forward
        self.steps.popleft()
        if argument is None:
            return forward
        if step_kind in (PARSE, UNNAMED):
            argument.proven = origin.circumstances
        elif step_kind == DESCRIBE:
            argument.row_description = frame
        elif step_kind == EXECUTE and origin.session is not None:
            origin.session.complete(argument, _tag(frame) if kind == COMMAND_COMPLETE else b"")
        return forward

    def _is_about_the_clients(self) -> bool:
        """Whether the hidden step at the head asks for the client all the same: what is wrong with a text whose
        statement's name is taken, and behind it the error for that.
        """
        assert self.steps is not None
        return any(step[0] == FAIL for step in islice(self.steps, 2))

    def _fail(self, origin: Origin, frame: bytes) -> bool:
        """An ErrorResponse: what was sent behind the failed message is undone, as the origin skips it."""
        self.failed = True
        forward = True
        session = origin.session
        if self.parts and not self.steps and session is not None:
            session.failed(self.parts[0], frame)
        elif self.steps:
            kind, _, argument, _ = self.steps[0]
            if kind == FAIL:
                origin.emit(argument)
                forward = False
            self.undo(down_to=1)
            is_last = session is not None and session.statements.get(b"") is argument
            self.undo()
            if session is None:
                return forward
            if kind == UNNAMED and is_last:
                session.statements.pop(b"", None)  # a Parse that fails has ended the statement before it, too
            elif kind == EXECUTE and argument is not None:
                session.failed(argument, frame)
            elif kind == BIND:
                session.bound = argument
            if kind in (PARSE, UNNAMED) and argument is not None and argument.edits:
                session.rewritten = (self, argument.said, argument.edits)
        elif self.steps is None and self.parsed is not None:
            if origin.unnamed is self.parsed:
                origin.unnamed = None
            if session is not None:
                session.forget_unnamed(self.parsed)
        return forward

    def undo(self, down_to: int = 0) -> None:
        """Take back what the steps that were never answered have assumed, latest first; so many at the head stay."""
        while self.steps is not None and len(self.steps) > down_to:
            undo = self.steps.pop()[3]
            if undo is not None:
                undo()

    def _copy(self, capture: Capture, kind: int, frame: bytes, origin: Origin) -> None:
        if kind == DATA_ROW:
            capture.rows.append(frame)
            capture.size += len(frame)
            if capture.size > origin.pool.max_entry_bytes:
                self.give_up_capture()
        elif kind == ROW_DESCRIPTION:
            capture.row_description = frame
        elif kind == COMMAND_COMPLETE and capture.tag is None:
            capture.tag = frame
        elif kind == PARAMETER_DESCRIPTION:
            capture.parameter_description = frame
        elif kind not in (PARSE_COMPLETE, BIND_COMPLETE):
            self.give_up_capture()  # notices, COPY, a suspended portal: not only rows

    def drop_capture(self) -> None:
        """There is nothing to keep."""
        capture, self.capture = self.capture, None
        if capture is not None:
            capture.fail()

    def give_up_capture(self) -> None:
        """It is too large, or more than rows."""
        capture, self.capture = self.capture, None
        if capture is not None:
            capture.give_up()
        if self.swallow:
            self.failed = True  # it is read to the end and dropped
            return
        self.notable = WATCHFUL | PARSED if self.steps is None else SCRIPTED


def _tag(frame: bytes) -> bytes:
    """The command tag of a CommandComplete; compiled, a slice must not end before it begins."""
    return frame[5:-1] if len(frame) > 5 else b""
