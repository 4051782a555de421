"""The limit on uploads that one gateway receives at the same time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from clipfleet.common.errors import RateLimited, Unavailable

RETRY_AFTER_S = 5


class UploadSlots:
    """Limits the uploads in progress to `limit`, and those of one key to half of it.

    Args:
        limit: uploads in progress at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_caller: Counter[str] = Counter()

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Hold a slot for the length of the block.

        Args:
            caller: the name of the API key; "" without a key.

        Raises:
            Unavailable: all slots are taken.
            RateLimited: the key has its share of the slots already.
        """
        share = max(1, self._limit // 2)
        if self._by_caller.total() >= self._limit:
            raise Unavailable(
                f"this gateway receives {self._limit} uploads already (CLIPFLEET_LIMITS__UPLOADS); "
                "try again",
                RETRY_AFTER_S,
            )
        if caller and self._by_caller[caller] >= share:
            raise RateLimited(
                f"this gateway receives {share} uploads of this key already "
                "(CLIPFLEET_LIMITS__UPLOADS)",
                [("Retry-After", str(RETRY_AFTER_S))],
            )
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self._by_caller[caller] -= 1
