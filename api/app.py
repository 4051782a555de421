"""The gateway as an ASGI application: `uvicorn --factory clipfleet.api.app:create_app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from clipfleet._version import __version__
from clipfleet.api import assets
from clipfleet.api.auth.access import Access, AuthorizedRoute
from clipfleet.api.auth.origin import RequestGuard
from clipfleet.api.collections import (
    aliases,
    bulk,
    export,
    images,
    maps,
    migrations,
    order,
    originals,
    recall,
    rows,
    tags,
    update,
)
from clipfleet.api.collections import routes as collections
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.parts import GatewayParts, connect
from clipfleet.api.http import problems
from clipfleet.api.http.connections import STATE, Connections, raise_file_limit
from clipfleet.api.http.head import HeadMiddleware
from clipfleet.api.jobs import events, open_uploads, uploads
from clipfleet.api.jobs import routes as jobs
from clipfleet.api.ops import fleet, health, key, metrics
from clipfleet.api.ops.access_log import AccessLogMiddleware
from clipfleet.api.ops.metrics import GatewayMetrics
from clipfleet.api.search import embed, openai
from clipfleet.api.search import routes as search
from clipfleet.api.sources import routes as sources
from clipfleet.api.sources.scheduler import Scheduler
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.interpreter import prepare_interpreter
from clipfleet.common.process.logs import configure_logs
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.settings import Settings

DESCRIPTION = """
Index images in bulk and search them by text or by image.

1. `PUT /v1/collections/{name}` creates a collection.
2. `POST /v1/collections/{name}/jobs` indexes a folder. Poll `GET /v1/jobs/{id}`, or
   follow `GET /v1/jobs/{id}/events`.
3. `POST /v1/collections/{name}/search` finds images.

Errors are RFC 9457 problem+json documents. A 503 response has a Retry-After header.
HEAD is answered wherever GET is.
"""
TAGS = [
    {"name": "collections", "description": "Create, list, export and delete collections."},
    {"name": "jobs", "description": "Index images, and follow, cancel or retry the indexing."},
    {"name": "sources", "description": "Register sources that are indexed again and again."},
    {"name": "search", "description": "Search a collection by text, image, id or vector."},
    {"name": "embed", "description": "Compute embeddings without a collection."},
    {"name": "images", "description": "Get or delete single images; write own vectors."},
    {"name": "health", "description": "State of the gateway, the service and the fleet."},
]

# What pages of CLIPFLEET_CORS_ORIGINS may do, and read beside what every page may. They may send
# all headers: clients such as openai's add some of their own.
CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CORS_ANSWER_HEADERS = (
    "ETag", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "Server-Timing",
    "X-Request-Id",
)  # fmt: skip


def create_app(settings: Settings | None = None, parts: GatewayParts | None = None) -> FastAPI:
    """Create the gateway's ASGI application.

    Args:
        settings: the settings of the service; by default those of the environment.
        parts: what the gateway talks to; by default Redis, Milvus and Celery as the settings name
            them. Only then are they checked at start, and the logs of the process configured.

    Raises:
        StartupError: the settings contradict each other, or the keys file is not valid.
    """
    settings = settings or Settings()
    if parts is None:
        configure_logs(settings.log, "gateway")
    access = Access(settings)
    gateway_metrics = GatewayMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        if parts is None:
            raise_file_limit()
            checks = [*service_checks(settings), *blob_checks(settings)]
            await asyncio.to_thread(begin_checks, "gateway", checks)
        gateway = Gateway(settings, parts or connect(settings))
        app.state.gateway = gateway
        gateway_metrics.watch(
            gateway.overviews, [gateway.queries, gateway.exact, gateway.large], settings.model
        )
        gateway.start(Scheduler(gateway, access).run())
        if parts is None:
            prepare_interpreter()
        access.log_mode()
        yield {STATE: Connections(settings.limits)}
        await gateway.stop()
        gateway_metrics.end()

    app = FastAPI(
        title="clipfleet",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,  # `assets` serves it, without files of other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.access, app.state.metrics = access, gateway_metrics
    problems.register_handlers(app)
    features = (  # the first ones are found first
        search, embed, openai, collections, aliases, migrations, maps, bulk, order, recall, export,
        rows, jobs, events, uploads, open_uploads, sources, images, update, tags, originals, health,
        key, fleet, metrics, assets,
    )  # fmt: skip
    for feature in features:
        app.include_router(_require_authorized(feature.router))
    if settings.keys_file:
        _document_api_keys(app)
    _render_document_once(app)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestGuard, settings=settings)
    if settings.cors_origins:  # outside of RequestGuard: a page reads why it was refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=("*",),
            expose_headers=CORS_ANSWER_HEADERS,
        )
    app.add_middleware(
        AccessLogMiddleware, metrics=gateway_metrics, lines=settings.log == "json"
    )  # added last, so that it also sees the requests that RequestGuard refuses
    return app


def _require_authorized(router: APIRouter) -> APIRouter:
    """TypeError for a router without `route_class=AuthorizedRoute`, which would need no key."""
    for route in router.routes:
        if not isinstance(route, AuthorizedRoute):
            raise TypeError(f"{getattr(route, 'path', route)} is not an AuthorizedRoute")
    return router


def _document_api_keys(app: FastAPI) -> None:
    """Declare the API keys in the OpenAPI document, so that /docs asks for one and sends it."""
    build_document = app.openapi

    def document_with_keys() -> dict[str, Any]:
        document = build_document()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        return document

    app.openapi = document_with_keys  # type: ignore[method-assign]


def _render_document_once(app: FastAPI) -> None:
    """Serve the OpenAPI document as bytes. FastAPI renders it for every request, which needs no
    key and takes milliseconds of the event loop."""

    @cache
    def rendered(root_path: str) -> bytes:
        servers = {"servers": [{"url": root_path}]} if root_path else {}
        return bytes(JSONResponse({**app.openapi(), **servers}).body)

    async def document(request: Request) -> Response:
        root_path = request.scope.get("root_path", "").rstrip("/")
        return Response(rendered(root_path), media_type="application/json")

    app.router.routes.insert(0, Route("/openapi.json", document, include_in_schema=False))
