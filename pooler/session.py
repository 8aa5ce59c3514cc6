"""One client in traffic: its frames in, an origin connection when it needs one, its answers out.

Lives here: the walk over frontend frames, linking and releasing, settings and pins, the client's end. Not here: login
(`ceremony.login`), what the extended protocol's messages become (`extended`), backend frames (`origin`), what a
statement means (`sql`).

States of a session, each seen from two attributes:

    unlinked   origin None, not waiting: no transaction, nothing owed; the cache may answer
    waiting    origin None, waiting: in the pool's queue; input is kept, not read past a bound
    linked     origin set: until ReadyForQuery says idle with nothing owed and no pin holds it
    closed     never again
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hmac import compare_digest
from time import perf_counter, time
from typing import TYPE_CHECKING

from pooler import express, extended, simple
from pooler.cache.entry import Entry
from pooler.cache.flight import Flight
from pooler.cache.ready import View
from pooler.caching import NOTHING, depart, keep, note_block, note_write, reach_of
from pooler.logs import get_logger
from pooler.origin import IDLE, PLAN_OUTDATED, Origin
from pooler.pool import Pool
from pooler.roles import READ_ONLY
from pooler.sequences import Kind
from pooler.settings import DEFAULTS, Reports, Settings
from pooler.sql.effects import quote_literal, set_config_sql
from pooler.sql.statement import DefaultChange, Part, PinKind, Statement
from pooler.sql.traces import looks_closely
from pooler.sql.views import Edit, place_before
from pooler.state import SessionState, probe_query
from pooler.statements import ORIGIN_PREFIX, Prepared, Scope
from pooler.transport import Transport, TransportClosed
from pooler.unit import ALL, COMMAND_COMPLETE, COPY_BOTH, COPY_IN, ERROR, WATCHFUL, Capture, Unit
from protocol import errors, framing
from protocol.framing import FLUSH_FRAME, READY_IDLE, TERMINATE_FRAME, bad_length, length_at, query
from protocol.responses import PgError

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

QUERY, PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, FLUSH, FUNCTION_CALL, TERMINATE = b"QPBDECSHFX"
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
_SKIPPABLE = frozenset({QUERY, PARSE, BIND})
_BATCH_ENDS = frozenset({SYNC, FLUSH})
_BATCHED = frozenset({PARSE, BIND, DESCRIBE, EXECUTE, CLOSE})

_POSITION = re.compile(rb"\0P(\d+)\0")
_ORIGIN_NAME = re.compile(ORIGIN_PREFIX + rb"\d+")

READY_IN_BLOCK = b"Z\0\0\0\5T"
PARTIAL_BATCH_BYTES = 65536
"""Extended messages without a Sync or Flush are held back up to so many bytes; then they go to the origin as they are.
"""


class Session:
    """A logged-in client.

    Attributes:
      state: its settings, in and outside transactions, and what pins it.
      reports: the ParameterStatus values that it has been told.
      statements: its prepared statements by name; the unnamed one is b"". unnamed_doubted: its Parse may have failed.
      bound: the statement of the last Bind that failed. rewritten: a unit with a text that is not sent as the client
        said it, what it said, and the edits. began: when it logged in (seconds since 1970).
      portals: by name, the `Part` of a portal whose completion matters to the session.
      traces: what it may have left on connections for good (`sql.traces`). insists: it must not see those of others.
      sequence_home: where it last ran a statement that may have drawn values from sequences.
      flight: where somebody else's answer is waited for. landed: that answer. alone: ask the origin without one.
      only_reads: its transaction block is READ COMMITTED and has done nothing but read what may be cached.
      copying: the unit in which the origin waits for COPY data, if `in_copy` says so.
      holding: input is kept until the origin has said something that pgnear must know first.
      stirred: something came from the client since `ceremony.deadlines` last looked. quiet_since: when it did so and
        something had come, or was under way.
      skipping: an extended batch failed before an origin saw it; everything up to its Sync is dropped.
      view: the cached answers that are ready for it, and for others like it.
      walk_from: where in the data that is being walked the link was made; -1 once the origin was sent something.
    """

    __slots__ = (
        "_chunks", "_discard", "_inbox", "_missing", "_out", "_out_bytes", "_pending", "_scope", "_scope_label",
        "_stream", "_stream_begun", "_to_origin", "alone", "began", "bound", "closed", "copying", "database",
        "defaults_change", "flight", "holding", "insists", "key", "landed", "leaving", "mode", "namespace",
        "only_reads", "origin", "pool", "portals", "quiet_since", "reach", "reports", "rewritten", "schema_changes",
        "sequence_home", "service", "skipping", "state", "statements", "stirred", "traces", "transport",
        "unnamed_doubted", "user", "view", "waiting", "walk_from", "writes", "wrote",
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
        self.state = SessionState(startup)
        self.reports = reports
        self.key = key
        self.namespace = pool.name
        self.statements: dict[bytes, Prepared] = {}
        self.traces = startup.customs
        self.insists = service.config.strict_custom_settings
        self.unnamed_doubted = False
        self.bound = b""
        self.rewritten: tuple[Unit, bytes, Sequence[Edit]] | None = None
        self.began = time()
        self.portals: dict[bytes, Part] = {}
        self.sequence_home: Origin | None = None
        self.flight: Flight | None = None
        self.landed: Entry | None = None
        self.alone = False
        self.only_reads = False
        self._pending: Capture | None = None
        self.origin: Origin | None = None
        self.waiting = False
        self.holding = False
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
        self._inbox = b""
        self._chunks: list[bytes] = []
        self._missing = 0
        self._discard = 0  # bytes left of a message that was refused
        self._stream = 0  # bytes left of a CopyData that passes without being looked at
        self.copying: Unit | None = None
        self._stream_begun = False  # its beginning was sent to the origin
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._to_origin: list[bytes] = []
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
        return READY_IDLE if self.origin is None else READY_IN_BLOCK

    def start(self, received: bytes) -> None:
        """Begin traffic; `received` came behind the login already."""
        self.transport.register(self)
        if received:
            self._take(received)
        if not self.closed:
            self.readable()

    # ---- from the client ---------------------------------------------------------------------------------------------

    def readable(self) -> None:
        try:
            data = self.transport.receive()
        except TransportClosed:
            self.end(abrupt=True)
            return
        if data is None:
            return
        if not data:
            self.end(abrupt=True)
            return
        self.stirred = True
        if self._is_clear and express.submit(self, data):
            return
        self._take(data)

    @property
    def _is_clear(self) -> bool:
        """Whether what comes now is a new request, with nothing before it that is incomplete, waits or is skipped."""
        return not (
            self.waiting or self.holding or self.leaving or self.skipping or self._inbox or self._missing
            or self._discard or self._stream
        )  # fmt: skip

    def _take(self, data: bytes) -> None:
        self.stirred = True
        if self._discard:
            dropped = min(self._discard, len(data))
            self._discard -= dropped
            data = data[dropped:]
        if self._missing > len(data):
            self._chunks.append(data)
            self._missing -= len(data)
            return
        if self._chunks:
            self._chunks.append(data)
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._missing = 0
        if self._inbox:
            data = self._inbox + data
            self._inbox = b""
        if self.waiting or self.leaving or self.holding:
            self._keep(data)
            return
        self._walk(data)

    def _keep(self, data: bytes) -> None:
        self._inbox = data
        if self.service.draining and self.holding and not self.busy:
            self.service.reactor.call_soon(self.shutdown)
            return
        if len(data) > self.pool.high_water:
            self.transport.pause()

    def _walk(self, data: bytes) -> None:
        """Handle every whole message in `data`; keep what is incomplete or must wait."""
        end = len(data)
        limit = self.pool.max_message_bytes
        position = self._pass_stream(data) if self._stream else 0
        batch: list[tuple[int, int, int]] = []
        kept = position  # everything before it is handled
        while end - position >= 5:
            kind = data[position]
            length = length_at(data, position + 1)[0]
            frame_end = position + 1 + length
            if length > limit and kind in _SKIPPABLE and self.origin is None:
                self._skip_message(kind, frame_end - end, bad_length(kind, length, limit))
                return
            if not 4 <= length <= limit:
                self._refuse(bad_length(kind, length, limit))
                return
            if frame_end > end:
                if kind == COPY_DATA and not batch:
                    self._stream_begun = self._copy_data(data[position:end])
                    self._stream = frame_end - end
                    kept = end
                else:
                    self._missing = frame_end - end
                break
            if kind in _BATCHED:
                batch.append((kind, position, frame_end))
                position = frame_end
                if frame_end - kept < PARTIAL_BATCH_BYTES:
                    continue
                handled = self.skipping or self._guard(data, extended.submit, kept, batch, 0)
            elif kind in _BATCH_ENDS:
                if self.skipping:
                    if kind == SYNC:
                        self.skipping = False
                        self._out.append(READY_IDLE)
                    handled = True
                else:
                    handled = self._guard(data, extended.submit, kept, batch, kind)
                position = frame_end
            else:
                if batch and not self.skipping:  # a Query or CopyData behind messages without Sync
                    if not self._guard(data, extended.submit, kept, batch, 0):
                        break
                    batch = []
                    kept = position
                handled = self._guard(data, Session._single, position, kind, frame_end)
                position = frame_end
            if self.closed or self.leaving:
                return
            if not handled:
                break
            kept = position
            batch = []
            if self._out_bytes > self.pool.high_water:
                self._flush_client()
                if self.closed:
                    return
                if self.transport.pending > self.pool.high_water:
                    break
        if kept < end:
            self._keep_rest(data[kept:] if kept else data)
        if self._out:  # answers from here are for what came before anything that an origin was asked
            self._flush_client()
            if self.closed:
                return
        if self._to_origin:
            self._flush_origin(data)

    def _skip_message(self, kind: int, rest: int, error: PgError) -> None:
        """A message is over the limit and nothing else is under way: it fails, and the session goes on behind it."""
        log.warning("message_too_large", user=self.user, client=self.transport.peer, reason=error.message)
        self._discard = max(rest, 0)
        self.answer(error.response())
        if kind == QUERY:
            self.answer(READY_IDLE)
        else:
            self.skipping = True
        self._flush_client()

    def _keep_rest(self, rest: bytes) -> None:
        if self._missing and not (self.waiting or self.holding):
            self._chunks.append(rest)
        else:
            self._missing = 0
            self._keep(rest)

    def _guard(self, data: bytes, handle: Callable[..., bool], *arguments: object) -> bool:
        """Run one handler; a message that breaks the protocol ends the session with an error it can read."""
        try:
            return handle(self, data, *arguments)
        except ValueError:
            self._refuse(errors.protocol_violation("a message ended before its last field"))
            return False
        except PgError as error:
            self._refuse(error)
            return False

    def _pass_stream(self, data: bytes) -> int:
        taken = min(self._stream, len(data))
        self._stream -= taken
        if self._stream_begun:
            # The origin has the frame's head: it must get the rest, even if the COPY has failed meanwhile.
            self._to_origin.append(data[:taken])
            if not self._stream:
                self._stream_begun = False
                self._flush_origin(b"")
                self.settled()
        return taken

    def _copy_data(self, part: bytes) -> bool:
        """Pass a part of a COPY on; whether there is one. If not, it has failed, and the origin would ignore it too."""
        origin = self.origin
        if origin is None or not origin.units:
            return False
        self._to_origin.append(part)
        return True

    def _single(self, data: bytes, position: int, kind: int, frame_end: int) -> bool:
        """A message that is no part of an extended batch; False if it must wait."""
        if kind in (QUERY, FUNCTION_CALL) and self.origin is not None and self.origin.open_unit is not None:
            if self.origin.open_unit.failed:
                return True  # the origin skips everything up to a Sync
            if self.origin.open_unit.steps:
                self._hold_for_answers(self.origin)
                return False
            self.origin.spoiled = True  # PostgreSQL 18 may be left in a state that the next client would meet
        if kind == QUERY:
            return simple.submit(self, data, position, frame_end)
        if kind == TERMINATE:
            if self.in_copy:
                self.send_later(TERMINATE_FRAME)  # it is no part of COPY: what the origin says to it is the last word
            elif self.origin is not None and self.origin.open_unit is not None:
                self.send_later(FLUSH_FRAME)  # what it sent is carried out, and the end of it must be seen
            self._flush_origin(data)
            self.end(abrupt=False)
        elif kind in (COPY_DATA, COPY_DONE, COPY_FAIL):
            self._copy_data(data[position:frame_end])
            if kind != COPY_DATA:
                self.copying = None
        elif kind == FUNCTION_CALL:
            if not self.link(position):
                return False
            self.writes = True
            self.only_reads = False
            self.reach = None
            simple.open_unit(self, perf_counter())
            self._to_origin.append(data[position:frame_end])
        else:
            self._refuse(errors.protocol_violation(f"invalid frontend message type {kind}"))
        return True

    def _hold_for_answers(self, origin: Origin) -> None:
        """Whether what comes now is carried out or skipped depends on what is still under way: wait for that."""
        self.hold()
        self.send_later(FLUSH_FRAME)

    def restore_startup(self, unit: Unit) -> bytes:
        """The frame that, behind `unit` with its DISCARD ALL, sets again what the startup packet asked for."""
        unit.silent = True
        if self.origin is not None:
            self.origin.unnamed = None  # it ends with this Query

        def done(own: Unit) -> None:
            if own.error is not None and not unit.failed:
                self.fatal(own.error)

        own = Unit.own(done)
        own.announces = True
        self.push(own)
        return DEFAULTS.difference_to(self.state.startup)

    def skip_to_sync(self, *, at_sync: bool) -> None:
        """An extended batch has failed without an origin: the rest of it is dropped, up to its Sync."""
        if at_sync:
            self.answer(READY_IDLE)
        else:
            self.skipping = True

    @property
    def schema_moved(self) -> bool:
        """Whether DDL has been seen at all, so that a statement may be older than its tables."""
        return self.pool.schema_epoch > 0

    # ---- what a statement means for the session ----------------------------------------------------------------------

    def mind(self, statement: Statement, unit: Unit) -> None:
        """Note what `statement`, now on its way, may do to the cache."""
        if self.only_reads or statement.isolation:
            note_block(self, statement)
        if not statement.reads_only and self.service.observes:
            reach = reach_of(self, statement)
            if reach is None or reach:
                note_write(self, reach)
        if statement.sequences and self.origin is not None:
            self.sequence_home = self.origin
            self.origin.sequence_client = self.key[0]
            recallers = self.service.recallers
            self.origin.asked_again = bool(recallers) and recallers.will_ask(
                self.kind, statement, self.pool.sequence_tables
            )
        if statement.leaves and self.origin is not None:
            self.traces |= statement.leaves
            self.origin.traces |= statement.leaves
        if statement.changes_schema:
            self.schema_changes = True
        if statement.changes_defaults:
            self.defaults_change += statement.changes_defaults
        if statement.session_functions:
            self.service.classifier.add_functions(statement.session_functions)
        if statement.databases:
            self.service.leave_databases(statement.databases)
        if (self.writes or self.schema_changes) and unit.capture is None:
            unit.notable |= WATCHFUL

    def go_home(self) -> None:
        """Before currval or lastval: link to the connection that remembers this session's values, if it is idle."""
        if self.service.recallers.add(self.kind):
            log.info("sequence_values_asked_for", user=self.user, database=self.database, application=self.kind[2])
        home = self.sequence_home
        if self.origin is None and home is not None and home.sequence_client == self.key[0] and self.pool.take(home):
            self._attach(home)

    def forget_others_sequences(self, origin: Origin) -> None:
        """Before currval or lastval: another client's values are not this one's, so the origin must not know them."""
        if origin.sequence_client == self.key[0]:
            return
        if self.sequence_home is not None:
            log.warning("sequence_state_lost", user=self.user, database=self.database, client=self.transport.peer)
        origin.sequence_client = self.key[0]
        origin.unnamed = None
        self.push(Unit.own(lambda own: None))  # in a failed transaction it fails, and so does what comes behind
        self.send_later(query("DISCARD SEQUENCES"))

    def complete(self, part: Part, tag: bytes) -> None:
        """A statement with effects on the session is complete; `tag` is its command tag."""
        for kind in self.state.complete(part, tag):
            self._pinned(kind)
        origin = self.origin
        if part.deallocates is not None or part.discards == "all":
            if part.deallocates:
                prepared = self.statements.pop(part.deallocates, None)
                if prepared is not None and origin is not None:
                    origin.prepared.pop(prepared, None)
            else:
                unnamed = self.statements.get(b"")  # it is no part of DEALLOCATE ALL
                self.statements.clear()
                if unnamed is not None:
                    self.statements[b""] = unnamed
                if origin is not None:
                    origin.prepared.clear()

    def pin(self, kind: PinKind) -> None:
        """Keep the connection because of `kind`."""
        if self.state.pin(kind):
            self._pinned(kind)

    def _pinned(self, kind: PinKind) -> None:
        stats = self.service.stats
        stats.pins[kind.value] = stats.pins.get(kind.value, 0) + 1
        log.info("client_pinned", user=self.user, database=self.database, reason=kind.value, client=self.transport.peer)

    def in_its_words(self, frame: bytes, unit: Unit) -> bytes:
        """An ErrorResponse of the origin's with the client's names of statements, and places in the client's text."""
        names = {prepared.name: name for name, prepared in self.statements.items()}
        if self.bound in self.statements:  # of several names for one statement, the one that was used
            names[self.statements[self.bound].name] = self.bound
        body = _ORIGIN_NAME.sub(lambda found: names.get(found[0], self.bound or found[0]), frame[5:])
        if self.rewritten is not None and self.rewritten[0] is unit:
            _, said, edits = self.rewritten
            body = _POSITION.sub(lambda found: b"\0P%d\0" % place_before(said, edits, int(found[1])), body)
        return framing.frame(frame[:1], body)

    def capture(self, unit: Unit, capture: Capture) -> None:
        """Copy the unit's answer for the cache."""
        unit.capture = capture
        unit.latency = self.service.stats.miss_latency
        unit.notable = ALL

    def remember(self, name: bytes, prepared: Prepared) -> None:
        """The client's statement `name` is `prepared` from now on.

        Raises:
          PgError: it has as many as it may have.
        """
        statements = self.statements
        if name not in statements and len(statements) >= self.service.config.max_client_statements:
            raise errors.too_many_statements(self.service.config.max_client_statements)
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
        self._to_origin.append(data)

    def answer(self, data: bytes) -> None:
        """Bytes for the client that no origin was asked for."""
        self._out.append(data)
        self._out_bytes += len(data)

    # ---- the link ----------------------------------------------------------------------------------------------------

    def link(self, position: int, capture: Capture | None = None) -> bool:
        """Have an origin connection, settings included. False: in the queue now; handle the message again when granted.

        `capture` waits with the message.

        `position` is where the message begins in the data that is being walked; if the connection turns out
        to be dead before anything was sent, the walk starts there again on another one.
        """
        if self.origin is not None:
            return True
        origin = self._replica(capture) if capture is not None and self.pool.replicas is not None else None
        if origin is None:
            origin = self.pool.acquire(self)
        if origin is None:
            self.waiting = True
            self._pending = capture
            return False
        self._attach(origin)
        self.walk_from = position
        return True

    def _replica(self, capture: Capture) -> Origin | None:
        """A replica's connection for a read that may be cached, where one is far enough and free."""
        replicas, cache = self.pool.replicas, self.service.cache
        return replicas.take(self, capture, cache) if replicas is not None and cache is not None else None

    def take_pending(self) -> Capture | None:
        """The capture that waited for a connection together with the message at hand."""
        capture, self._pending = self._pending, None
        if capture is not None:
            depart(self.service, capture, perf_counter())
        return capture

    def _drop_pending(self) -> None:
        capture, self._pending = self._pending, None
        if capture is not None:
            capture.fail()

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

    def _leave_flight(self) -> None:
        flight, self.flight = self.flight, None
        if flight is not None and self.service.flights is not None:
            self.service.flights.leave(flight, self)

    def _attach(self, origin: Origin) -> None:
        self.origin = origin
        origin.session = self
        origin.client_pid = self.key[0]
        if origin.settings is not self.settings:
            self._to_origin.append(origin.settings.difference_to(self.settings))
            origin.units.append(Unit.own())
            origin.unnamed = None
            origin.settings = self.settings
            origin.traces |= self.settings.customs
            self.service.stats.settings_replayed += 1
        if self.insists and not self.traces <= origin.traces:
            self._leave_traces(origin)
        if self.mode == "session":
            self.pin(PinKind.SESSION)

    def look(self, text: bytes) -> None:
        """Before linking for a text that may look at traces: see to it that those are this client's own."""
        self.insists = self.service.config.strict_custom_settings or looks_closely(text) is not None

    def _leave_traces(self, origin: Origin) -> None:
        """Custom settings that this client has once set are known, as '', wherever it is."""
        for name in sorted(name for name in self.traces - origin.traces if "." in name):
            literal = quote_literal(name)
            is_unknown = f"pg_catalog.current_setting({literal},true) IS NULL"
            self.send_later(query(f"{set_config_sql(name, '')} WHERE {is_unknown}"))
            origin.units.append(Unit.own(lambda own: None))  # a name that cannot be set was refused its client, too
            origin.unnamed = None
            origin.traces |= {name}

    @property
    def kind(self) -> Kind:
        """Clients that are taken to behave as this one does."""
        return self.pool.name, self.user, self.reports.values.get("application_name", "")

    def push(self, unit: Unit) -> None:
        assert self.origin is not None
        self.origin.units.append(unit)

    def granted(self, origin: Origin) -> None:
        """The pool's answer to `link`: go on where the walk stopped."""
        self.waiting = False
        self._attach(origin)
        self.walk_from = 0
        self._resume_walk()
        if self.origin is origin and not origin.units and not self.closed:
            self.settled()

    def refused(self, error: PgError) -> None:
        """The pool's other answer: the message that needed a connection fails, the session goes on."""
        self.waiting = False
        self._drop_pending()
        self._fail_message(error)

    def _fail_message(self, error: PgError) -> None:
        """Answer the message at the head of the inbox with `error`."""
        data = self._inbox
        self.answer(error.response())
        if data[:1] in (b"Q", b"F"):
            self._inbox = data[1 + length_at(data, 1)[0] :]
            self.answer(READY_IDLE)
        else:
            self.skipping = True
        self._flush_client()
        if not self.closed:
            self._resume_walk()

    def hold(self) -> None:
        """Keep the client's input until `release_hold`."""
        self.holding = True

    def release_hold(self) -> None:
        """The origin has said what pgnear waited for."""
        if not self.holding:
            return
        self.holding = False
        self.service.reactor.call_soon(self._resume_walk)

    def _resume_walk(self) -> None:
        if self.closed or self.waiting or self.holding:
            return
        data, self._inbox = self._inbox, b""
        self.transport.resume()
        if data:
            self._walk(data)

    def _flush_origin(self, data: bytes) -> None:
        parts = self._to_origin
        if not parts:
            return
        origin = self.origin
        assert origin is not None
        try:
            origin.send(parts[0] if len(parts) == 1 else b"".join(parts))
        except TransportClosed as error:
            parts.clear()
            self.send_failed(origin, data, str(error))
            return
        parts.clear()
        self.walk_from = -1
        if origin.transport.pending > self.pool.high_water:
            self.transport.pause()
        if origin.units and origin.units[0].steps:
            origin.flush_made_up()

    def send_failed(self, origin: Origin, data: bytes, reason: str) -> None:
        """The connection was dead. If it never got a byte for this session, the walk is repeated on another one."""
        if self.walk_from < 0 or not data:
            origin.lost(f"while sending: {reason}")
            return
        origin.session = self.origin = None
        origin.draining = True
        origin.lost(f"before anything was sent: {reason}")
        self.service.stats.retries += 1
        self._chunks.clear()
        self._missing = self._stream = 0
        self._inbox = data[self.walk_from :]
        self._resume_walk()

    def origin_drained(self) -> None:
        """The origin takes bytes again."""
        if not self.waiting and self.transport.pending <= self.pool.high_water:
            self.transport.resume()

    # ---- from the origin ---------------------------------------------------------------------------------------------

    def notified(self, frame: bytes) -> bytes:
        """A NotificationResponse of the origin's with the sender's process id as clients know it."""
        pid = self.service.client_pid(self, int.from_bytes(frame[5:9], "big"))
        return frame[:5] + pid.to_bytes(4, "big") + frame[9:]

    def notice(self, unit: Unit, kind: int, frame: bytes) -> None:
        """A notable frame of `unit` passed."""
        if kind == COMMAND_COMPLETE:
            if self.writes:
                self._invalidate()
            if self.schema_changes:
                self._schema_changed()
        elif kind == ERROR:
            self.service.stats.query_errors += 1
            if self.state.watching:
                self.state.error()
            if PLAN_OUTDATED in frame and self.origin is not None:
                self.origin.outdated = True
        elif kind == COPY_IN and self.origin is not None:
            self.copying = unit
            if not unit.simple and unit.synced:
                self._ignore_sync(unit, self.origin)
            if self.leaving:
                self.origin.send_or_lose(TERMINATE_FRAME)
        elif kind == COPY_BOTH:
            self.pin(PinKind.REPLICATION)

    @property
    def in_copy(self) -> bool:
        """Whether the origin waits for COPY data that the client has not ended."""
        unit, origin = self.copying, self.origin
        if unit is None or origin is None or unit not in origin.units:
            self.copying = None
            return False
        return self.leaving or not unit.failed

    def _ignore_sync(self, unit: Unit, origin: Origin) -> None:
        """An origin in COPY IN ignores the Sync that was sent along: `unit` ends with the next, which may be here."""
        unit.synced = False
        if len(origin.units) > 1 and not origin.units[1].simple and not origin.units[1].swallow:
            follower = origin.units[1]
            del origin.units[1]
            unit.synced = follower.synced
            if follower.steps:
                unit.script(list(follower.steps))

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
                self._invalidate()
                if not origin.units:
                    self.writes = False
                    self.reach = NOTHING
            if self.schema_changes:
                self._schema_changed()
                self.schema_changes = False
            if self.defaults_change:
                service.defaults_changed(self.defaults_change)
                self.defaults_change = ()
        if origin.reports is not self.reports and not unit.silent:
            if status == IDLE and state.settings.get(READ_ONLY) is None:
                origin.pool.role_reported(origin, READ_ONLY)  # a SET of the client's is not what it comes from
            self.report(origin)
        if status != IDLE and self.mode == "statement":
            service.reactor.call_soon(lambda: self.fatal(errors.no_transaction_blocks()))

    def report(self, origin: Origin) -> None:
        """Tell the client which reported settings have changed, as the origin would before ReadyForQuery."""
        frames = origin.reports.difference_from(self.reports)
        self.reports = origin.reports
        if frames:
            origin.emit(frames)

    def _schema_changed(self) -> None:
        """Names may mean something else now: statements are parsed and the catalog is read anew."""
        self.pool.schema_epoch += 1
        if self.service.cache is not None:
            self.service.cache.invalidate_database(self.namespace)
        self.service.catalog_changed(self.pool)

    def _invalidate(self) -> None:
        if self.service.cache is not None:
            self.service.cache.invalidate(self.namespace, self.reach)

    def has_nothing_to_do(self, origin: Origin) -> bool:
        """Whether the end of an ordinary unit, outside a transaction, is nothing but the end of the link."""
        state = self.state
        return not (
            state.watching or state.pins or state.tainted or self.writes or self.schema_changes
            or self.defaults_change or self.only_reads or self.portals or self.leaving or self.holding
            or self._stream_begun or self._to_origin or origin.reports is not self.reports
        )  # fmt: skip

    def part(self, origin: Origin, data: bytes) -> None:
        """Give the client the rest of its answer, and the connection back: what `deliver` and `settled` do."""
        try:
            pending = self.transport.send(data)
        except TransportClosed:
            self.end(abrupt=True)
            return
        self.origin = None
        if not origin.transport.reading:
            origin.transport.resume()
        if not self.transport.reading and pending <= self.pool.high_water:
            self.origin_drained()
        origin.pool.release(origin)
        if self.service.draining:
            self.depart()

    def tell(self, data: bytes) -> None:
        """Send the client an answer that no origin was asked for, now."""
        try:
            pending = self.transport.send(data)
        except TransportClosed:
            self.end(abrupt=True)
            return
        if pending > self.pool.high_water:
            self.transport.pause()

    def deliver(self, data: bytes) -> None:
        """Bytes from the origin, in order, for the client."""
        if self.leaving and self.origin is not None and self.origin.open_unit not in (None, self.copying):
            return  # PostgreSQL keeps the answers of a batch back until its Sync, which will not come
        try:
            self.transport.send(data)
        except TransportClosed:
            self.end(abrupt=True)
            return
        if self.transport.pending > self.pool.high_water and self.origin is not None:
            self.origin.transport.pause()

    def settled(self) -> None:
        """Nothing is owed: give the connection back unless a transaction, a pin or held input keeps it."""
        origin = self.origin
        if origin is None or origin.units or origin.status != IDLE or self._to_origin or self._stream_begun:
            if self.leaving and origin is not None and not origin.owes_answers:
                self._finish_leaving()
            return
        if self.leaving:
            self._finish_leaving()
        elif self.state.pins:
            if self.state.probe_due:
                self._probe(origin)
        elif not self.holding:
            self.origin = None
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
        if self.service.draining and not self.closed and not self.busy:
            self.depart()

    def _probe(self, origin: Origin) -> None:
        """Ask the origin whether the state that pins is still there."""
        kinds = self.state.probed_kinds()
        if not kinds:
            return

        def done(own: Unit) -> None:
            if own.error is None and len(own.rows) == 2 and len(own.rows[1]) == 7 + 5 * len(kinds):
                answers = own.rows[1]
                present = {kind: answers[11 + 5 * place] == ord("1") for place, kind in enumerate(kinds)}
                for kind in self.state.probe_answered(present):
                    log.info("client_unpinned", user=self.user, database=self.database, reason=kind.value)

        origin.unnamed = None
        self.push(Unit.own(done))
        try:
            origin.send(probe_query(kinds))
        except TransportClosed as error:
            origin.lost(f"while sending: {error}")

    def writable(self) -> None:
        try:
            self.transport.flush()
        except TransportClosed:
            self.end(abrupt=True)
            return
        if self.transport.pending > self.pool.high_water // 2:
            return
        if self.origin is not None:
            self.origin.transport.resume()
        if not self.waiting:
            if self.origin is None or self.origin.transport.pending <= self.pool.high_water:
                self.transport.resume()
            if self._inbox and not self.leaving:
                self._resume_walk()

    def _flush_client(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            try:
                self.transport.send(data)
            except TransportClosed:
                self.end(abrupt=True)
                return
            if self.transport.pending > self.pool.high_water:
                self.transport.pause()

    # ---- its end -----------------------------------------------------------------------------------------------------

    def _refuse(self, error: PgError) -> None:
        """The client broke the protocol or a bound: it is told, and its connection ends."""
        log.warning(
            "client_refused",
            user=self.user,
            client=self.transport.peer,
            sqlstate=error.sqlstate,
            reason=error.message,
        )
        if self.origin is not None:
            self._flush_origin(b"")
        self.fatal(error)

    def fatal(self, error: PgError) -> None:
        """Say `error` as the last thing and close."""
        if self.closed:
            return
        if self.origin is not None and self.origin.mid_frame:
            self.end(abrupt=True)  # words put inside a row that was cut short would be read as its values
            return
        self.answer(error.fatal().response())
        self._flush_client()
        if not self.closed:
            self.end(abrupt=True, linger=True)

    def origin_lost_because(self, origin: Origin, reason: str) -> None:
        """The linked connection broke. If the origin has said why, that is what a private connection would end with."""
        self.origin_lost(origin.fatal or errors.origin_lost(reason))

    def origin_lost(self, error: PgError) -> None:
        origin, self.origin = self.origin, None
        self._to_origin.clear()
        if self.writes and origin is not None:
            self._end_unsure(origin)
        self.fatal(error)

    def _end_unsure(self, origin: Origin) -> None:
        """Whether the write that `origin` works on takes effect is not known, and nobody will be told."""
        self._invalidate()
        self.service.follow_write(origin, self.namespace, self.reach)

    def cancel_waiting(self) -> bool:
        """A cancel request came; if the session only waits for a connection, that is what it cancels."""
        if self.holding and self.flight is not None:
            self._leave_flight()
            self.holding = False
            self._fail_message(errors.query_canceled())
            return True
        if not self.waiting:
            return False
        self.pool.withdraw(self)
        self.waiting = False
        self._drop_pending()
        self._fail_message(errors.query_canceled())
        return True

    def depart(self) -> None:
        """The process ends soon, and nothing is under way here: the next thing that it asks is answered with goodbye.

        libpq takes an error that it reads together with an answer for a notice, and knows nothing of why it ended.
        """
        self.hold()
        self.service.depart_soon(self)

    def shutdown(self) -> None:
        """The process ends."""
        self.fatal(errors.admin_shutdown())

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
            or self.flight is not None
            or (origin is not None and (bool(origin.units) or origin.status != IDLE))
        )

    def end(self, *, abrupt: bool, linger: bool = False) -> None:
        """The client left: by Terminate, or (abrupt) without a word; or we end it, having said why (linger)."""
        if self.closed:
            return
        origin = self.origin
        if not abrupt and origin is not None and origin.owes_answers:
            # What it sent before Terminate is carried out, as on a private connection.
            self.leaving = True
            self.transport.pause()
            self.service.leave_later(self)
            return
        self.closed = True
        if linger:
            self.transport.linger()
        else:
            self.transport.close()
        if self.waiting:
            self.pool.withdraw(self)
            self.waiting = False
        self._drop_pending()
        self._leave_flight()
        self.service.forget(self)
        self._chunks.clear()
        self._inbox = b""
        if origin is not None:
            self.origin = None
            if self.writes and origin.units:
                self._end_unsure(origin)
            if origin.units and not origin.owes_answers:
                origin.close()  # a batch without its Sync: closing undoes it
            elif origin.units and not origin.closed:
                self.service.cancel_abandoned(origin, within_message=self._stream_begun)
            elif not origin.closed:
                if self.state.tainted or origin.spoiled or self._stream_begun:
                    origin.close()  # the rest of a message that it has begun to read will not come
                else:
                    origin.pool.abandon(origin, dirty=self.state.dirty)
        self.statements.clear()

    def _finish_leaving(self) -> None:
        self.end(abrupt=True)

    def crashed(self, error: Exception) -> None:
        self.fatal(errors.internal_error())

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self.waiting else "linked" if self.origin else "unlinked"
        return f"<Session {self.user}@{self.database} {state}{' pinned' if self.pinned else ''}>"
