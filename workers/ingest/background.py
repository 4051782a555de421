"""Chunks of remote images, which run in the background of the worker's task."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from clipfleet.common.process.logs import in_context

log = logging.getLogger(__name__)

MAX_CHUNKS = 16
Waits = Callable[[bool], None]


class Background:
    """Runs work on daemon threads, one for each chunk.

    A chunk that does nothing but wait for servers of others takes no place. Otherwise a few jobs of
    silent servers would take all places for a minute. Such a chunk holds at least one slot of the
    fetch pool, whose slots jobs share (`FairSlots`); so there are no more of them than slots.

    Args:
        limit: the number of chunks that may begin images or have images in memory at once.
    """

    def __init__(self, limit: int = MAX_CHUNKS) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._count = 0
        self._places: set[object] = set()  # one for each chunk that does not only wait

    @property
    def has_room(self) -> bool:
        """Whether another chunk may start."""
        return len(self._places) < self._limit

    def start(
        self, work: Callable[[Waits], object], freed: Callable[[], object] = lambda: None
    ) -> None:
        """Run `work` on a thread of its own; an error is logged.

        Args:
            work: receives a function that it calls with True when it begins to do nothing but wait,
                and with False when it goes on.
            freed: called on the thread of `work` when it gives its place up and none was free.
        """
        place = object()

        def waits(is_waiting: bool) -> None:
            with self._changed:
                was_full = not self.has_room
                if is_waiting:
                    self._places.discard(place)
                else:
                    self._places.add(place)
                has_freed = was_full and self.has_room
            if has_freed:
                freed()

        waits(False)
        with self._changed:
            self._count += 1
        run = in_context(lambda: self._run(place, partial(work, waits)))
        threading.Thread(target=run, name="background", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for all chunks, and return whether all have ended."""
        until = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._count, max(0.0, until - time.monotonic())
            )

    def _run(self, place: object, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            log.exception("a chunk in the background failed")
        finally:
            with self._changed:
                self._places.discard(place)
                self._count -= 1
                self._changed.notify_all()
