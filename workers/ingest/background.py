"""Chunks that wait for others' servers, beside the one that the worker's task works on."""

import logging
import threading
import time
from collections.abc import Callable

from clipfleet.common.process.logs import in_context

log = logging.getLogger(__name__)

MAX_CHUNKS = 16


class Background:
    """Works on chunks on daemon threads of their own.

    Args:
        limit: how many chunks at once.
    """

    def __init__(self, limit: int = MAX_CHUNKS) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._count = 0

    @property
    def has_room(self) -> bool:
        return self._count < self._limit

    def start(self, work: Callable[[], object]) -> None:
        with self._changed:
            self._count += 1
        run = in_context(lambda: self._run(work))
        threading.Thread(target=run, name="background", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether all have ended after so long."""
        until = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._count, max(0.0, until - time.monotonic())
            )

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            log.exception("work in the background failed")
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()
