"""The planner: a bounded window, nothing lost, nothing doubled, culprits found."""

from collections import Counter

import pytest

from clipfleet.common.ledger import Claim, Outcome
from clipfleet.common.messages import IngestChunk
from clipfleet.workers.chunk_size import FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK
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
    assert len(planning.ledger.open_chunks("job")) == 8


@pytest.mark.parametrize(
    ("rate", "size"), [(None, FIRST_CHUNK), (10, 40), (0.1, SMALLEST_CHUNK), (9e9, LARGEST_CHUNK)]
)
def test_a_chunk_holds_what_a_worker_does_in_the_time_it_should_take(
    planning: Planning, rate: float | None, size: int
) -> None:
    planning.worker(rate)
    planning.job(2_000)
    planning.tick()
    assert [chunk.size for chunk in planning.ledger.open_chunks("job")] == [size]


def test_a_job_without_workers_says_why_the_last_one_ended(planning: Planning) -> None:
    planning.fleet.leave_word("m", "the device cuda is broken: CUDA error")
    planning.job(10)
    planning.tick()
    assert planning.ledger.job("job").waiting.endswith(
        "no live worker serves the ingest lane of model 'm'; the last one ended itself: "
        "the device cuda is broken: CUDA error"
    )
    planning.worker()
    planning.tick()
    assert planning.ledger.job("job").waiting == ""


def test_while_all_is_fine_no_message_is_sent_twice(planning: Planning) -> None:
    planning.job(10_000)
    planning.tick(100, seconds=1)
    assert max(Counter(planning.nudges()).values()) == 1


def test_messages_that_were_lost_are_sent_again(planning: Planning) -> None:
    planning.job(100)
    planning.tick(6)
    wanted = sorted(planning.nudges())
    planning.publisher.sent.clear()
    planning.tick(5)
    assert planning.nudges() == []
    planning.tick(seconds=4)
    assert sorted(planning.nudges()) == wanted


def test_a_chunk_whose_worker_died_is_sent_again_and_only_after_its_lease(
    planning: Planning,
) -> None:
    planning.job(20)
    planning.tick(2)
    no = planning.take().no
    planning.tick(2, seconds=7)
    assert planning.nudges() == []
    planning.tick(seconds=2)
    assert planning.nudges() == [no]


def test_a_chunk_that_was_handed_back_is_sent_again_at_once(planning: Planning) -> None:
    planning.job(200)
    planning.tick(4)
    claim = planning.take()
    planning.ledger.release(claim, count_attempt=False)
    planning.tick()
    assert planning.nudges().count(claim.no) == 1


def test_a_lost_message_is_sent_again_even_if_the_queue_never_empties(planning: Planning) -> None:
    """Another job may keep it full for days."""
    planning.job(20)
    planning.tick()
    lost = planning.publisher.sent.pop()
    planning.job(10_000, "endless")
    planning.tick(80, seconds=5)
    assert lost in planning.publisher.sent


def test_an_expired_chunk_is_not_sent_again_while_its_message_waits(planning: Planning) -> None:
    """Or, with every worker dead, the queue grows by a message per chunk every few seconds."""
    planning.job(20)
    planning.tick(2)
    no = planning.take().no
    planning.tick(30, seconds=4)
    assert planning.nudges() == [no]


def test_the_culprit_is_found_alone_and_the_others_go_through(planning: Planning) -> None:
    planning.job(33)
    for _ in range(2_000):
        planning.tick(seconds=4)
        if not planning.ledger.active():
            break
        while planning.publisher.sent:
            message = planning.publisher.sent.pop(0)
            assert isinstance(message, IngestChunk)
            claim = planning.ledger.claim(message.job_id, message.no, "w", 1)
            if isinstance(claim, Claim) and "job-13" not in {item.id for item in claim.items}:
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
    planning.publisher.sent.clear()
    seen += planning.finish(other)
    assert seen == [f"job-{n}" for n in range(300)]


def test_a_planner_that_was_away_and_comes_back_doubles_nothing(planning: Planning) -> None:
    planning.job(400)
    other = planning.new_planner("two")
    seen: list[str] = []
    for round_ in range(60):
        planning.tick(planner=other if round_ % 2 else planning.planner, seconds=11)
        while planning.publisher.sent:
            seen += planning.serve()
    assert seen == [f"job-{n}" for n in range(400)]
    assert planning.ledger.job("job").state == "succeeded"


def test_a_planner_that_ends_gives_its_jobs_away_at_once(planning: Planning) -> None:
    planning.job(300)
    planning.tick()
    planning.planner.release()
    planning.tick(planner=planning.new_planner("two"))
    assert planning.ledger.job("job").total == 2 * FIRST_CHUNK


def test_an_empty_source_fails_the_job_in_words(planning: Planning) -> None:
    planning.job(0)
    planning.tick(2)
    job = planning.ledger.job("job")
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
    planning: Planning, source: dict[str, object], said: str
) -> None:
    planning.job_of(source)
    planning.job(3, "fine")
    planning.tick(3)
    job = planning.ledger.job("job")
    assert job.state == "failed"
    assert said in job.error
    assert planning.ledger.job("fine").total == 3


def test_two_jobs_are_planned_turn_by_turn(planning: Planning) -> None:
    planning.job(1_000, "a")
    planning.job(1_000, "b")
    planning.tick(3)
    sent = [one.job_id for one in planning.publisher.sent if isinstance(one, IngestChunk)]
    assert sent == ["a", "b", "a", "b", "a", "b"]


def test_without_a_worker_the_job_says_what_it_waits_for(planning: Planning) -> None:
    planning.job(10)
    planning.tick()
    assert "no live worker" in planning.ledger.job("job").waiting


def test_a_cancelled_job_is_planned_no_further(planning: Planning) -> None:
    planning.job(1_000)
    planning.tick()
    planning.ledger.cancel("job")
    planning.tick(5)
    assert len(planning.nudges()) == 1
