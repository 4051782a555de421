"""Chunks whose images come from others' servers, and what is kept of them; both implementations."""

import pytest

from clipfleet.common.ledger import RATE_WEIGHT, Claim, Item, Ledger, Outcome, Unknown
from support.ledgers import (
    LEASE_S,
    MAX_ATTEMPTS,
    MODEL,
    Clock,
    a_job,
    failure,
    items,
    next_claim,
    requeue,
)


def remote_claim(ledger: Ledger) -> Claim | None:
    claim = ledger.claim(MODEL, "w", LEASE_S, MAX_ATTEMPTS, remote=True)
    assert not isinstance(claim, Unknown)
    return claim


def held(claim: Claim | None) -> Claim:
    assert claim is not None
    return claim


def planned_at(ledger: Ledger, *places: str, job: str = "j", size: int = 1) -> None:
    """A job with a chunk at each of these places, in order."""
    ledger.create(a_job(job))
    lease = ledger.lease(job, "p", 30)
    assert lease
    for number, place in enumerate(places):
        ids = [f"{job}{number}-{n}" for n in range(size)]
        after = str(number) if number else ""
        assert ledger.plan(job, lease.token, items(*ids, place=place), after, str(number + 1))
    assert ledger.finish_planning(job, lease.token, str(len(places)) if places else "")


@pytest.mark.parametrize(
    ("read", "place", "is_remote"),
    [
        ("file:/a.jpg", "file:/a.jpg", False),
        ("blob:uploads/a", "blob:uploads/a", False),
        ("url:https://a/b.jpg", "url:https://a/b.jpg", True),
        ("fs:s3://bucket/a.jpg", "fs:s3://bucket/a.jpg", True),
        ("part:12:34:file:/a.tar", "file:/a.tar", False),
        ("part:12:34:url:https://a:80/b.tar", "url:https://a:80/b.tar", True),
        ("zip:12:34:8:99:fs:s3://bucket/a.zip", "fs:s3://bucket/a.zip", True),
        ("zip:12:34:8:99:blob:uploads/j/source", "blob:uploads/j/source", False),
        ("", "", False),
    ],
)
def test_what_comes_from_others_servers(read: str, place: str, is_remote: bool) -> None:
    item = Item(id="a", uri="a", read=read)
    assert (item.place, item.is_remote) == (place, is_remote)


def test_either_kind_of_chunk_is_claimed_by_who_asks_for_it(ledger: Ledger) -> None:
    planned_at(ledger, "url", "file", "fs", "file")
    near = [held(next_claim(ledger)) for _ in range(2)]
    far = [held(remote_claim(ledger)) for _ in range(2)]
    assert [claim.index for claim in near] == [2, 4]
    assert [claim.index for claim in far] == [1, 3]
    assert [claim.more for claim in near] == [claim.more for claim in far] == [True, False]
    assert next_claim(ledger) is None
    assert remote_claim(ledger) is None


def test_both_kinds_count_as_pending(ledger: Ledger) -> None:
    planned_at(ledger, "url", "file", "url")
    assert [ledger.pending(MODEL, limit) for limit in (1, 2, 9)] == [1, 2, 3]
    assert remote_claim(ledger)
    assert ledger.pending(MODEL, 9) == 2


def test_many_jobs_of_slow_hosts_do_not_stand_before_another(ledger: Ledger) -> None:
    for number in range(20):
        planned_at(ledger, "url", "url", job=f"slow{number}")
    planned_at(ledger, "file", job="j")
    assert held(next_claim(ledger)).job_id == "j"


def test_a_chunk_that_goes_back_stays_of_its_kind(ledger: Ledger) -> None:
    planned_at(ledger, "url", "file", size=2)
    ledger.release(held(remote_claim(ledger)), count_attempt=False)
    claim = held(remote_claim(ledger))
    assert ledger.mark(claim, Outcome(done=1, rest=claim.items[1:]))
    assert held(next_claim(ledger)).index == 2
    assert held(remote_claim(ledger)).items == claim.items[1:]


def test_the_parts_of_a_mixed_chunk_are_of_their_own_kinds(ledger: Ledger) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    both = [*items("a", place="url"), *items("b")]
    assert ledger.plan("j", lease.token, both, "", "1")
    assert next_claim(ledger) is None
    ledger.release(held(remote_claim(ledger)), count_attempt=True)
    (chunk,) = ledger.open_chunks("j")
    assert ledger.split("j", chunk)
    assert list(held(remote_claim(ledger)).items) == both[:1]
    assert list(held(next_claim(ledger)).items) == both[1:]


def test_a_cancelled_and_a_removed_job_are_claimed_in_neither_way(ledger: Ledger) -> None:
    planned_at(ledger, "url", "file", job="one")
    planned_at(ledger, "url", "file", job="two")
    ledger.cancel("one")
    ledger.remove("two")
    assert next_claim(ledger) is None
    assert remote_claim(ledger) is None
    assert ledger.pending(MODEL, 9) == 0


def test_what_is_under_way_stays_with_its_claim_and_the_others_count(ledger: Ledger) -> None:
    planned_at(ledger, "url", size=5)
    claim = held(remote_claim(ledger))
    kept, rest = claim.items[3:4], claim.items[4:]
    assert ledger.mark(claim, Outcome(1, 1, (failure("j0-2"),), rest, kept=kept))
    job = ledger.job("j")
    assert (job.state, job.done, job.skipped, job.failed) == ("running", 1, 1, 1)
    first, second = ledger.open_chunks("j")
    assert (first.name, first.size, first.leased, first.attempt) == (claim.chunk, 1, True, 1)
    assert (second.size, second.leased, second.attempt) == (1, False, 0)
    assert ledger.items("j", claim.chunk) == kept
    assert ledger.renew(claim, LEASE_S)
    assert not ledger.mark(claim, Outcome(done=5)), "it is not of this size any more"
    assert ledger.mark(claim.of(kept), Outcome(done=1))
    assert ledger.mark(held(remote_claim(ledger)), Outcome(done=1))
    job = ledger.job("j")
    assert (job.state, job.done, job.skipped, job.failed) == ("partial", 3, 1, 1)


def test_a_mark_that_is_sent_twice_counts_once(ledger: Ledger) -> None:
    planned_at(ledger, "url", size=3)
    claim = held(remote_claim(ledger))
    outcome = Outcome(done=2, kept=claim.items[2:])
    assert ledger.mark(claim, outcome)
    assert not ledger.mark(claim, outcome)
    assert ledger.job("j").done == 2


def test_what_was_kept_by_a_worker_that_is_gone_is_done_by_another(
    ledger: Ledger, clock: Clock
) -> None:
    planned_at(ledger, "url", size=3)
    claim = held(remote_claim(ledger))
    assert ledger.mark(claim, Outcome(done=2, kept=claim.items[2:]))
    clock.now += LEASE_S + 1
    assert requeue(ledger) == 1
    again = held(remote_claim(ledger))
    assert (again.items, again.attempt) == (claim.items[2:], 2)
    assert not ledger.mark(claim.of(claim.items[2:]), Outcome(done=1))
    assert ledger.mark(again, Outcome(done=1))
    assert ledger.job("j").state == "succeeded"


def test_what_is_kept_decides_of_which_kind_the_chunk_is(ledger: Ledger) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    both = [*items("a", place="url"), *items("b")]
    assert ledger.plan("j", lease.token, both, "", "1")
    claim = held(remote_claim(ledger))
    assert ledger.mark(claim, Outcome(done=1, kept=claim.items[1:]))
    assert ledger.release(claim, count_attempt=False)
    assert remote_claim(ledger) is None
    assert held(next_claim(ledger)).items == claim.items[1:]


def test_a_job_has_a_rate_of_its_own(ledger: Ledger) -> None:
    planned_at(ledger, "file", "file", "file")
    assert ledger.job("j").rate == 0
    rates = []
    for rate in (100.0, 0.0, 10.0):
        ledger.mark(held(next_claim(ledger)), Outcome(done=1, rate=rate))
        rates.append(ledger.job("j").rate)
    assert rates == [100, 100, pytest.approx(100 - RATE_WEIGHT * 90)]


def test_an_outcome_with_kept_items_must_add_up(ledger: Ledger) -> None:
    planned_at(ledger, "url", size=2)
    claim = held(remote_claim(ledger))
    for outcome in (Outcome(done=2, kept=claim.items[:1]), Outcome(kept=claim.items[:1])):
        with pytest.raises(ValueError, match="does not add up"):
            ledger.mark(claim, outcome)
