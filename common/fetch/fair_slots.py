"""Shares a fixed number of slots between owners, some of which never give theirs back in time."""

from collections import Counter
from collections.abc import Iterable

from clipfleet.common.shares import may_take


class FairSlots:
    """A number of slots. An owner may take another one while it holds fewer than are free.

    A job of silent servers holds each of its slots for a minute. With a fixed limit, such as half
    of all slots, two such jobs leave nothing to others. Here the first owner reaches one half of
    the slots, the second one a quarter, the third one an eighth. So the next owner finds a free
    slot and need not wait for theirs. Once slots are given back, n owners that want more get
    1/(n + 1) of the slots each. An owner that is alone always reaches half of the slots.

    Not thread-safe: the caller holds a lock.

    Args:
        slots: the number of slots.
        holders: the owners of the slots that are taken, once for each slot.
    """

    def __init__(self, slots: int, holders: Iterable[str] = ()) -> None:
        self._held = Counter(holders)
        self._free = slots - self._held.total()

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self._free

    def may_take(self, owner: str) -> bool:
        """Whether the owner may take another slot now."""
        return may_take(self._held[owner], self._free)

    def take(self, owner: str) -> None:
        """Take a slot; ask `may_take` before."""
        self._held[owner] += 1
        self._free -= 1

    def give_back(self, owner: str) -> None:
        """Give a slot of the owner back."""
        self._held[owner] -= 1
        self._free += 1
        if not self._held[owner]:
            del self._held[owner]
