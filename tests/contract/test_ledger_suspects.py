"""Who was in hand when a worker came to its end; both implementations."""

from clipfleet.common.ledger import Ledger
from support.ledgers import LEASE_S, Clock, claimed, planned, requeue


def test_the_item_that_was_in_hand_is_singled_out_and_the_others_begin_anew(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a", "b", "c"))
    for _ in range(2):
        requeue(ledger)
        claim = claimed(ledger)
        assert ledger.suspect(claim, 0)
        assert ledger.suspect(claim, 1)
        clock.now += LEASE_S + 1
    (seen,) = ledger.open_chunks("j")
    assert (seen.attempt, seen.suspect) == (2, 1)
    assert ledger.split("j", seen)
    alone, others = ledger.open_chunks("j")
    assert [item.id for item in ledger.items("j", alone.name)] == ["b"]
    assert [item.id for item in ledger.items("j", others.name)] == ["a", "c"]
    assert (alone.attempt, others.attempt) == (1, 0)


def test_a_suspect_is_forgotten_when_the_next_attempt_begins_and_when_none_is_left(
    ledger: Ledger, clock: Clock
) -> None:
    planned(ledger, ("a", "b"))
    first = claimed(ledger)
    ledger.suspect(first, 1)
    clock.now += LEASE_S + 1
    requeue(ledger)
    second = claimed(ledger)
    assert ledger.open_chunks("j")[0].suspect is None
    assert not ledger.suspect(first, 1), "the claim was lost"
    ledger.suspect(second, 0)
    ledger.suspect(second, None)
    assert ledger.open_chunks("j")[0].suspect is None
