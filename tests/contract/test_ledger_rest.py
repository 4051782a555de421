"""A chunk that is marked in part: its rest becomes a chunk of its own. Both implementations."""

import pytest
import redis

from clipfleet.common.ledger import Claim, Item, Ledger, Outcome
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import (
    LEASE_S,
    MODEL,
    Clock,
    claimed,
    failure,
    items,
    next_claim,
    planned,
    requeue,
)


def test_the_rest_of_a_chunk_becomes_a_chunk_and_every_item_counts_once(ledger: Ledger) -> None:
    planned(ledger, ("a", "b", "c", "d", "e"))
    first = claimed(ledger)
    outcome = Outcome(done=1, skipped=1, failures=(failure("c"),), rest=first.items[3:])
    assert ledger.mark(first, outcome)
    job = ledger.job("j")
    assert (job.state, job.total, job.done, job.skipped, job.failed) == ("running", 5, 1, 1, 1)
    assert ledger.pending(MODEL, 9) == 1
    second = claimed(ledger, "other")
    assert second.chunk != first.chunk
    assert list(second.items) == items("d", "e")
    assert ledger.mark(second, Outcome(done=2))
    job = ledger.job("j")
    assert (job.state, job.total, job.done, job.skipped, job.failed) == ("partial", 5, 3, 1, 1)
    assert ledger.open_chunks("j") == []


def test_a_chunk_marked_in_part_is_not_marked_again(ledger: Ledger) -> None:
    planned(ledger, ("a", "b"))
    claim = claimed(ledger)
    assert ledger.mark(claim, Outcome(done=1, rest=claim.items[1:]))
    assert not ledger.mark(claim, Outcome(done=2))
    assert not ledger.mark(claim, Outcome(done=1, rest=claim.items[1:]))
    assert not ledger.renew(claim, LEASE_S)
    assert not ledger.release(claim, count_attempt=True)
    assert ledger.job("j").done == 1
    assert [chunk.size for chunk in ledger.open_chunks("j")] == [1]


def test_an_attempt_that_gave_a_rest_back_does_not_count_for_it(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a", "b", "c"))
    claimed(ledger)
    clock.now += LEASE_S + 1
    requeue(ledger)
    for remaining in (2, 1):
        claim = claimed(ledger)
        assert claim.attempt == 2, "the attempt that was lost counts, those that went well do not"
        ledger.mark(claim, Outcome(done=1, rest=claim.items[-remaining:]))
    (chunk,) = ledger.open_chunks("j")
    assert (chunk.size, chunk.attempt, chunk.leased, chunk.suspect) == (1, 1, False, None)


def test_a_rest_comes_after_what_was_planned_meanwhile(ledger: Ledger) -> None:
    planned(ledger, ("a", "b"), ("c",))
    first = claimed(ledger)
    ledger.mark(first, Outcome(done=1, rest=first.items[1:]))
    assert [[item.id for item in claimed(ledger).items] for _ in range(2)] == [["c"], ["b"]]


def test_a_rest_of_a_job_that_is_over_is_not_planned(ledger: Ledger) -> None:
    planned(ledger, ("a", "b"))
    claim = claimed(ledger)
    ledger.cancel("j")
    assert ledger.mark(claim, Outcome(done=1, rest=claim.items[1:]))
    assert ledger.job("j").done == 1
    assert ledger.open_chunks("j") == []
    assert next_claim(ledger) is None


def test_an_outcome_with_a_rest_must_add_up(ledger: Ledger) -> None:
    planned(ledger, ("a", "b"))
    claim = claimed(ledger)
    for outcome in (Outcome(done=2, rest=claim.items[1:]), Outcome(rest=claim.items[1:])):
        with pytest.raises(ValueError, match="add up"):
            ledger.mark(claim, outcome)


class Overtaken(RedisLedger):
    """A ledger whose late holder marks part of a chunk after a planner has read its items."""

    late: Claim | None = None

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]:
        chunk_items = super().items(job_id, chunk)
        if self.late:
            late, self.late = self.late, None
            assert self.mark(late, Outcome(done=1, kept=late.items[1:]))
        return chunk_items


def test_a_chunk_that_was_marked_meanwhile_is_not_split(
    client: "redis.Redis", clock: Clock
) -> None:
    """A split would count the marked items again."""
    ledger = Overtaken(client, clock)
    planned(ledger, ("a", "b", "c"))
    claim = claimed(ledger)
    clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    ledger.late = claim
    assert not ledger.split("j", seen)
    assert [chunk.size for chunk in ledger.open_chunks("j")] == [2]
    assert ledger.job("j").done == 1


def test_a_rest_keeps_the_time_of_the_first_claim_of_its_images(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a", "b", "c"))
    first = claimed(ledger)
    clock.now += 1
    assert ledger.mark(first, Outcome(done=1, rest=first.items[1:]))
    assert claimed(ledger, "other").since == first.since
