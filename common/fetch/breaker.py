"""A circuit breaker: after several timeouts in a row, a server is not asked for some time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from clipfleet.common.errors import Unreadable

MAX_SERVERS = 10_000  # with records; the one whose last timeout is the oldest is dropped first


@dataclass
class _Record:
    timeouts: int = 0  # in a row
    closed_until: float = 0.0


class Breaker:
    """A circuit breaker for each server. Thread-safe.

    After `timeouts` fetches in a row that end with a timeout, a server is not asked for `seconds`.
    Then one fetch is allowed as a probe, and one more after each further `seconds`. The first
    answer closes the breaker.

    Args:
        timeouts: the number of timeouts in a row; 0: the server is always asked.
        seconds: the pause.
        clock: returns a monotonic time in seconds.
    """

    def __init__(
        self, timeouts: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeouts, self._seconds, self._clock = timeouts, seconds, clock
        self._lock = threading.Lock()
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def refusal(self, server: str) -> str:
        """Why the server must not be asked now; "" when it may be asked."""
        record = self._records.get(server)
        if record is None or not self._timeouts or record.timeouts < self._timeouts:
            return ""
        remaining_s = record.closed_until - self._clock()
        if remaining_s <= 0:
            return ""
        return (
            f"its server let {record.timeouts} fetches in a row time out and is not asked for "
            f"{remaining_s:.0f} s (CLIPFLEET_FETCH__BREAKER_S)"
        )

    def check(self, server: str) -> None:
        """Call this before a fetch: after a pause, the fetch is the probe.

        Raises:
            Unreadable: the server must not be asked now.
        """
        with self._lock:
            if refusal := self.refusal(server):
                raise Unreadable(refusal)
            record = self._records.get(server)
            if record and self._timeouts and record.timeouts >= self._timeouts:
                record.closed_until = self._clock() + self._seconds

    def timed_out(self, server: str) -> None:
        """Record that a fetch ended with a timeout."""
        with self._lock:
            record = self._records.setdefault(server, _Record())
            self._records.move_to_end(server)
            record.timeouts += 1
            record.closed_until = self._clock() + self._seconds
            if len(self._records) > MAX_SERVERS:
                self._records.popitem(last=False)

    def answered(self, server: str) -> None:
        """Record that the server answered, with any status."""
        with self._lock:
            self._records.pop(server, None)
