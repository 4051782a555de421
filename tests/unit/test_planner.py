"""The planner keeps a bounded window, loses and repeats no image, and isolates failing images."""

from collections.abc import Mapping, Sequence

import pytest

from clipfleet.common.ledger import Item, Outcome
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.workers.planner.chunk_size import FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK
from support.ledgers import LEASE_S
from support.worker_harness import Planning


def test_every_image_is_planned_once_and_the_job_succeeds(planning: Planning) -> None:
    planning.job(150)
    assert planning.finish() == [f"job-{n}" for n in range(150)]
    job = planning.ledger.job("job")
    assert (job.state, job.total, job.done) == ("succeeded", 150, 150)


def test_the_window_is_bounded_until_chunks_are_marked(planning: Planning) -> None:
    planning.job(10_000)
    planning.tick(50)
    assert len(planning.ledger.open_chunks("job")) == 4
    planning.serve()
    planning.tick(50)
    assert len(planning.ledger.open_chunks("job")) == 4
    for n in range(3):
        planning.worker(name=f"w{n}")
    planning.tick(50)
    assert len(planning.ledger.open_chunks("job")) == 10


@pytest.mark.parametrize(
    ("rate", "size"), [(None, FIRST_CHUNK), (10, 40), (0.1, SMALLEST_CHUNK), (9e9, LARGEST_CHUNK)]
)
def test_a_chunk_holds_what_a_worker_does_in_the_time_it_should_take(
    planning: Planning, rate: float | None, size: int
) -> None:
    planning.worker(rate)
    planning.job(12_000)
    planning.tick(5)  # a slow machine plans less at a time
    assert [chunk.size for chunk in planning.ledger.open_chunks("job")][:3] == [size] * 3


@pytest.mark.parametrize(("rate", "size"), [(10, 40), (0.1, SMALLEST_CHUNK), (9e9, LARGEST_CHUNK)])
def test_the_rate_of_a_jobs_own_chunks_counts_once_it_is_known(
    planning: Planning, rate: float, size: int
) -> None:
    """The speed of the workers with other jobs does not matter."""
    planning.worker(rate=100)
    planning.job(9_000)
    planning.tick()
    while planning.pending():
        claim = planning.take()
        assert len(claim.items) == 400
        planning.ledger.mark(claim, Outcome(done=len(claim.items), rate=rate))
    planning.tick()
    assert [chunk.size for chunk in planning.ledger.open_chunks("job")][:3] == [size] * 3


def test_chunks_grow_with_the_job_where_several_workers_share_it(planning: Planning) -> None:
    """Each has many chunks, so that they end together, with the work of half a second at least."""
    for n in range(3):
        planning.worker(rate=100, name=f"w{n}")
    planning.job(9_000)
    sizes = []
    while planning.ledger.job("job").state in ("queued", "running"):
        planning.tick()
        while planning.pending():
            claim = planning.take()
            sizes.append(len(claim.items))
            planning.ledger.mark(claim, Outcome(done=len(claim.items)))
    assert sizes[:10] == [50] * 10
    assert max(sizes) <= 9_000 / 48
    assert max(sizes) > 150
    assert sum(sizes) == 9_000


def test_chunks_of_which_little_is_left_make_room_for_others(planning: Planning) -> None:
    """A chunk with one image left, which waits for a slow server, counts as small."""
    planning.job(10_000)
    planning.tick(50)
    assert len(planning.ledger.open_chunks("job")) == 4
    for _ in range(4):
        claim = planning.take()
        outcome = Outcome(done=len(claim.items) - 1, kept=claim.items[-1:])
        assert planning.ledger.mark(claim, outcome)
    planning.tick(50)
    sizes = [chunk.size for chunk in planning.ledger.open_chunks("job")]
    assert sizes == [1] * 4 + [FIRST_CHUNK] * 3


def test_chunks_of_a_job_are_bounded_however_little_is_left_of_each(planning: Planning) -> None:
    planning.job(10_000)
    for _ in range(60):
        planning.tick()
        while claim := planning.next_claim():
            outcome = Outcome(done=len(claim.items) - 1, kept=claim.items[-1:])
            assert planning.ledger.mark(claim, outcome)
    assert len(planning.ledger.open_chunks("job")) == 16


def test_a_job_without_workers_says_why_the_last_one_ended(planning: Planning) -> None:
    planning.fleet.record_exit_reason("m", "the device cuda is broken: CUDA error")
    planning.job(10)
    planning.tick()
    assert planning.ledger.job("job").waiting.endswith(
        "no live worker serves the ingest lane of model 'm'; the last worker exited: "
        "the device cuda is broken: CUDA error"
    )
    planning.worker()
    planning.tick()
    assert planning.ledger.job("job").waiting == ""


def test_a_chunk_whose_worker_died_is_pending_again_and_only_after_its_lease(
    planning: Planning,
) -> None:
    planning.job(20)
    planning.tick(2)
    lost = planning.take()
    planning.tick(2, seconds=LEASE_S / 2 - 1)
    assert planning.pending() == 0
    planning.tick(seconds=3)
    assert planning.pending() == 1
    again = planning.take()
    assert (again.chunk, again.attempt) == (lost.chunk, 2)


def test_a_chunk_that_was_handed_back_is_pending_at_once(planning: Planning) -> None:
    planning.job(20)
    planning.tick(2)
    claim = planning.take()
    planning.ledger.release(claim, count_attempt=False)
    assert planning.pending() == 1
    assert planning.take().chunk == claim.chunk


def test_the_culprit_is_found_alone_and_the_others_go_through(planning: Planning) -> None:
    planning.job(33)
    for _ in range(2_000):
        planning.tick(seconds=4)
        if not planning.ledger.active():
            break
        while claim := planning.next_claim(seconds=1):
            if "job-13" not in {item.id for item in claim.items}:
                planning.ledger.mark(claim, Outcome(done=len(claim.items)))
    job = planning.ledger.job("job")
    assert (job.state, job.done, job.failed) == ("partial", 32, 1)
    (failure,) = planning.ledger.failures("job")
    assert failure.id == "job-13"
    assert failure.stage == "worker"
    assert "quarantined" in failure.reason


def test_of_two_planners_one_plans_and_the_other_takes_over_where_it_was(
    planning: Planning,
) -> None:
    planning.job(300)
    other = planning.new_planner("two")
    planning.tick()
    first = planning.ledger.job("job").total
    planning.tick(3, planner=other)
    assert planning.ledger.job("job").total == first
    seen = planning.serve()
    planning.clock.now += 60
    seen += planning.finish(other)
    assert seen == [f"job-{n}" for n in range(300)]


def test_a_planner_that_was_away_and_comes_back_doubles_nothing(planning: Planning) -> None:
    planning.job(400)
    other = planning.new_planner("two")
    seen: list[str] = []
    for round_ in range(60):
        planning.tick(planner=other if round_ % 2 else planning.planner, seconds=11)
        seen += planning.serve_all()
    assert seen == [f"job-{n}" for n in range(400)]
    assert planning.ledger.job("job").state == "succeeded"


def test_a_planner_that_ends_gives_its_jobs_away_at_once(planning: Planning) -> None:
    planning.job(300)
    planning.tick()
    planning.serve()
    planning.planner.release()
    planning.tick(planner=planning.new_planner("two"))
    assert planning.ledger.job("job").total == 5 * FIRST_CHUNK


def test_an_empty_source_fails_the_job_in_words(planning: Planning) -> None:
    planning.job(0)
    planning.tick(2)
    job = planning.ledger.job("job")
    assert (job.state, job.error) == ("failed", "the upload was empty")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"type": "folder", "path": "/etc"}, "outside the folders"),
        ({"type": "folder"}, "cannot be read"),
        ({"type": "ftp"}, "unknown kind of source"),
        ({"type": "upload", "items": [{"no": "id"}]}, "cannot be read"),
    ],
)
def test_a_source_that_cannot_be_read_fails_its_job_in_words(
    planning: Planning, source: dict[str, object], reason: str
) -> None:
    planning.job_of(source)
    planning.job(3, "fine")
    planning.tick(3)
    job = planning.ledger.job("job")
    assert job.state == "failed"
    assert reason in job.error
    assert planning.ledger.job("fine").total == 3


class Watching(MemoryLedger):
    """A ledger that records the jobs whose chunks are planned, in the order of planning."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[str] = []

    def plan(
        self,
        job_id: str,
        token: str,
        items: Sequence[Item],
        after: str,
        cursor: str,
        notes: Mapping[str, int] | None = None,
        skipped: int = 0,
    ) -> str | None:
        self.turns.append(job_id)
        return super().plan(job_id, token, items, after, cursor, notes, skipped)


def test_the_windows_of_two_jobs_are_filled_in_one_round_turn_by_turn() -> None:
    ledger = Watching()
    planning = Planning(ledger)
    planning.job(1_000, "a")
    planning.job(1_000, "b")
    planning.tick()
    assert ledger.turns == ["a", "b"] * 4


def test_without_a_worker_the_job_says_what_it_waits_for(planning: Planning) -> None:
    planning.job(10)
    planning.tick()
    assert "no live worker" in planning.ledger.job("job").waiting


def test_a_cancelled_job_is_planned_no_further(planning: Planning) -> None:
    planning.job(1_000)
    planning.tick()
    planning.ledger.cancel("job")
    planning.tick(5)
    assert planning.ledger.job("job").total == 4 * FIRST_CHUNK
    assert planning.names() == []
