"""The HTTP endpoint: /metrics, /healthz and /readyz, served by hypercorn in a trio task beside the traffic."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pooler.admin.metrics import registry
from pooler.ceremony.listen import address_of, open_listener
from pooler.logs import get_logger

if TYPE_CHECKING:
    from pooler.service import Service

log = get_logger(__name__)

READ_SECONDS = 10
"""A connection from which nothing comes for so long is closed, in the middle of a request too."""


def application(service: Service) -> Starlette:
    """The ASGI application for `service`."""
    metrics_registry = registry(service)

    async def index(request: Request) -> Response:
        return PlainTextResponse("pgnear: /metrics /healthz /readyz\n")

    async def healthz(request: Request) -> Response:
        """Alive: this process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        """Ready for clients: every origin was reached, and no shutdown has begun."""
        reasons = [
            f"pool {name}: {pool.last_failure.message if pool.last_failure else 'not connected yet'}"
            for name, pool in service.pools.items()
            if not pool.ready
        ]
        if service.draining:
            reasons.append("draining")
        return JSONResponse(
            {"status": "not ready" if reasons else "ready", "reasons": reasons},
            status_code=503 if reasons else 200,
        )

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics_registry), headers={"content-type": content_type})

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


async def serve_http(
    service: Service,
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
    await serve(application(service), configuration, shutdown_trigger=trio.sleep_forever)  # type: ignore[arg-type]
