"""Shares a fixed number of slots between owners, some of which never give theirs back in time."""

from collections import Counter
from collections.abc import Iterable

from clipfleet.common.shares import Owner, may_take

WITHIN_KEY = 3  # times the slots that its key may still take, an owner may hold


class FairSlots:
    """A number of slots. A key may take another one while it holds fewer than are free.

    A job of silent servers holds each of its slots for a minute. With a fixed limit, such as half
    of all slots, two such jobs leave nothing to others. Here the first key reaches one half of
    the slots, the second one a quarter, the third one an eighth. So the next key finds a free
    slot and need not wait for theirs. Once slots are given back, n keys that want more get
    1/(n + 1) of the slots each. A key that is alone always reaches half of the slots.

    The owners of one key share its part in the same way: an owner may take another slot while it
    holds fewer than three times what its key may still take. So the first one reaches three
    quarters of the part. However many owners a key has, together they count as one key. An owner
    without a key counts as a key of its own.

    Not thread-safe: the caller holds a lock.

    Args:
        slots: the number of slots.
        holders: the owners of the slots that are taken, once for each slot.
    """

    def __init__(self, slots: int, holders: Iterable[Owner] = ()) -> None:
        self._held: Counter[Owner] = Counter()
        self._of_group: Counter[Owner] = Counter()
        self._free = slots
        for owner in holders:
            self.take(owner)

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self._free

    def may_take(self, owner: Owner) -> bool:
        """Whether the owner may take another slot now."""
        of_group = self._of_group[owner.group]
        if not owner.key or not may_take(of_group, self._free):
            return may_take(of_group, self._free)
        remaining = (self._free - of_group + 1) // 2  # that the key may take, with the free ones
        return may_take(self._held[owner], remaining, WITHIN_KEY)

    def take(self, owner: Owner) -> None:
        """Take a slot; ask `may_take` before."""
        self._held[owner] += 1
        self._of_group[owner.group] += 1
        self._free -= 1

    def give_back(self, owner: Owner) -> None:
        """Give a slot of the owner back."""
        self._free += 1
        for held, holder in ((self._held, owner), (self._of_group, owner.group)):
            held[holder] -= 1
            if not held[holder]:
                del held[holder]
