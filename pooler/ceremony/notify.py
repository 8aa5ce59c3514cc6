"""One connection per origin database that LISTENs for what is to be purged (`cache.notify_channel`).

Lives here: keeping that connection. Not here: what a payload means (`admin.purge`). While there is none, what is told
is not heard: whoever asked for this is told so (`on_lost`, `on_recovered`).

Source: PostgreSQL documentation, "LISTEN", "NOTIFY", and "Message Flow", section "Asynchronous Operations".
"""

from __future__ import annotations

from collections.abc import Callable
from random import uniform

import trio

from config import Target
from pooler.ceremony.connect import ask
from pooler.ceremony.origins import connect
from pooler.ceremony.publication import PARAMETERS, identifier
from pooler.logs import get_logger
from pooler.reactor import Reactor
from pooler.transport import Transport, TransportClosed
from protocol.errors import malformed_message
from protocol.framing import FrameReader, query
from protocol.responses import FrameError, PgError

log = get_logger(__name__)

FRAME_LIMIT = 1 << 20
"""No message that a listener gets is larger, in bytes; a payload has 8,000 at most."""

PROBE_SECONDS = 10.0
"""After so long without a word the connection is asked whether it is still there."""

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 10.0

_PARAMETERS = {**PARAMETERS, "application_name": "pgnear notify"}


class Listener:
    """The listener of one database.

    Args:
      target: where the next connection leads.
      on_payload: raises PgError for one that is not to be understood. on_lost, on_recovered: nothing is heard any more,
        and everything is again. None of them may await.

    Attributes:
      connected: whether it listens. received, rejected, losses: totals.
    """

    def __init__(
        self,
        target: Callable[[], Target],
        reactor: Reactor,
        channel: str,
        *,
        on_payload: Callable[[str], None],
        on_lost: Callable[[], None],
        on_recovered: Callable[[], None],
        connect_timeout: float,
    ) -> None:
        self.name = target().database
        self.connected = False
        self.received = self.rejected = self.losses = 0
        self._target = target
        self._reactor = reactor
        self._channel = channel
        self._on_payload = on_payload
        self._on_lost = on_lost
        self._on_recovered = on_recovered
        self._connect_timeout = connect_timeout

    async def run(self) -> None:
        """Listen for as long as the process lives."""
        retry = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._listen()
            except (PgError, TransportClosed, FrameError, trio.TooSlowError) as error:
                reason = str(error) or "no answer in time"
            except Exception:
                if self.connected:
                    self.connected = False
                    self._on_lost()
                raise
            if self.connected:
                self.connected = False
                self.losses += 1
                self._on_lost()
                retry = FIRST_RETRY_SECONDS
                log.warning("cache_notify_lost", pool=self.name, channel=self._channel, reason=reason)
            else:
                log.warning("cache_notify_unavailable", pool=self.name, channel=self._channel, reason=reason)
            await trio.sleep(retry * uniform(0.5, 1.0))
            retry = min(retry * 2, LAST_RETRY_SECONDS)

    async def _listen(self) -> None:
        """From connecting to the loss, which is always raised."""
        self._reactor.ceremonies += 1
        try:
            connected = await connect(self._target(), self._reactor, _PARAMETERS, timeout=self._connect_timeout)
        finally:
            self._reactor.ceremonies -= 1
        transport = connected.transport
        try:
            with trio.fail_after(self._connect_timeout):
                await ask(transport, f"LISTEN {identifier(self._channel)}")
            self.connected = True
            self._on_recovered()
            log.info("cache_notify_listening", pool=self.name, channel=self._channel)
            await self._read(transport)
        finally:
            transport.close()

    async def _read(self, transport: Transport) -> None:
        reader = FrameReader(FRAME_LIMIT)
        asked = False
        while True:
            data = None
            with trio.move_on_after(self._connect_timeout if asked else PROBE_SECONDS):
                data = await transport.receive_some()
            if data is None:
                if asked:
                    raise TransportClosed("the origin does not answer")
                await transport.send_all(query("SELECT"))
                asked = True
                continue
            if not data:
                raise TransportClosed("the origin closed the connection")
            asked = False
            reader.feed(data)
            while (message := reader.next()) is not None:
                kind, body = message
                if kind == ord("A"):
                    self._take(body)
                elif kind == ord("E"):
                    raise PgError.from_payload(body)

    def _take(self, body: bytes) -> None:
        """A NotificationResponse: process id, channel, payload."""
        fields = body[4:].split(b"\0")
        if len(fields) != 3:
            raise malformed_message("NotificationResponse", "it is not a process, a channel and a payload")
        payload = fields[1].decode(errors="replace")
        self.received += 1
        try:
            self._on_payload(payload)
        except PgError as error:
            self.rejected += 1
            log.warning("cache_notify_rejected", pool=self.name, payload=payload[:100], reason=error.message)
        else:
            log.debug("cache_notify", pool=self.name, payload=payload[:100])
