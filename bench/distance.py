"""A TCP proxy that makes what is near far: it holds bytes back for as long as a network's round trip, and counts how
often somebody waited for one.

Lives here: the delay and the count. Not here: what is measured with them (`bench.far`). Bytes wait in memory, as many
as come: a distance costs time and takes no bandwidth away.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

CHUNK_BYTES = 1 << 18


class Distance:
    """Passes bytes between its loopback `port` and `target_port`, in a thread of its own, while it is entered.

    Attributes:
      round_trip: seconds from a question to its answer beyond what the answering takes; may be changed at any time.
      round_trips: how often one end has waited for the other so far, TCP's own handshake included. However many
        messages travel together, and however they were cut into packets, they count once.
    """

    def __init__(self, target_port: int, round_trip: float = 0.0) -> None:
        self.target_port = target_port
        self.round_trip = round_trip
        self.round_trips = 0
        self.port = 0
        self._listening = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Distance:
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._failure = error
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        with self._scope:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            self._token = trio.lowlevel.current_trio_token()
            self._listening.set()
            await trio.serve_listeners(self._pass, listeners)

    async def _pass(self, near: trio.SocketStream) -> None:
        async with near:
            try:
                far = await trio.open_tcp_stream("127.0.0.1", self.target_port)
            except OSError:
                return
            async with far:
                await _Connection(self, near, far).run()


class _Connection:
    """One connection through a distance: `near` is the end that connected, and so the one that asks."""

    def __init__(self, distance: Distance, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self._distance = distance
        self._near = near
        self._far = far
        self._begun = trio.current_time()
        self._asked = False
        distance.round_trips += 1  # SYN, and the SYN-ACK that the kernel has sent too early for us

    async def run(self) -> None:
        """Until both ends have ended, or one has broken off."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._way, self._near, self._far, self._asks, self._far.send_all)
                nursery.start_soon(self._way, self._far, self._near, trio.current_time, self._answers)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _asks(self) -> float:
        """When what came now from the near end has left it: not before the SYN-ACK would have reached it."""
        self._asked = True
        return max(trio.current_time(), self._begun + self._distance.round_trip)

    async def _answers(self, data: bytes) -> None:
        if self._asked:
            self._asked = False
            self._distance.round_trips += 1
        await self._near.send_all(data)

    async def _way(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        left: Callable[[], float],
        deliver: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """One direction. It ends with the source's end, which travels as long as bytes do."""
        departures, arrivals = trio.open_memory_channel[tuple[float, bytes]](math.inf)

        async def arrive() -> None:
            async for due, data in arrivals:
                await trio.sleep_until(due)
                await deliver(data)
            await sink.send_eof()

        async with trio.open_nursery() as nursery, departures:
            nursery.start_soon(arrive)
            while data := await source.receive_some(CHUNK_BYTES):
                departures.send_nowait((left() + self._distance.round_trip / 2, bytes(data)))
