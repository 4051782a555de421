"""How much memory files take that were fetched and are not worked on yet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Condition

from clipfleet.common.fetch.network import check_cancelled, extend

FREE = 1_000_000  # bytes that every fetch may hold beside
LOOK_S = 0.5  # between two looks whether the fetch was cancelled


class Memory:
    """A number of bytes, shared among the fetches of a process that are large."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = Condition()
        self._taken = 0

    @contextmanager
    def share(self) -> Iterator[None]:
        """What this thread fetches inside takes its part until the end, once it is large."""
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
        """Wait until so much is free; how much was taken, which is no more than there is."""
        size, began = min(size, self._limit), time.monotonic()
        with self._changed:
            while self._taken + size > self._limit:
                check_cancelled()
                self._changed.wait(LOOK_S)
            self._taken += size
        extend(time.monotonic() - began)
        return size


class _Share:
    def __init__(self, memory: Memory) -> None:
        self._memory, self.size = memory, 0

    def require(self, size: int) -> None:
        """Once for each share: who has a part and waits for more could wait for ever."""
        if size > FREE and not self.size:
            self.size = self._memory.take(size)


_current: ContextVar[_Share | None] = ContextVar("share", default=None)


def require_memory(size: int) -> None:
    """Before the fetch at hand holds so many bytes. The time that it waits is not its server's."""
    if share := _current.get():
        share.require(size)
