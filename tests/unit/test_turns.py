"""Jobs take turns, whatever their size."""

from clipfleet.common.messages import IngestChunk
from support.worker_harness import Planning


def test_a_small_job_does_not_wait_behind_the_window_of_a_large_one(planning: Planning) -> None:
    planning.job(10_000, "large")
    planning.tick(10)
    planning.take()
    planning.job(20, "small")
    planning.tick(2)
    assert planning.in_order()[0] == "small"


def test_two_large_jobs_take_turns(planning: Planning) -> None:
    planning.job(10_000, "one")
    planning.job(10_000, "two")
    planning.tick(10)
    assert planning.in_order() == ["one", "two"] * 4


def test_a_job_whose_turn_it_is_is_not_starved_by_a_stream_of_newer_ones(
    planning: Planning,
) -> None:
    """Its next chunk was sent to come after others; with nothing under way it has to come first."""
    planning.job(10_000, "large")
    planning.tick(10)
    planning.serve()  # the one that came first; the others were sent to come later
    planning.publisher.sent[:0] = [IngestChunk(model="m", job_id="newer", no=1)]  # not empty
    planning.publisher.priorities[:0] = [0]
    before = len(planning.nudges("large"))
    planning.tick(30, seconds=1)
    assert len(planning.nudges("large")) == before + 2  # one for the window, and one more at 0
    assert planning.in_order().index("large") == 1
