"""What a transport asks of its socket."""

from __future__ import annotations

import socket
import sys

import pytest

from pooler.reactor import Reactor
from pooler.transport import Transport


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
