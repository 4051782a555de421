"""Valkey that refuses writes (memory or disk full): everyone waits, nobody dies of it for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from clipfleet.common.queue.fleet import CARD, PLANNERS, RedisFleet
from support import chaos, services


@contextmanager
def full(slow_stack: chaos.Up) -> Iterator["redis.Redis"]:
    """Reads are answered, writes are refused: OOM here, MISCONF when it is the disk."""
    with chaos.connection(slow_stack) as client:
        client.config_set("maxmemory", "1")
        try:
            yield client
        finally:
            client.config_set("maxmemory", "0")


def let_announcements_expire(client: "redis.Redis") -> None:
    client.delete(PLANNERS, *client.scan_iter(f"{CARD}*"))


def test_a_job_outlives_a_full_valkey_and_the_service_comes_back(
    slow_stack: chaos.Up, photos: Path
) -> None:
    """Longer than leases and announcements last: workers must announce themselves again."""
    with (
        chaos.held_job(slow_stack, "full", photos) as job,
        chaos.ledger(slow_stack) as ledger,
        full(slow_stack) as client,
    ):
        slow_stack.gate.open()
        let_announcements_expire(client)
        services.eventually(
            lambda: any(chunk.expired for chunk in ledger.open_chunks(job)), 60, "a lost lease"
        )
        assert RedisFleet(client).alive() == []
        assert RedisFleet(client).planners() == []
        assert not slow_stack.ready()
    services.eventually(slow_stack.ready, 60, "a ready stack")
    chaos.require_exact(slow_stack, job, "full")


def test_requests_that_a_full_valkey_cannot_take_say_so(slow_stack: chaos.Up, photos: Path) -> None:
    with slow_stack.client() as client:
        client.create_collection("fuller")
    with full(slow_stack), slow_stack.http() as http:
        source = {"type": "folder", "path": str(photos)}
        for path, body in (
            ("/v1/collections/fuller/jobs", {"source": source}),
            ("/v1/collections/fuller/search", {"text": "a dog", "top_k": 3}),
        ):
            answer = http.post(path, json=body)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
    services.eventually(slow_stack.ready, 60, "a ready stack")
