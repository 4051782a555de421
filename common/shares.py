"""The rule by which API keys share a limited number of slots."""


def may_take(held: int, free: int) -> bool:
    """Whether a key may take a slot: while it holds fewer than would remain free, or none.

    So one key alone gets half of the slots, and a key that holds none still finds one.

    Args:
        held: the slots that the key holds. 0 for a caller without a key, which need not share.
        free: the slots that nobody holds.
    """
    return free > 0 and (held == 0 or held < free - 1)
