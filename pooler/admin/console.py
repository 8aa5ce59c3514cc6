"""The console: clients of the database `pgnear` talk to pgnear itself, in PostgreSQL's protocol.

Lives here: who may, the greeting, and the simple and the extended protocol as far as clients need them for commands
without parameters. Not here: the commands (`commands`, `explain`), and login (`ceremony.login`).

Each conversation is a task: this is ceremony, not traffic. It needs no origin connection, so it works when the pools
are exhausted and the origin is down. Source: PostgreSQL documentation, "Message Flow" and "Message Formats".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from struct import Struct
from typing import TYPE_CHECKING

import trio

from pooler import __version__
from pooler.admin.commands import Answer, Asker, Command, read_command
from pooler.admin.rows import FLOAT, INTEGER, Column, Row, Value
from pooler.ceremony.greeting import first_words, new_key
from pooler.logs import get_logger
from pooler.settings import Reports
from pooler.transport import Transport, TransportClosed
from protocol import errors
from protocol.framing import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    PARSE_COMPLETE,
    READY_IDLE,
    FrameReader,
    command_complete,
    frame,
)
from protocol.responses import PgError, notice_response
from protocol.startup import StartupMessage

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

MESSAGE_LIMIT = 1 << 20
"""The largest message that the console takes, in bytes."""

SERVER_VERSION = f"18.0 (pgnear {__version__})"
"""Clients decide by the number what a server can do."""

_FLUSH_BYTES = 65536
_NO_DATA, _EMPTY, _SUSPENDED = frame(b"n", b""), frame(b"I", b""), frame(b"s", b"")
_NO_PARAMETERS = frame(b"t", b"\0\0")
_FIELD = Struct("!ihihih").pack
_SIZES = {INTEGER: 8, FLOAT: 8}
_INT64, _DOUBLE = Struct("!q").pack, Struct("!d").pack


class Console:
    """Everybody who talks to this pgnear.

    Attributes:
      conversations: those that are under way; each counts as a client.
    """

    def __init__(self, service: Service) -> None:
        self.conversations: set[Conversation] = set()
        self._service = service

    def check(self, user: str) -> None:
        """Let pass who may use the console.

        Raises:
          PgError: 42501.
        """
        if user not in self._service.config.administrators():
            raise errors.console_not_allowed(user)

    def welcome(self, transport: Transport, request: StartupMessage, received: bytes) -> None:
        """Begin a conversation with a client that has logged in; `received` came behind its login already."""
        conversation = Conversation(self._service, transport, request)
        self.conversations.add(conversation)
        self._service.count_clients()
        self._service.nursery.start_soon(self._talk, conversation, received)

    async def _talk(self, conversation: Conversation, received: bytes) -> None:
        try:
            await conversation.run(received)
        finally:
            self.conversations.discard(conversation)
            self._service.count_clients()
            if not conversation.lingers:
                conversation.transport.close()

    def cancel(self, pid: int, secret: bytes) -> bool:
        """Whether a cancel request with this key was for one of them: what it waits for is given up."""
        for conversation in self.conversations:
            if conversation.key[0] == pid and compare_digest(conversation.key[1], secret):
                conversation.waiting.cancel()
                return True
        return False

    def shutdown(self) -> None:
        """The process ends."""
        for conversation in self.conversations:
            conversation.scope.cancel()


@dataclass(slots=True)
class _Portal:
    """A command that was bound; `rows` are those not sent yet, None until it was run."""

    command: Command | None
    formats: tuple[int, ...]
    rows: list[Row] | None = None
    tag: str = ""


class Conversation:
    """One client of the console."""

    def __init__(self, service: Service, transport: Transport, request: StartupMessage) -> None:
        parameters = request.parameters
        self.transport = transport
        self.asker = Asker(parameters["user"], parameters.get("application_name", ""))
        self.scope = trio.CancelScope()
        self.key = new_key(request.minor)
        self.waiting = trio.CancelScope()  # of the command that is being carried out
        self.lingers = False  # it was told why it ends, and is given time to read that
        self._service = service
        self._request = request
        self._statements: dict[str, Command | None] = {}
        self._portals: dict[str, _Portal] = {}
        self._skipping = False  # a message of an extended batch failed: the others up to its Sync are not looked at

    async def run(self, received: bytes) -> None:
        """Answer until the client leaves or the process ends."""
        transport = self.transport
        log.info("console_connected", client=transport.peer, user=self.asker.user)
        try:
            with self.scope:
                await transport.send_all(first_words(self._request, self._reports(), self.key))
                await self._answer_all(received)
            if self.scope.cancelled_caught:
                raise errors.admin_shutdown()
        except PgError as error:
            await self._say_goodbye(error)
        except TransportClosed:
            pass
        except Exception as error:  # a bug here costs one conversation
            log.exception("internal_error", where="console", error=str(error))
            await self._say_goodbye(errors.internal_error())
        log.info("console_disconnected", client=transport.peer, user=self.asker.user)

    async def _say_goodbye(self, error: PgError) -> None:
        try:
            with trio.move_on_after(1):
                await self.transport.send_all(error.fatal().response())
            self.transport.linger()
            self.lingers = True
        except TransportClosed:
            pass

    def _reports(self) -> Reports:
        values = {
            "server_version": SERVER_VERSION,
            "server_encoding": "UTF8",
            "client_encoding": "UTF8",
            "application_name": self.asker.application_name,
            "session_authorization": self.asker.user,
            "is_superuser": "off",
            "integer_datetimes": "on",
            "standard_conforming_strings": "on",
            "DateStyle": "ISO, MDY",
            "IntervalStyle": "postgres",
            "TimeZone": "UTC",
        }
        return Reports.of(values)

    async def _answer_all(self, received: bytes) -> None:
        reader = FrameReader(MESSAGE_LIMIT)
        reader.feed(received)
        while True:
            out = bytearray()
            while (message := reader.next()) is not None:
                kind, body = message
                if kind == ord("X"):
                    return
                out += await self._answer(kind, body)
                if len(out) > _FLUSH_BYTES:
                    await self.transport.send_all(bytes(out))
                    out.clear()
            if out:
                await self.transport.send_all(bytes(out))
            data = await self.transport.receive_some()
            if not data:
                return
            reader.feed(data)

    async def _answer(self, kind: int, body: bytes) -> bytes:
        """What one message is answered with.

        Raises:
          PgError: the client broke the protocol; the conversation is over.
        """
        if kind == ord("Q"):
            self._statements.pop("", None)
            return await self._query(_Fields(body).text()) + READY_IDLE
        if kind == ord("S"):
            self._skipping = False
            self._portals.clear()
            return READY_IDLE
        if kind == ord("H") or self._skipping:
            return b""
        handle = {
            ord("P"): self._parse, ord("B"): self._bind, ord("D"): self._describe, ord("C"): self._close,
        }.get(kind)  # fmt: skip
        if handle is None and kind != ord("E"):
            raise errors.protocol_violation(f"the console does not take messages of type {chr(kind)!r}")
        try:
            return handle(_Fields(body)) if handle is not None else await self._execute(_Fields(body))
        except PgError as error:
            if error.sqlstate == "08P01":
                raise
            self._skipping = True
            return error.response()

    async def _query(self, text: str) -> bytes:
        try:
            command = self._read(text)
            if command is None:
                return _EMPTY
            answer = await self._carry_out(command)
        except PgError as error:
            return error.response()
        described = _row_description(command.columns, ()) if command.columns else b""
        shown = described + _data_rows(command.columns, answer.rows, ())
        return _warning(answer) + shown + command_complete(answer.tag.encode())

    async def _carry_out(self, command: Command) -> Answer:
        """What `command` answers. A PAUSE that is cancelled has been begun, and stays."""
        with trio.CancelScope() as self.waiting:
            return await command.run()
        raise errors.query_canceled()

    def _read(self, text: str) -> Command | None:
        return read_command(self._service, self.asker, text)

    # ---- the extended protocol ---------------------------------------------------------------------------------------

    def _parse(self, fields: _Fields) -> bytes:
        name, text = fields.text(), fields.text()
        if name and name in self._statements:
            raise errors.duplicate_prepared_statement(name)
        self._bound(self._statements)
        self._statements[name] = self._read(text)
        return PARSE_COMPLETE

    def _bound(self, held: dict[str, Command | None] | dict[str, _Portal]) -> None:
        limit = self._service.config.max_client_statements
        if len(held) >= limit:
            raise errors.too_many_statements(limit)

    def _statement(self, name: str) -> Command | None:
        if name not in self._statements:
            raise errors.undefined_prepared_statement(name)
        return self._statements[name]

    def _portal(self, name: str) -> _Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise errors.undefined_portal(name)
        return portal

    def _bind(self, fields: _Fields) -> bytes:
        portal, command = fields.text(), self._statement(fields.text())
        fields.numbers()  # formats of parameters
        if fields.number():
            raise errors.protocol_violation("the console takes no parameters")
        self._bound(self._portals)
        self._portals[portal] = _Portal(command, fields.numbers())
        return BIND_COMPLETE

    def _describe(self, fields: _Fields) -> bytes:
        what, name = fields.byte(), fields.text()
        formats: tuple[int, ...]
        if what == b"S":
            command, formats, before = self._statement(name), (), _NO_PARAMETERS
        else:
            portal = self._portal(name)
            command, formats, before = portal.command, portal.formats, b""
        if command is None or not command.columns:
            return before + _NO_DATA
        return before + _row_description(command.columns, formats)

    async def _execute(self, fields: _Fields) -> bytes:
        portal = self._portal(fields.text())
        limit = fields.long()
        command = portal.command
        if command is None:
            return _EMPTY
        warning = b""
        if portal.rows is None:
            answer = await self._carry_out(command)
            portal.rows, portal.tag, warning = answer.rows, answer.tag, _warning(answer)
        rows = portal.rows
        if 0 < limit < len(rows):
            sent, portal.rows = rows[:limit], rows[limit:]
            return warning + _data_rows(command.columns, sent, portal.formats) + _SUSPENDED
        portal.rows = []
        return warning + _data_rows(command.columns, rows, portal.formats) + command_complete(portal.tag.encode())

    def _close(self, fields: _Fields) -> bytes:
        held: dict[str, Command | None] | dict[str, _Portal]
        held = self._statements if fields.byte() == b"S" else self._portals
        held.pop(fields.text(), None)
        return CLOSE_COMPLETE


class _Fields:
    """Reads a message's fields in order.

    Raises:
      PgError: 08P01, it ends before its last field.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    def _take(self, size: int) -> bytes:
        taken = self._body[self._position : self._position + size]
        if len(taken) < size:
            raise errors.protocol_violation("a message ended before its last field")
        self._position += size
        return taken

    def byte(self) -> bytes:
        return self._take(1)

    def number(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def long(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def numbers(self) -> tuple[int, ...]:
        return tuple(self.number() for _ in range(self.number()))

    def text(self) -> str:
        end = self._body.find(b"\0", self._position)
        if end < 0:
            raise errors.protocol_violation("a message ended before its last field")
        found = self._body[self._position : end]
        self._position = end + 1
        return found.decode(errors="replace")


def _warning(answer: Answer) -> bytes:
    """What a client is told in front of rows that are not all."""
    if not answer.silent:
        return b""
    error = errors.workers_silent(answer.silent)
    return notice_response(error.sqlstate, error.message, severity="WARNING", detail="What it has is not shown.")


# ---- rows ------------------------------------------------------------------------------------------------------------


def _formats(formats: Sequence[int], count: int) -> list[int]:
    """A Bind's result formats for each column: none given is text, one is for all."""
    if len(formats) == count:
        return list(formats)
    return [formats[0] if formats else 0] * count


def _row_description(columns: Sequence[Column], formats: Sequence[int]) -> bytes:
    parts = [len(columns).to_bytes(2, "big")]
    for column, shape in zip(columns, _formats(formats, len(columns)), strict=True):
        parts += [column.name.encode(), b"\0", _FIELD(0, 0, column.type, _SIZES.get(column.type, -1), -1, shape)]
    return frame(b"T", b"".join(parts))


def _data_rows(columns: Sequence[Column], rows: Sequence[Row], formats: Sequence[int]) -> bytes:
    binary = [shape == 1 for shape in _formats(formats, len(columns))]
    count = len(columns).to_bytes(2, "big")
    out = []
    for row in rows:
        parts = [count]
        for column, value, raw in zip(columns, row, binary, strict=True):
            if value is None:
                parts.append(b"\xff\xff\xff\xff")
                continue
            field = _binary(column.type, value) if raw else _text(value)
            parts += [len(field).to_bytes(4, "big"), field]
        out.append(frame(b"D", b"".join(parts)))
    return b"".join(out)


def _text(value: Value) -> bytes:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).encode(errors="replace")


def _binary(kind: int, value: Value) -> bytes:
    if kind == INTEGER:
        return _INT64(int(value or 0))
    if kind == FLOAT:
        return _DOUBLE(float(value or 0.0))
    return _text(value)
