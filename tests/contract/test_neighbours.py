"""Records of a neighbouring release in a real Valkey.

They have more or fewer fields, or another version number.
"""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.common.blobs import Blobs
from clipfleet.common.ledger import Claim, Job
from clipfleet.common.ledger.catalogue import KEY, RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.common.queue.fleet import CARD, IDS, RedisFleet
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers.planner import housekeeper
from clipfleet.workers.planner.housekeeper import Housekeeper
from clipfleet.workers.queue import decode
from support import releases
from support.worker_harness import Planning, Workplace

JOB = releases.JOB.id
LONG_AGO = 100 * 86_400.0


@pytest.fixture
def client(client: "redis.Redis") -> "redis.Redis":
    """Redis as this release leaves it, with two jobs and a collection."""
    warn_once.cache_clear()
    releases.keep(client)
    return client


def rewrite(client: "redis.Redis", key: str, field: str, **changes: Any) -> None:
    """Change fields of a record, as another release would have written it; None removes a field."""
    raw: Any = client.hget(key, field)
    record = {**json.loads(raw), **changes}
    record = {name: value for name, value in record.items() if value is not None}
    client.hset(key, field, json.dumps(record))


@pytest.mark.parametrize(
    "changes", [{"colour": {"new": True}}, {"fields": None}], ids=["a field more", "a field less"]
)
def test_a_collection_with_fields_more_or_less_is_as_good(
    client: "redis.Redis", changes: dict[str, Any]
) -> None:
    rewrite(client, KEY, "photos", **changes)
    catalogue = RedisCatalogue(client)
    photos = catalogue.find("photos")
    assert photos
    assert photos.generation == releases.COLLECTION.generation
    assert catalogue.all() == [photos]
    assert catalogue.remove(photos)
    assert catalogue.find("photos") is None


@pytest.mark.parametrize(
    "changes",
    [{"colour": {"new": True}}, {"retry_of": None, "on_existing": None}],
    ids=["a field more", "fields less"],
)
def test_a_job_with_fields_more_or_less_is_as_good(
    client: "redis.Redis", changes: dict[str, Any]
) -> None:
    rewrite(client, f"clipfleet:job:{JOB}", "new", **changes)
    job = RedisLedger(client).job(JOB)
    assert (job.new.collection, job.new.retry_of, job.done) == ("photos", "", 1)


def test_items_and_failures_with_fields_more_or_less_are_as_good(client: "redis.Redis") -> None:
    ledger, failures = RedisLedger(client), f"clipfleet:job:{JOB}:failures"
    (chunk,) = ledger.open_chunks(JOB)
    key = f"clipfleet:job:{JOB}:chunk:{chunk.name}"
    client.hset(key, "items", json.dumps([{"id": "a", "uri": "", "read": "x", "colour": 1}]))
    client.rpush(failures, json.dumps({"id": "b", "uri": "", "reason": "y", "stage": "read"}))
    claim = ledger.claim(releases.MODEL, "w", 15, 2)
    assert isinstance(claim, Claim)
    assert [item.id for item in claim.items] == ["a"]
    assert [failure.id for failure in ledger.failures(JOB)] == ["rome/1.jpg", "b"]


def test_a_newer_collection_is_refused_alone_and_lists_still_answer(
    client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = RedisCatalogue(client)
    catalogue.add(releases.COLLECTION.model_copy(update={"name": "other"}))
    rewrite(client, KEY, "photos", v=2)
    with pytest.raises(
        OtherVersion, match=r"'photos' is in version 2, .* reads version 1: upgrade"
    ):
        catalogue.find("photos")
    for _ in range(3):
        assert [collection.name for collection in catalogue.all()] == ["other"]
    assert caplog.text.count("left out of a list: collection 'photos'") == 1


def test_a_newer_job_is_refused_alone_and_lists_still_answer(client: "redis.Redis") -> None:
    rewrite(client, f"clipfleet:job:{JOB}", "new", v=9)
    ledger = RedisLedger(client)
    for ask in (ledger.job, ledger.cancel):
        with pytest.raises(OtherVersion, match=f"job '{JOB}' is in version 9") as refused:
            ask(JOB)
        assert refused.value.status == 503
    assert [job.id for job in ledger.jobs()] == ["b2"]
    assert [job.id for job in ledger.jobs(collection="photos", states=["queued"])] == ["b2"]


def test_a_newer_worker_is_not_sent_work_which_is_said_once(
    client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    card: Any = {**releases.MESSAGES["worker-card"].model_dump(mode="json"), "id": "w2", "v": 2}
    client.sadd(IDS, "w2")
    client.set(CARD + "w2", json.dumps(card))
    fleet = RedisFleet(client)
    assert fleet.alive() == []
    assert fleet.alive() == []
    assert caplog.text.count("worker 'w2' is in version 2") == 1


def planning(client: "redis.Redis") -> Planning:
    world: Any = Planning()
    world.ledger = RedisLedger(client)
    world.planner = world.new_planner("ours")
    return world  # type: ignore[no-any-return]


def raw_job(client: "redis.Redis") -> Any:
    return client.hgetall(f"clipfleet:job:{JOB}")


def test_a_planner_leaves_a_newer_job_to_a_newer_planner_and_plans_the_others(
    client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    world = planning(client)
    world.worker()
    world.job(3, "ours")
    rewrite(client, f"clipfleet:job:{JOB}", "new", v=9)
    client.hset(f"clipfleet:job:{JOB}", mapping={"planner": "", "planner_until": 0})
    before = raw_job(client)
    for _ in range(3):
        world.planner.tick()
    assert raw_job(client) == before, "its lease is free, its state as it was"
    assert len(world.names(JOB)) == 1, "the one from before"
    assert [len(world.names("ours")), world.nudges()] == [1, 1]
    assert (
        caplog.text.count(f"this planner does not plan the job: job '{JOB}' is in version 9") == 1
    )


def test_the_housekeeper_leaves_newer_jobs(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    for job in (JOB, "b2"):
        ledger.cancel(job)
    client.zadd("clipfleet:jobs:ended", {JOB: 1.0, "b2": 2.0})
    rewrite(client, f"clipfleet:job:{JOB}", "new", v=9)
    unfinished = RedisUnfinished(client)
    client.zadd("clipfleet:uploads:unfinished", {JOB: 1.0})
    blobs = Blobs("memory://clipfleet-neighbours")
    assert Housekeeper("k", ledger, unfinished, blobs, days=1).tidy() == 1
    assert ledger.jobs() == []
    assert raw_job(client)
    assert unfinished.older(LONG_AGO, 10) == [], "it is a job, whatever its version"


def test_newer_jobs_do_not_keep_the_housekeeper_from_later_ones(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeper, "MAX_JOBS", 1)
    ledger = RedisLedger(client)
    for job in (JOB, "b2"):
        ledger.cancel(job)
    client.zadd("clipfleet:jobs:ended", {JOB: 1.0, "b2": 2.0})
    rewrite(client, f"clipfleet:job:{JOB}", "new", v=9)
    blobs = Blobs("memory://clipfleet-neighbours")
    keeper = Housekeeper("k", ledger, RedisUnfinished(client), blobs, days=1)
    assert [keeper.tidy(), keeper.tidy()] == [0, 1]
    assert ledger.jobs() == []


class Place(Workplace):
    """A worker on the real ledger and catalogue."""

    def __init__(self, client: "redis.Redis", folder: Path, threads: ThreadPoolExecutor) -> None:
        super().__init__(folder, threads)
        there: Any = RedisLedger(client), RedisCatalogue(client)
        self.ledger, self.catalogue = there
        self.catalogue.add(self.collection)


@pytest.fixture
def place(client: "redis.Redis", tmp_path: Path) -> Iterator[Place]:
    with ThreadPoolExecutor(2) as threads:
        yield Place(client, tmp_path, threads)


@pytest.mark.parametrize(
    ("key", "field", "version"),
    [("clipfleet:job:job", "new", 3), ("clipfleet:job:job", "new", 1), (KEY, "c", 1)],
    ids=["job", "job without its version beside it", "collection"],
)
def test_a_worker_leaves_the_chunk_of_a_newer_record_as_it_is_and_says_so(
    client: "redis.Redis",
    place: Place,
    key: str,
    field: str,
    version: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No attempt is counted, however often the worker reads the record: nothing is quarantined."""
    monkeypatch.setattr(decode, "PAUSE_S", 0.0)
    place.plan([place.photo("a.jpg")])
    rewrite(client, key, field, v=9)
    client.hset("clipfleet:job:job", "version", version)
    for _ in range(4):
        assert place.work() == 0
    chunk = place.chunk()
    assert (chunk.attempt, chunk.leased) == (0, False)
    waiting: Any = client.hget("clipfleet:job:job", "waiting")
    assert waiting.decode().startswith("worker w skips its chunks: ")
    assert "version 9" in waiting.decode()

    rewrite(client, key, field, v=1)
    client.hset("clipfleet:job:job", "version", 1)
    assert place.work() == 1
    job: Job = place.ledger.job("job")
    assert (job.state, job.done, job.waiting) == ("succeeded", 1, "")


def test_the_log_level_of_these_is_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    warn_once("once")
    warn_once("once")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "once")
    ]
