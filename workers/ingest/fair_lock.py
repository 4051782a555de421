"""A lock that is fair between keys, whatever number of threads waits for each key."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class FairLock:
    """A lock that goes next to the waiting key whose last turn is longest ago."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_held = False
        self._waiting: Counter[str] = Counter()
        self._last_turns: dict[str, int] = {}
        self._turns = 0

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait for the lock and hold it during the `with` block."""
        with self._changed:
            self._waiting[key] += 1
            self._changed.wait_for(lambda: not self._is_held and self._next() == key)
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
            self._is_held, self._turns = True, self._turns + 1
            self._last_turns[key] = self._turns
            self._forget()
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    def _next(self) -> str:
        return min(self._waiting, key=lambda key: self._last_turns.get(key, 0))

    def _forget(self) -> None:
        """Drop the turns of keys without waiting threads, once there are many."""
        if len(self._last_turns) > 100:
            self._last_turns = {
                key: turn for key, turn in self._last_turns.items() if key in self._waiting
            }
