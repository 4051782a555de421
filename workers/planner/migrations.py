"""Carries migrations on: begins the jobs that copy images, pass after pass, until the end.

Runs next to each planner. Every change of a migration is a compare-and-set in the catalogue, so
several planners do no harm, and a planner that dies leaves nothing half done.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.identity import DEFAULT_NAMESPACE, primary_key
from clipfleet.common.imaging.thumbnails import thumbnail_keys
from clipfleet.common.ledger import FINAL, Failure, Job, Ledger, NewJob
from clipfleet.common.ledger.failure_parts import FailuresLost
from clipfleet.common.ledger.migrations import Migration, Pass
from clipfleet.common.ledger.unreadable import Lost, list_of
from clipfleet.common.ledger.uploads import uploads_of
from clipfleet.common.store import CollectionGone
from clipfleet.common.store.generations import foreign_images, without
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers.planner.comparison import compare
from clipfleet.workers.planner.generation_source import CopySource, Generations, copy_source
from clipfleet.workers.sources import SourceError
from clipfleet.workers.storage.locations import Storage

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 3.0
COMPARE_INTERVAL_S = 600.0
RETRY_S = 30.0  # after a pass that failed
PAGE = 500  # failures in one read
KEEP_UPLOADS = "CLIPFLEET_KEEP_UPLOADS=true keeps uploaded files"
CANCELLED = "its job {0} was cancelled; resume the migration to go on"

Direction = Literal["forward", "backward"]


@dataclass
class _Times:
    """When parts of a migration were last looked at.

    Attributes:
        checked: when the images of each direction were last compared, unix seconds.
        failed: when a pass last failed, monotonic seconds.
        swept: when copies without an original were last looked for, monotonic seconds.
        compared: when the answers were last compared, unix seconds.
    """

    checked: dict[str, float]
    failed: float = float("-inf")
    swept: float = float("-inf")
    compared: float = float("-inf")


class Migrator:
    """Carries migrations on, one round (`tick`) at a time.

    Args:
        ledger: gets the jobs.
        generations: the catalogue, the store, and the lists of unreadable images.
        storage: finds images.
        blobs: the thumbnails.
        clock: unix seconds.
        timer: monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        generations: Generations,
        storage: Storage,
        blobs: Blobs,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._generations = ledger, generations
        self._catalogue, self._store = generations.catalogue, generations.store
        self._unreadable = generations.unreadable
        self._storage, self._blobs, self._clock, self._timer = storage, blobs, clock, timer
        self._times: dict[str, _Times] = {}

    def run(self, stopping: threading.Event) -> None:
        """Run rounds until `stopping` is set. A round that fails is repeated later."""
        while not stopping.wait(INTERVAL_S):
            try:
                self.tick()
            except Unavailable as error:
                log.warning("migrations cannot go on now: %s", error.detail)
            except Exception:
                log.exception("migrations cannot go on now")

    def tick(self) -> None:
        """Run one round.

        Raises:
            Unavailable: the ledger or the store does not answer.
        """
        for migration in self._catalogue.migrations():
            if migration.state in ("building", "ready", "swapped"):
                try:
                    self._tend(migration)
                except OtherVersion as error:
                    warn_once(f"this planner does not carry a migration on: {error.detail}")
                except (CollectionGone, SourceError) as error:
                    log.info("the migration of %r waits: %s", migration.name, error)

    def _tend(self, migration: Migration) -> None:
        self._times.setdefault(migration.id, _Times({}))
        if not self._advance(migration, "forward"):
            return
        if migration.swapped_at and not self._advance(migration, "backward"):
            return
        if not migration.swapped_at and not migration.forward.job:
            self._sweep(migration)
        if migration.complete_at and migration.state in ("ready", "swapped"):
            self._compare(migration)

    def _advance(self, migration: Migration, direction: Direction) -> bool:
        """Begin or end a pass when it is time. False when the record has changed by that."""
        copying = _pass(migration, direction)
        if not copying.job:
            return self._begin(migration, direction)
        try:
            job = self._ledger.job(copying.job)
        except NotFound:  # the planner died before it created the job, or the job was deleted
            self._ledger.create(self._new_job(migration, direction, copying))
            return True
        return self._end(migration, direction, job) if job.state in FINAL else True

    def _begin(self, migration: Migration, direction: Direction) -> bool:
        times, now = self._times[migration.id], self._clock()
        copying, source = _pass(migration, direction), _ends(migration, direction)[0]
        if self._timer() - times.failed < RETRY_S:
            return True
        written = now - self._catalogue.seconds_since_write(source)
        if copying.done_to and written < times.checked.get(direction, float("-inf")):
            return True
        times.checked[direction] = now
        next_pass = Pass(job=secrets.token_hex(8), began=int(now * 1000), done_to=copying.done_to)
        new = self._new_job(migration, direction, next_pass)
        if copying.done_to and CopySource(new, self._generations, self._storage).is_empty():
            return True
        if not copying.done_to:
            self._unreadable.forget(list_of(migration, _ends(migration, direction)[1]))
        if self._change(migration, direction, next_pass):
            self._ledger.create(new)
        return False

    def _new_job(self, migration: Migration, direction: Direction, copying: Pass) -> NewJob:
        source, target = _ends(migration, direction)
        return NewJob(
            v=4,
            id=copying.job,
            collection=migration.name,
            generation=target.generation,
            model=target.model,
            namespace=DEFAULT_NAMESPACE,
            source=copy_source(list_of(migration, target), source, copying.since),
            on_existing="replace",
            grant=migration.grant,
            is_low=True,
        )

    def _end(self, migration: Migration, direction: Direction, job: Job) -> bool:
        """Record the end of a pass; a pass that failed is repeated."""
        self._note_failures(migration, direction, job)
        copying = _pass(migration, direction).model_copy(update={"job": ""})
        is_later = copying.done_to > 0
        if job.state == "cancelled":
            paused = migration.paused(self._clock()) if not migration.swapped_at else migration
            error = job.error or CANCELLED.format(job.id)
            self._replace(migration, paused.model_copy(update={"error": error, direction: copying}))
            self._times[migration.id].failed = self._timer()
            return False
        # A pass in which every image failed counts as failed, but it has come to its end.
        if job.planned and job.done + job.skipped + job.failed == job.total and not _broke(job):
            copying = copying.model_copy(update={"done_to": copying.began})
            if self._change(migration, direction, copying, error="") and is_later:
                self._remove(job)
        else:
            self._times[migration.id].failed = self._timer()
            self._change(migration, direction, copying, error=job.error)
        return False

    def _remove(self, job: Job) -> None:
        """Delete a job of a later pass: there may be one every second."""
        self._ledger.begin_removal(job.id)
        self._blobs.delete_below(uploads_of(job.id))
        self._ledger.remove(job.id)

    def _note_failures(self, migration: Migration, direction: Direction, job: Job) -> None:
        """Add the images that the pass could not read to the list; a second time does no harm."""
        target = _ends(migration, direction)[1]
        for page in self._failures(job):
            lost = [image for failure in page if (image := _lost(failure))]
            self._unreadable.add(list_of(migration, target), lost)
            if not migration.swapped_at:
                self._delete_outdated(migration, target, lost)

    def _delete_outdated(
        self, migration: Migration, target: Collection, lost: Sequence[Lost]
    ) -> None:
        """Delete copies of what images were before they changed and could not be read any more.

        Only while nobody else writes to the new generation.
        """
        known = self._store.fingerprints(target, [image.pk for image in lost])
        keys = [
            image.pk
            for image in lost
            if image.pk in known and known[image.pk].indexed_at < image.indexed_at
        ]
        if keys and self._catalogue.migration(migration.name) == migration:
            self._blobs.delete_all(thumbnail_keys(target, keys))
            self._store.delete(target, keys)
            self._catalogue.record_write(target)

    def _failures(self, job: Job) -> Iterator[list[Failure]]:
        for offset in count(0, PAGE):
            try:
                page = self._ledger.failures(job.id, PAGE, offset)
            except FailuresLost as error:  # these images count as missing
                log.warning("%s", error.detail)
                return
            yield page
            if len(page) < PAGE:
                return

    def _change(
        self, migration: Migration, direction: Direction, copying: Pass, error: str | None = None
    ) -> bool:
        changes: dict[str, object] = {direction: copying}
        if error is not None:
            changes["error"] = error
        after = migration.model_copy(update=changes)
        if direction == "forward" and copying.done_to and not migration.complete_at:
            after = after.model_copy(update={"complete_at": self._clock()})
            if after.state == "building":
                after = after.changed("ready", self._clock())
        return self._replace(migration, after)

    def _replace(self, before: Migration, after: Migration) -> bool:
        return self._catalogue.change_migration(before, after)

    def _sweep(self, migration: Migration) -> None:
        """Delete copies whose original is gone: the deletion came when there was no copy yet.

        Only while nobody else writes to the new generation.
        """
        times, (source, target) = self._times[migration.id], _ends(migration, "forward")
        if self._timer() - times.swept < SWEEP_INTERVAL_S:
            return
        times.swept = self._timer()
        name = list_of(migration, target)
        lost = self._unreadable.count(name)
        if self._store.count(target) + lost <= self._store.count(source):
            return
        for keys in foreign_images(self._store, source, target):
            gone = without(self._store, source, keys)  # again: a deleted image may have come back
            if gone and self._catalogue.migration(migration.name) == migration:
                self._blobs.delete_all(thumbnail_keys(target, gone))
                self._store.delete(target, gone)
                self._catalogue.record_write(target)
        self._forget_lost(name, source)

    def _forget_lost(self, name: str, source: Collection) -> None:
        """Take images out of the list of unreadable ones that were deleted or changed since."""
        after = ""
        while page := self._unreadable.page(name, after, PAGE):
            known = self._store.fingerprints(source, [image.pk for image in page])
            after = page[-1].pk
            stale = [
                image.pk
                for image in page
                if image.pk not in known or known[image.pk].indexed_at != image.indexed_at
            ]
            self._unreadable.forget(name, stale)

    def _compare(self, migration: Migration) -> None:
        """Compare the answers of the two generations: once all are copied, and now and then."""
        times, known = self._times[migration.id], migration.comparison
        since = self._clock() - max(known.at if known else float("-inf"), times.compared)
        if since < COMPARE_INTERVAL_S or migration.jobs:
            return
        times.compared = self._clock()
        compared = compare(self._store, migration.old, migration.new, self._clock())
        if compared:
            self._replace(migration, migration.model_copy(update={"comparison": compared}))


def _pass(migration: Migration, direction: Direction) -> Pass:
    return migration.forward if direction == "forward" else migration.backward


def _ends(migration: Migration, direction: Direction) -> tuple[Collection, Collection]:
    """The generation that images are copied from, and the one that they are copied to."""
    ends = (migration.old, migration.new)
    return ends if direction == "forward" else (ends[1], ends[0])


def _broke(job: Job) -> bool:
    """Whether the source could not be read to its end."""
    return job.state == "failed" and not job.failed


def _lost(failure: Failure) -> Lost | None:
    if failure.stored is None:
        return None
    reason = failure.reason
    if failure.uri.startswith("upload:") and failure.stage == "read":
        reason = f"{reason} ({KEEP_UPLOADS})"
    return Lost(
        pk=primary_key(failure.stored.namespace, failure.id),
        id=failure.id,
        namespace=failure.stored.namespace,
        uri=failure.uri,
        reason=reason,
        indexed_at=failure.stored.indexed_at,
    )
