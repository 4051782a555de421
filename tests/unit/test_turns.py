"""Jobs take turns, whatever their size."""

import pytest

from clipfleet.common.ledger import Outcome
from support.worker_harness import Planning


@pytest.fixture
def world() -> Planning:
    return Planning()


def served(world: Planning, chunks: int) -> list[str]:
    """The jobs of the chunks that a single worker works on, one after the other."""
    jobs = []
    for _ in range(chunks):
        world.clock.now += 1
        claim = world.take()
        jobs.append(claim.job_id)
        world.ledger.mark(claim, Outcome(done=len(claim.items)))
        world.tick()
    return jobs


def test_a_small_job_does_not_wait_behind_the_window_of_a_large_one(world: Planning) -> None:
    world.job(10_000, "large")
    world.tick(10)
    world.take()  # a second worker has one in hand
    world.job(20, "small")
    world.tick(2)
    assert served(world, 3) == ["small", "large", "large"]


def test_two_large_jobs_take_turns(world: Planning) -> None:
    world.job(10_000, "one")
    world.job(10_000, "two")
    world.tick(10)
    assert served(world, 8) == ["one", "two"] * 4


def test_a_large_job_goes_on_beside_a_stream_of_newer_ones(world: Planning) -> None:
    world.job(10_000, "large")
    world.tick(10)
    turns = []
    for n in range(20):
        world.job(20, f"small-{n}")
        world.tick(2, seconds=1)
        turns += served(world, 2)
    assert turns.count("large") == 20
    assert len(set(turns)) == 21


def test_many_workers_share_themselves_among_the_jobs(world: Planning) -> None:
    for n in range(8):
        world.worker(name=f"w{n}")
    for job in ("one", "two", "three"):
        world.job(10_000, job)
    world.tick(10)
    in_hand = [world.take().job_id for _ in range(9)]
    assert sorted(in_hand) == ["one"] * 3 + ["three"] * 3 + ["two"] * 3
