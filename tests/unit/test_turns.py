"""Jobs take turns, whatever their size."""

from clipfleet.common.ledger import Outcome
from support.worker_harness import Planning


def served(planning: Planning, chunks: int) -> list[str]:
    """The jobs of the chunks that a single worker works on, one after the other."""
    jobs = []
    for _ in range(chunks):
        planning.clock.now += 1
        claim = planning.take()
        jobs.append(claim.job_id)
        planning.ledger.mark(claim, Outcome(done=len(claim.items)))
        planning.tick()
    return jobs


def test_a_small_job_does_not_wait_behind_the_window_of_a_large_one(planning: Planning) -> None:
    planning.job(10_000, "large")
    planning.tick(10)
    planning.take()  # a second worker has one in hand
    planning.job(20, "small")
    planning.tick(2)
    assert served(planning, 3) == ["small", "large", "large"]


def test_two_large_jobs_take_turns(planning: Planning) -> None:
    planning.job(10_000, "one")
    planning.job(10_000, "two")
    planning.tick(10)
    assert served(planning, 8) == ["one", "two"] * 4


def test_a_large_job_goes_on_beside_a_stream_of_newer_ones(planning: Planning) -> None:
    planning.job(10_000, "large")
    planning.tick(10)
    turns = []
    for n in range(20):
        planning.job(20, f"small-{n}")
        planning.tick(2, seconds=1)
        turns += served(planning, 2)
    assert turns.count("large") == 20
    assert len(set(turns)) == 21


def test_many_workers_share_themselves_among_the_jobs(planning: Planning) -> None:
    for n in range(8):
        planning.worker(name=f"w{n}")
    for job in ("one", "two", "three"):
        planning.job(10_000, job)
    planning.tick(10)
    in_hand = [planning.take().job_id for _ in range(9)]
    assert sorted(in_hand) == ["one"] * 3 + ["three"] * 3 + ["two"] * 3
