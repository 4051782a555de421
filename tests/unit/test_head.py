"""HEAD is answered wherever GET is."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from clipfleet.api.app import create_app
from clipfleet.testing import MemoryService
from support.asgi import Exchange, speak
from support.gateway_harness import World
from support.services import eventually

CHANGING = {"content-length", "x-request-id", "date", "etag"}  # from one answer to the next
ROUTES: list[Any] = [route.original_route for route in iter_route_contexts(create_app().routes)]
PATHS = sorted(
    {
        route.path.replace("{name}", "acme").replace("{job_id}", "job-acme")
        for route in ROUTES
        if "GET" in (route.methods or ())
    }
)


@pytest.mark.parametrize("path", [*PATHS, "/v1/unknown", "/v1/embed"])
def test_head_is_get_without_a_body(tmp_path: Path, path: str) -> None:
    world = World(tmp_path)
    world.parts.ledger.cancel("job-acme")  # so that its events end
    world.parts.ledger.cancel("job-other")

    async def both() -> tuple[Exchange, Exchange]:
        return await speak(world.app, f"GET {path}", (), "admin"), await speak(
            world.app, f"HEAD {path}", (), "admin"
        )

    got, head = asyncio.run(both())
    assert head.status == got.status
    assert head.headers.keys() == got.headers.keys()
    for name in head.headers.keys() - CHANGING:
        assert head.headers[name] == got.headers[name], name
    assert head.content == b""


def test_head_of_a_stream_of_events_ends_and_frees_its_place() -> None:
    with (
        MemoryService(dim=4, limits={"event_streams": 1}) as service,
        httpx.Client(base_url=service.url, timeout=60, trust_env=False) as client,
    ):
        assert client.put("/v1/collections/c", json={"model": "nobody", "dim": 4}).is_success
        source = {"type": "urls", "urls": ["http://127.0.0.1:1/a.jpg"]}
        job = client.post("/v1/collections/c/jobs", json={"source": source}).json()["id"]
        path = f"/v1/jobs/{job}/events"
        for _ in range(3):
            eventually(lambda: client.head(path).is_success, 30, "a place")

        def is_streamed() -> bool:
            with client.stream("GET", path) as answer:
                is_stream = answer.headers["content-type"].startswith("text/event-stream")
                return is_stream and client.head(path).status_code == 503

        eventually(is_streamed, 30, "a place for the stream")
