"""Chunks of remote images, which run in the background of the worker's task."""

import logging
import threading
import time
from collections.abc import Callable

from clipfleet.common.process.logs import in_context

log = logging.getLogger(__name__)

MAX_CHUNKS = 16


class Background:
    """Runs work on daemon threads, one for each chunk.

    Args:
        limit: the number of chunks that may run at once.
    """

    def __init__(self, limit: int = MAX_CHUNKS) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether another chunk may start."""
        return self._count < self._limit

    def start(self, work: Callable[[], object]) -> None:
        """Run `work` on a thread of its own; an error is logged."""
        with self._changed:
            self._count += 1
        run = in_context(lambda: self._run(work))
        threading.Thread(target=run, name="background", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for all chunks, and return whether all have ended."""
        until = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._count, max(0.0, until - time.monotonic())
            )

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            log.exception("a chunk in the background failed")
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
