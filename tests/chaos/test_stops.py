"""A part that is silent, not dead: requests end in time with 503, work waits and goes on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet.common.connection import redis_time
from support import chaos, services

ANSWER_S = 20.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Up]:
    """One that gives up a call sooner than others."""
    with chaos.up(tmp_path_factory.mktemp("stops"), CLIPFLEET_CALL_TIMEOUT_S="2") as running:
        yield running


def require_503_in_time(ask: Callable[[], httpx.Response]) -> None:
    began = time.monotonic()
    answer = ask()
    assert time.monotonic() - began < ANSWER_S
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1


def search(http: httpx.Client, collection: str) -> httpx.Response:
    where = f"/v1/collections/{collection}/search"
    return http.post(where, json={"text": "a dog runs", "top_k": 3})


def new_job(http: httpx.Client, collection: str, photos: Path) -> httpx.Response:
    source = {"type": "folder", "path": str(photos)}
    return http.post(f"/v1/collections/{collection}/jobs", json={"source": source})


def test_a_silent_milvus_makes_searches_end_and_the_job_wait(up: chaos.Up, photos: Path) -> None:
    with (
        chaos.held_job(up, "silent-milvus", photos) as job,
        up.http() as http,
        chaos.stopped(up.part("milvus")),
    ):
        up.gate.open()
        require_503_in_time(lambda: search(http, "silent-milvus"))
        require_503_in_time(lambda: http.get("/v1/collections/silent-milvus"))

        def why() -> Any:
            return http.get(f"/v1/jobs/{job}").json()["waiting"]

        assert "vector store" in services.eventually(why, 60, "the job's reason to wait")
    chaos.require_exact(up, job, "silent-milvus")
    with up.client() as client:
        assert client.job(job).waiting is None


def test_a_silent_valkey_makes_every_request_end(up: chaos.Up, photos: Path) -> None:
    """The three take longer than a lease lasts."""
    with (
        chaos.held_job(up, "silent-valkey", photos) as job,
        up.http() as http,
        chaos.stopped(up.part("valkey")),
    ):
        up.gate.open()
        require_503_in_time(lambda: http.get(f"/v1/jobs/{job}"))
        require_503_in_time(lambda: search(http, "silent-valkey"))
        require_503_in_time(lambda: http.get("/v1/jobs"))
    chaos.require_exact(up, job, "silent-valkey")


def test_a_silent_valkey_refuses_new_jobs_in_time(up: chaos.Up, photos: Path) -> None:
    with up.client() as client:
        client.create_collection("refused")
    with up.http() as http, chaos.stopped(up.part("valkey")):
        require_503_in_time(lambda: new_job(http, "refused", photos))
    services.eventually(up.ready, 90, "a ready stack")


def test_a_silent_worker_that_comes_back_counts_nothing_twice(up: chaos.Up, photos: Path) -> None:
    """Its lease ran out meanwhile, and its chunk is pending again."""
    with chaos.held_job(up, "silent-worker", photos) as job, chaos.ledger(up) as ledger:
        (chunk,) = [chunk for chunk in ledger.open_chunks(job) if chunk.leased]
        with chaos.stopped(up.part("worker-ingest-1")):

            def is_pending_again() -> bool:
                (same,) = [each for each in ledger.open_chunks(job) if each.name == chunk.name]
                return (same.attempt, same.leased) == (1, False)

            services.eventually(is_pending_again, 60, "the end of the lease")
    chaos.require_exact(up, job, "silent-worker")


def test_a_silent_planner_that_comes_back_counts_nothing_twice(up: chaos.Up, photos: Path) -> None:
    """Its lease ran out meanwhile, and the workers have done all that was planned."""
    with (
        chaos.held_job(up, "silent-planner", photos) as job,
        chaos.connection(up) as valkey,
        chaos.ledger(up) as ledger,
        chaos.stopped(up.part("planner")),
    ):
        up.gate.open()

        def is_forsaken() -> bool:
            lease_until: Any = valkey.hget(f"clipfleet:job:{job}", "planner_until")
            return not ledger.open_chunks(job) and float(lease_until) < redis_time(valkey)

        services.eventually(is_forsaken, 60, "the end of the planner's lease")
        assert ledger.job(job).finished_at is None
    chaos.require_exact(up, job, "silent-planner")
