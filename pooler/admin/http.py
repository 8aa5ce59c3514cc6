"""The HTTP endpoint: /metrics, /healthz and /readyz, served by hypercorn in a trio task beside the traffic.

Lives here: the pages and their server. Where there are several workers their parent serves them (`workers.http`), and
asks each worker for its part.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pooler.admin.metrics import registry
from pooler.ceremony.listen import address_of, open_listener
from pooler.logs import get_logger
from pooler.workers.peers import answers

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

READ_SECONDS = 10
"""A connection from which nothing comes for so long is closed, in the middle of a request too."""


Reasons = Callable[[], Awaitable[list[str]]]
Exposition = Callable[[], Awaitable[Collector]]


def application(reasons: Reasons, exposition: Exposition) -> Starlette:
    """The ASGI application.

    Args:
      reasons: why no client should be sent here; none where it is ready. exposition: the metrics of now.
    """

    async def index(request: Request) -> Response:
        return PlainTextResponse("pgnear: /metrics /healthz /readyz\n")

    async def healthz(request: Request) -> Response:
        """Alive: this process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        """Ready for clients: every origin was reached, and no shutdown has begun."""
        found = await reasons()
        return JSONResponse(
            {"status": "not ready" if found else "ready", "reasons": found},
            status_code=503 if found else 200,
        )

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await exposition()), headers={"content-type": content_type})

    async def failed(request: Request, error: Exception) -> Response:
        log.error("http_failed", path=request.url.path, error=repr(error))
        return PlainTextResponse("internal error\n", status_code=500)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        exception_handlers={Exception: failed},
    )


def application_of(service: Service) -> Starlette:
    """The application where `service` is all of pgnear."""
    everything = registry(service)

    async def reasons() -> list[str]:
        return reasons_of(service)

    async def exposition() -> Collector:
        return everything

    return application(reasons, exposition)


def reasons_of(service: Service) -> list[str]:
    """Why `service` is not ready."""
    reasons = [
        f"pool {name}: {pool.last_failure.message if pool.last_failure else 'not connected yet'}"
        for name, pool in service.pools.items()
        if not pool.ready
    ]
    return [*reasons, "draining"] if service.draining else reasons


@answers("ready")
async def _ready(service: Service, data: Any) -> dict[str, Any]:
    return {"worker": service.peers.index if service.peers is not None else 0, "reasons": reasons_of(service)}


async def serve_http(
    pages: Starlette,
    address: str | socket.socket,
    reuse_port: bool = False,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve, on an address or a socket that listens, until cancelled; reports the bound address once it listens.

    Raises:
      OSError: the address cannot be had; the message says which.
    """
    if isinstance(address, str):
        listener = open_listener(address, reuse_port=reuse_port)
    else:
        listener = address
    bound = address_of(listener)
    configuration = HypercornConfig()
    configuration.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    configuration.graceful_timeout = 0.5
    configuration.read_timeout = READ_SECONDS
    configuration.include_server_header = False
    configuration.accesslog = None
    silent = logging.getLogger("pgnear.http")
    silent.addHandler(logging.NullHandler())
    silent.propagate = False
    configuration.errorlog = silent
    task_status.started(bound)
    await serve(pages, configuration, shutdown_trigger=trio.sleep_forever)  # type: ignore[arg-type]
