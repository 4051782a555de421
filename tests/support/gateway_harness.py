"""A gateway whose parts are in memory, with keys and two tenants' collections."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.auth.keys import SCOPES
from clipfleet.common.collection import Collection
from clipfleet.common.ledger import NewJob
from clipfleet.common.queue.fleet import WorkerCard
from clipfleet.common.settings import Settings
from clipfleet.testing import HashEmbedder, MemoryRateLimiter, memory_parts, write_keys

HERE = ("127.0.0.1", 1)

KEYS: list[dict[str, Any]] = [
    *({"name": scope, "scopes": [scope]} for scope in SCOPES),
    *({"name": f"acme-{scope}", "scopes": [scope], "collections": ["acme*"]} for scope in SCOPES),
    {"name": "old", "scopes": ["admin"], "expires_at": "2020-01-31T00:00:00Z"},
    {"name": "slow", "scopes": ["read"], "requests_per_minute": 2},
]


class World:
    """A gateway with two collections, each with a job, and with the keys of KEYS.

    Args:
        folder: a folder of the test's own.
        parts: parts of the gateway to use in place of new ones.
        settings: in place of the defaults.
    """

    def __init__(
        self, folder: Path, parts: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        file = folder / "keys.json"
        write_keys(file, {f"cf_{key['name']}": key for key in KEYS})
        defaults = {"blobs": "memory://clipfleet-unit-tests/access", "keys_file": str(file)}
        options = Settings(**{**defaults, **settings})
        limiter = MemoryRateLimiter(lambda: 0.0)
        self.parts = memory_parts(options, **{"limiter": limiter, **(parts or {})})
        self.app = create_app(options, self.parts)
        self.app.state.gateway = Gateway(options, self.parts)
        now = time.time()
        card = WorkerCard(
            id="w", model="m", dim=4, lanes=("query",), device="cpu",
            preprocess=HashEmbedder.preprocess, started_at=now, progress_at=now,
        )  # fmt: skip
        self.parts.fleet.announce(card)
        for name in ("acme", "other"):
            self.add(name)
        self.parts.ledger.cancel("job-acme")  # so that its events end

    def add(self, name: str) -> None:
        collection = Collection.new(name, metric="dot", model="m", dim=4, fields={})
        self.parts.store.create(self.parts.catalogue.add(collection))
        source = {"type": "none"}
        self.parts.ledger.create(
            NewJob(
                id=f"job-{name}", collection=name, generation=collection.generation,
                model="m", namespace="n", source=source,
            )
        )  # fmt: skip

    def ask(
        self,
        call: str,
        key: str = "",
        client: Any = HERE,
        at: str = "http://127.0.0.1:8000",
        **options: Any,
    ) -> httpx.Response:
        """Send a request.

        Args:
            call: method and path, as "GET /v1/jobs".
            key: a name of KEYS.
            client: the address of the client.
            at: the URL of the gateway.
            options: of `httpx.AsyncClient.request`.
        """

        async def send() -> httpx.Response:
            method, path = call.split(" ")
            headers = {**options.pop("headers", {})}
            if key:
                headers["Authorization"] = f"Bearer cf_{key}"
            transport = httpx.ASGITransport(self.app, client=client)
            async with httpx.AsyncClient(transport=transport, base_url=at) as http:
                return await http.request(method, path, headers=headers, **options)

        return asyncio.run(send())
