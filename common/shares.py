"""The rule by which owners, such as API keys or jobs, share a limited number of slots."""


def may_take(held: int, free: int) -> bool:
    """Whether an owner may take a slot: while it holds fewer than are free.

    So one owner alone gets half of the slots, and an owner that holds none still finds one: 16
    slots are shared as 8, 4, 2, 1, 1. It is the dynamic threshold that switches use for their
    shared memory, with the factor 1 (A. Choudhury and E. Hahne, "Dynamic Queue Length Thresholds
    for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking, 1998).

    Args:
        held: the slots that the owner holds. 0 for a caller without a key, which need not share.
        free: the slots that nobody holds.
    """
    return held < free
