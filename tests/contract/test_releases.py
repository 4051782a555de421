"""This release reads what every release wrote; the last release reads what this one writes.

Each golden file was written by the release in its path; support/releases.py writes the next ones.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from clipfleet.common.ledger import Claim, Outcome
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.common.store.rows import to_record, to_row
from clipfleet.common.versions import parse_versioned
from support import releases

RELEASES = sorted(releases.GOLDEN.iterdir())
JOB = releases.JOB.id


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def client(client: "redis.Redis", release: Path) -> "redis.Redis":
    """Redis as an earlier release left it."""
    releases.load(client, document(release, "redis"))
    return client


def document(release: Path, name: str) -> Any:
    return json.loads((release / f"{name}.json").read_text())


def missing(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield the fields that the old document has and the new one lacks."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from (f"{where}.{key}" for key in old if key not in new)
        for key in old.keys() & new.keys():
            yield from missing(old[key], new[key], f"{where}.{key}")
    if isinstance(old, list) and isinstance(new, list):
        for mine, theirs in zip(old, new, strict=True):
            yield from missing(mine, theirs, f"{where}[]")


def of_today(name: str) -> str:
    """Return the present name of a kind of document."""
    return "ingest-nudge" if name == "ingest-chunk" else name


KINDS = [
    (path, path.stem)
    for folder in RELEASES
    for path in sorted(folder.glob("*.json"))
    if path.stem not in ("redis", "row")
]


@pytest.mark.parametrize(("path", "name"), KINDS, ids=[f"{p.parent.name}-{n}" for p, n in KINDS])
def test_messages_and_records_of_every_release_are_read(path: Path, name: str) -> None:
    expected = releases.MESSAGES[of_today(name)]
    assert parse_versioned(type(expected), path.read_text(), name) == expected


LAST = [name for path, name in KINDS if path.parent == RELEASES[-1] and name == of_today(name)]


@pytest.mark.parametrize("name", LAST)
def test_what_is_written_has_every_field_that_the_last_release_reads(name: str) -> None:
    last, now = document(RELEASES[-1], name), releases.MESSAGES[name].model_dump(mode="json")
    assert last.get("v") == now.get("v"), "of another number: see docs/upgrades.md"
    assert list(missing(last, now)) == []


def test_rows_of_every_release_are_read(release: Path) -> None:
    row = document(release, "row")
    record, expected = to_record(releases.COLLECTION, row), releases.RECORD
    assert np.allclose(record.embedding, expected.embedding)
    assert record.metadata == expected.metadata
    assert record.values() == expected.values()


def test_rows_fit_the_columns_that_collections_of_the_last_release_have() -> None:
    now = to_row(releases.COLLECTION, releases.RECORD)
    assert now == document(RELEASES[-1], "row")


def test_a_job_that_another_release_began_is_brought_to_its_end(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    job = ledger.job(JOB)
    assert job.new == releases.JOB
    assert (job.state, job.total, job.estimated) == ("running", 6, 100)
    assert (job.done, job.skipped, job.failed) == (1, 1, 1)
    assert job.waiting == "the blob store cannot be written: disk full"
    assert ledger.failures(JOB) == [releases.FAILURE]
    assert ledger.find_by_idempotency_key("a-key") == job
    assert ledger.active() == [JOB, "b2"]

    lease = ledger.lease(JOB, "planner-2", 10)
    assert lease
    assert (lease.cursor, lease.planned) == ("2", False)
    (chunk,) = ledger.open_chunks(JOB)
    assert ledger.pending(releases.MODEL, 9) == 1
    claim = ledger.claim(releases.MODEL, "worker-2", 15, 2)
    assert isinstance(claim, Claim)
    assert (claim.job_id, claim.chunk, claim.index, claim.attempt) == (JOB, chunk.name, 2, 1)
    assert claim.items == releases.ITEMS
    assert ledger.mark(claim, Outcome(done=3))
    assert ledger.finish_planning(JOB, lease.token, "2")
    assert ledger.job(JOB).state == "partial"
    ledger.remove(JOB)
    assert ledger.active() == ["b2"]


def test_a_worker_finds_the_chunks_of_another_release_once_a_planner_has_the_job(
    client: "redis.Redis", release: Path
) -> None:
    """Release 0.1 kept no index of pending chunks, and its messages named them."""
    ledger = RedisLedger(client)
    before = ledger.claim(releases.MODEL, "worker-2", 15, 2)
    assert before is None or release.name != "0.1"
    assert ledger.lease(JOB, "planner-2", 10)
    assert ledger.lease("b2", "planner-2", 10)
    assert ledger.pending(releases.MODEL, 9) == (1 if before is None else 0)


def test_jobs_of_another_release_are_listed_and_counted_by_state(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    assert [job.id for job in ledger.jobs(states=["running"])] == [JOB]
    assert [job.id for job in ledger.jobs(states=["queued"], collection="photos")] == ["b2"]
    assert [job.id for job in ledger.jobs(sees=lambda name: name == "photos")] == ["b2", JOB]
    assert ledger.jobs(sees=lambda name: name != "photos") == []
    counts = {state: count for state, count in ledger.count_jobs().items() if count}
    assert counts == {"queued": 1, "running": 1}


def test_what_another_release_does_beside_this_one_is_listed_and_counted(
    client: "redis.Redis",
) -> None:
    ledger = RedisLedger(client)
    before = ledger.count_jobs()
    client.hset(f"clipfleet:job:{JOB}", "state", "succeeded")  # it ends a job,
    client.srem("clipfleet:jobs:active", JOB)
    client.zadd("clipfleet:jobs:ended", {JOB: 1.0})
    assert ledger.count_jobs() == {**before, "running": 0, "succeeded": 1}
    assert [job.id for job in ledger.jobs(states=["succeeded"])] == [JOB]
    assert ledger.jobs(states=["running"]) == []
    client.rename("clipfleet:job:b2", "clipfleet:job:b3")  # makes one and removes one
    for index in ("jobs", "jobs:in:photos"):
        client.zadd(f"clipfleet:{index}", {"b3": 1.0})
        client.zrem(f"clipfleet:{index}", "b2")
    client.srem("clipfleet:jobs:active", "b2")
    client.sadd("clipfleet:jobs:active", "b3")
    assert ledger.count_jobs() == {**before, "running": 0, "succeeded": 1}


def test_a_planner_is_offered_the_jobs_of_another_release(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)

    def offered() -> tuple[str, ...]:
        return ledger.tend("planner-2", 10, limit=9, offers=9, max_attempts=2).offered

    assert set(offered()) == {JOB, "b2"}
    assert offered() == (), "not twice within a second"
    assert ledger.lease(JOB, "planner-2", 10)
    assert ledger.owned("planner-2") == [JOB]
    assert ledger.tend("planner-2", 10, limit=9, offers=9, max_attempts=2).looks[0].open == 1


def test_a_planner_of_another_release_keeps_its_job_until_its_lease_runs_out(
    client: "redis.Redis",
) -> None:
    now = [releases.NOON + 5]
    ledger = RedisLedger(client, lambda: now[0])
    assert ledger.lease(JOB, "planner-2", 10) is None
    now[0] += 6
    assert ledger.lease(JOB, "planner-2", 10)


def test_chunks_of_another_release_and_of_this_one_are_worked_on_side_by_side(
    client: "redis.Redis",
) -> None:
    ledger = RedisLedger(client)
    lease = ledger.lease(JOB, "planner-2", 10)
    assert lease
    new = ledger.plan(JOB, lease.token, releases.ITEMS, "2", "3")
    claims = [ledger.claim(releases.MODEL, "worker-2", 15, 2) for _ in range(2)]
    claimed = [claim for claim in claims if isinstance(claim, Claim)]
    assert sorted(claim.index for claim in claimed) == [2, 3]
    assert new in [claim.chunk for claim in claimed]
    assert all(ledger.mark(claim, Outcome(done=3)) for claim in claimed)
    assert ledger.finish_planning(JOB, lease.token, "3")
    job = ledger.job(JOB)
    assert (job.state, job.total, job.done) == ("partial", 9, 7)


def test_a_chunk_of_another_release_whose_worker_is_gone_is_taken_apart(
    client: "redis.Redis",
) -> None:
    now = [releases.NOON + 100]
    ledger = RedisLedger(client, lambda: now[0])
    ledger.lease(JOB, "planner-2", 10)
    ledger.claim(releases.MODEL, "worker-2", 15, 2)
    now[0] += 16
    (expired,) = ledger.open_chunks(JOB)
    assert ledger.requeue(JOB, expired)
    ledger.claim(releases.MODEL, "worker-2", 15, 2)
    now[0] += 16
    (expired,) = ledger.open_chunks(JOB)
    assert ledger.split(JOB, expired)
    assert sorted(chunk.size for chunk in ledger.open_chunks(JOB)) == [1, 2]


def test_a_collection_of_another_release_can_be_deleted(client: "redis.Redis") -> None:
    catalogue = RedisCatalogue(client)
    assert catalogue.all() == [releases.COLLECTION]
    assert catalogue.remove(releases.COLLECTION)
    assert catalogue.all() == []


def test_an_upload_that_another_release_began_is_known(client: "redis.Redis") -> None:
    assert RedisUnfinished(client).older(0, 10) == ["c3"]
