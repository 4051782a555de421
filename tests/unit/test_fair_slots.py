"""The rule by which owners share slots."""

from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from, tuples

from clipfleet.common.fetch import FairSlots
from clipfleet.common.shares import Owner


def fill(slots: FairSlots, name: str, key: str = "") -> int:
    """Take as many slots as the owner may; return their number."""
    owner = Owner(key, name)
    count = 0
    while slots.may_take(owner):
        slots.take(owner)
        count += 1
    return count


def test_each_greedy_owner_leaves_half_of_the_rest() -> None:
    slots = FairSlots(256)
    assert [fill(slots, str(n)) for n in range(10)] == [128, 64, 32, 16, 8, 4, 2, 1, 1, 0]
    assert slots.free == 0


@given(integers(1, 1_000))
def test_an_owner_alone_reaches_half_of_the_slots(size: int) -> None:
    slots = FairSlots(size)
    assert fill(slots, "only") >= size / 2
    assert size == 1 or slots.free > 0


@given(integers(1, 100), lists(integers(0, 3)))
def test_whoever_holds_nothing_may_take_any_free_slot(size: int, owners: list[int]) -> None:
    slots = FairSlots(size)
    for owner in (Owner(name=str(n)) for n in owners):
        if slots.may_take(owner):
            slots.take(owner)
    assert slots.may_take(Owner(name="new")) == (slots.free > 0)


def test_slots_that_are_given_back_go_to_whoever_holds_fewer() -> None:
    slots = FairSlots(30)
    held = {"old": fill(slots, "old"), "new": fill(slots, "new")}
    assert held == {"old": 15, "new": 8}
    for _ in range(20):
        for owner, other in (("old", "new"), ("new", "old")):
            slots.give_back(Owner(name=owner))
            held[owner] -= 1
            held[other] += fill(slots, other)
            held[owner] += fill(slots, owner)
    assert abs(held["old"] - held["new"]) <= 1
    assert slots.free == 30 - sum(held.values())
    assert slots.free >= 9


def test_slots_may_be_held_from_the_start() -> None:
    a, b = Owner(name="a"), Owner(name="b")
    slots = FairSlots(8, [a, a, a, b])
    assert slots.free == 4
    assert slots.may_take(a)
    slots.take(a)
    assert not slots.may_take(a)
    assert slots.may_take(b)


def test_all_jobs_of_a_key_leave_half_of_the_slots_to_other_keys() -> None:
    slots = FairSlots(256)
    assert [fill(slots, str(n), "a") for n in range(6)] == [96, 24, 6, 2, 0, 0]
    assert slots.free == 128
    assert [fill(slots, str(n), "b") for n in range(6)] == [48, 12, 3, 1, 0, 0]
    assert fill(slots, "without a key") == 32
    assert slots.free == 32


def test_jobs_of_a_key_converge_to_equal_parts_of_it() -> None:
    slots = FairSlots(256)
    held = {str(n): fill(slots, str(n), "a") for n in range(4)}
    for _ in range(200):
        for name in held:
            for _ in range(min(held[name], 4)):
                slots.give_back(Owner("a", name))
                held[name] -= 1
            for other in sorted(held, key=lambda name: held[name]):
                held[other] += fill(slots, other, "a")
    assert max(held.values()) - min(held.values()) <= 1
    assert 118 <= sum(held.values()) <= 120, "each holds three times what its key may still take"


@given(integers(1, 100), lists(tuples(sampled_from(["", "a", "b"]), integers(0, 3))))
def test_a_key_without_slots_may_take_any_free_slot(
    size: int, owners: list[tuple[str, int]]
) -> None:
    slots = FairSlots(size)
    for key, n in owners:
        owner = Owner(key, str(n))
        if slots.may_take(owner):
            slots.take(owner)
    assert slots.may_take(Owner("new", "0")) == (slots.free > 0)
