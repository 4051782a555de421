"""Messages get lost and come twice; the ledger knows better, and every image counts once."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
import stack
from chaos import work

from clipfleet.common.broker import CeleryPublisher, make_celery
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.messages import IngestChunk, queue_name
from clipfleet.common.settings import Settings


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work.many_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[stack.Up]:
    with stack.up(tmp_path_factory.mktemp("messages"), tiny, **work.SLOW) as running:
        yield running


@pytest.fixture
def client(running: stack.Up) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(work.redis_url(running))) as client:
        yield client


@pytest.fixture
def publisher(running: stack.Up, client: "redis.Redis") -> Iterator[CeleryPublisher]:
    with closing(make_celery(Settings(redis_url=work.redis_url(running)))) as app:
        yield CeleryPublisher(app, client)


def is_over(running: stack.Up, job: str) -> bool:
    with running.client() as client:
        return client.job(job).finished_at is not None


def test_messages_that_vanish_change_nothing(
    running: stack.Up, photos: Path, tiny: Path, client: "redis.Redis"
) -> None:
    job = work.begin(running, "vanishing", photos)
    queue, lost = queue_name("ingest", str(tiny)), 0
    for _ in range(400):
        lost += bool(client.delete(queue))
        if lost >= 5 or is_over(running, job):
            break
        time.sleep(0.05)
    assert lost > 1
    work.require_exact(running, job, "vanishing")


def test_a_forgotten_binding_is_made_again(
    running: stack.Up, photos: Path, tiny: Path, client: "redis.Redis"
) -> None:
    job = work.begin(running, "unbound", photos)
    queue = queue_name("ingest", str(tiny))
    assert client.delete(f"_kombu.binding.{queue}") == 1
    client.delete(queue)
    work.require_exact(running, job, "unbound")


def test_messages_that_come_again_and_again_change_nothing(
    running: stack.Up,
    photos: Path,
    tiny: Path,
    client: "redis.Redis",
    publisher: CeleryPublisher,
) -> None:
    ledger = RedisLedger(client)
    job = work.begin(running, "doubled", photos)
    sent: set[int] = set()
    while not is_over(running, job):
        fresh = {chunk.no for chunk in ledger.open_chunks(job)} - sent
        for no in sorted(fresh):
            for _ in range(2):
                publisher.publish(IngestChunk(model=str(tiny), job_id=job, no=no))
        sent |= fresh
        time.sleep(0.02)
    for no in range(1, max(sent) + 2):  # late ones, and one that never was
        publisher.publish(IngestChunk(model=str(tiny), job_id=job, no=no))
    work.require_exact(running, job, "doubled")


def test_a_message_that_makes_no_sense_stops_nobody(
    running: stack.Up, photos: Path, tiny: Path, publisher: CeleryPublisher
) -> None:
    publisher.publish(IngestChunk(model=str(tiny), job_id="no such job", no=1))
    publisher.publish(IngestChunk(model="another model", job_id="no such job", no=-1))
    with running.client() as http:
        http.create_collection("sense")
        job = http.index(photos, "sense")
    work.require_exact(running, job.id, "sense")
