"""So many requests at once to each host, and no more."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class PerHostLimit:
    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = Condition()
        self._running: Counter[str] = Counter()

    @contextmanager
    def of(self, host: str) -> Iterator[float]:
        """Waits for a turn; gives the seconds that took. A host nobody asks is forgotten."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._running[host] < self._most)
            self._running[host] += 1
        try:
            yield time.monotonic() - began
        finally:
            with self._changed:
                self._running[host] -= 1
                if not self._running[host]:
                    del self._running[host]
                self._changed.notify_all()
