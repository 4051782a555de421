"""Limits the memory of fetched files that are not processed yet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Condition

from clipfleet.common.fetch.network import check_cancelled, extend

FREE = 1_000_000  # every fetch may hold so many bytes without a share
CANCEL_CHECK_INTERVAL_S = 0.5


class Memory:
    """A number of bytes that the large fetches of a process share.

    Args:
        limit: the number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = Condition()
        self._taken = 0

    @contextmanager
    def share(self) -> Iterator[None]:
        """Context in which a large fetch of this thread takes a share, until the context ends."""
        share = _Share(self)
        token = _current.set(share)
        try:
            yield
        finally:
            _current.reset(token)
            with self._changed:
                self._taken -= share.size
                self._changed.notify_all()

    def take(self, size: int) -> int:
        """Wait until `size` bytes are free, and take them.

        Returns:
            The number of bytes taken, at most the limit.

        Raises:
            Cancelled: the fetch was cancelled while it waited.
        """
        size, began = min(size, self._limit), time.monotonic()
        with self._changed:
            while self._taken + size > self._limit:
                check_cancelled()
                self._changed.wait(CANCEL_CHECK_INTERVAL_S)
            self._taken += size
        extend(time.monotonic() - began)
        return size


class _Share:
    def __init__(self, memory: Memory) -> None:
        self._memory, self.size = memory, 0

    def require(self, size: int) -> None:
        """Take bytes, once for each share: fetches that wait for more could block each other."""
        if size > FREE and not self.size:
            self.size = self._memory.take(size)


_current: ContextVar[_Share | None] = ContextVar("share", default=None)


def require_memory(size: int) -> None:
    """Take memory for the current fetch, before it holds `size` bytes.

    The wait extends the deadline of the fetch: its server is not to blame.
    """
    if share := _current.get():
        share.require(size)
