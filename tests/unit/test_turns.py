"""Jobs take turns, whatever their size."""

import pytest

from clipfleet.common.messages import IngestChunk
from support.worker_harness import Planning


@pytest.fixture
def world() -> Planning:
    return Planning()


def test_a_small_job_does_not_wait_behind_the_window_of_a_large_one(world: Planning) -> None:
    world.job(10_000, "large")
    world.tick(10)
    world.take()
    world.job(20, "small")
    world.tick(2)
    assert world.in_order()[0] == "small"


def test_two_large_jobs_take_turns(world: Planning) -> None:
    world.job(10_000, "one")
    world.job(10_000, "two")
    world.tick(10)
    assert world.in_order() == ["one", "two"] * 4


def test_a_job_whose_turn_it_is_is_not_starved_by_a_stream_of_newer_ones(world: Planning) -> None:
    """Its next chunk was sent to come after others; with nothing under way it has to come first."""
    world.job(10_000, "large")
    world.tick(10)
    world.serve()  # the one that came first; the others were sent to come later
    world.publisher.sent[:0] = [IngestChunk(model="m", job_id="newer", no=1)]  # not empty
    world.publisher.priorities[:0] = [0]
    before = len(world.nudges("large"))
    world.tick(30, seconds=1)
    assert len(world.nudges("large")) == before + 2  # one for the window, and one more at 0
    assert world.in_order().index("large") == 1
