"""What every release wrote is read by this one, and what this one writes is read by the last.

The golden files are what each release wrote; support/releases.py writes those of the next.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from clipfleet.common.catalogue import RedisCatalogue
from clipfleet.common.ledger import Claim, Outcome
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.store.rows import to_record, to_row
from clipfleet.common.unfinished import RedisUnfinished
from clipfleet.common.versions import read
from support import releases

RELEASES = sorted(releases.GOLDEN.iterdir())
JOB = releases.JOB.id


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture
def client(client: "redis.Redis", release: Path) -> "redis.Redis":
    """Redis as that release left it."""
    releases.load(client, document(release, "redis"))
    return client


def document(release: Path, name: str) -> Any:
    return json.loads((release / f"{name}.json").read_text())


def missing(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Fields that the old has and the new has not."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from (f"{where}.{key}" for key in old if key not in new)
        for key in old.keys() & new.keys():
            yield from missing(old[key], new[key], f"{where}.{key}")
    if isinstance(old, list) and isinstance(new, list):
        for mine, theirs in zip(old, new, strict=True):
            yield from missing(mine, theirs, f"{where}[]")


@pytest.mark.parametrize("name", releases.MESSAGES)
def test_messages_and_records_of_every_release_are_read(release: Path, name: str) -> None:
    expected = releases.MESSAGES[name]
    raw = (release / f"{name}.json").read_text()
    assert read(type(expected), raw, name) == expected


@pytest.mark.parametrize("name", releases.MESSAGES)
def test_what_is_written_has_every_field_that_the_last_release_reads(name: str) -> None:
    last, now = document(RELEASES[-1], name), releases.MESSAGES[name].model_dump(mode="json")
    assert last.get("v") == now.get("v"), "of another number: see docs/upgrades.md"
    assert list(missing(last, now)) == []


def test_rows_of_every_release_are_read(release: Path) -> None:
    row = document(release, "row")
    found, expected = to_record(releases.COLLECTION, row), releases.RECORD
    assert np.allclose(found.embedding, expected.embedding)
    assert found.metadata == expected.metadata
    assert found.values() == expected.values()


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
    assert ledger.made("a-key") == job
    assert ledger.active() == [JOB, "b2"]

    lease = ledger.lease(JOB, "planner-2", 10)
    assert lease
    assert (lease.cursor, lease.planned) == ("2", False)
    assert [chunk.no for chunk in ledger.open_chunks(JOB)] == [2]
    claim = ledger.claim(JOB, 2, "worker-2", 15)
    assert isinstance(claim, Claim)
    assert claim.items == releases.ITEMS
    assert ledger.mark(claim, Outcome(done=3))
    assert ledger.end_plan(JOB, lease.token)
    assert ledger.job(JOB).state == "partial"
    ledger.remove(JOB)
    assert ledger.active() == ["b2"]


def test_a_collection_of_another_release_can_be_deleted(client: "redis.Redis") -> None:
    catalogue = RedisCatalogue(client)
    assert catalogue.all() == [releases.COLLECTION]
    assert catalogue.remove(releases.COLLECTION)
    assert catalogue.all() == []


def test_an_upload_that_another_release_began_is_known(client: "redis.Redis") -> None:
    assert RedisUnfinished(client).older(0, 10) == ["c3"]
