"""The last step of a mirror: what is gone from the source is named or deleted.

It runs when all chunks of the job are done, one mirror of a collection at a time. A planner that
ends in between loses nothing: which images are gone is written down before the first one is
deleted, and the snapshot changes after the last one.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.mirror import MirrorIn, exceeds
from clipfleet.common.identity import UPLOAD, KeyMaker
from clipfleet.common.imaging.thumbnails import thumbnail_keys
from clipfleet.common.ledger import Job, MirrorResult
from clipfleet.common.ledger.catalogue import Deletion, to_delete_from
from clipfleet.common.ledger.failure_parts import FailuresLost
from clipfleet.common.ledger.notes import GAPS
from clipfleet.common.ledger.turns import write_in_turn
from clipfleet.common.process.logs import log_context
from clipfleet.common.snapshots import (
    UNKNOWN,
    Entries,
    Gone,
    Keys,
    Listing,
    Missing,
    Snapshots,
    as_text,
    consistently,
    dry_listing_of,
    keys_of,
    merged,
    snapshots_of,
    where_in,
)
from clipfleet.common.store import CollectionGone
from clipfleet.workers.planner.tracking import TrackingParts

log = logging.getLogger(__name__)

BATCH = 500  # images deleted at once
NAMED = 500  # images whose rows are read at once
FAILURES = 1_000  # failures read at once
WAITS = "another mirror of the collection is deleting images"


class Lost(Exception):
    """The planner does not have the job any more."""


@dataclass(frozen=True)
class Compared:
    """What a mirror has found.

    Attributes:
        listing: the blobs of the snapshot.
        base: the images that the source had.
        listed: the images that it has.
        gone: the keys of the images that it has no more, and no other source has.
        shared: the keys of those that it has no more, and another source has.
    """

    listing: Listing
    base: Entries
    listed: Entries
    gone: Keys
    shared: Keys


class Closing:
    """Ends one mirror.

    Args:
        job: the job, whose chunks are done.
        token: the token of the planner's lease.
        parts: services.
    """

    def __init__(self, job: Job, token: str, parts: TrackingParts) -> None:
        assert job.new.mirror is not None
        self._job, self._new, self._token, self._parts = job, job.new, token, parts
        self._mirror: MirrorIn = job.new.mirror
        self._missing = Missing(parts.blobs, job.id)

    def run(self) -> None:
        """Name or delete what is gone, replace the snapshot, and end the job.

        Raises:
            Unavailable: a service is away; another try goes on.
        """
        state = self._state()
        if state == "wait":
            self._parts.ledger.set_waiting_reason(self._job.id, WAITS)
        if state != "begun":
            return
        new, parts = self._new, self._parts
        collection = parts.catalogue.generation(new.collection, new.generation)
        try:
            if collection is None:
                raise CollectionGone(f"collection {new.collection!r} was deleted")
            self._snapshots = Snapshots(parts.blobs, snapshots_of(collection.snapshots))
            self._close(collection)
        except CollectionGone:
            self._parts.ledger.cancel(self._job.id, "the collection was deleted")
        except Lost:
            log.info("job %s has ended, or another planner has it", self._job.id)

    def _state(self) -> Literal["begun", "wait", "lost"]:
        return self._parts.ledger.begin_close(self._job.id, self._token)

    def _require_lease(self) -> None:
        if self._state() != "begun":
            raise Lost

    def _close(self, collection: Collection) -> None:
        compared = consistently(self._compare)
        gaps = self._job.notes.get(GAPS, 0)
        gone, keys = self._missing.gone(), compared.gone
        if gone is None:
            if gaps:
                keys = keys_of(b"")
            foreign = [keys[:0]]
            indexed = self._indexed(collection, keys, foreign)
            gone = self._missing.write(indexed, len(compared.base) - len(keys))
            keys = keys[~where_in(keys, np.sort(np.concatenate(foreign)))[0]]
        else:  # another planner has begun
            keys = keys[where_in(keys, np.sort(gone.keys))[0]]
        kept = _kept_because(gaps) if gaps else self._refusal(gone)
        deletes = self._mirror.missing == "delete" and not self._mirror.dry_run and not kept
        if deletes:
            self._delete(collection, keys)
        if not self._mirror.dry_run:
            self._require_lease()
            self._replace(compared, gone, deleted=deletes, is_partial=bool(gaps))
        count = len(gone.keys)
        stays = kept or ("" if gaps else self._stays(collection, compared.shared))
        result = MirrorResult(count, count if deletes else 0, stays)
        refused = self._refusal(gone) if not gaps and not self._mirror.dry_run else ""
        if self._parts.ledger.close(self._job.id, self._token, result, refused):
            self._clean(compared.listing)

    def _compare(self) -> Compared:
        new, snapshots = self._new, self._snapshots
        listing = snapshots.listing(new.origin)
        base = snapshots.base(new.origin, listing)
        listed = self._failed_unknown(self._listed(listing))
        others = [job_id for job_id in listing.parts if job_id != new.id]
        elsewhere = snapshots.parts(new.origin, listing, others)
        gone = base.keys[~where_in(base.keys, listed.keys)[0]]
        gone = gone[~where_in(gone, elsewhere.keys)[0]]  # listed since this mirror began
        is_shared = snapshots.held(new.origin, gone)
        return Compared(listing, base, listed, gone[~is_shared], gone[is_shared])

    def _listed(self, listing: Listing) -> Entries:
        """What the job has listed; also once a base with it has been written."""
        new = self._new
        if not self._mirror.dry_run:
            return self._snapshots.written(new.origin, listing, new.id)
        dry = Snapshots(self._parts.blobs, dry_listing_of(new.id))
        return dry.written(new.origin, dry.listing(new.origin), new.id)

    def _failed_unknown(self, listed: Entries) -> Entries:
        """The entries, in which images that failed are unknown, so that they are tried again."""
        maker, keys = KeyMaker(self._new.namespace), list[bytes]()
        try:
            for failures in self._failures():
                keys += [maker.digest(image_id) for image_id in failures]
        except FailuresLost:
            return listed.unknown()
        if not keys:
            return listed
        failed = np.sort(keys_of(b"".join(keys)))
        is_failed, _ = where_in(listed.keys, failed)
        return Entries(listed.keys, np.where(is_failed, np.uint64(UNKNOWN), listed.signatures))

    def _failures(self) -> Iterator[list[str]]:
        ledger, offset = self._parts.ledger, 0
        while offset < self._job.failed:
            page = ledger.failures(self._job.id, FAILURES, offset)
            yield [failure.id for failure in page]
            if not page:
                return
            offset += len(page)

    def _indexed(
        self, collection: Collection, keys: Keys, foreign: list[Keys]
    ) -> Iterator[tuple[Keys, list[str]]]:
        """Those of the images that are indexed: keys and ids.

        Args:
            foreign: gets the keys of uploads and own vectors that have taken the id of an image.
        """
        for start in range(0, len(keys), NAMED):
            batch = keys[start : start + NAMED]
            names = as_text(batch)
            rows = self._parts.store.fetch(collection, names, include_values=False)
            ids = {
                name: row.id
                for name, row in rows.items()
                if row.job_id and not row.uri.startswith(UPLOAD)
            }
            is_own = np.array([name in ids for name in names])
            is_foreign = np.array([name in rows for name in names]) & ~is_own
            foreign.append(batch[is_foreign])
            yield batch[is_own], [ids[name] for name in names if name in ids]

    def _stays(self, collection: Collection, shared: Keys) -> str:
        """Why images that are gone from this source alone stay; "" if there are none."""
        if self._mirror.missing != "delete":
            return ""
        batches = (shared[start : start + NAMED] for start in range(0, len(shared), NAMED))
        store = self._parts.store
        count = sum(len(store.present(collection, as_text(batch))) for batch in batches)
        images = "1 image is" if count == 1 else f"{count} images are"
        return (
            f"{images} gone from this source but not deleted: another source of the collection "
            "had them when it was indexed last; mirror that one, too"
            if count
            else ""
        )

    def _refusal(self, gone: Gone) -> str:
        """Why more images are gone than the job may delete; "" otherwise."""
        limit, count = self._mirror.max_delete, len(gone.keys)
        if self._mirror.missing != "delete" or not exceeds(count, gone.of, limit):
            return ""
        share = f"{100 * count / max(gone.of, 1):.3g} %"
        allowed = f"{limit} images" if isinstance(limit, int) else f"{100 * limit:.3g} %"
        none = "none would be" if self._mirror.dry_run else "none was"
        return (
            f"{count} of {gone.of} images ({share}) are gone from the source, and max_delete "
            f"allows {allowed}: {none} deleted. If the source is the right one, mirror it with "
            f"max_delete {count} or more"
        )

    def _delete(self, collection: Collection, keys: Keys) -> None:
        """Delete images with their thumbnails.

        The deletion of images that are not indexed is recorded, too: a worker of a cancelled job
        may be about to store them.
        """
        parts = self._parts
        for start in range(0, len(keys), BATCH):
            self._require_lease()
            pks = as_text(keys[start : start + BATCH])
            parts.catalogue.record_deletion(collection, Deletion.of(pks))
            for generation in to_delete_from(parts.catalogue, collection):
                parts.blobs.delete_all(thumbnail_keys(generation, pks))
                delete = partial(parts.store.delete, generation)
                write_in_turn(parts.catalogue, generation, pks, delete)
                parts.catalogue.record_write(generation)

    def _replace(self, compared: Compared, gone: Gone, *, deleted: bool, is_partial: bool) -> None:
        """Write the new base. It keeps images that are gone from the source but indexed."""
        kept = Entries(compared.base.keys[:0], compared.base.signatures[:0])
        if is_partial:  # nothing is known of what was not listed
            listed, _ = where_in(compared.base.keys, compared.listed.keys)
            kept = compared.base.of(~listed)
        elif not deleted:
            kept = merged([Entries(gone.keys, np.zeros(len(gone.keys), np.uint64))])
        base = merged([compared.listed, kept]) if len(kept) else compared.listed
        self._snapshots.write_base(self._new.origin, base, compared.listing, [self._new.id])

    def _clean(self, listing: Listing) -> None:
        """Delete what is not needed any more. What remains has no effect."""
        try:
            if self._mirror.dry_run:
                self._parts.blobs.delete_below(dry_listing_of(self._new.id))
            else:
                self._snapshots.delete(self._new.origin, listing, [self._new.id])
        except Unavailable as error:
            log.warning("blobs of the snapshot stay until the next job: %s", error.detail)


def _kept_because(gaps: int) -> str:
    parts = "1 part" if gaps == 1 else f"{gaps} parts"
    return (
        f"{parts} of the source could not be read, or had no images, so what is gone is not known; "
        "the failures and the remarks of the job name them"
    )


class Closings:
    """Ends mirrors, each on a thread of its own.

    Args:
        parts: services; None: mirrors cannot be ended here.
        limit: the number of mirrors at once.
    """

    def __init__(self, parts: TrackingParts | None, limit: int = 4) -> None:
        self._parts, self._limit = parts, limit
        self._threads: dict[str, threading.Thread] = {}

    def begin(self, job: Job, token: str) -> None:
        """Begin to end a mirror, unless that is under way."""
        self._threads = {key: thread for key, thread in self._threads.items() if thread.is_alive()}
        if self._parts is None or job.id in self._threads or len(self._threads) >= self._limit:
            return
        closing = Closing(job, token, self._parts)
        thread = threading.Thread(
            target=self._run, args=(job.id, closing.run), name="mirror", daemon=True
        )
        self._threads[job.id] = thread
        thread.start()

    def is_under_way(self, job_id: str) -> bool:
        """Whether a mirror is being ended here."""
        return job_id in self._threads and self._threads[job_id].is_alive()

    def wait(self, job_id: str) -> None:
        """Wait until no thread ends the mirror."""
        if job_id in self._threads:
            self._threads[job_id].join()

    def _run(self, job_id: str, close: Callable[[], None]) -> None:
        assert self._parts is not None
        with log_context(job_id=job_id):
            try:
                close()
            except Unavailable as error:
                log.warning("the mirror waits: %s", error.detail)
                try:
                    self._parts.ledger.set_waiting_reason(job_id, error.detail)
                except Unavailable:
                    log.debug("and Redis is away")
            except Exception:
                log.exception("job %s: the mirror cannot be ended; another try follows", job_id)
