"""A part that is silent, not dead: requests end in time with 503, work waits and goes on."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from clipfleet.common.redis.client import redis_time
from support import chaos, services

ANSWER_S = 20.0
LEASE_S = float(chaos.SETTINGS["CLIPFLEET_LEASE_S"])


def require_503_in_time(*requests: Callable[[], httpx.Response]) -> None:
    """All at once."""
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = [request.result() for request in [pool.submit(each) for each in requests]]
    assert time.monotonic() - began < ANSWER_S
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1


def search(http: httpx.Client, collection: str) -> httpx.Response:
    where = f"/v1/collections/{collection}/search"
    return http.post(where, json={"text": "a dog runs", "top_k": 3})


def new_job(http: httpx.Client, collection: str, photos: Path) -> httpx.Response:
    source = {"type": "folder", "path": str(photos)}
    return http.post(f"/v1/collections/{collection}/jobs", json={"source": source})


def test_a_silent_milvus_makes_searches_end_and_the_job_wait(
    slow_stack: chaos.Up, photos: Path
) -> None:
    with (
        chaos.held_job(slow_stack, "silent-milvus", photos) as job,
        slow_stack.http() as http,
        chaos.stopped(slow_stack.part("milvus")),
    ):
        slow_stack.gate.open()
        require_503_in_time(
            lambda: search(http, "silent-milvus"),
            lambda: http.get("/v1/collections/silent-milvus"),
        )

        def why() -> Any:
            return http.get(f"/v1/jobs/{job}").json()["waiting"]

        assert "vector store" in services.eventually(why, 60, "the job's reason to wait")
    chaos.require_exact(slow_stack, job, "silent-milvus")
    with slow_stack.client() as client:
        assert client.job(job).waiting is None


def test_a_silent_valkey_makes_every_request_end(slow_stack: chaos.Up, photos: Path) -> None:
    """For longer than a lease lasts."""
    with (
        chaos.held_job(slow_stack, "silent-valkey", photos) as job,
        slow_stack.http() as http,
        chaos.stopped(slow_stack.part("valkey")),
    ):
        slow_stack.gate.open()
        over = time.monotonic() + LEASE_S
        require_503_in_time(
            lambda: http.get(f"/v1/jobs/{job}"),
            lambda: search(http, "silent-valkey"),
            lambda: http.get("/v1/jobs"),
        )
        time.sleep(max(0.0, over - time.monotonic()))
    chaos.require_exact(slow_stack, job, "silent-valkey")


def test_a_silent_valkey_refuses_new_jobs_in_time(slow_stack: chaos.Up, photos: Path) -> None:
    with slow_stack.client() as client:
        client.create_collection("refused")
    with slow_stack.http() as http, chaos.stopped(slow_stack.part("valkey")):
        require_503_in_time(lambda: new_job(http, "refused", photos))
    services.eventually(slow_stack.ready, 90, "a ready stack")


def test_a_silent_worker_that_comes_back_counts_nothing_twice(
    slow_stack: chaos.Up, photos: Path
) -> None:
    """Its lease ran out meanwhile, and its chunk is pending again."""
    with (
        chaos.held_job(slow_stack, "silent-worker", photos) as job,
        chaos.ledger(slow_stack) as ledger,
    ):
        chunk = next(chunk for chunk in ledger.open_chunks(job) if chunk.leased)
        with chaos.stopped(slow_stack.part("worker-ingest-1")):

            def is_pending_again() -> bool:
                (same,) = [each for each in ledger.open_chunks(job) if each.name == chunk.name]
                return (same.attempt, same.leased) == (1, False)

            services.eventually(is_pending_again, 60, "the end of the lease")
    chaos.require_exact(slow_stack, job, "silent-worker")


def test_a_silent_planner_that_comes_back_counts_nothing_twice(
    slow_stack: chaos.Up, photos: Path
) -> None:
    """Its lease ran out meanwhile, and the workers have done all that was planned."""
    with (
        chaos.held_job(slow_stack, "silent-planner", photos) as job,
        chaos.connection(slow_stack) as valkey,
        chaos.ledger(slow_stack) as ledger,
        chaos.stopped(slow_stack.part("planner")),
    ):
        slow_stack.gate.open()

        def is_forsaken() -> bool:
            alive: Any = valkey.zcount("clipfleet:jobs:planners", redis_time(valkey), "+inf")
            return not ledger.open_chunks(job) and not alive

        services.eventually(is_forsaken, 60, "the end of the planner's lease")
        assert ledger.job(job).finished_at is None
    chaos.require_exact(slow_stack, job, "silent-planner")
