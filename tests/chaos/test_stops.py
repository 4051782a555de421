"""A part that is silent, not dead: requests end in time with 503, work waits and goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import chaos, services, stack

ANSWER_S = 20.0


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


def test_a_silent_milvus_makes_searches_end_and_the_job_wait(slow: stack.Up, photos: Path) -> None:
    job = chaos.begin(slow, "silent-milvus", photos)
    with slow.http() as http, chaos.stopped(slow.part("milvus")):
        over = time.monotonic() + 12
        require_503_in_time(lambda: search(http, "silent-milvus"))
        require_503_in_time(lambda: http.get("/v1/collections/silent-milvus"))

        def why() -> Any:
            return http.get(f"/v1/jobs/{job}").json()["waiting"]

        waiting = services.eventually(why, 30, "the job's reason to wait")
        assert "vector store" in waiting
        chaos.wait_until(over)
    chaos.require_exact(slow, job, "silent-milvus")
    with slow.client() as client:
        assert client.job(job).waiting is None


def test_a_silent_valkey_makes_every_request_end(slow: stack.Up, photos: Path) -> None:
    job = chaos.begin(slow, "silent-valkey", photos)
    with slow.http() as http, chaos.stopped(slow.part("valkey")):
        over = time.monotonic() + 8
        require_503_in_time(lambda: http.get(f"/v1/jobs/{job}"))
        require_503_in_time(lambda: search(http, "silent-valkey"))
        require_503_in_time(lambda: http.get("/v1/jobs"))
        chaos.wait_until(over)
    chaos.require_exact(slow, job, "silent-valkey")


def test_a_silent_valkey_refuses_new_jobs_in_time(slow: stack.Up, photos: Path) -> None:
    with slow.client() as client:
        client.create_collection("refused")
    with slow.http() as http, chaos.stopped(slow.part("valkey")):
        require_503_in_time(lambda: new_job(http, "refused", photos))
    services.eventually(chaos.up_and_ready(slow), 90, "a ready stack")


@pytest.mark.parametrize("part", ["worker-ingest-1", "planner"])
def test_a_silent_part_that_comes_back_counts_nothing_twice(
    part: str, slow: stack.Up, photos: Path
) -> None:
    """Longer than its lease: whoever took over meanwhile is not disturbed."""
    job = chaos.begin(slow, f"silent-{part}", photos)
    with chaos.stopped(slow.part(part)):
        time.sleep(14)
    chaos.require_exact(slow, job, f"silent-{part}")
