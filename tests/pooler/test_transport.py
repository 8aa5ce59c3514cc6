"""What a transport asks of its socket."""

from __future__ import annotations

import socket
import sys

import pytest
import trio
import trio.testing

from pooler.reactor import Reactor
from pooler.transport import Transport, TransportClosed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name the options otherwise")
async def test_a_peer_that_vanished_without_a_word_is_noticed_within_two_minutes() -> None:
    """The kernel's own default is more than two hours for a silent peer, and a quarter of one for unread bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        transport = Transport(accepted, Reactor())
        option = accepted.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        probes = option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) * option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        assert idle + probes <= 120
        assert 0 < option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 120_000
        transport.close()


@pytest.mark.parametrize("waiting_for", ["receive_some", "send_all"])
async def test_a_ceremony_whose_transport_is_closed_under_it_hears_so_in_its_own_words(waiting_for: str) -> None:
    """Whoever ends the pool or the process closes it; trio's ClosedResourceError is nothing that ceremonies expect."""
    mine, other = socket.socketpair()
    transport = Transport(mine, Reactor())
    heard: list[str] = []

    async def work() -> None:
        try:
            if waiting_for == "receive_some":
                await transport.receive_some()
            else:
                await transport.send_all(b"x" * 10_000_000)
        except TransportClosed as error:
            heard.append(str(error))

    with other, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            transport.close()
    assert heard == ["it was closed here"]
