"""Deletes expired jobs (with failures and uploads) and abandoned uploads, and completes deletions.

Runs next to each planner; a lock in the ledger lets one run at a time.
"""

import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import FINAL, Job, Ledger
from clipfleet.common.ledger.unfinished import Unfinished
from clipfleet.common.ledger.uploads import has_uploads, uploads_of
from clipfleet.common.snapshots import mirror_of
from clipfleet.common.versions import OtherVersion, warn_once

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
MAX_JOBS = 100  # deleted in one round
DAY_S = 86_400.0


class Housekeeper:
    """Deletes expired jobs and abandoned uploads, and completes deletions that broke off.

    Args:
        name: the planner's name, as the owner of the lock.
        days: how many days an ended job is kept; 0 keeps jobs for ever.
        collections: returns the names of the collections whose uploads are kept for ever; None:
            uploads are deleted with their job.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        unfinished: Unfinished,
        blobs: Blobs,
        days: float,
        collections: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._collections = collections
        self._kept: dict[str, str] = {}  # jobs with uploads that are kept, and their collections
        self._name, self._ledger, self._blobs, self._days = name, ledger, blobs, days
        self._unfinished = unfinished
        self._other_versions: set[str] = set()  # jobs that only another version can remove
        self._interval_s = max(1.0, min(INTERVAL_S, days * DAY_S)) if days else INTERVAL_S

    def tidy(self) -> int:
        """Run one round and return the number of jobs deleted.

        Raises:
            Unavailable: the ledger or the blob store does not answer.
        """
        if not self._ledger.acquire_cleanup_lock(self._name, 2 * self._interval_s):
            return 0
        self._ledger.count_jobs()  # may repair the indices; a gateway should not wait for that
        for job_id in self._unfinished.older(DAY_S, MAX_JOBS):
            self._delete_abandoned_upload(job_id)
        completed = sum(map(self._complete_removal, self._ledger.removals(MAX_JOBS)))
        if not self._days:
            return completed
        existing = self._collections() if self._collections else ()
        self._kept = {job_id: name for job_id, name in self._kept.items() if name in existing}
        spared = self._other_versions | self._kept.keys()
        ended = self._ledger.ended(self._days * DAY_S, MAX_JOBS + len(spared))
        expired = [job_id for job_id in ended if job_id not in spared]
        return completed + sum(self._remove(job_id, existing) for job_id in expired[:MAX_JOBS])

    def run(self, stopping: threading.Event) -> None:
        """Run rounds until `stopping` is set. A round that fails is repeated later."""
        while not stopping.is_set():
            try:
                removed = self.tidy()
            except Unavailable as error:
                log.warning("expired jobs cannot be deleted now: %s", error.detail)
                removed = 0
            except Exception:
                log.exception("expired jobs cannot be deleted now")
                removed = 0
            if removed:
                log.info("deleted %d jobs that had expired or whose deletion broke off", removed)
            stopping.wait(1.0 if removed >= MAX_JOBS else self._interval_s)

    def _remove(self, job_id: str, existing: Collection[str]) -> bool:
        """Delete an expired job, unless its uploads are kept.

        Args:
            existing: the collections whose uploads are kept.
        """
        try:
            job = self._ledger.job(job_id)
            if job.new.source.get("type") == "upload" and job.new.collection in existing:
                self._kept[job_id] = job.new.collection
                return False
            if job.webhook == "pending" or self._is_being_retried(job):
                return False
            self._delete(job_id)
        except NotFound:  # another process deleted it first
            return False
        except OtherVersion as error:
            warn_once(f"this planner cannot delete the job: {error.detail}")
            self._other_versions.add(job_id)
            return False
        return True

    def _delete(self, job_id: str) -> None:
        """Delete a job, its uploads before its record: only the record names them."""
        job = self._ledger.begin_removal(job_id)
        if has_uploads(job.new):
            self._blobs.delete_below(uploads_of(job_id))
        if job.new.mirror:
            self._blobs.delete_below(mirror_of(job_id))
        self._ledger.remove(job_id)

    def _complete_removal(self, job_id: str) -> bool:
        """Delete a job whose removal did not come to its end, in a gateway or in a planner."""
        try:
            self._delete(job_id)
        except NotFound:
            with suppress(NotFound):  # another release deleted the job, and this is left of it
                self._ledger.remove(job_id)
            return False
        except OtherVersion as error:
            warn_once(f"this planner cannot delete the job: {error.detail}")
            return False
        return True

    def _delete_abandoned_upload(self, job_id: str) -> None:
        """Delete the files of an upload that became no job within a day."""
        try:
            self._ledger.job(job_id)  # the job was created, and the note about the upload remained
        except NotFound:
            log.info("deleting the files of an abandoned upload for job %s", job_id)
            self._blobs.delete_below(uploads_of(job_id))
        except OtherVersion:
            log.debug("upload %s became a job of another version", job_id)
        self._unfinished.end(job_id)

    def _is_being_retried(self, job: Job) -> bool:
        try:
            return bool(job.retried_by) and self._ledger.job(job.retried_by).state not in FINAL
        except NotFound:
            return False
