"""What expired goes, all of it: on a real Valkey and a real folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.workers.planner.housekeeper import DAY_S, Housekeeper
from support import gateways
from support.ledgers import Clock, a_job, ended, traces


class House:
    def __init__(self, client: "redis.Redis", folder: Path) -> None:
        self.clock, self.client, self.folder = Clock(), client, folder
        self.ledger, self.blobs = RedisLedger(client, self.clock), Blobs(str(folder))
        self.unfinished = RedisUnfinished(client, self.clock)

    def keeper(self, name: str = "p", days: float = 30) -> Housekeeper:
        return Housekeeper(name, self.ledger, self.unfinished, self.blobs, days)

    def upload(self, name: str) -> Path:
        """An upload that ended now; its folder among the blobs."""
        source = {"type": "upload", "items": []}
        self.ledger.create(a_job(name).model_copy(update={"source": source}))
        self.blobs.put(f"uploads/{name}/0", BytesIO(b"bytes"))
        self.ledger.cancel(name)
        return self.folder / "uploads" / name


@pytest.fixture
def house(client: "redis.Redis", tmp_path: Path) -> House:
    return House(client, tmp_path)


def test_an_expired_job_goes_with_its_failures_and_uploads(house: House) -> None:
    ended(house.ledger, "old")
    uploaded = house.upload("sent")
    house.clock.now += 20 * DAY_S
    ended(house.ledger, "young")
    house.ledger.create(a_job("running"))
    house.clock.now += 11 * DAY_S
    assert house.keeper().tidy() == 2
    assert {job.id for job in house.ledger.jobs()} == {"running", "young"}
    assert traces(house.client, "old") == traces(house.client, "sent") == []
    assert not uploaded.exists()


def test_uploads_are_kept_as_long_as_their_collection_if_wanted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.housekeeper.MAX_JOBS", 2)
    uploads = [house.upload(f"sent-{n}") for n in range(3)]  # more than one round looks at
    ended(house.ledger, "no-upload")
    existing = {"photos"}
    house.clock.now += 40 * DAY_S
    keeper = Housekeeper("p", house.ledger, house.unfinished, house.blobs, 30, lambda: existing)
    assert sum(keeper.tidy() for _ in range(3)) == 1
    assert {job.id for job in house.ledger.jobs()} == {"sent-0", "sent-1", "sent-2"}
    assert all(folder.exists() for folder in uploads)
    existing.clear()  # the collection was deleted
    assert sum(keeper.tidy() for _ in range(3)) == 3
    assert not any(folder.exists() for folder in uploads)


def test_with_nothing_to_expire_nothing_goes(house: House) -> None:
    uploaded = house.upload("sent")
    house.clock.now += 1_000 * DAY_S
    assert house.keeper(days=0).tidy() == 0
    assert house.keeper(days=1_001).tidy() == 0
    assert uploaded.exists()


def test_a_round_is_bounded_and_the_next_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.housekeeper.MAX_JOBS", 3)
    for n in range(5):
        house.upload(f"j{n}")
    house.clock.now += 40 * DAY_S
    assert [house.keeper().tidy() for _ in range(3)] == [3, 2, 0]


def test_of_several_planners_one_keeps_house(house: House) -> None:
    assert house.keeper("one").tidy() == 0
    house.upload("sent")
    house.clock.now += 40 * DAY_S
    house.keeper("one").tidy()
    house.upload("later")
    house.clock.now += 61
    soon = 60 / DAY_S
    assert house.keeper("two", soon).tidy() == 0
    assert house.keeper("one", soon).tidy() == 1


def test_what_a_running_retry_needs_stays(house: House) -> None:
    ended(house.ledger, "old")
    house.clock.now += 40 * DAY_S
    house.ledger.create(a_job("again", retry_of="old"))
    assert house.keeper().tidy() == 0
    house.ledger.cancel("again")
    assert house.keeper().tidy() == 1
    assert house.ledger.job("again").new.retry_of == "old"


class Away(Blobs):
    def delete_below(self, prefix: str) -> None:
        raise BlobsUnavailable(f"the blob store is away ({prefix})")


def test_while_the_blob_store_is_away_the_record_stays(house: House) -> None:
    uploaded = house.upload("sent")
    house.clock.now += 40 * DAY_S
    house.blobs = Away(str(house.folder))
    with pytest.raises(BlobsUnavailable):
        house.keeper().tidy()
    house.blobs = Blobs(str(house.folder))
    assert house.keeper().tidy() == 1
    assert not uploaded.exists()


@pytest.mark.parametrize("days", [0, 30])
def test_a_removal_that_broke_off_is_completed(house: House, days: float) -> None:
    uploaded = house.upload("sent")
    house.upload("kept")
    house.ledger.begin_removal("sent")
    assert house.keeper(days=days).tidy() == 1
    assert [job.id for job in house.ledger.jobs()] == ["kept"]
    assert traces(house.client, "sent") == house.ledger.removals(9) == []
    assert not uploaded.exists()


def test_what_another_release_left_of_a_removal_is_forgotten(house: House) -> None:
    house.upload("sent")
    house.ledger.begin_removal("sent")
    begun: Any = house.client.zrange("clipfleet:jobs:removing", 0, -1, withscores=True)
    house.ledger.remove("sent")
    house.client.zadd("clipfleet:jobs:removing", dict(begun))
    assert house.keeper().tidy() == 0
    assert house.ledger.removals(9) == []


@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_a_job_is_deleted_with_its_files_or_not_at_all(
    client: "redis.Redis", valkey_url: str, tmp_path: Path, fault: str
) -> None:
    """A full Redis takes no new data, but lets jobs be deleted."""
    house = House(client, tmp_path / "blobs")
    uploaded = house.upload("sent")
    with gateways.in_process(tmp_path, valkey_url) as http:
        with refusing_writes(client, fault):
            answer = http.delete("/v1/jobs/sent")
        refused = fault == "read-only"
        assert (answer.status_code, uploaded.exists()) == ((503, True) if refused else (204, False))
        assert http.delete("/v1/jobs/sent").status_code == (204 if refused else 404)
    assert not uploaded.exists()


@contextmanager
def refusing_writes(client: "redis.Redis", fault: str) -> Iterator[None]:
    if fault == "full":
        client.config_set("maxmemory", 1)
    else:
        client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)
        client.replicaof("NO", "ONE")


def left_over(house: House, name: str) -> Path:
    """What a gateway leaves that was killed while it stored an upload."""
    house.unfinished.begin(name)
    house.blobs.put(f"uploads/{name}/0", BytesIO(b"bytes"))
    return house.folder / "uploads" / name


@pytest.mark.parametrize("days", [0, 30])
def test_an_upload_that_never_became_a_job_goes_after_a_day(house: House, days: float) -> None:
    old = left_over(house, "old")
    house.clock.now += DAY_S / 2
    young = left_over(house, "young")
    house.keeper(days=days).tidy()
    assert old.exists()
    house.clock.now += DAY_S / 2
    house.keeper(days=days).tidy()
    assert (old.exists(), young.exists()) == (False, True)
    assert traces(house.client, "old") == []


def test_an_upload_that_became_a_job_stays_though_its_note_did_too(house: House) -> None:
    house.unfinished.begin("sent")
    uploaded = house.upload("sent")
    house.clock.now += 2 * DAY_S
    house.keeper().tidy()
    assert uploaded.exists()
    assert house.unfinished.older(0, 10) == []


def test_what_lies_in_the_blob_store_without_a_note_is_not_ours_to_remove(house: House) -> None:
    house.blobs.put("uploads/anothers/0", BytesIO(b"bytes"))
    house.clock.now += 400 * DAY_S
    house.keeper().tidy()
    assert (house.folder / "uploads" / "anothers").exists()


def test_while_the_blob_store_is_away_the_note_stays(house: House) -> None:
    old = left_over(house, "old")
    house.clock.now += 2 * DAY_S
    house.blobs = Away(str(house.folder))
    with pytest.raises(BlobsUnavailable):
        house.keeper().tidy()
    house.blobs = Blobs(str(house.folder))
    house.keeper().tidy()
    assert not old.exists()
