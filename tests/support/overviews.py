"""Overviews of a fleet that a test chooses."""

from collections.abc import Callable

from clipfleet.common.queue.overview import Overview, Waiting
from support.coalescer_harness import MODEL

SEEN = Overview(
    jobs={"running": 2, "failed": 0},
    remaining={MODEL: 7},
    queues={("ingest", MODEL): Waiting(3, 4.5), ("query", MODEL): Waiting(1, None)},
    workers={("ingest", MODEL): 1, ("query", MODEL): 0},
)


class ScriptedOverviews:
    """Returns the overviews of a function, and counts the calls."""

    def __init__(self, read: Callable[[], Overview]) -> None:
        self._read, self.times = read, 0

    def read(self) -> Overview:
        self.times += 1
        return self._read()
