"""Jobs that ended long ago go, with their failures and uploads, and so do uploads that never became
a job. Beside every planner; one at a time keeps house."""

import logging
import threading

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import FINAL, Job, Ledger
from clipfleet.common.ledger.unfinished import Unfinished
from clipfleet.common.ledger.uploads import has_uploads, uploads_of
from clipfleet.common.versions import OtherVersion, warn_once

log = logging.getLogger(__name__)

EVERY_S = 60.0
MOST = 100  # jobs in one round
DAY_S = 86_400.0


class Housekeeper:
    """`days`: how long an ended job is kept; 0: for ever."""

    def __init__(
        self, name: str, ledger: Ledger, unfinished: Unfinished, blobs: Blobs, days: float
    ) -> None:
        self._name, self._ledger, self._blobs, self._days = name, ledger, blobs, days
        self._unfinished = unfinished
        self._others: set[str] = set()  # jobs that only another version can remove
        self._every_s = max(1.0, min(EVERY_S, days * DAY_S)) if days else EVERY_S

    def tidy(self) -> int:
        """One round: how many jobs went."""
        if not self._ledger.acquire_cleanup_lock(self._name, 2 * self._every_s):
            return 0
        self._ledger.count_jobs()  # before a gateway does, which may have to mend the indices
        for job_id in self._unfinished.older(DAY_S, MOST):
            self._sweep(job_id)
        if not self._days:
            return 0
        ended = self._ledger.ended(self._days * DAY_S, MOST + len(self._others))
        expired = [job_id for job_id in ended if job_id not in self._others]
        return sum(self._remove(job_id) for job_id in expired[:MOST])

    def run(self, stopping: threading.Event) -> None:
        """Until told to stop. What cannot be done now is done in a later round."""
        while not stopping.is_set():
            try:
                gone = self.tidy()
            except Unavailable as error:
                log.warning("expired jobs are kept for now: %s", error.detail)
                gone = 0
            except Exception:
                log.exception("expired jobs are kept for now")
                gone = 0
            if gone:
                log.info("removed %d jobs that ended more than %g days ago", gone, self._days)
            stopping.wait(1.0 if gone == MOST else self._every_s)

    def _remove(self, job_id: str) -> bool:
        """The uploads first: without the record nobody would know of them."""
        try:
            job = self._ledger.job(job_id)
            if self._is_being_retried(job):
                return False
            if has_uploads(job.new):
                self._blobs.delete_below(uploads_of(job_id))
            self._ledger.remove(job_id)
        except NotFound:  # somebody else was faster
            return False
        except OtherVersion as error:
            warn_once(f"not removed here: {error.detail}")
            self._others.add(job_id)
            return False
        return True

    def _sweep(self, job_id: str) -> None:
        """An upload begun so long ago that nobody is still at it."""
        try:
            self._ledger.job(job_id)  # it was made, and the note stayed
        except NotFound:
            log.info("removing what is left of an upload that never became job %s", job_id)
            self._blobs.delete_below(uploads_of(job_id))
        except OtherVersion:
            log.debug("upload %s became a job of another version", job_id)
        self._unfinished.end(job_id)

    def _is_being_retried(self, job: Job) -> bool:
        try:
            return bool(job.retried_by) and self._ledger.job(job.retried_by).state not in FINAL
        except NotFound:
            return False
