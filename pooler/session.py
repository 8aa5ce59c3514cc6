"""One client in traffic: what it is and has, an origin connection when it needs one, its answers out.

Lives here: a client's state, linking and releasing, and what answers mean for it on their way. Not here: login
(`ceremony.login`), its frames (`walk`, `express`), what they become (`simple`, `extended`), backend frames (`origin`),
what a statement means (`sql`; `consequences` and `aftermath` for the session), a message that no origin gets
(`unsent`), its end (`ending`).

States of a session, each seen from two attributes:

    unlinked   origin None, not waiting: no transaction, nothing owed; the cache may answer
    deferred   origin None, deferred: in a transaction block that no origin has heard of; the cache may answer
    waiting    origin None, waiting: in the pool's queue; input is kept, not read past a bound
    linked     origin set: until ReadyForQuery says idle with nothing owed and no pin holds it
    closed     never again
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from time import perf_counter, time
from typing import TYPE_CHECKING

from pooler import aftermath, again, copying, demotion, detour, ending, express, pins, unsent
from pooler.boarding import drop_pending
from pooler.cache.entry import Entry
from pooler.cache.flight import Flight
from pooler.cache.ready import View
from pooler.caching import keep
from pooler.link import attach
from pooler.origin import IDLE, Origin
from pooler.pool import Pool
from pooler.roles import READ_ONLY
from pooler.settings import Reports, Settings
from pooler.signals import Outcome
from pooler.sql.statement import DefaultChange, Part, PinKind
from pooler.sql.views import Edit
from pooler.state import SessionState
from pooler.statements import LIGHT_TEXT, Prepared, Scope
from pooler.transport import Transport, TransportClosed
from pooler.unit import COMMAND_COMPLETE, COPY_BOTH, COPY_IN, ERROR, Capture, Unit
from pooler.walk import PARTIAL_BATCH_BYTES, take, walk
from pooler.writes import NOTHING, invalidate, schema_changed
from protocol import errors
from protocol.framing import READY_IDLE, READY_IN_BLOCK
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service


class Session:
    """A logged-in client.

    Attributes:
      state: its settings, in and outside transactions, and what pins it.
      reports: the ParameterStatus values that it has been told.
      statements: its prepared statements by name; the unnamed one is b"".
      bound: the named statement of the last Bind, or of that which failed. began: when it logged in (seconds since
        1970). rewritten: a unit with a text that is not sent as the client said it, what it said, and the edits.
      portals: by name, the `Part` of a portal whose completion matters to the session.
      traces: what it may have left on connections for good (`sql.traces`). insists: it must not see those of others.
      sequence_home: where it last ran a statement that may have drawn values from sequences.
      flight: where somebody else's answer is waited for. landed: that answer. alone: ask the origin without one.
      pending: the capture that waits for a connection together with the message at the head of the input.
      away: its origin connection is a replica's. detour: the request that it is there for, while the primary may still
        be asked. direct: it is to be asked now.
      last_write: the cache's clock of its last write.
      deferred: it is in a transaction block that no origin has heard of (`deferral`).
      only_reads: its transaction block is READ COMMITTED and has done nothing but read what may be cached.
      copying: the unit in which the origin waits for COPY data, if `copying.is_open`.
      stream_left: bytes that are missing of a CopyData that passes unlooked at. stream_begun: the origin has its head.
      chunks: a message that is incomplete, of which `missing` bytes have not come. discard: bytes to come of a message
        that was refused. inbox: input that must wait.
      to_origin: bytes for the linked connection, sent when the walk is over. out: answers that no origin was asked for,
        `out_bytes` in all.
      holding: input is kept until the origin has said something that pgnear must know first.
      hurried: its client sends no more of a batch that it has not finished, which is on its way as it is.
      stirred: something came from the client since `ceremony.deadlines` last looked. quiet_since: when it did so and
        something had come, or was under way.
      skipping: an extended batch failed before an origin saw it; everything up to its Sync is dropped.
      signal: what has become of a cancel or termination that it asks for by SQL (`signals`).
      view: the cached answers that are ready for it, and for others like it.
      walk_from: where in the data that is being walked the link was made; -1 once the origin was sent something.
    """

    __slots__ = (
        "_scope", "_scope_label", "alone", "away", "began", "bound", "chunks", "closed", "copying", "database",
        "defaults_change", "deferred", "detour", "direct", "discard", "flight", "holding", "hurried", "inbox",
        "insists", "key", "landed", "last_write", "leaving", "missing",
        "mode", "namespace", "only_reads", "origin", "out", "out_bytes", "pending", "pool", "portals", "quiet_since",
        "reach", "reports", "rewritten", "schema_changes", "sequence_home", "service", "signal", "skipping", "state",
        "statements", "stirred", "stream_begun", "stream_left", "to_origin", "traces", "transport", "user",
        "view", "waiting", "walk_from", "writes", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        pool: Pool,
        transport: Transport,
        user: str,
        database: str,
        startup: Settings,
        reports: Reports,
        key: tuple[int, bytes],
    ) -> None:
        self.service = service
        self.pool = pool
        self.transport = transport
        self.user = user
        self.database = database
        self.state = SessionState(startup, service.config.max_client_settings_bytes)
        self.reports = reports
        self.key = key
        self.namespace = pool.name
        self.statements: dict[bytes, Prepared] = {}
        self.traces = startup.customs
        self.insists = service.config.strict_custom_settings
        self.bound = b""
        self.rewritten: tuple[Unit, bytes, Sequence[Edit]] | None = None
        self.began = time()
        self.portals: dict[bytes, Part] = {}
        self.sequence_home: Origin | None = None
        self.flight: Flight | None = None
        self.landed: Entry | None = None
        self.alone = False
        self.signal: Outcome | PgError | None = None
        self.away = self.direct = False
        self.detour = b""
        self.last_write = 0
        self.only_reads = False
        self.deferred = False
        self.pending: Capture | None = None
        self.origin: Origin | None = None
        self.waiting = False
        self.holding = False
        self.hurried = False
        self.closed = False
        self.stirred = True
        self.quiet_since = 0.0
        self.leaving = False  # sent Terminate while answers were owed
        self.skipping = False
        self.mode = service.config.pooling_of(database, user)
        self.defaults_change: tuple[DefaultChange, ...] = ()  # of ALTER ROLE and DATABASE ... SET, as `writes`
        self.schema_changes = False  # the same as `writes`, for DDL
        self.writes = False  # something was sent that may write, and its transaction is not over
        self.wrote: frozenset[int] | None = NOTHING  # the tables that the statement before this one may write to
        self.reach: frozenset[int] | None = NOTHING  # the tables it may write to; None: any
        self.inbox = b""
        self.chunks: list[bytes] = []
        self.missing = 0
        self.discard = 0
        self.stream_left = 0
        self.copying: Unit | None = None
        self.stream_begun = False
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.to_origin: list[bytes] = []
        self.walk_from = 0
        self.view: View | None = None
        self._scope_label = self.state.current.label
        self._scope = service.prepared.scope(pool.name, pool.schema_epoch, self._scope_label)

    @property
    def settings(self) -> Settings:
        """What a connection must have set before it may work for this session."""
        return self.state.settings

    @property
    def pinned(self) -> str:
        """Why it keeps its connection, or ""."""
        return next((kind.value for kind in self.state.pins), "")

    @property
    def ready_now(self) -> bytes:
        """The ReadyForQuery behind an answer that no origin was asked for."""
        return READY_IDLE if self.origin is None and not self.deferred else READY_IN_BLOCK

    def start(self, received: bytes) -> None:
        """Begin traffic; `received` came behind the login already."""
        self.transport.register(self)
        if received:
            if self.service.board is not None:
                self.service.board.hear()
            take(self, received)

    # ---- from the client ---------------------------------------------------------------------------------------------

    def readable(self) -> None:
        try:
            data = self.transport.receive()
        except TransportClosed:
            ending.end(self, abrupt=True)
            return
        if data is None:
            return
        if not data:
            ending.hung_up(self)
            return
        self.stirred = True
        if self.service.board is not None:
            self.service.board.hear()  # what its client may have heard of, other workers have put up before
        clear = not (  # what comes now is a new request, with nothing before it that is incomplete, waits or is skipped
            self.waiting or self.holding or self.leaving or self.skipping or self.inbox or self.missing
            or self.discard or self.stream_left
        )  # fmt: skip
        if not (clear and express.submit(self, data)):
            take(self, data)

    def skip_to_sync(self, *, at_sync: bool) -> None:
        """An extended batch has failed without an origin: the rest of it is dropped, up to its Sync."""
        if at_sync:
            self.answer(READY_IDLE)
        else:
            self.skipping = True

    def forget_unnamed(self, prepared: Prepared) -> None:
        """The Parse of `prepared` without a name has failed, which ends the statement before it, too."""
        if self.statements.get(b"") is prepared:
            del self.statements[b""]

    @property
    def schema_moved(self) -> bool:
        """Whether DDL has been seen at all, so that a statement may be older than its tables."""
        return self.pool.schema_epoch > 0

    # ---- what a completed statement means for the session ------------------------------------------------------------

    def complete(self, part: Part, tag: bytes) -> None:
        """A statement with effects on the session is complete; `tag` is its command tag."""
        aftermath.complete(self, part, tag)

    def failed(self, part: Part, frame: bytes) -> None:
        """A statement with effects on the session has failed, with the ErrorResponse `frame`."""
        aftermath.failed(self, part, frame)

    def remember(self, name: bytes, prepared: Prepared) -> None:
        """The client's statement `name` is `prepared` from now on.

        Raises:
          PgError: it has as many as it may have.
        """
        statements, config = self.statements, self.service.config
        if name not in statements and len(statements) >= config.max_client_statements:
            raise errors.too_many_statements(config.max_client_statements)
        if prepared.weight > LIGHT_TEXT and name:
            others = sum(each.weight for known, each in statements.items() if known != name)
            if others + prepared.weight > config.max_message_bytes:
                raise errors.statements_too_large(config.max_message_bytes)
        statements[name] = prepared

    @property
    def circumstances(self) -> object:
        """What decides whether a statement of this client can be parsed."""
        return self.pool, self.state.settings, self.pool.schema_epoch

    @property
    def scope(self) -> Scope:
        """What decides, beside its text, what a statement means that this client prepares now."""
        scope, label, epoch = self._scope, self.state.current.label, self.pool.schema_epoch
        if label is not self._scope_label or epoch != scope.epoch:
            self._scope_label = label
            scope = self._scope = self.service.prepared.scope(self.pool.name, epoch, label)
        return scope

    def send_later(self, data: bytes) -> None:
        """Bytes for the linked origin, sent when the walk is over."""
        self.to_origin.append(data)

    def answer(self, data: bytes) -> None:
        """Bytes for the client that no origin was asked for."""
        self.out.append(data)
        self.out_bytes += len(data)

    # ---- the link ----------------------------------------------------------------------------------------------------

    def land(self, entry: Entry) -> None:
        """Somebody else's answer to what this session asks."""
        self.flight = None
        self.landed = entry
        self.release_hold()

    def lead(self, flight: Flight | None) -> None:
        """Ask the origin: for all who wait, or for oneself alone."""
        self.flight = flight
        self.alone = flight is None
        self.release_hold()

    def push(self, unit: Unit) -> None:
        assert self.origin is not None
        self.origin.units.append(unit)

    def granted(self, origin: Origin) -> None:
        """The pool's answer to `link`: go on where the walk stopped."""
        self.waiting = False
        if self.service.board is not None:
            self.service.board.hear()  # what it writes to is judged by names as they are now
        if express.resume(self, origin):
            return
        attach(self, origin)
        self.walk_from = 0
        self.resume_walk()
        if self.origin is origin and not origin.units and not self.closed:
            self.settled()

    def refused(self, error: PgError) -> None:
        """The pool's other answer: the message that needed a connection fails, the session goes on."""
        self.waiting = False
        drop_pending(self)
        unsent.fail(self, error)

    def hold(self) -> None:
        """Keep the client's input until `release_hold`."""
        self.holding = True

    def release_hold(self) -> None:
        """The origin has said what pgnear waited for."""
        if not self.holding:
            return
        self.holding = False
        self.service.reactor.call_soon(self.resume_walk)

    def resume_walk(self) -> None:
        if self.closed or self.waiting or self.holding:
            return
        data, self.inbox = self.inbox, b""
        self.transport.resume()
        if self.service.board is not None:
            self.service.board.hear()
        if data:
            walk(self, data, 0 if self.hurried else PARTIAL_BATCH_BYTES)
        if not (self.waiting or self.holding):
            self.hurried = False

    def flush_origin(self, data: bytes) -> None:
        parts = self.to_origin
        if not parts:
            return
        origin = self.origin
        assert origin is not None
        try:
            origin.send(parts[0] if len(parts) == 1 else b"".join(parts))
        except TransportClosed as error:
            parts.clear()
            unsent.send_again(self, origin, data, str(error))
            return
        parts.clear()
        self.walk_from = -1
        if origin.transport.pending > self.pool.high_water:
            self.transport.pause(heed_end=not self.leaving)
        if origin.units and origin.units[0].steps:
            origin.flush_made_up()

    def origin_drained(self) -> None:
        """The origin takes bytes again."""
        if not self.waiting and self.transport.pending <= self.pool.high_water:
            self.transport.resume()

    def unopened(self, error: PgError) -> None:
        """The origin has refused to open the block that its client counts on (`deferral`)."""
        ending.fatal(self, error)

    # ---- from the origin ---------------------------------------------------------------------------------------------

    def notice(self, unit: Unit, kind: int, frame: bytes) -> None:
        """A notable frame of `unit` passed."""
        if kind == COMMAND_COMPLETE:
            if self.writes:
                invalidate(self)
            if self.schema_changes:
                schema_changed(self)
        elif kind == ERROR:
            self.service.stats.query_errors += 1
            if self.state.watching:
                self.state.error()
            if again.PLAN_OUTDATED in frame and self.origin is not None:
                self.origin.outdated = True
        elif kind == COPY_IN and self.origin is not None:
            copying.begin(self, self.origin, unit)
        elif kind == COPY_BOTH:
            pins.pin(self, PinKind.REPLICATION)

    def completed(self, unit: Unit, status: int) -> None:
        """ReadyForQuery of `unit`, which is not yet passed on."""
        service = self.service
        now = perf_counter()
        if unit.latency is not None:
            unit.latency.observe(now - unit.started)
            if unit.study is not None and not unit.failed and self.origin is not None:
                study, mark = unit.study
                study.add(mark, now - unit.started, self.origin.received)
        if unit.capture is not None:
            if status == IDLE or self.only_reads:
                keep(service, unit.capture)
            else:
                unit.drop_capture()
        origin = self.origin
        assert origin is not None
        if self.away:
            detour.over(self, origin, unit, status)
        origin.ready_at = now
        state = self.state
        if state.watching:
            state.ready(status, origin.reports.values.get("DateStyle", ""))
            if status == IDLE:
                origin.settings = state.settings
                state.watching = bool(origin.units)  # effects of what is pipelined behind are still to come
        if status != IDLE:
            if not origin.block_since:
                origin.block_since = unit.started
        else:
            origin.block_since = 0.0
            self.only_reads = False
            if self.portals:
                self.portals.clear()
            if self.writes:
                invalidate(self)
                if not origin.units:
                    self.writes = False
                    self.reach = NOTHING
            if self.schema_changes:
                schema_changed(self)
                self.schema_changes = False
            if self.defaults_change:
                service.defaults_changed(self.defaults_change)
                self.defaults_change = ()
        if origin.reports is not self.reports and not unit.silent:
            if status == IDLE and state.settings.get(READ_ONLY) is None:
                demotion.reported(origin.pool, origin, READ_ONLY)  # a SET of the client's is not what it comes from
            self.report(origin)
        if status != IDLE and self.mode == "statement":
            service.reactor.call_soon(lambda: ending.fatal(self, errors.no_transaction_blocks()))

    def report(self, origin: Origin) -> None:
        """Tell the client which reported settings have changed, as the origin would before ReadyForQuery."""
        frames = origin.reports.difference_from(self.reports)
        self.reports = origin.reports
        if frames:
            origin.emit(frames)

    def has_nothing_to_do(self, origin: Origin, status: int) -> bool:
        """Whether the end of an ordinary unit needs no thought: outside a transaction it is but the end of the link."""
        state = self.state
        if status != IDLE:
            return not (
                state.watching or self.leaving or self.holding or self.mode == "statement"
                or origin.reports is not self.reports
            )  # fmt: skip
        return not (
            state.watching or state.pins or state.tainted or self.writes or self.schema_changes
            or self.defaults_change or self.portals or self.leaving or self.holding
            or self.stream_begun or self.to_origin or origin.reports is not self.reports
        )  # fmt: skip

    def part(self, origin: Origin, data: bytes) -> None:
        """Give the client the rest of its answer, and the connection back: what `deliver` and `settled` do."""
        try:
            pending = self.transport.send(data)
        except TransportClosed:
            ending.end(self, abrupt=True)
            return
        self.origin = None
        self.only_reads = False
        if not origin.transport.reading:
            origin.transport.resume()
        if not self.transport.reading and pending <= self.pool.high_water:
            self.origin_drained()
        origin.pool.release(origin)
        if self.service.draining:
            ending.depart(self)

    def tell(self, data: bytes) -> None:
        """Send the client an answer that no origin was asked for, now."""
        try:
            pending = self.transport.send(data)
        except TransportClosed:
            ending.end(self, abrupt=True)
            return
        if pending > self.pool.high_water:
            self.transport.pause()

    def deliver(self, data: bytes) -> None:
        """Bytes from the origin, in order, for the client."""
        if self.leaving and self.origin is not None:
            unit = self.origin.open_unit
            if unit is not None and unit is not self.copying and not unit.failed:
                return  # PostgreSQL keeps the answers of a batch back until its Sync, which will not come, or an error
        self.detour = b""
        try:
            pending = self.transport.send(data)
        except TransportClosed:
            ending.end(self, abrupt=True)
            return
        if pending > self.pool.high_water and self.origin is not None:
            self.origin.transport.pause()

    def settled(self) -> None:
        """Nothing is owed: give the connection back unless a transaction, a pin or held input keeps it."""
        origin = self.origin
        if origin is None or origin.units or origin.status != IDLE or self.to_origin or self.stream_begun:
            if self.leaving and origin is not None and not origin.owes_answers:
                ending.end(self, abrupt=True)
            return
        if self.leaving:
            ending.end(self, abrupt=True)
        elif self.state.pins:
            if self.state.probe_due:
                pins.probe(self, origin)
            if origin.pool is not self.pool:
                detour.strand(self, origin)
        elif self.away or not self.holding:
            self.origin = None
            if self.away:
                detour.home(self)
            if not origin.transport.reading:
                origin.transport.resume()
            if not self.transport.reading:  # what this connection has yet to take is no reason for that any more
                self.origin_drained()
            if origin.outdated:
                origin.pool.abandon(origin, dirty=True)
            elif self.state.tainted or origin.spoiled:
                origin.close()
            else:
                origin.pool.release(origin)
        if self.service.draining and not self.closed and not self.busy and not self.inbox:
            ending.depart(self)

    def writable(self) -> None:
        try:
            self.transport.flush()
        except TransportClosed:
            ending.end(self, abrupt=True)
            return
        if self.transport.pending > self.pool.high_water // 2:
            return
        if self.origin is not None:
            self.origin.transport.resume()
        if not self.waiting:
            if self.origin is None or self.origin.transport.pending <= self.pool.high_water:
                self.transport.resume()
            if self.inbox and not self.leaving:
                self.resume_walk()

    def flush_client(self) -> None:
        if self.out:
            data = b"".join(self.out)
            self.out.clear()
            self.out_bytes = 0
            try:
                self.transport.send(data)
            except TransportClosed:
                ending.end(self, abrupt=True)
                return
            if self.transport.pending > self.pool.high_water:
                self.transport.pause()

    # ---- asked by others ---------------------------------------------------------------------------------------------

    def cancel_waiting(self) -> bool:
        """A cancel request came; if the session only waits for a connection, that is what it cancels."""
        return unsent.cancel(self)

    def has_key(self, secret: bytes) -> bool:
        """Whether `secret` is the one this client was given to cancel with."""
        return compare_digest(self.key[1], secret)

    @property
    def patience(self) -> float:
        """How long it waits for a connection, in seconds."""
        return self.service.deadlines(self.database, self.user).pool_wait_timeout

    @property
    def busy(self) -> bool:
        """Whether something is under way: an answer is owed or waited for, or a transaction is open."""
        origin = self.origin
        return (
            self.waiting
            or self.deferred
            or self.away
            or self.direct
            or self.flight is not None
            or self.signal is Outcome.UNDER_WAY
            or (origin is not None and (bool(origin.units) or origin.status != IDLE))
        )

    def crashed(self, error: Exception) -> None:
        ending.fatal(self, errors.internal_error())

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self.waiting else "linked" if self.origin else "unlinked"
        return f"<Session {self.user}@{self.database} {state}{' pinned' if self.pinned else ''}>"
