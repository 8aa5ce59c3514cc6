"""What the two ends of a socket pair say to each other: requests, each with one answer.

Lives here: framing, which answer belongs to which request, what becomes of requests when the other end is gone. Not
here: what is asked (`parent`, `peers`). A message is its length, as four bytes, and JSON.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from struct import Struct
from typing import Any

import trio

from pooler.logs import get_logger
from protocol.responses import PgError

log = get_logger(__name__)

Handle = Callable[[str, Any], Awaitable[Any]]
"""Answers a request: what is asked, and its data. A PgError that it raises is raised at the other end."""

_ERROR_FIELDS = ("sqlstate", "message", "severity", "detail", "hint", "routine")
_length = Struct("!I")
_READ_BYTES = 65536


class LineLost(Exception):
    """The other end is gone: there will be no answer."""


class Line:
    """One end. `run` must be running for anything to be said or heard."""

    def __init__(self, sock: socket.socket, handle: Handle) -> None:
        sock.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._handle = handle
        self._numbers = count(1)
        self._asked: dict[int, _Question] = {}
        self._outbox, self._posted = trio.open_memory_channel[bytes](math.inf)
        self._tells, self._told = trio.open_memory_channel[dict[str, Any]](math.inf)
        self.lost = trio.Event()

    async def run(self) -> None:
        """Talk until the other end is gone; then `lost` is set, and everybody who waits for an answer hears so."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all)
                nursery.start_soon(self._hear_all)
                async for message in self._messages():
                    if "ask" not in message:
                        self._settle(message)
                    elif message["id"]:
                        nursery.start_soon(self._answer, message)
                    else:
                        self._tells.send_nowait(message)
                nursery.cancel_scope.cancel()
        finally:
            self.lost.set()
            for question in self._asked.values():
                question.done.set()
            with trio.CancelScope(shield=True) as scope:
                scope.cancel()
                await self._stream.aclose()

    async def ask(self, what: str, data: Any = None) -> Any:
        """What the other end answers.

        Raises:
          LineLost: nothing. PgError: what it was asked for has failed.
        """
        number, question = next(self._numbers), _Question()
        self._asked[number] = question
        try:
            self._post({"ask": what, "id": number, "data": data})
            if not self.lost.is_set():
                await question.done.wait()
        finally:
            del self._asked[number]
        if question.message is None:
            raise LineLost
        if (error := question.message.get("error")) is not None:
            raise PgError(**error)
        return question.message["answer"]

    def tell(self, what: str, data: Any = None) -> None:
        """Say something whose answer does not matter; what is told is heard in order. Safe where nothing may wait."""
        self._post({"ask": what, "id": 0, "data": data})

    def _post(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._outbox.send_nowait(_length.pack(len(body)) + body)

    async def _send_all(self) -> None:
        try:
            async for data in self._posted:
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # whoever reads learns of it, too

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        buffer = bytearray()
        while True:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            buffer += data
            while len(buffer) >= _length.size and len(buffer) >= (end := _length.size + _length.unpack_from(buffer)[0]):
                body = bytes(buffer[_length.size : end])
                del buffer[:end]
                yield json.loads(body)

    def _settle(self, message: dict[str, Any]) -> None:
        question = self._asked.get(message["id"])
        if question is not None:
            question.message = message
            question.done.set()

    async def _hear_all(self) -> None:
        """What the other end tells, one after the other."""
        async for message in self._told:
            await self._answer(message)

    async def _answer(self, message: dict[str, Any]) -> None:
        what, number = message["ask"], message["id"]
        try:
            answer = await self._handle(what, message["data"])
            if number:
                self._post({"answer": answer, "id": number})
        except PgError as error:
            if number:
                self._post({"error": {name: getattr(error, name) for name in _ERROR_FIELDS}, "id": number})
        except Exception as error:  # a bug costs one answer, not the worker
            log.exception("internal_error", where=f"line: {what}", error=str(error))
            if number:
                self._post({"answer": None, "id": number})


class _Question:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.message: dict[str, Any] | None = None
