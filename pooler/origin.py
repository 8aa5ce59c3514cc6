"""One origin connection in traffic: reads the origin's frames and passes them to the session it is linked to.

Lives here: the walk over backend frames, the queue of units, what this connection has set and prepared. Not here:
connecting and authenticating (`ceremony.connect`), who gets the connection (`pool`), what a client asked (`session`).

States of an origin connection:

    idle      in its pool; no session, no units
    linked    `session` is set; `units` are owed to it
    draining  its session is gone and `units` are still owed; their answers are dropped
    closed    never again
"""

from __future__ import annotations

from collections import OrderedDict, deque
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final

from pooler import again, copying, demotion, detour, ending, words
from pooler.roles import REPORTED as ROLE_REPORTS
from pooler.settings import DEFAULTS, Reports, Settings
from pooler.sql.traces import NO_TRACES
from pooler.statements import ORIGIN_PREFIX
from pooler.transport import Transport, TransportClosed
from pooler.unit import ALL, DATA_ROW, ERROR, NOTIFICATION, PARAMETER_STATUS, READY, Unit
from protocol import errors
from protocol.framing import PARSE_COMPLETE, length_at, parameter_status
from protocol.responses import PgError

if TYPE_CHECKING:
    from config import Target
    from pooler.pool import Pool
    from pooler.session import Session
    from pooler.statements import Prepared

IDLE: Final = 0x49
IN_TRANSACTION: Final = 0x54
FAILED_TRANSACTION: Final = 0x45
"""What a ReadyForQuery says: I, T and E, as numbers."""

_READ_ONLY = b"\0C25006\0"


class Origin:
    """An authenticated connection to the origin, registered with the reactor.

    Attributes:
      settings: what is set on it, outside transactions.
      reports: the ParameterStatus values that it has sent.
      prepared: named statements that it has, least recently used first.
      verified: statements from before DDL that were described here again, and whether the answer was the same.
      spoiled: it was used in a way that PostgreSQL does not foresee; it is closed, not reused.
      outdated: a plan no longer fits its tables; the connection is reset before anybody else gets it.
      unnamed: what its unnamed statement is, if it is known.
      traces: what clients have left on it for good: names of custom settings, a temporary schema (`sql.traces`).
      status: the last ReadyForQuery's status byte.
      client_pid: the process id that its session was given, or the last one that it had.
      sequence_client: the same of the session whose sequence values (currval, lastval) it remembers; 0 while it has
        none, negative where it remembers others' too and that session was the last to draw.
      target: the host that it leads to. retired: nobody else gets it: the host is not what is wanted any more.
      received: bytes since the last ReadyForQuery.
      asked_again: that session is likely to ask for them: others get this connection last.
      ready_at: when its last ReadyForQuery for a client was read. block_since: when the first statement of the
        transaction that is open came, else 0 (both by `perf_counter`).
      overdue: the session whose query took too long and is being cancelled, and what it is told; see
        `ceremony.deadlines`.
      cancels: cancel requests under way; it is not handed on while there are any.
      executing: its unfinished batch has an Execute, so that version 18 keeps a transaction open behind a Query.
      spare: a unit that is owed no more, to be used again.
    """

    __slots__ = (
        "_missing",
        "_out",
        "_partial",
        "_stream",
        "asked_again",
        "block_since",
        "cancels",
        "client_pid",
        "closed",
        "created",
        "draining",
        "executing",
        "fatal",
        "idle_since",
        "outdated",
        "overdue",
        "pid",
        "pool",
        "prepared",
        "ready_at",
        "received",
        "reports",
        "retired",
        "secret",
        "sequence_client",
        "session",
        "settings",
        "spare",
        "spoiled",
        "status",
        "target",
        "traces",
        "transport",
        "units",
        "unnamed",
        "verified",
    )

    def __init__(
        self, transport: Transport, pool: Pool, pid: int, secret: bytes, reports: Reports, target: Target | None = None
    ) -> None:
        self.transport = transport
        self.pool = pool
        self.pid = pid
        self.secret = secret
        self.reports = reports
        self.target = target or pool.target
        self.retired = False
        self.settings: Settings = DEFAULTS
        self.prepared: OrderedDict[Prepared, None] = OrderedDict()
        self.traces = NO_TRACES
        self.outdated = False
        self.spoiled = False
        self.verified: dict[Prepared, bool] = {}
        self.unnamed: Prepared | None = None
        self.session: Session | None = None
        self.units: deque[Unit] = deque()
        self.spare: Unit | None = None
        self.status = IDLE
        self.created = self.idle_since = monotonic()
        self.ready_at = self.block_since = 0.0
        self.overdue: tuple[Session, PgError] | None = None
        self.cancels = 0
        self.received = 0
        self.client_pid = 0
        self.sequence_client = 0
        self.asked_again = False
        self.draining = False
        self.executing = False
        self.closed = False
        self.fatal: PgError | None = None
        self._partial: list[bytes] = []
        self._missing = 0  # bytes until a buffered frame is whole
        self._stream = 0  # bytes left of a frame that passes without being looked at
        self._out: list[bytes] = []

    # ---- from the origin ---------------------------------------------------------------------------------------------

    def readable(self) -> None:
        try:
            data = self.transport.receive()
        except TransportClosed as error:
            self.lost(str(error))
            return
        if data is None:
            return
        if not data:
            self.lost("the origin closed the connection")
            return
        self.take(data)

    def take(self, data: bytes) -> None:
        """Handle bytes of the origin's, in order."""
        self.received += len(data)
        if self._missing > len(data):
            self._partial.append(data)
            self._missing -= len(data)
            return
        if self._partial:
            self._partial.append(data)
            data = b"".join(self._partial)
            self._partial.clear()
        self._missing = 0
        try:
            self._walk(data)
        except PgError as error:
            self.lost(f"the origin broke the protocol: {error.message}")

    def _walk(self, data: bytes) -> None:
        end = len(data)
        position = min(self._stream, end)
        self._stream -= position
        begins = 0
        out = self._out
        units = self.units
        notable = ALL
        if units:
            notable = units[0].notable
            prefix = units[0].prefix
            if prefix == PARSE_COMPLETE:
                out.append(prefix)
                units[0].prefix = b""
            elif prefix:
                position = begins = units[0].begin(data)
                notable = units[0].notable
        start = begins  # of the run that passes to the client unchanged
        while end - position >= 5:
            kind = data[position]
            length = length_at(data, position + 1)[0]
            frame_end = position + 1 + length
            if length < 4:
                self.lost(f"the origin sent a message of type {kind} with length {length}")
                return
            if kind not in notable:
                if frame_end > end:
                    self._stream = frame_end - end
                    position = end
                    break
                position = frame_end
                continue
            if frame_end > end:
                if kind == DATA_ROW and length > self.pool.max_entry_bytes and units and units[0].capture is not None:
                    units[0].give_up_capture()  # too large to keep, so it need not be whole
                    notable = units[0].notable
                    continue
                if length > self.pool.max_message_bytes:
                    self.lost(f"the origin sent a message of {length} bytes, over max_message_bytes")
                    return
                self._missing = frame_end - end
                break
            if (
                kind == READY
                and frame_end == end
                and start == begins
                and self._is_all(data[begins:] if begins else data)
            ):
                return
            if start < position:
                out.append(data[start:position])
            if kind == READY:
                if length != 5:
                    self.lost(f"the origin sent a ReadyForQuery of length {length}")
                    return
                forward = self._ready(data[position + 5])
                if self.closed:
                    return
                notable = units[0].notable if units else ALL
                if units and units[0].prefix:  # the next answer begins in the same read
                    if forward:
                        out.append(data[position:frame_end])
                        forward = False
                    out.append(units[0].prefix)
                    units[0].prefix = b""
            else:
                forward = self._notice(kind, data[position:frame_end])
                notable = units[0].notable if units else ALL
            start = position if forward else frame_end
            position = frame_end
        if start < position:
            out.append(data[start:position])
        if position < end:
            self._partial.append(data[position:])
        self._deliver()

    def _is_all(self, data: bytes) -> bool:
        """The express lane: `data` ends the only unit. If all of that is the client's and nothing else is to be done,
        the client gets it, and they part, unless a transaction keeps them together.
        """
        units, session, status = self.units, self.session, data[-1]
        if len(units) != 1 or session is None or status == FAILED_TRANSACTION or self.spoiled or self.outdated:
            return False
        unit = units[0]
        if (
            unit.swallow or unit.silent or unit.failed or unit.steps is not None or unit.parts is not None
            or unit.capture is not None or not session.has_nothing_to_do(self, status)
        ):  # fmt: skip
            return False
        units.clear()
        self.status = status
        self.ready_at = perf_counter()
        if unit.latency is not None:
            unit.latency.observe(self.ready_at - unit.started)
            if unit.study is not None:
                study, mark = unit.study
                study.add(mark, self.ready_at - unit.started, self.received)
                unit.study = None
        self.received = 0
        unit.again = None
        self.spare = unit
        out = self._out
        if out:
            out.append(data)
            data = b"".join(out)
            out.clear()
        if status == IDLE:
            self.block_since = 0.0
            session.part(self, data)
        else:
            if not self.block_since:
                self.block_since = unit.started
            session.deliver(data)
        return True

    def emit(self, frame: bytes) -> None:
        """Put a frame of pgnear's own among those of the origin, at the place the walk has reached."""
        self._out.append(frame)

    def _notice(self, kind: int, frame: bytes) -> bool:
        unit = self.units[0] if self.units else None
        session = self.session
        if kind == PARAMETER_STATUS:
            name, value = parameter_status(frame[5:])
            self.reports = self.reports.with_value(name, value)
            if name in ROLE_REPORTS:
                self._role_reported(name)
                if self.pool.target.session_attrs != "any":
                    return False  # what no SET explains is taken for the server's, and does not follow the client
            if session is not None and unit is not None and not unit.swallow:
                session.state.reported(name, value)
            return False  # the session is told before its next ReadyForQuery, by `Session.completed`
        if kind == NOTIFICATION and session is not None:
            self._out.append(words.notification(session, frame))
            return False
        if kind == ERROR and (b"\0VFATAL\0" in frame[5:80] or b"\0VPANIC\0" in frame[5:80]):
            self.fatal = PgError.from_payload(frame[5:])
            return False
        if unit is None:
            # Between units only notices and notifications come; they are for whoever holds the connection.
            return session is not None and kind != ERROR
        if unit.steps:
            made_up = unit.take_made_up()
            if made_up:
                self._out.append(made_up)
        if kind == ERROR and unit.again is not None and again.is_due(self, unit, frame):
            return False
        if kind == ERROR and session is not None and session.detour and detour.turns_back(self, unit, frame):
            self._out.clear()
            return False
        forward = unit.notice(self, kind, frame)
        if kind == ERROR and _READ_ONLY in frame:
            demotion.found_read_only(self)
        if session is not None and not unit.swallow:
            session.notice(unit, kind, frame)
            if kind == ERROR and self.overdue is not None and b"\0C57014\0" in frame and self.overdue[0] is session:
                self._out.append(self.overdue[1].response())
                return False
            if kind == ERROR and forward and (ORIGIN_PREFIX in frame or session.rewritten is not None):
                self._out.append(words.error(session, frame, unit))
                return False
        return forward

    def _role_reported(self, name: str) -> None:
        """The server may have another role now. A client may set what looks like it: see `Session.completed`."""
        if name == "in_hot_standby" or self.session is None:
            demotion.reported(self.pool, self, name)

    def _ready(self, status: int) -> bool:
        """ReadyForQuery: the unit at the head is complete."""
        self.status = status
        if not self.units:
            self.lost("the origin sent a ReadyForQuery that nobody asked for")
            return False
        unit = self.units.popleft()
        session = self.session
        if unit.failed and unit.again is not None and unit.silent:
            again.ask(self, *unit.again)
            return False
        if unit.swallow:
            if unit.done is not None:
                unit.done(unit)
            elif unit.error is not None:
                self._settings_failed(unit.error)
            if session is not None and unit.announces:
                session.report(self)
            return unit.announces
        if unit.steps:
            self._out.append(unit.take_made_up())
            unit.undo()
        if session is not None:
            session.completed(unit, status)
        self.received = 0
        return not unit.silent

    def _settings_failed(self, error: PgError) -> None:
        """The settings this session wants could not be made: it must not go on with other ones."""
        session = self.session
        self.close()
        if session is not None and not detour.lost(session, self):
            ending.lost(session, errors.settings_not_restored(error))

    def _deliver(self) -> None:
        out = self._out
        session = self.session
        if session is None:
            out.clear()
            if self.draining and not self.units:
                self.pool.drained(self)
            return
        if out and not (session.detour and self.received < detour.HELD_BYTES):
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            session.deliver(data)
        if session.leaving and not self.owes_answers:
            session.settled()
            return
        if session.holding:
            self.flush_made_up()  # with which the open unit may have no more steps
            if (unit := self.open_unit) is not None and (unit.failed or not unit.steps):
                session.release_hold()
        if self.units:
            self.flush_made_up()
        elif self.session is session:
            session.settled()

    def flush_made_up(self) -> None:
        """Give the client the made-up answers that wait for no frame of the origin."""
        session = self.session
        if self.units and self.units[0].steps and not self._partial and not self._stream:
            if session is not None and session.detour:
                return  # the primary may still be asked: until then the client has got nothing
            made_up = self.units[0].take_made_up()
            if made_up and session is not None:
                session.deliver(made_up)

    @property
    def circumstances(self) -> object:
        """What decides whether a statement can be parsed: compared with `Session.circumstances`."""
        home = self.pool.home
        return home, self.settings, home.schema_epoch

    @property
    def outside_block(self) -> bool:
        """Whether it is in no transaction block, nor is one to be opened by what is on its way (`deferral`)."""
        return self.status == IDLE and not self.block_since

    @property
    def mid_frame(self) -> bool:
        """Whether the session has got the beginning of a frame whose end is still to come."""
        return self._stream > 0

    @property
    def open_unit(self) -> Unit | None:
        """The unit that waits for its Sync, if there is one; it is the last."""
        return self.units[-1] if self.units and not self.units[-1].synced else None

    @property
    def owes_answers(self) -> bool:
        """Whether an answer is still to come. A batch without its Sync owes none once each of its messages has one."""
        if len(self.units) != 1:
            return bool(self.units)
        unit = self.units[0]
        if unit.synced or (unit.steps and not unit.failed):
            return True
        return self.session is not None and copying.is_open(self.session)

    def make_room(self) -> list[Prepared]:
        """Forget statements until there is room for one more, and say which: they must be closed on the connection."""
        closed = []
        while len(self.prepared) >= self.pool.max_prepared:
            closed.append(self.prepared.popitem(last=False)[0])
        return closed

    # ---- to the origin -----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send whole messages; their units are in the queue.

        Raises:
          TransportClosed: the connection broke.
        """
        self.transport.send(data)

    def send_or_lose(self, data: bytes) -> None:
        """`send` for messages of pgnear's own: a connection that broke is lost, and that is all."""
        try:
            self.send(data)
        except TransportClosed as error:
            self.lost(f"while sending: {error}")

    def writable(self) -> None:
        try:
            self.transport.flush()
        except TransportClosed as error:
            self.lost(str(error))
            return
        if self.session is not None and self.transport.pending <= self.pool.high_water // 2:
            self.session.origin_drained()

    def leave_reactor(self) -> None:
        """A ceremony takes the connection: from this moment on nobody else reads it."""
        self.transport.unregister()
        self.session = None
        self.draining = True

    # ---- its end -----------------------------------------------------------------------------------------------------

    def lost(self, reason: str) -> None:
        """The connection broke or lied: it is closed, and its session hears why."""
        if self.closed:
            return
        session = self.session
        idle = session is None and not self.draining
        self.close()
        self.pool.lost(self, reason, idle=idle)
        if session is not None and detour.lost(session, self):
            return
        if session is not None and self.mid_frame:
            ending.end(session, abrupt=True)  # an error put inside a row that was cut short would be read as its values
        elif session is not None:
            ending.lost_because(session, self, reason)

    def crashed(self, error: Exception) -> None:
        self.lost("an internal error of pgnear; see its log")

    def close(self) -> None:
        """Close at once and leave the pool; the session, if any, is not told."""
        if self.closed:
            return
        self.closed = True
        for unit in self.units:
            unit.undo()
            if unit.swallow and unit.capture is not None and unit.done is not None:
                unit.capture = None
                unit.done(unit)  # a refresh that comes to nothing
            unit.drop_capture()
        self._out.clear()
        self.transport.close()
        self.session = None
        self.pool.remove(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "linked" if self.session else "draining" if self.draining else "idle"
        return f"<Origin pid={self.pid} {state} units={len(self.units)} status={chr(self.status)}>"
