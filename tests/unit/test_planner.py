"""The planner: a bounded window, nothing lost, nothing doubled, culprits found."""

import pytest

from clipfleet.common.ledger import Outcome
from clipfleet.workers.chunk_size import FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK
from support.ledgers import LEASE_S
from support.worker_harness import Planning


@pytest.fixture
def world() -> Planning:
    return Planning()


def test_every_image_is_planned_once_and_the_job_succeeds(world: Planning) -> None:
    world.job(150)
    assert world.finish() == [f"job-{n}" for n in range(150)]
    job = world.ledger.job("job")
    assert (job.state, job.total, job.done) == ("succeeded", 150, 150)


def test_the_window_is_bounded_until_chunks_are_marked(world: Planning) -> None:
    world.job(10_000)
    world.tick(50)
    assert len(world.ledger.open_chunks("job")) == 4
    world.serve()
    world.tick(50)
    assert len(world.ledger.open_chunks("job")) == 4
    for n in range(3):
        world.worker(name=f"w{n}")
    world.tick(50)
    assert len(world.ledger.open_chunks("job")) == 8


@pytest.mark.parametrize(
    ("rate", "size"), [(None, FIRST_CHUNK), (10, 40), (0.1, SMALLEST_CHUNK), (9e9, LARGEST_CHUNK)]
)
def test_a_chunk_holds_what_a_worker_does_in_the_time_it_should_take(
    world: Planning, rate: float | None, size: int
) -> None:
    world.worker(rate)
    world.job(2_000)
    world.tick()
    assert [chunk.size for chunk in world.ledger.open_chunks("job")] == [size]


def test_a_job_without_workers_says_why_the_last_one_ended(world: Planning) -> None:
    world.fleet.leave_word("m", "the device cuda is broken: CUDA error")
    world.job(10)
    world.tick()
    assert world.ledger.job("job").waiting.endswith(
        "no live worker serves the ingest lane of model 'm'; the last one ended itself: "
        "the device cuda is broken: CUDA error"
    )
    world.worker()
    world.tick()
    assert world.ledger.job("job").waiting == ""


def test_a_chunk_whose_worker_died_is_pending_again_and_only_after_its_lease(
    world: Planning,
) -> None:
    world.job(20)
    world.tick(2)
    lost = world.take()
    world.tick(2, seconds=LEASE_S / 2 - 1)
    assert world.pending() == 0
    world.tick(seconds=3)
    assert world.pending() == 1
    again = world.take()
    assert (again.chunk, again.attempt) == (lost.chunk, 2)


def test_a_chunk_that_was_handed_back_is_pending_at_once(world: Planning) -> None:
    world.job(20)
    world.tick(2)
    claim = world.take()
    world.ledger.release(claim, count_attempt=False)
    assert world.pending() == 1
    assert world.take().chunk == claim.chunk


def test_the_culprit_is_found_alone_and_the_others_go_through(world: Planning) -> None:
    world.job(33)
    for _ in range(2_000):
        world.tick(seconds=4)
        if not world.ledger.active():
            break
        while claim := world.next_claim(seconds=1):
            if "job-13" not in {item.id for item in claim.items}:
                world.ledger.mark(claim, Outcome(done=len(claim.items)))
    job = world.ledger.job("job")
    assert (job.state, job.done, job.failed) == ("partial", 32, 1)
    (failure,) = world.ledger.failures("job")
    assert failure.id == "job-13"
    assert failure.stage == "worker"
    assert "quarantined" in failure.reason


def test_of_two_planners_one_plans_and_the_other_takes_over_where_it_was(world: Planning) -> None:
    world.job(300)
    other = world.new_planner("two")
    world.tick()
    first = world.ledger.job("job").total
    world.tick(3, planner=other)
    assert world.ledger.job("job").total == first
    seen = world.serve()
    world.clock.now += 60
    seen += world.finish(other)
    assert seen == [f"job-{n}" for n in range(300)]


def test_a_planner_that_was_away_and_comes_back_doubles_nothing(world: Planning) -> None:
    world.job(400)
    other = world.new_planner("two")
    seen: list[str] = []
    for round_ in range(60):
        world.tick(planner=other if round_ % 2 else world.planner, seconds=11)
        seen += world.serve_all()
    assert seen == [f"job-{n}" for n in range(400)]
    assert world.ledger.job("job").state == "succeeded"


def test_a_planner_that_ends_gives_its_jobs_away_at_once(world: Planning) -> None:
    world.job(300)
    world.tick()
    world.planner.release()
    world.tick(planner=world.new_planner("two"))
    assert world.ledger.job("job").total == 2 * FIRST_CHUNK


def test_an_empty_source_fails_the_job_in_words(world: Planning) -> None:
    world.job(0)
    world.tick(2)
    job = world.ledger.job("job")
    assert (job.state, job.error) == ("failed", "the upload was empty")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"type": "folder", "path": "/etc"}, "outside the folders"),
        ({"type": "folder"}, "cannot be read"),
        ({"type": "ftp"}, "unknown kind of source"),
        ({"type": "upload", "items": [{"no": "id"}]}, "cannot be read"),
    ],
)
def test_a_source_that_cannot_be_read_fails_its_job_in_words(
    world: Planning, source: dict[str, object], said: str
) -> None:
    world.job_of(source)
    world.job(3, "fine")
    world.tick(3)
    job = world.ledger.job("job")
    assert job.state == "failed"
    assert said in job.error
    assert world.ledger.job("fine").total == 3


def test_two_jobs_are_planned_turn_by_turn(world: Planning) -> None:
    world.job(1_000, "a")
    world.job(1_000, "b")
    for rounds in (1, 2, 3):
        world.tick()
        totals = [world.ledger.job(job).total for job in ("a", "b")]
        assert totals == [rounds * FIRST_CHUNK] * 2


def test_without_a_worker_the_job_says_what_it_waits_for(world: Planning) -> None:
    world.job(10)
    world.tick()
    assert "no live worker" in world.ledger.job("job").waiting


def test_a_cancelled_job_is_planned_no_further(world: Planning) -> None:
    world.job(1_000)
    world.tick()
    world.ledger.cancel("job")
    world.tick(5)
    assert world.ledger.job("job").total == FIRST_CHUNK
    assert world.names() == []
