"""Messages get lost and come twice; the ledger knows better, and every image counts once."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from clipfleet.common.broker import CeleryPublisher, lists_of, make_celery
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.messages import IngestChunk, queue_name
from clipfleet.common.settings import Settings
from support import chaos, services
from support.stack import HASH_MODEL

QUEUE = queue_name("ingest", HASH_MODEL)


@pytest.fixture
def client(slow: chaos.Up) -> Iterator["redis.Redis"]:
    with chaos.connection(slow) as client:
        yield client


@pytest.fixture
def publisher(slow: chaos.Up, client: "redis.Redis") -> Iterator[CeleryPublisher]:
    with closing(make_celery(Settings(redis_url=chaos.redis_url(slow)))) as app:
        yield CeleryPublisher(app, client)


def test_messages_that_vanish_change_nothing(
    slow: chaos.Up, photos: Path, client: "redis.Redis"
) -> None:
    """Those of several chunks, twice."""
    with chaos.held_job(slow, "vanishing", photos) as job:
        for _ in range(2):
            services.eventually(lambda: client.delete(*lists_of(QUEUE)), 60, "a message")
    chaos.require_exact(slow, job, "vanishing")


def test_a_forgotten_binding_is_made_again(
    slow: chaos.Up, photos: Path, client: "redis.Redis"
) -> None:
    with chaos.held_job(slow, "unbound", photos) as job:
        assert client.delete(f"_kombu.binding.{QUEUE}") == 1
        client.delete(*lists_of(QUEUE))
    chaos.require_exact(slow, job, "unbound")


def test_messages_that_come_again_and_again_change_nothing(
    slow: chaos.Up, photos: Path, client: "redis.Redis", publisher: CeleryPublisher
) -> None:
    ledger = RedisLedger(client)
    doubled: set[int] = set()

    def send(*numbers: int) -> None:
        for no in numbers:
            publisher.publish(IngestChunk(model=HASH_MODEL, job_id=job, no=no))

    def is_over() -> bool:
        """Every chunk that is seen open is sent twice more."""
        fresh = {chunk.no for chunk in ledger.open_chunks(job)} - doubled
        send(*sorted(fresh), *sorted(fresh))
        doubled.update(fresh)
        return ledger.job(job).finished_at is not None

    with chaos.held_job(slow, "doubled", photos) as job:
        services.eventually(lambda: not is_over() and len(doubled) >= 4, 60, "a full window")
    services.eventually(is_over, chaos.END_S, "the end of the job")
    send(*range(1, max(doubled) + 2))  # late ones, and one that never was
    chaos.require_exact(slow, job, "doubled")


def test_a_message_that_makes_no_sense_stops_nobody(
    slow: chaos.Up, photos: Path, publisher: CeleryPublisher
) -> None:
    publisher.publish(IngestChunk(model=HASH_MODEL, job_id="no such job", no=1))
    publisher.publish(IngestChunk(model="another model", job_id="no such job", no=-1))
    with slow.client() as http:
        http.create_collection("sense")
        job = http.index(photos, "sense")
    chaos.require_exact(slow, job.id, "sense")
