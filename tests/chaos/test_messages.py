"""Messages get lost and come twice; the ledger knows better, and every image counts once."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from clipfleet.common.broker import CeleryPublisher, lists_of, make_celery
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.messages import IngestChunk, queue_name
from clipfleet.common.settings import Settings
from support import chaos, stack


@pytest.fixture
def client(slow: stack.Up) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(chaos.redis_url(slow))) as client:
        yield client


@pytest.fixture
def publisher(slow: stack.Up, client: "redis.Redis") -> Iterator[CeleryPublisher]:
    with closing(make_celery(Settings(redis_url=chaos.redis_url(slow)))) as app:
        yield CeleryPublisher(app, client)


def is_over(slow: stack.Up, job: str) -> bool:
    with slow.client() as client:
        return client.job(job).finished_at is not None


def test_messages_that_vanish_change_nothing(
    slow: stack.Up, photos: Path, tiny: Path, client: "redis.Redis"
) -> None:
    job = chaos.begin(slow, "vanishing", photos)
    queue, lost = queue_name("ingest", str(tiny)), 0
    for _ in range(400):
        lost += bool(client.delete(*lists_of(queue)))
        if lost >= 5 or is_over(slow, job):
            break
        time.sleep(0.05)
    assert lost > 1
    chaos.require_exact(slow, job, "vanishing")


def test_a_forgotten_binding_is_made_again(
    slow: stack.Up, photos: Path, tiny: Path, client: "redis.Redis"
) -> None:
    job = chaos.begin(slow, "unbound", photos)
    queue = queue_name("ingest", str(tiny))
    assert client.delete(f"_kombu.binding.{queue}") == 1
    client.delete(*lists_of(queue))
    chaos.require_exact(slow, job, "unbound")


def test_messages_that_come_again_and_again_change_nothing(
    slow: stack.Up,
    photos: Path,
    tiny: Path,
    client: "redis.Redis",
    publisher: CeleryPublisher,
) -> None:
    ledger = RedisLedger(client)
    job = chaos.begin(slow, "doubled", photos)
    sent: set[int] = set()
    while not is_over(slow, job):
        fresh = {chunk.no for chunk in ledger.open_chunks(job)} - sent
        for no in sorted(fresh):
            for _ in range(2):
                publisher.publish(IngestChunk(model=str(tiny), job_id=job, no=no))
        sent |= fresh
        time.sleep(0.02)
    for no in range(1, max(sent) + 2):  # late ones, and one that never was
        publisher.publish(IngestChunk(model=str(tiny), job_id=job, no=no))
    chaos.require_exact(slow, job, "doubled")


def test_a_message_that_makes_no_sense_stops_nobody(
    slow: stack.Up, photos: Path, tiny: Path, publisher: CeleryPublisher
) -> None:
    publisher.publish(IngestChunk(model=str(tiny), job_id="no such job", no=1))
    publisher.publish(IngestChunk(model="another model", job_id="no such job", no=-1))
    with slow.client() as http:
        http.create_collection("sense")
        job = http.index(photos, "sense")
    chaos.require_exact(slow, job.id, "sense")
