"""A gateway whose parts are in memory, with keys and two tenants' collections."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx

from clipfleet.api.app import create_app
from clipfleet.api.gateway import Gateway
from clipfleet.common.catalogue import MemoryCatalogue
from clipfleet.common.collection import Collection
from clipfleet.common.embedder import HashEmbedder
from clipfleet.common.fleet import MemoryFleet, WorkerCard
from clipfleet.common.keys import SCOPES, hash_of
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.rate_limit import MemoryRateLimiter
from clipfleet.common.settings import Settings
from clipfleet.common.store.memory import MemoryStore

HERE = ("127.0.0.1", 1)

KEYS: list[dict[str, Any]] = [
    *({"name": scope, "scopes": [scope]} for scope in SCOPES),
    *({"name": f"acme-{one}", "scopes": [one], "collections": ["acme*"]} for one in SCOPES),
    {"name": "old", "scopes": ["admin"], "expires_at": "2020-01-31T00:00:00Z"},
    {"name": "slow", "scopes": ["read"], "requests_per_minute": 2},
]


class World:
    """A gateway with two collections, each with a job, and with the keys of KEYS unless told."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        file = folder / "keys.json"
        records = [{**key, "hash": hash_of(f"cf_{key['name']}")} for key in KEYS]
        file.write_text(json.dumps({"keys": records}))
        told = {"blobs": "memory://clipfleet-unit-tests/access", "keys_file": str(file)}
        self.app = create_app(Settings(**{**told, **settings}))
        self.gateway: Any = Gateway(Settings(**{**told, **settings}))
        now = time.time()
        how = HashEmbedder().preprocess
        card = WorkerCard(
            id="w", model="m", dim=4, lanes=("query",), device="cpu",
            preprocess=how, started_at=now, progress_at=now,
        )  # fmt: skip
        fleet = MemoryFleet()
        fleet.announce(card)
        vars(self.gateway).update(
            store=MemoryStore(),
            catalogue=MemoryCatalogue(),
            ledger=MemoryLedger(),
            fleet=fleet,
            limiter=MemoryRateLimiter(lambda: 0.0),
        )
        self.app.state.gateway = self.gateway
        for name in ("acme", "other"):
            self.add(name)
        self.gateway.ledger.cancel("job-acme")  # so that who follows it comes to an end

    def add(self, name: str) -> None:
        made = Collection.new(name, metric="dot", model="m", dim=4, fields={})
        self.gateway.store.create(self.gateway.catalogue.add(made))
        source = {"type": "none"}
        self.gateway.ledger.create(
            NewJob(
                id=f"job-{name}", collection=name, generation=made.generation,
                model="m", namespace="n", source=source,
            )
        )  # fmt: skip

    def ask(
        self,
        call: str,
        key: str = "",
        client: Any = HERE,
        at: str = "http://127.0.0.1:8000",
        **told: Any,
    ) -> httpx.Response:
        """`call`: as `GET /v1/jobs`; `key`: a name of KEYS."""

        async def sent() -> httpx.Response:
            method, path = call.split(" ")
            headers = {**told.pop("headers", {})}
            if key:
                headers["Authorization"] = f"Bearer cf_{key}"
            there = httpx.ASGITransport(self.app, client=client)
            async with httpx.AsyncClient(transport=there, base_url=at) as http:
                return await http.request(method, path, headers=headers, **told)

        return asyncio.run(sent())
