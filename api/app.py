"""The gateway as an ASGI application: `uvicorn --factory clipfleet.api.app:create_app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import clipfleet
from clipfleet.api import (
    assets,
    collections,
    embed,
    events,
    export,
    health,
    images,
    jobs,
    matching,
    metrics,
    problems,
    recall,
    search,
    uploads,
)
from clipfleet.api.gateway import Gateway
from clipfleet.api.guard import Guard
from clipfleet.api.metrics import GatewayMetrics
from clipfleet.api.observe import Observe
from clipfleet.common.connection import make_redis
from clipfleet.common.logs import configure_logs
from clipfleet.common.overview import RedisOverviews
from clipfleet.common.settings import Settings

DESCRIPTION = """
Index images in bulk, find them again by words or by image.

1. `PUT /v1/collections/{name}` makes a collection.
2. `POST /v1/collections/{name}/jobs` indexes a folder; poll `GET /v1/jobs/{id}`, or
   follow `GET /v1/jobs/{id}/events`.
3. `POST /v1/collections/{name}/search` finds images.

Errors are RFC 9457 problem+json; a 503 says in Retry-After when to come back.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    configure_logs(settings.log, "gateway")
    mine = GatewayMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = Gateway(settings)
        app.state.gateway, app.state.metrics = gateway, mine
        overviews = RedisOverviews(make_redis(settings), settings.model)
        mine.watch(overviews, [gateway.queries, gateway.exact])
        gateway.begin()
        yield
        await gateway.end()
        mine.end()

    app = FastAPI(
        title="clipfleet",
        version=clipfleet.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    problems.install(app)
    parts = (
        collections, matching, recall, export, jobs, events, uploads, search, embed, images, health,
        metrics, assets,
    )  # fmt: skip
    for part in parts:
        app.include_router(part.router)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observe, metrics=mine, lines=settings.log == "json")  # sees refusals, too
    return app
