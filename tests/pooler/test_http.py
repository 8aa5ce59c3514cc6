"""The HTTP endpoint over real sockets: what it answers, that it starts or says why not, and that it stops at once."""

from __future__ import annotations

import json
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pooler import logs
from pooler.addresses import Addresses
from pooler.admin.http import application_of, serve_http
from pooler.stats import Stats
from protocol import errors


def pool(*, ready: bool, last_failure: Any = None) -> Any:
    """What readiness reads of a `Pool`."""
    return SimpleNamespace(ready=ready, last_failure=last_failure)


@pytest.fixture
def service() -> Any:
    return SimpleNamespace(
        stats=Stats(),
        addresses=Addresses(),
        pools={},
        every_pool=(),
        cache=None,
        sessions=set(),
        relays={},
        ears=None,
        flights=None,
        draining=False,
    )


async def connected(address: str) -> trio.SocketStream:
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


async def ask(address: str, path: str, *headers: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Status, content type and body."""
    request = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: pgnear", "Connection: close", *headers, "", ""])
    with trio.fail_after(5):
        async with await connected(address) as stream:
            await stream.send_all(request.encode())
            answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    types = [line.partition(": ")[2] for line in lines if line.startswith("content-type:")]
    return int(lines[0].split()[1]), "".join(types), body


async def test_metrics_are_in_the_format_that_the_scraper_asks_for(service: Any) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, application_of(service), "127.0.0.1:0")
        status, kind, body = await ask(address, "/metrics")
        assert (status, kind.startswith("text/plain")) == (200, True)
        assert any(family.name == "pgnear_clients" for family in text_string_to_metric_families(body.decode()))
        _, kind, body = await ask(address, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        nursery.cancel_scope.cancel()


async def test_not_ready_until_every_pool_is_and_not_while_draining(service: Any) -> None:
    failure = errors.origin_unreachable("connection refused")
    service.pools = {"shop": pool(ready=True), "archive": pool(ready=False, last_failure=failure)}
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, application_of(service), "127.0.0.1:0")
        status, kind, body = await ask(address, "/readyz")
        assert (status, kind) == (503, "application/json")
        (reason,) = json.loads(body)["reasons"]
        assert "archive" in reason
        assert "connection refused" in reason

        service.pools["archive"].ready = True
        status, _, body = await ask(address, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (200, [])

        service.draining = True
        status, _, body = await ask(address, "/readyz")
        assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
        assert (await ask(address, "/healthz"))[0] == 200
        nursery.cancel_scope.cancel()


async def test_an_index_names_the_pages_and_nothing_can_be_posted(service: Any) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, application_of(service), "127.0.0.1:0")
        status, _, body = await ask(address, "/")
        assert status == 200
        assert b"/metrics" in body
        assert (await ask(address, "/metrics", "Content-Length: 0", method="POST"))[0] == 405
        assert (await ask(address, "/etc/passwd"))[0] == 404
        nursery.cancel_scope.cancel()


async def test_a_bug_behind_a_page_is_one_answer_and_one_log_line(
    service: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json")  # to the standard error of now
    service.pools = None
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_http, application_of(service), "127.0.0.1:0")
        assert (await ask(address, "/readyz"))[::2] == (500, b"internal error\n")
        assert (await ask(address, "/healthz"))[0] == 200
        nursery.cancel_scope.cancel()
    out, err = capfd.readouterr()
    assert (out + err).count("http_failed") == 1
    assert "Traceback" not in out + err


async def test_a_taken_port_is_an_os_error_that_names_it(service: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises((OSError, ExceptionGroup)) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_http, application_of(service), taken)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, OSError)
    assert taken in str(error)


async def test_it_stops_at_once_and_silently_whatever_clients_do(
    service: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One client keeps its connection alive, one is in the middle of a request, one has said nothing."""
    with caplog.at_level(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve_http, application_of(service), "127.0.0.1:0")
            alive, halfway, silent = [await connected(address) for _ in range(3)]
            await alive.send_all(b"GET /healthz HTTP/1.1\r\nHost: pgnear\r\n\r\n")
            with trio.fail_after(5):
                assert await alive.receive_some()
            await halfway.send_all(b"GET /metrics HT")
            nursery.cancel_scope.cancel()
            before = trio.current_time()
        assert trio.current_time() - before < 2
    for stream in (alive, halfway, silent):
        await stream.aclose()
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("hypercorn")]
    with pytest.raises(OSError):  # noqa: PT011 - whichever error says that nobody listens
        await connected(address)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_it_listens_on_ipv6_and_everywhere(service: Any) -> None:
    async with trio.open_nursery() as nursery:
        try:
            address = await nursery.start(serve_http, application_of(service), "[::1]:0")
        except* OSError:
            pytest.skip("no IPv6 loopback here")
        assert address.startswith("[::1]:")
        assert (await ask(address, "/healthz"))[0] == 200
        everywhere = await nursery.start(serve_http, application_of(service), "0.0.0.0:0")
        assert (await ask(f"127.0.0.1:{everywhere.rpartition(':')[2]}", "/healthz"))[0] == 200
        nursery.cancel_scope.cancel()
