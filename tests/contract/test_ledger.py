"""The ledger: both implementations through every order of events, side by side."""

import pytest
import redis

from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import (
    Claim,
    Ledger,
    Outcome,
    Refusal,
)
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import LEASE_S, Clock, a_job, claimed, failure, items, planned


def test_a_job_goes_from_queued_to_succeeded(ledger: Ledger, clock: Clock) -> None:
    assert ledger.create(a_job()).state == "queued"
    assert ledger.active() == ["j"]
    lease = ledger.lease("j", "p", 30)
    assert lease
    assert ledger.job("j").state == "running"
    no = ledger.plan("j", lease.token, items("a", "b"), "", "b")
    assert no is not None
    ledger.end_plan("j", lease.token)
    claim = claimed(ledger, no)
    assert [item.id for item in claim.items] == ["a", "b"]
    clock.now += 2
    assert ledger.mark(claim, Outcome(done=1, skipped=1))
    job = ledger.job("j")
    assert (job.state, job.done, job.skipped, job.total) == ("succeeded", 1, 1, 2)
    assert job.finished_at == clock.now
    assert ledger.active() == []


def test_some_failures_make_it_partial_and_only_failures_failed(ledger: Ledger) -> None:
    one, two = planned(ledger, ("a", "b"), ("c",))
    ledger.mark(claimed(ledger, one), Outcome(done=1, failures=(failure("b"),)))
    ledger.mark(claimed(ledger, two), Outcome(done=1))
    assert ledger.job("j").state == "partial"
    assert [f.id for f in ledger.failures("j")] == ["b"]
    ledger.create(a_job("k"))
    lease = ledger.lease("k", "p", 30)
    assert lease
    no = ledger.plan("k", lease.token, items("x"), "", "x")
    ledger.end_plan("k", lease.token)
    claim = ledger.claim("k", no or 0, "w", LEASE_S)
    assert isinstance(claim, Claim)
    ledger.mark(claim, Outcome(failures=(failure("x"),)))
    assert ledger.job("k").state == "failed"
    assert "every image failed" in ledger.job("k").error


def test_every_failure_of_a_chunk_is_listed_in_order(ledger: Ledger) -> None:
    (no,) = planned(ledger, ("a", "b", "c"))
    failures = (failure("c"), failure("a"), failure("b"))
    ledger.mark(claimed(ledger, no), Outcome(failures=failures))
    assert ledger.failures("j") == list(failures)
    assert ledger.job("j").failed == 3


def test_a_chunk_is_claimed_by_one_and_counted_once(ledger: Ledger) -> None:
    (no,) = planned(ledger, ("a",))
    claim = claimed(ledger, no)
    assert ledger.claim("j", no, "other", LEASE_S) is Refusal.HELD
    assert ledger.mark(claim, Outcome(done=1))
    assert not ledger.mark(claim, Outcome(done=1))
    assert ledger.claim("j", no, "other", LEASE_S) is Refusal.CLOSED
    assert ledger.job("j").done == 1


def test_a_stale_token_counts_nothing(ledger: Ledger, clock: Clock) -> None:
    (no,) = planned(ledger, ("a",))
    late = claimed(ledger, no)
    clock.now += LEASE_S + 1
    current = claimed(ledger, no, "other")
    assert current.attempt == 2
    assert not ledger.renew(late, LEASE_S)
    assert not ledger.mark(late, Outcome(done=1))
    assert not ledger.release(late, count_attempt=True)
    assert ledger.job("j").done == 0
    assert ledger.mark(current, Outcome(skipped=1))
    assert ledger.job("j").skipped == 1


def test_a_renewed_lease_holds(ledger: Ledger, clock: Clock) -> None:
    (no,) = planned(ledger, ("a",))
    claim = claimed(ledger, no)
    for _ in range(5):
        clock.now += LEASE_S - 1
        assert ledger.renew(claim, LEASE_S)
    assert ledger.claim("j", no, "other", LEASE_S) is Refusal.HELD


def test_a_released_chunk_waits_for_a_message_again(ledger: Ledger) -> None:
    (no,) = planned(ledger, ("a",))
    ledger.sent("j", no)
    assert ledger.open_chunks("j")[0].waited_s == 0
    assert ledger.release(claimed(ledger, no), count_attempt=False)
    (chunk,) = ledger.open_chunks("j")
    assert (chunk.attempt, chunk.leased, chunk.waited_s) == (0, False, float("inf"))


def test_cancel_ends_the_job_and_still_counts_what_is_in_hand(ledger: Ledger) -> None:
    one, two = planned(ledger, ("a",), ("b", "c"))
    claim = claimed(ledger, one)
    assert ledger.cancel("j", "enough").state == "cancelled"
    assert ledger.claim("j", two, "w", LEASE_S) is Refusal.CLOSED
    assert not ledger.renew(claim, LEASE_S)
    assert ledger.mark(claim, Outcome(done=1))
    job = ledger.cancel("j", "again")
    assert (job.state, job.done, job.total, job.error) == ("cancelled", 1, 3, "enough")
    assert ledger.active() == []


def test_only_the_planner_with_the_lease_plans(ledger: Ledger, clock: Clock) -> None:
    ledger.create(a_job())
    first = ledger.lease("j", "p1", 5)
    assert first
    assert ledger.lease("j", "p2", 5) is None
    assert ledger.plan("j", first.token, items("a"), "", "a") == 1
    clock.now += 6
    second = ledger.lease("j", "p2", 5)
    assert second
    assert second.cursor == "a"
    assert ledger.plan("j", first.token, items("b"), "a", "b") is None
    assert not ledger.end_plan("j", first.token)
    assert ledger.plan("j", second.token, items("b"), "", "b") is None
    assert ledger.plan("j", second.token, items("b"), "a", "b") == 2


def test_a_source_that_breaks_fails_the_job(ledger: Ledger) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    ledger.end_plan("j", lease.token, "the folder is gone")
    job = ledger.job("j")
    assert (job.state, job.error, job.total) == ("failed", "the folder is gone", 0)


def test_a_chunk_that_kills_workers_is_split_until_the_culprit_is_alone(
    ledger: Ledger, clock: Clock
) -> None:
    (no,) = planned(ledger, ("a", "b"))
    for _ in range(3):
        claimed(ledger, no)
        clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    assert (seen.attempt, seen.expired) == (3, True)
    assert ledger.split("j", seen)
    assert not ledger.split("j", seen)
    left, right = ledger.open_chunks("j")
    ledger.mark(claimed(ledger, left.no), Outcome(done=1))
    claimed(ledger, right.no)
    clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    assert ledger.bury("j", seen, failure("b"))
    job = ledger.job("j")
    assert (job.state, job.done, job.failed, job.total) == ("partial", 1, 1, 2)


def test_an_idempotency_key_makes_one_job(ledger: Ledger) -> None:
    assert ledger.create(a_job("one"), "key").id == "one"
    assert ledger.create(a_job("two"), "key").id == "one"
    assert [job.id for job in ledger.jobs()] == ["one"]


def test_unknown_jobs_are_said_to_be_unknown(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        ledger.job("nope")
    with pytest.raises(NotFound):
        ledger.cancel("nope")


def test_an_outcome_must_add_up(ledger: Ledger) -> None:
    (no,) = planned(ledger, ("a", "b"))
    with pytest.raises(ValueError, match="add up"):
        ledger.mark(claimed(ledger, no), Outcome(done=1))


def test_a_redis_that_is_away_is_said_to_be(absent_redis: "redis.Redis") -> None:
    with pytest.raises(Unavailable):
        RedisLedger(absent_redis).jobs()
