"""A chunk whose time is over: what is done counts, and the rest is given back as a chunk."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipfleet.common.fetch import network
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import Item, Job
from clipfleet.workers.ingest import chunk
from support.worker_harness import Workplace

BATCH = HashEmbedder().batch


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """A worker whose chunks have no time: it does the first batch of each."""
    monkeypatch.setattr(chunk, "BUDGET", 0.0)
    monkeypatch.setattr(chunk, "MIN_BUDGET_S", 0.0)
    with ThreadPoolExecutor(2) as threads:
        yield Workplace(tmp_path, threads)


def photos(world: Workplace, count: int) -> list[Item]:
    return [world.photo(f"{n:04d}.jpg", n % 256) for n in range(count)]


def counts(job: Job) -> tuple[str, int, int, int, int]:
    return job.state, job.total, job.done, job.skipped, job.failed


def test_the_first_batch_counts_and_the_rest_is_a_chunk_without_an_attempt(
    world: Workplace,
) -> None:
    first = world.plan(photos(world, 2 * BATCH + 3))
    assert world.work() == BATCH
    assert counts(world.ledger.job("job")) == ("running", 2 * BATCH + 3, BATCH, 0, 0)
    assert world.store.count(world.collection) == BATCH
    rest = world.chunk()
    assert rest.name != first
    assert (rest.size, rest.attempt, rest.leased) == (BATCH + 3, 0, False)


def test_claim_after_claim_every_image_counts_once(world: Workplace) -> None:
    world.plan(photos(world, 2 * BATCH + 3))
    assert [world.work() for _ in range(4)] == [BATCH, BATCH, 3, 0]
    assert counts(world.ledger.job("job")) == ("succeeded", 2 * BATCH + 3, 2 * BATCH + 3, 0, 0)
    assert world.store.count(world.collection) == 2 * BATCH + 3


def test_a_chunk_ends_after_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(2) as threads:
        world = Workplace(tmp_path, threads)
        items = photos(world, 4 * BATCH)
        size = (world.folder / "0000.jpg").stat().st_size
        monkeypatch.setattr(chunk, "CHUNK_BYTES", size * BATCH // 2)
        world.plan(items)
        worked = world.work()
        assert BATCH // 2 <= worked < 4 * BATCH
        while world.work():
            pass
        assert counts(world.ledger.job("job")) == ("succeeded", 4 * BATCH, 4 * BATCH, 0, 0)


def test_items_that_need_no_work_count_once_and_are_not_given_back(world: Workplace) -> None:
    good = photos(world, BATCH + 2)
    bad = [world.item(world.folder / "x.jpg", problem="the name is odd")]
    gone = world.item(world.folder / "gone.jpg")
    doubled = good[-2:]
    world.plan([*bad, *doubled, *good, gone])
    total = BATCH + 6
    assert world.work() == BATCH + 3
    assert counts(world.ledger.job("job")) == ("running", total, BATCH, 2, 1)
    assert world.chunk().size == 3
    assert world.work() == 3
    assert counts(world.ledger.job("job")) == ("partial", total, BATCH + 2, 2, 2)
    assert world.reasons().keys() == {"x.jpg", "gone.jpg"}


def test_a_second_attempt_gives_back_all_but_one_and_stays_a_second_attempt(
    world: Workplace,
) -> None:
    world.plan(photos(world, 3))
    assert world.next_claim(seconds=1)
    world.clock.now += 2
    (expired,) = world.ledger.open_chunks("job")
    assert world.ledger.requeue("job", expired)
    for done in (1, 2):
        assert world.work() == 1
        assert world.ledger.job("job").done == done
        assert (world.chunk().size, world.chunk().attempt) == (3 - done, 1)
    assert world.work() == 1
    assert counts(world.ledger.job("job")) == ("succeeded", 3, 3, 0, 0)


def test_a_chunk_of_nothing_but_bad_names_ends_although_its_time_is_over(world: Workplace) -> None:
    bad = [world.item(world.folder / f"{n}.jpg", problem="the name is odd") for n in range(3)]
    job = world.run(bad)
    assert counts(job) == ("failed", 3, 0, 0, 3)


def test_a_chunk_of_a_cancelled_job_gives_no_rest_back(world: Workplace) -> None:
    class Cancelling(HashEmbedder):
        def embed_images(self, pixels):  # type: ignore[no-untyped-def]
            world.ledger.cancel("job")
            return super().embed_images(pixels)

    world.embedder = Cancelling()
    world.plan(photos(world, BATCH + 2))
    world.work()
    job = world.ledger.job("job")
    assert job.state == "cancelled"
    assert job.done in (BATCH, 0), "none when the worker notices it before its mark"
    assert world.ledger.open_chunks("job") == []


def test_with_time_left_a_chunk_is_done_at_once(
    world: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "MIN_BUDGET_S", 3_600.0)
    job = world.run(photos(world, 2 * BATCH + 3))
    assert (job.state, job.done, job.chunks) == ("succeeded", 2 * BATCH + 3, 1)


def test_an_image_whose_host_name_cannot_be_looked_up_now_is_given_back(
    world: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "REMOTE_BUDGET", 0.0)
    monkeypatch.setattr(chunk, "MIN_REMOTE_BUDGET_S", 0.1)
    monkeypatch.setattr(network, "MAX_LOOK_UPS", 0)
    world.plan([Item(id="a", uri="a", read="url:http://name.test/a.jpg")])
    assert world.work(remote=True) == 0
    assert counts(world.ledger.job("job")) == ("running", 1, 0, 0, 0)
    monkeypatch.setattr(network, "MAX_LOOK_UPS", 2)
    world.look_up = lambda *_: ["127.0.0.1"]
    assert world.work(remote=True) == 1
    assert "not a public one" in world.reasons()["a"]
