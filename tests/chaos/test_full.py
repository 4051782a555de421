"""Valkey that refuses writes (memory or disk full): everyone waits, nobody dies of it for good."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from support import chaos, services, stack


@contextmanager
def full(slow: stack.Up) -> Iterator[None]:
    """Reads are answered, writes are refused: OOM here, MISCONF when it is the disk."""
    with closing(redis.Redis.from_url(chaos.redis_url(slow))) as client:
        client.config_set("maxmemory", "1")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")


def test_a_job_outlives_a_full_valkey_and_the_service_comes_back(
    slow: stack.Up, photos: Path
) -> None:
    """Longer than the workers' announcements last: they must announce themselves again."""
    job = chaos.begin(slow, "full", photos)
    with full(slow):
        time.sleep(20)
    services.eventually(chaos.up_and_ready(slow), 60, "a ready stack")
    chaos.require_exact(slow, job, "full")


def test_requests_that_a_full_valkey_cannot_take_say_so(slow: stack.Up, photos: Path) -> None:
    with slow.client() as client:
        client.create_collection("fuller")
    with full(slow), slow.http() as http:
        source = {"type": "folder", "path": str(photos)}
        for path, body in (
            ("/v1/collections/fuller/jobs", {"source": source}),
            ("/v1/collections/fuller/search", {"text": "a dog", "top_k": 3}),
        ):
            answer = http.post(path, json=body)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
    services.eventually(chaos.up_and_ready(slow), 60, "a ready stack")
