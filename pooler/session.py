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

from collections.abc import Callable
from hmac import compare_digest
from time import perf_counter
from typing import TYPE_CHECKING

from pooler import extended
from pooler.logs import get_logger
from pooler.origin import IDLE, IN_TRANSACTION, Origin
from pooler.pool import Pool
from pooler.settings import DEFAULTS, Settings
from pooler.sql.statement import Effect, Statement
from pooler.statements import Prepared
from pooler.transport import Transport, TransportClosed
from pooler.unit import ALL, COMMAND_COMPLETE, COPY_BOTH, COPY_IN, ERROR, WATCHFUL, Capture, Unit
from protocol import errors
from protocol.errors import PgError
from protocol.framing import bad_length, command_complete, length_at

if TYPE_CHECKING:
    from pooler.service import Service
    from pooler.sql.statement import SettingChange

log = get_logger(__name__)

QUERY, PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, SYNC, FLUSH, FUNCTION_CALL, TERMINATE = b"QPBDECSHFX"
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
_SKIPPABLE = frozenset({QUERY, PARSE, BIND})
_BATCH_ENDS = frozenset({SYNC, FLUSH})
_BATCHED = frozenset({PARSE, BIND, DESCRIBE, EXECUTE, CLOSE})

_PLAN_OUTDATED = b"\0C0A000\0Mcached plan must not change result type\0"

READY_IDLE = b"Z\0\0\0\5I"
PARTIAL_BATCH_BYTES = 262144
"""Extended messages without a Sync or Flush are held back up to so many bytes; then they go to the origin as they are.
"""


class Session:
    """A logged-in client.

    Attributes:
      startup: the settings its startup packet asked for; RESET goes back to them.
      settings: what it wants set now.
      statements: its prepared statements by name; the unnamed one is b"".
      pinned: why it keeps its connection, or "".
      skipping: an extended batch failed before an origin saw it; everything up to its Sync is dropped.
    """

    __slots__ = (
        "_chunks", "_discard", "_inbox", "_missing", "_out", "_out_bytes", "_stream", "_tag_rollback",
        "_to_origin", "_walk_from", "closed", "database", "key", "leaving", "namespace", "origin", "pinned",
        "pool", "schema_changes", "service", "settings", "skipping", "startup", "statements",
        "transaction_changes", "transport", "user", "waiting", "writes",
    )  # fmt: skip

    def __init__(
        self,
        service: Service,
        pool: Pool,
        transport: Transport,
        user: str,
        database: str,
        startup: Settings,
        key: tuple[int, bytes],
    ) -> None:
        self.service = service
        self.pool = pool
        self.transport = transport
        self.user = user
        self.database = database
        self.startup = startup
        self.settings = startup
        self.key = key
        self.namespace = pool.name
        self.statements: dict[bytes, Prepared] = {}
        self.origin: Origin | None = None
        self.waiting = False
        self.closed = False
        self.leaving = False  # sent Terminate while answers were owed
        self.skipping = False
        self.pinned = ""
        self.schema_changes = False  # the same for DDL
        self.writes = False  # something was sent that may write, and its transaction is not over
        self.transaction_changes: list[SettingChange] = []
        self._tag_rollback = False
        self._inbox = b""
        self._chunks: list[bytes] = []
        self._missing = 0
        self._discard = 0  # bytes left of a message that was refused
        self._stream = 0  # bytes left of a CopyData that passes without being looked at
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._to_origin: list[bytes] = []
        self._walk_from = 0

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
        self._take(data)

    def _take(self, data: bytes) -> None:
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
        if self.waiting or self.leaving:
            self._keep(data)
            return
        self._walk(data)

    def _keep(self, data: bytes) -> None:
        self._inbox = data
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
                    self._copy_data(data[position:end])
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
        if self._to_origin:
            self._flush_origin(data)
        if self._out:
            self._flush_client()

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
        if self._missing and not self.waiting:
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
        self._copy_data(data[:taken])
        return taken

    def _copy_data(self, part: bytes) -> None:
        origin = self.origin
        if origin is not None and origin.units:
            self._to_origin.append(part)

    def _single(self, data: bytes, position: int, kind: int, frame_end: int) -> bool:
        """A message that is no part of an extended batch; False if it must wait."""
        if kind == QUERY:
            return self._query(data, position, frame_end)
        if kind == TERMINATE:
            self._flush_origin(data)
            self.end(abrupt=False)
        elif kind in (COPY_DATA, COPY_DONE, COPY_FAIL):
            # Without a unit there is no COPY: it has failed, and the origin would ignore these too.
            self._copy_data(data[position:frame_end])
        elif kind == FUNCTION_CALL:
            if not self.link(position):
                return False
            self.writes = True
            self.push(Unit(perf_counter(), self.service.stats.bypass_latency, simple=True))
            self._to_origin.append(data[position:frame_end])
        else:
            self._refuse(errors.protocol_violation(f"invalid frontend message type {kind}"))
        return True

    def _query(self, data: bytes, position: int, frame_end: int) -> bool:
        """A simple Query."""
        service = self.service
        text = data[position + 5 : frame_end - 1]
        statement = service.classifier(text)
        started = perf_counter()
        capture = None
        if statement.deallocates is not None and self._deallocate(statement.deallocates):
            return True
        if self.origin is None and service.cache is not None and statement.cacheable:
            key = extended.simple_key(self, text)
            if key is not None:
                entry = service.cache.get(self.namespace, key, started)
                if entry is not None and entry.row_description is not None:
                    self.answer(entry.row_description + entry.rows + entry.tag + READY_IDLE)
                    service.stats.hit_latency.observe(perf_counter() - started)
                    return True
                capture = Capture(self.namespace, key, service.cache.epoch(self.namespace))
        if self.origin is None and not self.link(position):
            return False
        assert self.origin is not None
        self.origin.unnamed = None  # a simple Query destroys the unnamed statement
        unit = Unit(started, service.stats.bypass_latency, simple=True)
        self.push(unit)
        if capture is not None:
            self.capture(unit, capture)
        self.mind(statement, unit)
        self._to_origin.append(data if frame_end == len(data) and not position else data[position:frame_end])
        return True

    def _deallocate(self, name: bytes) -> bool:
        """DEALLOCATE of statements made by Parse: outside a transaction there is nothing to ask an origin."""
        if self.origin is not None or (name and name not in self.statements):
            return False
        if name:
            del self.statements[name]
        else:
            self.statements.clear()
        self.answer(command_complete(b"DEALLOCATE" if name else b"DEALLOCATE ALL") + READY_IDLE)
        return True

    # ---- what a statement means for the session ----------------------------------------------------------------------

    def mind(self, statement: Statement, unit: Unit) -> None:
        """Note what `statement`, now on its way, may do to the session and to the cache."""
        if not statement.reads_only and self.service.cache is not None:
            self.writes = True
        if statement.effect is not Effect.NONE:
            if statement.effect is Effect.FOLLOW:
                unit.changes = [*(unit.changes or ()), *statement.settings]
            elif statement.discard_all:
                unit.discards_all = True
            else:
                self.pin(statement.pin_reason)
        if statement.changes_schema:
            self.schema_changes = True
        if (
            self.writes
            or self.schema_changes
            or statement.deallocates is not None
            or unit.changes
            or self.transaction_changes
        ) and unit.capture is None:
            unit.notable |= WATCHFUL

    def pin(self, reason: str) -> None:
        if not self.pinned:
            self.pinned = reason
            stats = self.service.stats
            stats.pins[reason] = stats.pins.get(reason, 0) + 1
            log.info(
                "client_pinned",
                user=self.user,
                database=self.database,
                reason=reason,
                client=self.transport.peer,
            )

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
        return self.pool, self.settings, self.pool.schema_epoch

    def send_later(self, data: bytes) -> None:
        """Bytes for the linked origin, sent when the walk is over."""
        self._to_origin.append(data)

    def answer(self, data: bytes) -> None:
        """Bytes for the client that no origin was asked for."""
        self._out.append(data)
        self._out_bytes += len(data)

    # ---- the link ----------------------------------------------------------------------------------------------------

    def link(self, position: int) -> bool:
        """Have an origin connection, settings included. False: in the queue now; handle the message again when granted.

        `position` is where the message begins in the data that is being walked; if the connection turns out
        to be dead before anything was sent, the walk starts there again on another one.
        """
        if self.origin is not None:
            return True
        origin = self.pool.acquire(self)
        if origin is None:
            self.waiting = True
            return False
        self._attach(origin)
        self._walk_from = position
        return True

    def _attach(self, origin: Origin) -> None:
        self.origin = origin
        origin.session = self
        if origin.settings is not self.settings:
            self._to_origin.append(origin.settings.difference_to(self.settings))
            origin.units.append(Unit.own())
            origin.unnamed = None
            origin.settings = self.settings
            self.service.stats.settings_replayed += 1

    def push(self, unit: Unit) -> None:
        assert self.origin is not None
        self.origin.units.append(unit)

    def granted(self, origin: Origin) -> None:
        """The pool's answer to `link`: go on where the walk stopped."""
        self.waiting = False
        self._attach(origin)
        self._walk_from = 0
        self._resume_walk()
        if self.origin is origin and not origin.units and not self.closed:
            self.settled()

    def refused(self, error: PgError) -> None:
        """The pool's other answer: the message that needed a connection fails, the session goes on."""
        self.waiting = False
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

    def _resume_walk(self) -> None:
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
            self._send_failed(origin, data, str(error))
            return
        parts.clear()
        self._walk_from = -1
        if origin.transport.pending > self.pool.high_water:
            self.transport.pause()
        if origin.units and origin.units[0].steps:
            origin.flush_made_up()

    def _send_failed(self, origin: Origin, data: bytes, reason: str) -> None:
        """The connection was dead. If it never got a byte for this session, the walk is repeated on another one."""
        if self._walk_from < 0 or not data:
            origin.lost(f"while sending: {reason}")
            return
        origin.session = self.origin = None
        origin.draining = True
        origin.lost(f"before anything was sent: {reason}")
        self.service.stats.retries += 1
        self._chunks.clear()
        self._missing = self._stream = 0
        self._inbox = data[self._walk_from :]
        self._resume_walk()

    def origin_drained(self) -> None:
        """The origin takes bytes again."""
        if not self.waiting and self.transport.pending <= self.pool.high_water:
            self.transport.resume()

    # ---- from the origin ---------------------------------------------------------------------------------------------

    def notice(self, unit: Unit, kind: int, frame: bytes) -> None:
        """A notable frame of `unit` passed."""
        if kind == COMMAND_COMPLETE:
            if self.writes:
                self._invalidate()
            if self.schema_changes:
                self._schema_changed()
            tag = frame[5:-1]
            if tag == b"ROLLBACK":
                self._tag_rollback = True
            elif tag == b"DEALLOCATE ALL" and self.origin is not None:
                self.statements.clear()
                self.origin.prepared.clear()
        elif kind == ERROR:
            self.service.stats.query_errors += 1
            unit.changes = None
            if _PLAN_OUTDATED in frame and self.origin is not None:
                self.origin.outdated = True
        elif kind == COPY_IN and not unit.simple and unit.synced:
            # The Sync that was sent along is ignored by an origin in COPY IN; the client sends another.
            unit.synced = False
        elif kind == COPY_BOTH:
            self.pin("replication")

    def completed(self, unit: Unit, status: int) -> None:
        """ReadyForQuery of `unit`, which is not yet passed on."""
        service = self.service
        if unit.latency is not None:
            unit.latency.observe(perf_counter() - unit.started)
        if unit.capture is not None and status == IDLE and service.cache is not None:
            extended.store(service.cache, unit.capture, perf_counter())
        if unit.changes or self.transaction_changes:
            self._settle_changes(unit, status)
        self._tag_rollback = False
        if unit.discards_all and not unit.failed:
            self._discarded_all()
        if status == IDLE:
            if self.writes:
                self._invalidate()
                self.writes = False
            if self.schema_changes:
                self._schema_changed()
                self.schema_changes = False

    def _schema_changed(self) -> None:
        """Names may mean something else now: statements are parsed and the catalog is read anew."""
        self.pool.schema_epoch += 1
        if self.service.cache is not None:
            self.service.catalog_changed(self.pool)

    def _invalidate(self) -> None:
        if self.service.cache is not None:
            self.service.cache.invalidate(self.namespace)

    def _settle_changes(self, unit: Unit, status: int) -> None:
        """SETs hold when their transaction commits; inside one they wait."""
        changes, unit.changes = unit.changes or [], None
        if self._tag_rollback:
            if status == IDLE:
                self.transaction_changes.clear()
            elif self.transaction_changes:
                # ROLLBACK TO: which of them it undid is not known, so the connection stays with its client.
                self.pin("SET undone by ROLLBACK TO SAVEPOINT")
        self.transaction_changes.extend(changes)
        if status == IDLE:
            for change in self.transaction_changes:
                self._apply(change)
            self.transaction_changes.clear()

    def _apply(self, change: SettingChange) -> None:
        origin = self.origin
        assert origin is not None
        if change.all:
            # Role and session user are no part of RESET ALL.
            kept = {name: value for name, value in self.settings.items if name in ("role", "session_authorization")}
            origin.settings = Settings.of(kept)
            self.settings = Settings.of({**dict(self.startup.items), **kept})
            return
        origin.settings = origin.settings.with_change(change.name, change.apply_sql)
        wanted = change.apply_sql
        self.settings = self.settings.with_change(
            change.name, self.startup.get(change.name) if wanted is None else wanted
        )

    def _discarded_all(self) -> None:
        origin = self.origin
        assert origin is not None
        origin.settings = DEFAULTS
        origin.prepared.clear()
        origin.unnamed = None
        self.settings = self.startup
        self.statements.clear()
        self.pinned = ""

    def deliver(self, data: bytes) -> None:
        """Bytes from the origin, in order, for the client."""
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
        if origin is None or origin.units or origin.status != IDLE or self._to_origin:
            if self.leaving and origin is not None and not origin.units:
                self._finish_leaving()
            return
        if self.leaving:
            self._finish_leaving()
        elif not self.pinned and not self._stream:
            self.origin = None
            origin.transport.resume()
            if origin.outdated:
                self.pool.abandon(origin, dirty=True)
            else:
                self.pool.release(origin)

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
        self.answer(error.fatal().response())
        self._flush_client()
        if not self.closed:
            self.end(abrupt=True, linger=True)

    def origin_lost_because(self, origin: Origin, reason: str) -> None:
        """The linked connection broke."""
        if origin.fatal is not None:
            told = f"{origin.fatal.severity} {origin.fatal.sqlstate}: {origin.fatal.message}"
            reason = f"{reason}; it had said: {told}"
        self.origin_lost(errors.origin_lost(reason))

    def origin_lost(self, error: PgError) -> None:
        self.origin = None
        self._to_origin.clear()
        if self.writes:
            self._invalidate()  # whether the write took effect is not known
        self.fatal(error)

    def cancel_waiting(self) -> bool:
        """A cancel request came; if the session only waits for a connection, that is what it cancels."""
        if not self.waiting:
            return False
        self.pool.withdraw(self)
        self.waiting = False
        self._fail_message(errors.query_canceled())
        return True

    def shutdown(self) -> None:
        """The process ends."""
        self.fatal(errors.admin_shutdown())

    def has_key(self, secret: bytes) -> bool:
        """Whether `secret` is the one this client was given to cancel with."""
        return compare_digest(self.key[1], secret)

    @property
    def busy(self) -> bool:
        """Whether something is under way that a drain waits for."""
        return self.waiting or (self.origin is not None and not (self.pinned and not self.origin.units))

    def end(self, *, abrupt: bool, linger: bool = False) -> None:
        """The client left: by Terminate, or (abrupt) without a word; or we end it, having said why (linger)."""
        if self.closed:
            return
        origin = self.origin
        if not abrupt and origin is not None and origin.units:
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
        self.service.forget(self)
        self._chunks.clear()
        self._inbox = b""
        if origin is not None:
            self.origin = None
            if self.writes:
                self._invalidate()
            if origin.units and not origin.closed:
                self.service.cancel_abandoned(origin)
            elif not origin.closed:
                self.pool.abandon(origin, dirty=bool(self.pinned or self.transaction_changes))
        self.statements.clear()

    def _finish_leaving(self) -> None:
        self.end(abrupt=True)

    def crashed(self, error: Exception) -> None:
        self.fatal(errors.internal_error())

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self.waiting else "linked" if self.origin else "unlinked"
        return f"<Session {self.user}@{self.database} {state}{' pinned' if self.pinned else ''}>"


def in_transaction(session: Session) -> bool:
    """Whether the session is inside a transaction block, failed or not."""
    return session.origin is not None and session.origin.status >= IN_TRANSACTION
