"""The gateway as an ASGI application: `uvicorn --factory clipfleet.api.app:create_app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from clipfleet._version import __version__
from clipfleet.api import assets
from clipfleet.api.auth.access import Access, AuthorizedRoute
from clipfleet.api.auth.origin import RequestGuard
from clipfleet.api.collections import bulk, export, images, recall
from clipfleet.api.collections import routes as collections
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.parts import GatewayParts, connect
from clipfleet.api.http import problems
from clipfleet.api.http.connections import STATE, Connections, raise_file_limit
from clipfleet.api.jobs import events, uploads
from clipfleet.api.jobs import routes as jobs
from clipfleet.api.ops import fleet, health, metrics
from clipfleet.api.ops.access_log import AccessLogMiddleware
from clipfleet.api.ops.metrics import GatewayMetrics
from clipfleet.api.search import embed
from clipfleet.api.search import routes as search
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.logs import configure_logs
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.settings import Settings

DESCRIPTION = """
Index images in bulk, find them again by words or by image.

1. `PUT /v1/collections/{name}` makes a collection.
2. `POST /v1/collections/{name}/jobs` indexes a folder; poll `GET /v1/jobs/{id}`, or
   follow `GET /v1/jobs/{id}/events`.
3. `POST /v1/collections/{name}/search` finds images.

Errors are RFC 9457 problem+json; a 503 says in Retry-After when to come back.
"""


def create_app(settings: Settings | None = None, parts: GatewayParts | None = None) -> FastAPI:
    """The gateway's application.

    Args:
        settings: left out, the environment has them.
        parts: what the gateway talks to. Left out: Redis, Milvus and Celery as the settings name
            them. They are checked at start, and the logs of the process are configured.
    """
    settings = settings or Settings()
    if parts is None:
        configure_logs(settings.log, "gateway")
    access = Access(settings)
    mine = GatewayMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        if parts is None:
            raise_file_limit()
            checks = [*service_checks(settings), *blob_checks(settings)]
            await asyncio.to_thread(begin_checks, "gateway", checks)
        gateway = Gateway(settings, parts or connect(settings))
        app.state.gateway = gateway
        mine.watch(
            gateway.overviews, [gateway.queries, gateway.exact, gateway.large], settings.model
        )
        gateway.start()
        access.log_mode()
        yield {STATE: Connections(settings.limits)}
        await gateway.stop()
        mine.end()

    app = FastAPI(
        title="clipfleet",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.access, app.state.metrics = access, mine
    problems.register_handlers(app)
    features = (
        collections, bulk, recall, export, jobs, events, uploads, search, embed, images, health,
        fleet, metrics, assets,
    )  # fmt: skip
    for feature in features:
        app.include_router(_guarded(feature.router))
    if settings.keys_file:
        _describe_keys(app)
    app.add_middleware(RequestGuard, settings=settings)
    app.add_middleware(
        AccessLogMiddleware, metrics=mine, lines=settings.log == "json"
    )  # sees refusals, too
    return app


def _guarded(router: APIRouter) -> APIRouter:
    """Without this a router that forgets `route_class` would be open to everybody."""
    for route in router.routes:
        if not isinstance(route, AuthorizedRoute):
            raise TypeError(f"{getattr(route, 'path', route)} is no GuardedRoute")
    return router


def _describe_keys(app: FastAPI) -> None:
    """So that /docs asks for a key and sends it."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        return document

    app.openapi = described  # type: ignore[method-assign]
