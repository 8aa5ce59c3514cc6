"""What an origin connection still owes: one `Unit` for everything up to one ReadyForQuery.

Lives here: which answers of a unit the client gets, which are swallowed because pgnear asked for them, which are made
up because the origin was never asked. Not here: reading frames (`origin`), choosing what to send (`session`,
`extended`).

A plain unit (most of them) looks at few frames: everything else passes in runs. A unit with `steps` follows each
message that was sent; one with `capture` copies the rows for the cache; one with `swallow` is pgnear's own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from protocol.errors import PgError

if TYPE_CHECKING:
    from pooler.origin import Origin
    from pooler.sql.statement import SettingChange
    from pooler.stats import Histogram

(
    BIND_COMPLETE, CLOSE_COMPLETE, COMMAND_COMPLETE, COPY_BOTH, COPY_IN, DATA_ROW, EMPTY_QUERY, ERROR, NO_DATA,
    PARAMETER_DESCRIPTION, PARAMETER_STATUS, PARSE_COMPLETE, PORTAL_SUSPENDED, READY, ROW_DESCRIPTION,
) = b"23CWGDIEntS1sZT"  # fmt: skip

ALL = frozenset(range(256))
PLAIN = frozenset({ERROR, PARAMETER_STATUS, READY, COPY_IN, COPY_BOTH})
"""Frames that even a plain unit looks at."""
WATCHFUL = PLAIN | {COMMAND_COMPLETE}
"""The same for a session with a write or a SET under way: completions matter too."""
SCRIPTED = WATCHFUL | {
    BIND_COMPLETE, CLOSE_COMPLETE, EMPTY_QUERY, NO_DATA, PARAMETER_DESCRIPTION, PARSE_COMPLETE, PORTAL_SUSPENDED,
    ROW_DESCRIPTION,
}  # fmt: skip

# What a step waits for. A step is (kind, forward?, made-up bytes | None, undo | None).
PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, MADE_UP, FAIL = range(7)
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
      key, namespace, epoch: where it belongs, and the epoch its query was sent in.
      rows: DataRow frames. size: their bytes.
    """

    __slots__ = ("epoch", "key", "namespace", "row_description", "rows", "size", "tag")

    def __init__(self, namespace: str, key: Any, epoch: int) -> None:
        self.namespace = namespace
        self.key = key
        self.epoch = epoch
        self.rows: list[bytes] = []
        self.size = 0
        self.row_description: bytes | None = None
        self.tag: bytes | None = None


class Unit:
    """Everything that is owed up to one ReadyForQuery.

    Attributes:
      notable: frame types that must be looked at; all others pass in runs.
      synced: the Sync (or Query) that ends it was sent.
      simple: it came as a Query message.
      failed: an ErrorResponse was read; the origin skips to the Sync.
    """

    __slots__ = (
        "capture",
        "changes",
        "discards_all",
        "error",
        "failed",
        "latency",
        "notable",
        "simple",
        "started",
        "steps",
        "swallow",
        "synced",
    )

    def __init__(self, started: float, latency: Histogram | None, *, simple: bool = False) -> None:
        self.started = started
        self.latency = latency
        self.simple = simple
        self.notable = PLAIN
        self.synced = True
        self.swallow = False
        self.failed = False
        self.discards_all = False
        self.steps: deque[Step] | None = None
        self.capture: Capture | None = None
        self.changes: list[SettingChange] | None = None
        self.error: PgError | None = None

    @classmethod
    def own(cls) -> Unit:
        """A unit of pgnear's own: the client sees none of it."""
        unit = cls(0.0, None)
        unit.swallow = True
        unit.notable = ALL
        return unit

    def script(self, steps: list[Step]) -> None:
        """Follow `steps` too, behind those it has."""
        if self.steps is None:
            self.steps = deque(steps)
        else:
            self.steps.extend(steps)
        self.notable |= SCRIPTED

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
                self.error = PgError.from_payload(frame[5:])
            return False
        if kind == ERROR:
            self.capture = None
            return self._fail(origin)
        forward = True
        if self.steps and not self.failed:
            step_kind = COMPLETES.get(kind)
            if step_kind is not None and self.steps[0][0] == step_kind:
                step = self.steps.popleft()
                forward = step[1]
                if step_kind == PARSE and step[2] is not None:
                    step[2].proven = origin.circumstances
            elif kind == PARAMETER_DESCRIPTION and self.steps[0][0] == DESCRIBE and self.steps[0][2] is not None:
                self.steps[0][2].parameter_description = frame
        if self.capture is not None:
            self._copy(self.capture, kind, frame, origin)
        return forward

    def _fail(self, origin: Origin) -> bool:
        """An ErrorResponse: what was sent behind the failed message is undone, as the origin skips it."""
        self.failed = True
        origin.unnamed = None  # whether its Parse was the message that failed is not worth following
        forward = True
        if self.steps:
            if self.steps[0][0] == FAIL:
                origin.emit(self.steps[0][2])
                forward = False
            self.undo()
        return forward

    def undo(self) -> None:
        """Take back what the steps that were never answered have assumed, latest first."""
        while self.steps:
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
        elif kind not in (PARSE_COMPLETE, BIND_COMPLETE, PARAMETER_DESCRIPTION):
            self.give_up_capture()  # notices, COPY, a suspended portal: not only rows

    def give_up_capture(self) -> None:
        self.capture = None
        self.notable = WATCHFUL if self.steps is None else SCRIPTED
