"""How many uploads one gateway takes at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from clipfleet.common.errors import RateLimited, Unavailable

BUSY_S = 5


class UploadSlots:
    """The uploads under way in one gateway: `most`, and half of them of one key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: Counter[str] = Counter()

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Unavailable or RateLimited when there is none. `caller`: "" without a key."""
        share = max(1, self._most // 2)
        if self._of.total() >= self._most:
            said = f"{self._most} uploads are under way here (CLIPFLEET_LIMITS__UPLOADS); try again"
            raise Unavailable(said, BUSY_S)
        if caller and self._of[caller] >= share:
            said = f"{share} uploads of this key are under way here (CLIPFLEET_LIMITS__UPLOADS)"
            raise RateLimited(said, [("Retry-After", str(BUSY_S))])
        self._of[caller] += 1
        try:
            yield
        finally:
            self._of[caller] -= 1
