"""The ledger through every order of events, on both implementations."""

import pytest
import redis

from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import Ledger, Outcome
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import (
    LEASE_S,
    MAX_ATTEMPTS,
    MODEL,
    Clock,
    a_job,
    claimed,
    failure,
    items,
    next_claim,
    planned,
    requeue,
)


def test_a_job_goes_from_queued_to_succeeded(ledger: Ledger, clock: Clock) -> None:
    assert ledger.create(a_job()).state == "queued"
    assert ledger.active() == ["j"]
    lease = ledger.lease("j", "p", 30)
    assert lease
    assert ledger.job("j").state == "running"
    chunk = ledger.plan("j", lease.token, items("a", "b"), "", "b")
    ledger.finish_planning("j", lease.token, "b")
    claim = claimed(ledger)
    assert (claim.job_id, claim.chunk, claim.index) == ("j", chunk, 1)
    assert [item.id for item in claim.items] == ["a", "b"]
    clock.now += 2
    assert ledger.mark(claim, Outcome(done=1, skipped=1))
    job = ledger.job("j")
    assert (job.state, job.done, job.skipped, job.total) == ("succeeded", 1, 1, 2)
    assert job.finished_at == clock.now
    assert ledger.active() == []


def test_some_failures_make_it_partial_and_only_failures_failed(ledger: Ledger) -> None:
    planned(ledger, ("a", "b"), ("c",))
    ledger.mark(claimed(ledger), Outcome(done=1, failures=(failure("b"),)))
    ledger.mark(claimed(ledger), Outcome(done=1))
    assert ledger.job("j").state == "partial"
    assert [f.id for f in ledger.failures("j")] == ["b"]
    planned(ledger, ("x",), job="k")
    ledger.mark(claimed(ledger), Outcome(failures=(failure("x"),)))
    assert ledger.job("k").state == "failed"
    assert "every image failed" in ledger.job("k").error


def test_every_failure_of_a_chunk_is_listed_in_order(ledger: Ledger) -> None:
    (no,) = planned(ledger, ("a", "b", "c"))
    failures = (failure("c"), failure("a"), failure("b"))
    ledger.mark(claimed(ledger, no), Outcome(failures=failures))
    assert ledger.failures("j") == list(failures)
    assert ledger.job("j").failed == 3


def test_a_chunk_is_claimed_by_one_and_counted_once(ledger: Ledger) -> None:
    planned(ledger, ("a",))
    claim = claimed(ledger)
    assert next_claim(ledger, "other") is None
    assert ledger.mark(claim, Outcome(done=1))
    assert not ledger.mark(claim, Outcome(done=1))
    assert next_claim(ledger, "other") is None
    assert ledger.job("j").done == 1


def test_a_stale_token_counts_nothing(ledger: Ledger, clock: Clock) -> None:
    planned(ledger, ("a",))
    late = claimed(ledger)
    clock.now += LEASE_S + 1
    assert next_claim(ledger, "other") is None, "the planner has not looked yet"
    assert requeue(ledger) == 1
    current = claimed(ledger, "other")
    assert (current.chunk, current.attempt) == (late.chunk, 2)
    assert current.token != late.token
    assert not ledger.renew(late, LEASE_S)
    assert not ledger.suspect(late, 0)
    assert not ledger.mark(late, Outcome(done=1))
    assert not ledger.release(late, count_attempt=True)
    assert ledger.job("j").done == 0
    assert ledger.mark(current, Outcome(skipped=1))
    assert ledger.job("j").skipped == 1


def test_a_late_holder_counts_until_its_chunk_is_claimed_again(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a",), ("b",))
    late, later = claimed(ledger), claimed(ledger)
    clock.now += LEASE_S + 1
    assert requeue(ledger) == 2
    assert requeue(ledger) == 0
    assert ledger.mark(late, Outcome(done=1))
    assert ledger.renew(later, LEASE_S)
    assert next_claim(ledger, "other") is None
    assert ledger.mark(later, Outcome(done=1))
    assert ledger.job("j").done == 2


def test_a_renewed_lease_holds(ledger: Ledger, clock: Clock) -> None:
    planned(ledger, ("a",))
    claim = claimed(ledger)
    for _ in range(5):
        clock.now += LEASE_S - 1
        assert ledger.renew(claim, LEASE_S)
    assert requeue(ledger) == 0
    assert next_claim(ledger, "other") is None


def test_only_a_chunk_whose_lease_ran_out_becomes_pending_again(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a",))
    claim = claimed(ledger)
    (leased,) = ledger.open_chunks("j")
    assert not ledger.requeue("j", leased)
    clock.now += LEASE_S + 1
    (expired,) = ledger.open_chunks("j")
    ledger.renew(claim, LEASE_S)
    assert not ledger.requeue("j", expired), "its holder came back"
    ledger.release(claim, count_attempt=False)
    assert not ledger.requeue("j", expired), "of an attempt that was not counted"


def test_a_released_chunk_is_pending_again(ledger: Ledger) -> None:
    planned(ledger, ("a",))
    assert ledger.pending(MODEL, 5) == 1
    claim = claimed(ledger)
    assert ledger.pending(MODEL, 5) == 0
    assert ledger.release(claim, count_attempt=False)
    (chunk,) = ledger.open_chunks("j")
    assert (chunk.name, chunk.attempt, chunk.leased) == (claim.chunk, 0, False)
    assert ledger.pending(MODEL, 5) == 1
    assert claimed(ledger).chunk == claim.chunk


def test_pending_chunks_are_counted_by_model_and_up_to_a_limit(ledger: Ledger) -> None:
    planned(ledger, ("a",), ("b",), ("c",))
    planned(ledger, ("d",), job="k")
    counts = [ledger.pending(MODEL, limit) for limit in (0, 1, 2, 4, 9)]
    assert counts == [0, 1, 2, 4, 4]
    assert ledger.pending("another model", 9) == 0
    claimed(ledger)
    assert ledger.pending(MODEL, 9) == 3
    ledger.cancel("j")
    assert ledger.pending(MODEL, 9) == 1
    ledger.remove("k")
    assert ledger.pending(MODEL, 9) == 0


def test_a_claim_says_whether_more_chunks_are_pending(ledger: Ledger) -> None:
    planned(ledger, ("a",), ("b",))
    planned(ledger, ("c",), job="k")
    assert [claimed(ledger).more for _ in range(3)] == [True, True, False]
    assert next_claim(ledger) is None


def test_claims_of_another_model_find_nothing(ledger: Ledger) -> None:
    planned(ledger, ("a",))
    assert ledger.claim("another model", "w", LEASE_S, MAX_ATTEMPTS) is None
    assert ledger.pending(MODEL, 9) == 1


def test_a_chunk_that_was_tried_too_often_is_left_to_the_planner(ledger: Ledger) -> None:
    planned(ledger, ("a",), ("b",))
    first = claimed(ledger)
    for _ in range(MAX_ATTEMPTS - 1):
        ledger.release(first, count_attempt=True)
        first = claimed(ledger)
    ledger.release(first, count_attempt=True)
    assert claimed(ledger).chunk != first.chunk
    assert next_claim(ledger) is None


def test_the_job_with_the_fewest_chunks_in_hand_comes_first(ledger: Ledger, clock: Clock) -> None:
    """A small job gets a worker although a large one has many chunks pending."""
    planned(ledger, *((f"large-{n}",) for n in range(6)), job="large")
    for _ in range(2):
        claimed(ledger)
    clock.now += 1
    planned(ledger, ("small",), job="small")
    assert [claimed(ledger).job_id for _ in range(3)] == ["small", "large", "large"]


def test_jobs_with_as_many_chunks_in_hand_take_turns(ledger: Ledger, clock: Clock) -> None:
    for job in ("one", "two", "three"):
        planned(ledger, *((f"{job}-{n}",) for n in range(3)), job=job)
    order = []
    for _ in range(9):  # a single worker
        clock.now += 1
        claim = claimed(ledger)
        order.append(claim.job_id)
        ledger.mark(claim, Outcome(done=1))
    assert [sorted(order[turn : turn + 3]) for turn in (0, 3, 6)] == [["one", "three", "two"]] * 3


def test_keys_take_turns_however_many_jobs_each_has(ledger: Ledger, clock: Clock) -> None:
    """A hundred jobs of one key delay another key's job by one chunk."""
    for n in range(100):
        clock.now += 1
        planned(ledger, ("a",), ("b",), job=f"many-{n:03d}", key="many")
    clock.now += 1
    planned(ledger, ("a",), ("b",), ("c",), job="other", key="other")
    claims = []
    for _ in range(6):  # a single worker
        clock.now += 1
        claims.append(claimed(ledger))
        ledger.mark(claims[-1], Outcome(done=1))
    order = [claim.job_id for claim in claims]
    assert order == ["many-000", "other", "many-001", "other", "many-002", "other"]


def test_the_key_with_the_fewest_chunks_in_hand_comes_first(ledger: Ledger, clock: Clock) -> None:
    for n in range(4):
        planned(ledger, ("a",), ("b",), job=f"many-{n}", key="many")
    first = [claimed(ledger).job_id for _ in range(3)]
    assert first == ["many-0", "many-1", "many-2"]
    clock.now += 1
    planned(ledger, *((f"other-{n}",) for n in range(9)), job="other", key="other")
    assert [claimed(ledger).job_id for _ in range(3)] == ["other"] * 3


def test_the_turn_of_a_key_does_not_depend_on_a_job_that_was_removed(
    ledger: Ledger, clock: Clock
) -> None:
    """What a removed or cancelled job had in hand counts no more."""
    planned(ledger, ("a",), ("b",), job="gone", key="one")
    planned(ledger, ("a",), ("b",), job="cancelled", key="one")
    for _ in range(4):
        claimed(ledger)
    ledger.remove("gone")
    ledger.cancel("cancelled", "")
    planned(ledger, ("a",), job="later", key="one")
    planned(ledger, ("a",), ("b",), job="other", key="other")
    clock.now += 1
    assert claimed(ledger).job_id == "other"
    assert claimed(ledger).job_id == "later"
    assert claimed(ledger).job_id == "other"


def test_an_expired_lease_counts_as_in_hand_until_the_chunk_is_pending_again(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a",), ("b",), job="one")
    claimed(ledger)
    clock.now += LEASE_S + 1
    planned(ledger, ("c",), job="two")
    assert claimed(ledger).job_id == "two"
    assert requeue(ledger, "one") == 1
    assert [item.id for item in claimed(ledger).items] == ["a"]


def test_chunks_of_one_job_come_in_the_order_of_planning(ledger: Ledger) -> None:
    names = planned(ledger, *((f"{n}",) for n in range(12)))
    assert [claimed(ledger).chunk for _ in range(12)] == names


def test_cancel_ends_the_job_and_still_counts_what_is_in_hand(ledger: Ledger) -> None:
    planned(ledger, ("a",), ("b", "c"))
    claim = claimed(ledger)
    assert ledger.cancel("j", "enough").state == "cancelled"
    assert next_claim(ledger) is None
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
    assert ledger.plan("j", first.token, items("a"), "", "a")
    clock.now += 6
    second = ledger.lease("j", "p2", 5)
    assert second
    assert second.cursor == "a"
    assert ledger.plan("j", first.token, items("b"), "a", "b") is None
    assert not ledger.finish_planning("j", first.token, "a")
    assert ledger.plan("j", second.token, items("b"), "", "b") is None
    assert ledger.plan("j", second.token, items("b"), "a", "b")
    assert [chunk.size for chunk in ledger.open_chunks("j")] == [1, 1]


def test_a_source_that_breaks_fails_the_job(ledger: Ledger) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    ledger.finish_planning("j", lease.token, "", "the folder is gone")
    job = ledger.job("j")
    assert (job.state, job.error, job.total) == ("failed", "the folder is gone", 0)


def test_a_chunk_that_kills_workers_is_split_until_the_culprit_is_alone(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a", "b"))
    for _ in range(3):
        requeue(ledger)
        claimed(ledger)
        clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    assert (seen.attempt, seen.expired) == (3, True)
    assert ledger.split("j", seen)
    assert not ledger.split("j", seen)
    first, second = ledger.open_chunks("j")
    claim = claimed(ledger)
    assert (claim.chunk, claim.attempt) == (first.name, 3)
    ledger.mark(claim, Outcome(done=1))
    assert claimed(ledger).chunk == second.name
    clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    assert ledger.quarantine("j", seen, failure("b"))
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
    planned(ledger, ("a", "b"))
    with pytest.raises(ValueError, match="add up"):
        ledger.mark(claimed(ledger), Outcome(done=1))


def test_a_redis_that_is_away_is_said_to_be(absent_redis: "redis.Redis") -> None:
    with pytest.raises(Unavailable):
        RedisLedger(absent_redis).jobs()
