"""Servers that let one fetch after the other time out are not asked for a while."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from clipfleet.common.errors import Unreadable

MAX_SERVERS = 10_000  # remembered; the one whose last time-out is longest ago is forgotten first


@dataclass
class _Record:
    timeouts: int = 0  # in a row
    closed_until: float = 0.0


class Breaker:
    """A circuit breaker for each server. Safe to use from many threads.

    After `timeouts` fetches in a row that ended with a time-out, a server is not asked for
    `seconds`. Then one fetch is let through, as a probe, and one more after each further `seconds`.
    The first that is answered ends it.

    Args:
        timeouts: 0 for never.
    """

    def __init__(
        self, timeouts: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeouts, self._seconds, self._clock = timeouts, seconds, clock
        self._lock = threading.Lock()
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def refusal(self, server: str) -> str:
        """Why the server is not asked now; "" when it is."""
        record = self._records.get(server)
        if record is None or not self._timeouts or record.timeouts < self._timeouts:
            return ""
        left_s = record.closed_until - self._clock()
        if left_s <= 0:
            return ""
        return (
            f"its server let {record.timeouts} fetches in a row time out and is not asked for "
            f"{left_s:.0f} s (CLIPFLEET_FETCH__BREAKER_S)"
        )

    def check(self, server: str) -> None:
        """Unreadable when the server is not to be asked now. Otherwise ask it: of a server that was
        left alone this is the probe."""
        with self._lock:
            if refusal := self.refusal(server):
                raise Unreadable(refusal)
            record = self._records.get(server)
            if record and self._timeouts and record.timeouts >= self._timeouts:
                record.closed_until = self._clock() + self._seconds

    def timed_out(self, server: str) -> None:
        with self._lock:
            record = self._records.setdefault(server, _Record())
            self._records.move_to_end(server)
            record.timeouts += 1
            record.closed_until = self._clock() + self._seconds
            if len(self._records) > MAX_SERVERS:
                self._records.popitem(last=False)

    def answered(self, server: str) -> None:
        with self._lock:
            self._records.pop(server, None)
