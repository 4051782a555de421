"""Messages are lost and doubled. They name no chunk, so every image counts once."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.broker import CeleryPublisher, make_celery, queue_keys
from clipfleet.common.queue.messages import IngestNudge, queue_name
from clipfleet.common.settings import Settings
from support import chaos, services
from support.stack import HASH_MODEL

QUEUE = queue_name("ingest", HASH_MODEL)


@pytest.fixture
def client(slow_stack: chaos.Up) -> Iterator["redis.Redis"]:
    with chaos.connection(slow_stack) as client:
        yield client


@pytest.fixture
def publisher(slow_stack: chaos.Up, client: "redis.Redis") -> Iterator[CeleryPublisher]:
    with closing(make_celery(Settings(redis_url=chaos.redis_url(slow_stack)))) as app:
        yield CeleryPublisher(app, client)


def test_messages_that_vanish_change_nothing(
    slow_stack: chaos.Up, photos: Path, client: "redis.Redis"
) -> None:
    with chaos.held_job(slow_stack, "vanishing", photos) as job:
        for _ in range(2):
            services.eventually(lambda: client.delete(*queue_keys(QUEUE)), 60, "a message")
    chaos.require_exact(slow_stack, job, "vanishing")


def test_a_forgotten_binding_is_made_again(
    slow_stack: chaos.Up, photos: Path, client: "redis.Redis"
) -> None:
    with chaos.held_job(slow_stack, "unbound", photos) as job:
        assert client.delete(f"_kombu.binding.{QUEUE}") == 1
        client.delete(*queue_keys(QUEUE))
    chaos.require_exact(slow_stack, job, "unbound")


def test_messages_that_come_again_and_again_change_nothing(
    slow_stack: chaos.Up, photos: Path, client: "redis.Redis", publisher: CeleryPublisher
) -> None:
    """Many more than there are workers or chunks, before the work, in the midst of it, after it."""
    ledger = RedisLedger(client)

    def send(count: int) -> None:
        for _ in range(count):
            publisher.publish(IngestNudge(model=HASH_MODEL))

    def is_over() -> bool:
        send(3)
        return ledger.job(job).finished_at is not None

    send(20)
    with chaos.held_job(slow_stack, "doubled", photos) as job:
        send(20)
    services.eventually(is_over, chaos.END_S, "the end of the job")
    send(20)
    chaos.require_exact(slow_stack, job, "doubled")
    services.eventually(lambda: not publisher.waiting(QUEUE), 60, "an empty queue")


def test_the_queue_does_not_grow_while_workers_are_busy(
    slow_stack: chaos.Up, photos: Path, client: "redis.Redis", publisher: CeleryPublisher
) -> None:
    """However often the planner looks at the job. Its only worker may have passed on one more."""
    rounds: set[object] = set()
    lengths: set[int] = set()

    def has_looked_ten_times() -> bool:
        rounds.add(client.zrange("clipfleet:jobs:planners", 0, -1, withscores=True)[0][1])
        lengths.add(publisher.waiting(QUEUE))
        return len(rounds) > 10

    with chaos.held_job(slow_stack, "bounded", photos) as job:
        services.eventually(lambda: RedisLedger(client).pending(HASH_MODEL, 3) == 2, 60, "a window")
        services.eventually(has_looked_ten_times, 60, "ten rounds of the planner")
        assert lengths <= {1, 2}
    chaos.require_exact(slow_stack, job, "bounded")


def test_a_message_of_release_0_1_counts_as_a_nudge(
    slow_stack: chaos.Up, photos: Path, publisher: CeleryPublisher
) -> None:
    """It names a chunk, here one that never was."""

    class IngestChunk(IngestNudge):
        job_id: str = "no such job"
        no: int = -1

    publisher.publish(IngestChunk(model=HASH_MODEL))
    publisher.publish(IngestChunk(model="another model"))
    with slow_stack.client() as http:
        http.create_collection("old")
        job = http.index("old", photos)
    chaos.require_exact(slow_stack, job.id, "old")
