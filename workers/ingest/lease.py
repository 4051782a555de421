"""The lease of a claimed chunk, which a thread renews while the work goes on."""

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

MAX_WAIT_S = 2.0  # longest pause between two tries while a service is unavailable


class Interrupted(Exception):
    """The work on this chunk must stop: the claim is lost, the job ended, or the time is over."""


class Lease:
    """Renews a claim during a `with` block, every third of the lease's length.

    Without progress for `stall_s` the process exits: threads cannot be killed, and a stuck worker
    must not hold its chunk for ever.

    Args:
        seconds: the length of the lease.
        stall_s: seconds without progress after which the process exits.
        stopping: set when the worker is asked to stop.
    """

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
        """Record progress; raises Interrupted when the claim is lost."""
        self._progress_at = time.monotonic()
        self.check()

    def check(self) -> None:
        """Raise Interrupted when the claim is lost."""
        if self._lost.is_set():
            raise Interrupted

    def confirm(self) -> None:
        """Renew the claim at once.

        Raises:
            Interrupted: another worker has the chunk, or the job ended.
        """
        if not self._ledger.renew(self._claim, self._seconds):
            self._lost.set()
        self.progress()

    def retry_while_unavailable(
        self,
        call: Callable[[], T],
        waiting: Callable[[str], None],
        until: float = math.inf,
    ) -> T:
        """Call a service, and call it again while it raises Unavailable.

        Args:
            call: the call to repeat.
            waiting: receives the reason of each failed try.
            until: monotonic seconds after which there is no further try.

        Returns:
            The result of `call`.

        Raises:
            Interrupted: the service is unavailable, and the time is over or the worker stops.
        """
        pause = 0.25
        while True:
            try:
                return call()
            except OtherVersion:  # another try would not help
                raise
            except Unavailable as error:
                log.warning("waiting: %s", error.detail)
                waiting(error.detail)
            self._stopping.wait(pause)
            self.progress()
            if self._stopping.is_set() or time.monotonic() >= until:
                raise Interrupted
            pause = min(2 * pause, MAX_WAIT_S)

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            if time.monotonic() - self._progress_at > self._stall_s:
                log.critical("no progress for %.0f s: this worker exits", self._stall_s)
                os._exit(70)
            try:
                if not self._ledger.renew(self._claim, self._seconds):
                    self._lost.set()
                    return
            except Unavailable:
                log.warning("the lease could not be renewed; the worker tries again")
            except Exception:  # the thread must live on: it also watches for stalled work
                log.exception("the lease could not be renewed; the worker tries again")
