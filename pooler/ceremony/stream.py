"""One logical replication stream per origin database: which tables every commit changes, whoever made it.

A task opens the connection, looks whether the origin has what it takes (`ceremony.publication`), makes a temporary slot
and starts the stream; then the reactor reads it (`Stream.readable`), so that an invalidation does not wait for trio's
turn, and the task only confirms, listens for silence and repeats. What the messages mean is in `protocol.pgoutput`,
what is invalidated is the caller's.

Nothing that happened while there was no stream is told afterwards: the slot is temporary, so that the origin keeps no
WAL for a pgnear that is gone. So everything is invalidated when a stream begins, and when it is lost.

A commit is in the WAL, and may be here, before other sessions of the origin can see it. A read in between would store
what the commit has just made old. So every invalidation is repeated after `ECHO_SECONDS`, and where commits wait for
synchronous standbys, which makes that gap long, several times more (`SYNCHRONOUS_ECHO_SECONDS`).

Source: PostgreSQL documentation, "Streaming Replication Protocol" and "Logical Streaming Replication Protocol".
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from random import uniform

import trio

from config import Target
from pooler.ceremony import publication as publications
from pooler.ceremony.connect import Connected, ask, open_transport
from pooler.ceremony.origins import connect
from pooler.ceremony.publication import Ask, Missing
from pooler.logs import get_logger
from pooler.reactor import Reactor
from pooler.transport import Transport, TransportClosed
from protocol import startup
from protocol.framing import query
from protocol.pgoutput import XLOG_DATA_BYTES, Committed, CopyFrames, Transactions, position_of, status_update
from protocol.responses import FrameError, MalformedMessage, PgError

log = get_logger(__name__)

STATUS_SECONDS = 3.0
"""Between two status updates. Each asks for a reply: an idle stream proves itself as often."""

SILENCE_SECONDS = 30.0
"""A stream that said nothing for so long, though asked, is lost."""

SLOT_SECONDS = 300.0
"""How long a slot may take: it waits for every transaction that writes at that moment to end."""

ECHO_SECONDS = (0.05,)
SYNCHRONOUS_ECHO_SECONDS = (0.05, 0.5, 2.0, 10.0)
"""When an invalidation is repeated."""

MAX_TABLES = 1000
"""A transaction that changes more invalidates the whole database."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 10.0
RECHECK_SECONDS = 60.0
"""How often an origin that lacks something is asked again."""

CHECK_SECONDS = 10.0
"""How often the publication is looked at while a stream reads it."""

STREAMING_VERSION = 140_000
"""The first version with proto_version 2: large transactions come while they run, not all at their commit."""

_PARAMETERS = publications.PARAMETERS | {"replication": "database", "application_name": "pgnear stream"}


OnInvalidate = Callable[[frozenset[int] | None], None]
"""These tables (OIDs) have changed; None: anything may have. Called again for the same commit."""


class Unavailable(Exception):
    """The origin has not what a stream needs. `lacks` says what, and what would help."""

    def __init__(self, *lacks: Missing) -> None:
        super().__init__("; ".join(each.reason for each in lacks))
        self.lacks = lacks


class Stream:
    """The stream of one database.

    Args:
      on_uncovered: these tables' changes are not told, those of all others are.
      on_invalidate, on_change (the same, once for each commit), on_schema (what is known of the origin's catalog may be
        old), on_lost (nothing is told any more; the reason), on_recovered (every commit is told of from now on): none
        of them may await, block or raise.
      name: the pool's, for the log.
      publication: its name. create: whether to make it where there is none, and to warn where there is no stream.
      ask_elsewhere: asks the same database on another connection, to see from time to time that the publication is
        still what it was: an origin from version 18 on goes on without a word when it is dropped.
      connect_timeout: seconds for the login, and for each question before the stream begins.
      status_seconds, silence_seconds: as the constants of those names.

    Attributes:
      connected: whether every commit is told of now.
      uncovered: OIDs of tables whose changes are not told.
      lag_seconds: from the last commit to its being sent, on the origin's clock.
      heard_at: when something last arrived, on the monotonic clock.
      messages, transactions, losses: totals. last_error: why there is or was no stream, or None.
    """

    def __init__(
        self,
        target: Target,
        reactor: Reactor,
        *,
        on_invalidate: OnInvalidate,
        on_change: OnInvalidate = lambda tables: None,
        on_schema: Callable[[], None] = lambda: None,
        on_uncovered: Callable[[frozenset[int]], None] = lambda tables: None,
        on_lost: Callable[[str], None] = lambda reason: None,
        on_recovered: Callable[[], None] = lambda: None,
        name: str = "",
        publication: str = "pgnear",
        create: bool = False,
        ask_elsewhere: Ask | None = None,
        connect_timeout: float = 10.0,
        status_seconds: float = STATUS_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.name = name or target.database
        self.connected = False
        self.uncovered: frozenset[int] = frozenset()
        self.lag_seconds = 0.0
        self.heard_at = 0.0
        self.messages = 0
        self.transactions = 0
        self.losses = 0
        self.last_error: str | None = None
        self._target = target
        self._reactor = reactor
        self._on_invalidate = on_invalidate
        self._on_change = on_change
        self._on_schema = on_schema
        self._on_uncovered = on_uncovered
        self._on_lost = on_lost
        self._on_recovered = on_recovered
        self._publication = publication
        self._create = create
        self._ask_elsewhere = ask_elsewhere
        self._check_wanted = trio.Event()
        self._connect_timeout = connect_timeout
        self._status_seconds = status_seconds
        self._silence_seconds = silence_seconds
        self._echoes: list[_Echo] = []
        self._transport: Transport | None = None
        self._frames = CopyFrames()
        self._changes = Transactions(MAX_TABLES)
        self._lsn = 0
        self._ended = trio.Event()
        self._end_reason = ""

    def retarget(self, target: Target) -> None:
        """The next stream leads to `target`."""
        self._target = target

    # ---- the task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a stream for as long as the process lives."""
        retry = FIRST_RETRY_SECONDS
        while True:
            began = time.monotonic()
            wait = None
            try:
                await self._keep_one()
            except Unavailable as unavailable:
                self._say(str(unavailable), "; ".join(each.remedy for each in unavailable.lacks))
                wait = RECHECK_SECONDS
            except (PgError, TransportClosed) as error:
                self._say(str(error), None)
            if time.monotonic() - began > LAST_RETRY_SECONDS:
                retry = FIRST_RETRY_SECONDS
            await trio.sleep(wait or retry * uniform(0.5, 1.0))
            retry = min(retry * 2, LAST_RETRY_SECONDS)

    def _say(self, reason: str, remedy: str | None) -> None:
        """Once for each reason why there is no stream."""
        if reason != self.last_error:
            self.last_error = reason
            write = log.warning if self._create else log.info
            write("cache_stream_unavailable", pool=self.name, reason=reason, remedy=remedy)

    async def _keep_one(self) -> None:
        """One stream, from its beginning to its loss, which is not raised.

        Raises:
          Unavailable, PgError, TransportClosed: it did not come to one.
        """
        connected = await self._connect()
        transport = connected.transport
        try:
            await self._begin(connected)
            log.info("cache_stream_connected", pool=self.name, uncovered_tables=len(self.uncovered))
            async with trio.open_nursery() as nursery:
                for echo in self._echoes:
                    nursery.start_soon(echo.run, self._on_invalidate, self._on_schema)
                if self._ask_elsewhere is not None:
                    nursery.start_soon(self._keep_checking, self._ask_elsewhere)
                self._on_recovered()
                self._commit(Committed(None, True, 0, 0))
                await self._watch(transport)
                nursery.cancel_scope.cancel()
        finally:
            self._transport = None
            transport.close()
        self.losses += 1
        self.last_error = self._end_reason
        log.warning("cache_stream_lost", pool=self.name, reason=self._end_reason)

    async def _connect(self) -> Connected:
        self._reactor.ceremonies += 1
        try:
            return await connect(self._target, self._reactor, _PARAMETERS, timeout=self._connect_timeout)
        except trio.TooSlowError:
            raise TransportClosed(f"no answer within {self._connect_timeout:g} s (origin_connect_timeout)") from None
        except PgError as error:
            if error.sqlstate == "42501":
                raise Unavailable(publications.cannot_replicate(self._target.user)) from None
            raise
        finally:
            self._reactor.ceremonies -= 1

    async def _begin(self, connected: Connected) -> None:
        """From a fresh connection to a stream that the reactor reads."""
        transport = connected.transport

        async def asked(text: str) -> list[tuple[int, bytes]]:
            try:
                with trio.fail_after(self._connect_timeout):
                    return await ask(transport, text)
            except trio.TooSlowError:
                raise TransportClosed(f"no answer within {self._connect_timeout:g} s") from None

        standing = await publications.look(asked, self._publication)
        if standing.publication is None and self._create and standing.logical:
            if lacks := await publications.create(asked, self._publication):
                raise Unavailable(*lacks)
            standing = await publications.look(asked, self._publication)
        if lacks := publications.missing(standing, self._publication):
            raise Unavailable(*lacks)
        self._echoes = [_Echo(each) for each in (SYNCHRONOUS_ECHO_SECONDS if standing.synchronous else ECHO_SECONDS)]
        slot = f"pgnear_{secrets.token_hex(6)}"
        await self._make_slot(connected, slot)
        self.uncovered = await publications.uncovered(asked, self._publication)
        self._on_uncovered(self.uncovered)
        await self._start(transport, slot, standing.version)

    async def _make_slot(self, connected: Connected, slot: str) -> None:
        """The slot waits for transactions that are under way, and does not see that we have gone: it is cancelled."""
        statement = f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        made = False
        try:
            with trio.move_on_after(SLOT_SECONDS):
                await ask(connected.transport, statement)
                made = True
            if not made:
                raise TransportClosed(f"a transaction has been writing for {SLOT_SECONDS:g} s, and a slot waits for it")
        except PgError as error:
            made = True  # nothing waits
            if error.sqlstate in ("55000", "53400", "0A000"):
                raise Unavailable(Missing(error.message, error.hint or "see the origin's log")) from None
            raise
        finally:
            if not made:
                with trio.move_on_after(2.0, shield=True):
                    await _cancel(connected.target, self._reactor, connected)

    async def _start(self, transport: Transport, slot: str, version: int) -> None:
        name = publications.identifier(self._publication).replace("'", "''")
        options = "proto_version '2', streaming 'on', messages 'true', binary 'true'"
        if version < STREAMING_VERSION:
            options = "proto_version '1'"
        self._frames, self._changes, self._lsn = CopyFrames(), Transactions(MAX_TABLES), 0
        self._ended, self._end_reason = trio.Event(), ""
        await transport.send_all(
            query(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options}, publication_names '{name}')")
        )
        with trio.move_on_after(self._connect_timeout):
            while not self.connected:
                data = await transport.receive_some()
                if not data:
                    raise TransportClosed("the origin closed the connection")
                self._take(data)
                if self._ended.is_set():
                    raise TransportClosed(self._end_reason)
        if not self.connected:
            raise TransportClosed(f"no answer within {self._connect_timeout:g} s")
        self._transport = transport
        self.last_error = None
        transport.register(self)

    async def _watch(self, transport: Transport) -> None:
        """Confirm from time to time what has arrived, until the stream has ended or says nothing any more."""
        self.heard_at = time.monotonic()
        try:
            while not self._ended.is_set():
                self._confirm(reply_requested=True)
                with trio.move_on_after(self._status_seconds):
                    await self._ended.wait()
                silent = time.monotonic() - self.heard_at
                if silent > self._silence_seconds:
                    self._end(f"the origin has said nothing for {silent:.0f} s")
        finally:
            self._end("pgnear stops")

    async def _keep_checking(self, ask_elsewhere: Ask) -> None:
        """Whether what is published is what it was when the stream began."""
        while True:
            with trio.move_on_after(CHECK_SECONDS):
                await self._check_wanted.wait()
            self._check_wanted = trio.Event()
            try:
                standing = await publications.look(ask_elsewhere, self._publication)
                if lacks := publications.missing(standing, self._publication):
                    self._end("; ".join(each.reason for each in lacks))
                    return
                uncovered = await publications.uncovered(ask_elsewhere, self._publication)
            except PgError:  # no connection was free, say; the stream itself is well
                continue
            more, self.uncovered = uncovered - self.uncovered, uncovered
            self._on_uncovered(uncovered)
            if more:
                self._on_invalidate(more)

    # ---- what the reactor calls --------------------------------------------------------------------------------------

    def readable(self) -> None:
        assert self._transport is not None
        try:
            data = self._transport.receive()
        except TransportClosed as error:
            self._end(str(error))
            return
        if data is None:
            return
        if not data:
            self._end("the origin closed the connection")
            return
        self.heard_at = time.monotonic()
        self._take(data)

    def writable(self) -> None:
        assert self._transport is not None
        try:
            self._transport.flush()
        except TransportClosed as error:
            self._end(str(error))

    def crashed(self, error: Exception) -> None:
        self._end(f"internal error: {error}")

    # ---- what arrives ------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        try:
            for kind, body in self._frames.feed(data):
                if kind == ord("d"):
                    self._copied(body)
                elif kind == ord("W"):
                    self.connected = True
                elif kind == ord("E"):
                    self._end(str(PgError.from_payload(body)))
                elif kind in b"cCZ":
                    self._end("the origin has ended the stream")
        except (FrameError, MalformedMessage) as error:
            self._end(str(error))

    def _copied(self, body: bytes) -> None:
        position = position_of(body)
        if position.lsn > self._lsn:
            self._lsn = position.lsn
        if body[0] != 119:  # w, XLogData
            if position.reply_requested:
                self._confirm(reply_requested=False)
            return
        self.messages += 1
        committed = self._changes.read(body, XLOG_DATA_BYTES)
        if committed is not None:
            self.transactions += 1
            if committed.commit_time:
                self.lag_seconds = max(0.0, (position.server_time - committed.commit_time) / 1e6)
            if committed.tables is None or committed.tables:
                self._on_change(committed.tables)
            self._commit(committed)

    def _commit(self, committed: Committed) -> None:
        if committed.definitions_changed:
            self._on_schema()
            self._check_wanted.set()
        if committed.tables is None or committed.tables:
            self._on_invalidate(committed.tables)
            for echo in self._echoes:
                echo.add(committed)

    def _confirm(self, *, reply_requested: bool) -> None:
        """Nothing is kept from one stream to the next, so all that has arrived may be forgotten by the origin."""
        if self._transport is None:
            return
        try:
            self._transport.send(status_update(self._lsn, time.time(), reply_requested=reply_requested))
        except TransportClosed as error:
            self._end(str(error))

    def _end(self, reason: str) -> None:
        """The stream is over; told once."""
        if self._ended.is_set():
            return
        self._end_reason = reason
        self._ended.set()
        if self._transport is not None:
            self._transport.unregister()
        if self.connected:
            self.connected = False
            self._on_lost(reason)
            self._on_invalidate(None)


class _Echo:
    """Invalidations to be made again `seconds` to twice as many seconds later."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._wanted = trio.Event()
        self._tables: set[int] | None = set()
        self._definitions_changed = False

    def add(self, committed: Committed) -> None:
        if committed.tables is None:
            self._tables = None
        elif self._tables is not None:
            self._tables |= committed.tables
            if len(self._tables) > MAX_TABLES:
                self._tables = None
        self._definitions_changed |= committed.definitions_changed
        self._wanted.set()

    async def run(self, invalidate: OnInvalidate, schema_changed: Callable[[], None]) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            tables, changed = self._tables, self._definitions_changed
            self._wanted, self._tables, self._definitions_changed = trio.Event(), set(), False
            await trio.sleep(self._seconds)
            if changed:
                schema_changed()
            invalidate(None if tables is None else frozenset(tables))


async def _cancel(target: Target, reactor: Reactor, connected: Connected) -> None:
    """Ask the origin to cancel what `connected` waits for; that it cannot be asked changes nothing."""
    try:
        transport = await open_transport(target, reactor)
        try:
            await transport.send_all(startup.cancel_request(connected.pid, connected.secret))
            while await transport.receive_some():
                pass
        finally:
            transport.close()
    except (PgError, TransportClosed):
        pass
