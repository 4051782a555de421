"""A gateway on a real Valkey: a process of its own, whose planner and worker the test plays, or in
this process."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis
from fastapi.testclient import TestClient

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.parts import connect
from clipfleet.common.ledger import Claim
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.embedded import commands, processes
from support import services
from support.ledgers import claimed, planned

MAX_STREAMS = 3


@dataclass
class Service:
    url: str
    redis: "redis.Redis"
    process: "subprocess.Popen[bytes]"

    @property
    def ledger(self) -> RedisLedger:
        return RedisLedger(self.redis)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @contextmanager
    def events(self, job: str, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        with (
            self.http() as http,
            http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-accel-buffering"] == "no"
            yield parsed(answer.iter_lines())

    def begun(self, job: str) -> Claim:
        """A job of two images, whose only chunk the test has claimed."""
        planned(self.ledger, ("a", "b"), job=job)
        claim = claimed(self.ledger)
        assert claim.job_id == job
        return claim


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            event[name] = value
        elif event:
            yield {**event, "data": json.loads(event.get("data", "null"))}
            event = {}


@contextmanager
def in_process(folder: Path, url: str, **settings: Any) -> Iterator[TestClient]:
    """A client of the gateway on this machine. The gateway makes no checks when it starts."""
    options = Settings(redis_url=url, blobs=str(folder / "blobs"), **settings)
    with TestClient(
        create_app(options, connect(options)), "http://127.0.0.1", client=(commands.LOOPBACK, 1)
    ) as http:
        yield http


@contextmanager
def gateway(folder: Path, url: str, **more: str) -> Iterator[Service]:
    port = commands.free_port()
    env = {
        "CLIPFLEET_REDIS_URL": url,
        "CLIPFLEET_BLOBS": str(folder.parent / "blobs"),  # gateways on one Redis share them
        "CLIPFLEET_CALL_TIMEOUT_S": "0.5",
        "CLIPFLEET_LIMITS__EVENT_STREAMS": str(MAX_STREAMS),
        **more,
    }
    command = processes.gateway(commands.LOOPBACK, port)
    with services.process(command, folder / "gateway.log", **env) as process:
        client = make_redis(Settings(redis_url=url))
        service = Service(f"http://127.0.0.1:{port}", client, process)
        with service.http() as http:
            services.eventually(lambda: http.get("/healthz").is_success, 60, "the gateway")
        yield service
        service.redis.close()
