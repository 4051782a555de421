"""Holding a claim while the work goes on: a side thread renews it, and sees when it is lost."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Claim, Ledger
from clipfleet.common.process.logs import in_context
from clipfleet.common.versions import OtherVersion

T = TypeVar("T")
log = logging.getLogger(__name__)

LONGEST_WAIT_S = 2.0  # how long work may stand still when a part is back


class Interrupted(Exception):
    """Stop working on this chunk: the claim is lost, the job is over, or time is over."""


class Lease:
    """Renews every third of its length. Without progress for `stall_s` the process ends itself:
    threads cannot be killed, and a stuck worker must not hold its chunk for ever."""

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        *,
        seconds: float,
        stall_s: float,
        stopping: threading.Event,
    ) -> None:
        self._ledger, self._claim = ledger, claim
        self._seconds, self._stall_s = seconds, stall_s
        self._stopping = stopping
        self._lost, self._over = threading.Event(), threading.Event()
        self._progress_at = time.monotonic()
        self._thread = threading.Thread(target=in_context(self._renew), name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def progress(self) -> None:
        """Work went on. Interrupted when it should not."""
        self._progress_at = time.monotonic()
        self.check()

    def check(self) -> None:
        """Interrupted when the claim is lost."""
        if self._lost.is_set():
            raise Interrupted

    def confirm(self) -> None:
        """Renew now. Interrupted when another worker has the chunk, or the job is over."""
        if not self._ledger.renew(self._claim, self._seconds):
            self._lost.set()
        self.progress()

    def retry_while_unavailable(
        self,
        call: Callable[[], T],
        waiting: Callable[[str], None],
        until: float = math.inf,
    ) -> T:
        """The answer of a part that may be away for a while.

        Args:
            waiting: is told why we wait.
            until: by the monotonic clock; not tried again after that.

        Raises:
            Interrupted: it is away, and there is no time for another try, or the worker is to end.
        """
        pause = 0.25
        while True:
            try:
                return call()
            except OtherVersion:  # waiting would not help
                raise
            except Unavailable as error:
                log.warning("waiting: %s", error.detail)
                waiting(error.detail)
            self._stopping.wait(pause)
            self.progress()
            if self._stopping.is_set() or time.monotonic() >= until:
                raise Interrupted
            pause = min(2 * pause, LONGEST_WAIT_S)

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            if time.monotonic() - self._progress_at > self._stall_s:
                log.critical("no progress for %.0f s: this worker ends itself", self._stall_s)
                os._exit(70)
            try:
                if not self._ledger.renew(self._claim, self._seconds):
                    self._lost.set()
                    return
            except Unavailable:
                log.warning("the lease could not be renewed just now")
            except Exception:  # this thread is also the watch over stalled work
                log.exception("the lease could not be renewed just now")
