"""Limits the number of concurrent requests to each host."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class PerHostLimit:
    """A semaphore for each host. Thread-safe.

    Args:
        limit: the number of concurrent requests to one host.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = Condition()
        self._running: Counter[str] = Counter()

    @contextmanager
    def of(self, host: str) -> Iterator[float]:
        """Context of a request to a host: waits for a slot, and yields the seconds of the wait."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._running[host] < self._limit)
            self._running[host] += 1
        try:
            yield time.monotonic() - began
        finally:
            with self._changed:
                self._running[host] -= 1
                if not self._running[host]:
                    del self._running[host]
                self._changed.notify_all()
