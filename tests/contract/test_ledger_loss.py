"""The ledger in Redis after repeated commands, and with counts that do not add up."""

import pytest
import redis

from clipfleet.common.ledger import Ledger, Outcome, PlanLease, Unknown
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import (
    LEASE_S,
    MAX_ATTEMPTS,
    MODEL,
    Clock,
    Names,
    a_job,
    claimed,
    dumped,
    failure,
    items,
    next_claim,
    planned,
    requeue,
    restore,
)

JOB = "clipfleet:job:j"


@pytest.fixture
def ledger(client: "redis.Redis", clock: Clock) -> RedisLedger:
    return RedisLedger(client, clock, Names())


def repeating_ledger(client: "redis.Redis", clock: Clock) -> RedisLedger:
    """Return a ledger that gives every command the same name, like a client that repeats one."""
    return RedisLedger(client, clock, lambda: "same")


def test_a_claim_that_is_sent_twice_gets_the_same_chunk(
    ledger: RedisLedger, client: "redis.Redis", clock: Clock
) -> None:
    planned(ledger, ("a",), ("b",))
    repeating = repeating_ledger(client, clock)
    first = claimed(repeating)
    clock.now += LEASE_S / 2
    assert claimed(repeating) == first
    assert first.attempt == 1
    assert [chunk.leased for chunk in ledger.open_chunks("j")] == [True, False]
    assert claimed(ledger).chunk != first.chunk


@pytest.mark.parametrize("end", ["marked", "released", "claimed by another", "removed"])
def test_a_claim_that_is_over_leaves_no_answer_for_a_repeated_command(
    ledger: RedisLedger, client: "redis.Redis", clock: Clock, end: str
) -> None:
    planned(ledger, ("a",))
    claim = claimed(repeating_ledger(client, clock))
    assert list(client.scan_iter("clipfleet:ask:*")) == [b"clipfleet:ask:same"]
    assert 0 < int(client.ttl("clipfleet:ask:same")) <= LEASE_S
    if end == "marked":
        ledger.mark(claim, Outcome(done=1))
    elif end == "released":
        ledger.release(claim, count_attempt=False)
    elif end == "removed":
        ledger.remove("j")
    else:
        clock.now += LEASE_S + 1
        requeue(ledger)
        claimed(ledger)
    assert b"clipfleet:ask:same" not in list(client.scan_iter("clipfleet:ask:*"))


def test_a_job_of_an_unknown_version_is_left_to_others(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    planned(ledger, ("a",))
    client.hset(JOB, "version", 99)
    for _ in range(2):
        assert ledger.claim(MODEL, "w", LEASE_S, MAX_ATTEMPTS) == Unknown("j")
    (chunk,) = ledger.open_chunks("j")
    assert (chunk.attempt, chunk.leased) == (0, False)
    planned(ledger, ("b",), job="known")
    assert claimed(ledger).job_id == "known"


def test_the_holder_of_a_chunk_that_redis_forgot_counts_for_no_other_chunk(
    client: "redis.Redis",
) -> None:
    """The planner plans the forgotten items again as a larger chunk; another worker claims it."""
    ledger = RedisLedger(client)
    ids = [f"i{n}" for n in range(1_000)]
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    ledger.plan("j", lease.token, items(*ids[:32]), "", "32")
    assert ledger.mark(claimed(ledger, "A"), Outcome(done=32))
    on_disk = dumped(client)
    ledger.plan("j", lease.token, items(*ids[32:64]), "32", "64")
    forgotten = claimed(ledger, "A")

    restore(client, on_disk)
    again = ledger.lease("j", "p", 30)
    assert again == PlanLease(lease.token, "32", planned=False)
    ledger.plan("j", lease.token, items(*ids[32:544]), "32", "544")
    current = claimed(ledger, "B")
    assert (current.index, current.attempt) == (forgotten.index, forgotten.attempt)
    assert not ledger.renew(forgotten, LEASE_S)
    assert not ledger.suspect(forgotten, 0)
    assert not ledger.mark(forgotten, Outcome(done=32))
    assert not ledger.release(forgotten, count_attempt=False)
    assert ledger.renew(current, LEASE_S)
    assert ledger.mark(current, Outcome(done=512))
    ledger.plan("j", lease.token, items(*ids[544:]), "544", "1000")
    ledger.finish_planning("j", lease.token, "1000")
    assert ledger.mark(claimed(ledger, "B"), Outcome(done=456))
    job = ledger.job("j")
    assert (job.state, job.total, job.done) == ("succeeded", 1_000, 1_000)


def test_a_source_that_was_read_to_its_end_before_the_loss_is_read_again(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    """The planner reached the end of the source after a chunk that Redis has forgotten."""
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease is not None
    on_disk = dumped(client)
    ledger.plan("j", lease.token, items("a", "b", "c"), "", "c")
    restore(client, on_disk)
    assert not ledger.finish_planning("j", lease.token, "c")
    assert not ledger.job("j").planned
    plan_all(ledger)
    assert ledger.mark(claimed(ledger), Outcome(done=3))
    assert ledger.job("j").total == 3


def plan_all(ledger: Ledger) -> None:
    """Plan the whole source as one chunk, as a planner does for a job that nobody has planned."""
    lease = ledger.lease("j", "p", 30)
    assert lease is not None
    assert (lease.cursor, lease.planned) == ("", False)
    assert ledger.plan("j", lease.token, items("a", "b", "c"), "", "c")
    assert ledger.finish_planning("j", lease.token, "c")


def test_a_job_whose_counts_do_not_add_up_is_planned_again_and_ends_right(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    planned(ledger, ("a", "b", "c"))
    client.hincrby(JOB, "done", 1)
    assert ledger.mark(claimed(ledger), Outcome(done=3))
    job = ledger.job("j")
    assert (job.state, job.planned, job.total, job.done) == ("running", False, 0, 0)
    assert job.waiting == "its counts do not add up; it is planned again from its start"
    assert next_claim(ledger) is None
    plan_all(ledger)
    assert ledger.mark(claimed(ledger), Outcome(done=3))
    job = ledger.job("j")
    assert (job.state, job.total, job.done, job.waiting) == ("succeeded", 3, 3, "")


def test_counts_that_are_too_low_are_noticed_when_planning_ends(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert isinstance(lease, PlanLease)
    ledger.plan("j", lease.token, items("a", "b", "c"), "", "c")
    ledger.mark(claimed(ledger), Outcome(done=3))
    client.hincrby(JOB, "done", -1)
    assert ledger.finish_planning("j", lease.token, "c")
    job = ledger.job("j")
    assert (job.state, job.total, job.finished_at) == ("running", 0, None)


def test_counts_that_never_add_up_fail_the_job_with_a_reason(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    ledger.create(a_job())
    for planned_again in range(4):
        assert ledger.job("j").finished_at is None, planned_again
        plan_all(ledger)
        client.hincrby(JOB, "skipped", 1)
        assert ledger.mark(claimed(ledger), Outcome(done=3))
    job = ledger.job("j")
    assert job.state == "failed"
    assert job.error == "its counts do not add up, however often it is planned"
    assert ledger.active() == []


def test_failures_of_the_time_before_are_not_listed_twice(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    planned(ledger, ("a", "b", "c"))
    client.hincrby(JOB, "done", 1)
    ledger.mark(claimed(ledger), Outcome(done=2, failures=(failure("c"),)))
    assert ledger.failures("j") == []
    plan_all(ledger)
    ledger.mark(claimed(ledger), Outcome(done=2, failures=(failure("c"),)))
    assert [failed.id for failed in ledger.failures("j")] == ["c"]
    assert ledger.job("j").state == "partial"
