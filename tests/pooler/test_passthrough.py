"""What a relay knows of the streams it passes on: where frames end; and the last words of an origin."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pooler.ceremony.connect import Connected
from pooler.ceremony.passthrough import Frames, Relay
from pooler.lingering import end_lingering
from pooler.reactor import Reactor
from pooler.transport import Transport
from protocol.framing import frame
from protocol.startup import StartupMessage

KINDS = st.sampled_from([b"d", b"D", b"C", b"Z", b"S"])
STREAMS = st.lists(st.builds(frame, KINDS, st.binary(max_size=20)), max_size=8)


@settings(deadline=None)
@given(frames=STREAMS, cuts=st.lists(st.integers(0, 200), max_size=20))
def test_any_split_of_a_stream_has_its_frames_ends_where_they_are(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)
    ends = {0, *accumulate(map(len, frames))}
    places = sorted({0, len(stream), *(cut for cut in cuts if cut <= len(stream))})
    follower = Frames()
    for start, stop in pairwise(places):
        boundary = follower.follow(stream[start:stop])
        seen = [end for end in ends if start <= end <= stop]
        assert (start + boundary if boundary >= 0 else None) == max(seen, default=None)
        assert follower.between == (stop in ends)
    assert follower.completions == sum(each[:1] in (b"C", b"Z") for each in frames)


def test_a_stream_that_is_no_frames_has_no_end_of_one() -> None:
    follower = Frames()
    assert follower.follow(b"GET / HTTP/1.1") >= -1
    follower = Frames()
    follower.follow(b"X\0\0\0\3" + bytes(100))
    assert not follower.between
    assert follower.follow(bytes(1 << 20)) < 0


@contextmanager
def relaying(high_water: int = 1 << 20) -> Iterator[tuple[Relay, socket.socket, socket.socket]]:
    """A relay that has begun, the client's socket and the origin's."""
    client, near_client = socket.socketpair()
    origin, near_origin = socket.socketpair()
    reactor = Reactor()
    service: Any = SimpleNamespace(relays={}, cache=None, reactor=reactor, count_relays=lambda: None)
    pool: Any = SimpleNamespace(name="shop", target=None, high_water=high_water)
    request = StartupMessage(3, 0, {"user": "app", "replication": "true"})
    relay = Relay(service, pool, Transport(near_client, reactor), request)
    service.relays[relay.key[0]] = relay
    relay.begin(Connected(Transport(near_origin, reactor), 1, b"1234", {}, pool.target), b"")
    with client, origin:
        yield relay, client, origin
    relay.end("the test is over")
    end_lingering(inf)


async def test_what_an_origin_said_before_it_went_reaches_a_client_that_still_sends() -> None:
    """The client's bytes cannot be written any more; that the origin has said why is only seen by reading on."""
    with relaying() as (relay, client, origin):
        origin.sendall(frame(b"E", b"that is why"))
        origin.close()
        relay.pass_on(relay._client, frame(b"d", b"a status update"))
        assert not relay.service.relays
        assert client.recv(100) == frame(b"E", b"that is why")
        assert client.recv(100) == b""


@pytest.mark.parametrize("leaver", ["client", "origin"])
async def test_what_one_end_sent_before_it_left_reaches_the_other(leaver: str) -> None:
    """The other is slow: most of it is still in pgnear when the first has gone."""
    data = frame(b"d", bytes(900_000))
    with relaying() as (relay, client, origin), trio.fail_after(10):
        first, second = (client, origin) if leaver == "client" else (origin, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.service.reactor.run)
            await trio.to_thread.run_sync(first.sendall, data)
            first.close()
            while relay.service.relays:  # noqa: ASYNC110 (a relay tells nobody)
                await trio.sleep(0.001)
            got = await trio.to_thread.run_sync(_everything, second)
            nursery.cancel_scope.cancel()
    assert got == data


def _everything(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))
