"""The rule by which owners, such as API keys or jobs, share a limited number of slots."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """Whom a slot is for: keys share slots, and then the jobs of a key share its part.

    Attributes:
        key: the name of the API key; "": none.
        name: what the slot is for, such as the id of a job or the name of a collection.
    """

    key: str = ""
    name: str = ""

    @property
    def group(self) -> "Owner":
        """The key, or the owner itself when it has none."""
        return Owner(self.key) if self.key else self


NOBODY = Owner()


def may_take(held: int, free: int, factor: int = 1) -> bool:
    """Whether an owner may take a slot: while it holds fewer than are free.

    So one owner alone gets half of the slots, and an owner that holds none still finds one: 16
    slots are shared as 8, 4, 2, 1, 1. It is the dynamic threshold that switches use for their
    shared memory, with the factor 1 (A. Choudhury and E. Hahne, "Dynamic Queue Length Thresholds
    for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking, 1998).

    Args:
        held: the slots that the owner holds. 0 for a caller without a key, which need not share.
        free: the slots that nobody holds.
        factor: how many times the free slots an owner may hold. With 3, one owner alone gets three
            quarters.
    """
    return held < factor * free
