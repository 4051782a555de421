"""Works on one claimed chunk: read and decode on threads, embed in batches, upsert, mark."""

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection, image_problem, weights_problem
from clipfleet.common.errors import Unavailable
from clipfleet.common.identity import has_same_bytes, primary_key
from clipfleet.common.imaging import exif
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.imaging.thumbnails import thumbnail_key, thumbnail_keys
from clipfleet.common.ledger import (
    GONE,
    Claim,
    Failure,
    FailureStage,
    Item,
    Job,
    Ledger,
    Outcome,
    any_remote,
)
from clipfleet.common.ledger.catalogue import HOLD_S, Catalogue, Deletion, to_delete_from
from clipfleet.common.ledger.migrations import is_migration
from clipfleet.common.ledger.tags import TagRules, saved_rules
from clipfleet.common.process.logs import in_context
from clipfleet.common.settings import Settings
from clipfleet.common.store import CollectionGone, Fingerprint, Record, Store, Vectors
from clipfleet.workers.analysis.tags import TAGGER, Model, Tagger, retagged, with_words
from clipfleet.workers.analysis.task import Task
from clipfleet.workers.analysis.tasks import IMPLEMENTED
from clipfleet.workers.embedding.guarded import BrokenDevice
from clipfleet.workers.ingest.background import Waits
from clipfleet.workers.ingest.copying import Copying, namespace_of, only, times_of
from clipfleet.workers.ingest.device import Device, PixelBuffer
from clipfleet.workers.ingest.feeders import Feeders
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.ingest.lease import Interrupted, Lease
from clipfleet.workers.ingest.prepare import DetailsChanged, Failed, Unchanged
from clipfleet.workers.ingest.reading import (
    STORED,
    Reading,
    Ready,
    Terms,
    UnderWay,
    with_exif,
)
from clipfleet.workers.metrics import StageTimings, WorkerMetrics
from clipfleet.workers.storage.locations import Storage

T = TypeVar("T")
# After this long a worker marks the images of a chunk that are done and hands the others back.
BUDGET = 3.0  # times chunk_s
MIN_BUDGET_S = 10.0
# The same for a chunk of remote images. Images whose server has begun to answer continue.
REMOTE_BUDGET = 1.0  # times chunk_s
MIN_REMOTE_BUDGET_S = 2.0
# The same after so many bytes of image files. The planner knows the rate of a job, not the sizes.
CHUNK_BYTES = 1 << 30
MIN_MEASURED_S = 0.1  # a shorter time counts as this long in the rate
CHECK_INTERVAL_S = 0.25  # a worker that waits for images notices within this time that it must stop
THUMBNAIL_WRITERS = 8  # threads that write the thumbnails of a chunk into a bucket
THUMBNAILS_AT_ONCE = 64  # written into a folder between two looks at the lease
UPDATES_AT_ONCE = 500
HELD_INTERVAL_S = 0.05  # between two tries to write images that another writer has in hand
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestParts:
    """What a worker needs to index chunks.

    Attributes:
        worker: the worker's unique name.
        threads: read blobs and write thumbnails.
        feeders: read local files and prepare images.
        stopping: set when the worker is asked to stop.
        storage: opens the locations of images.
        fetches: reads remote images.
        weights_id: which weights the model has; "": not known.
        device: gives chunks turns at the model, by API key and job.
        tagger: chooses the tags of images whose collection has saved rules.
        tasks: what may be computed on stored images, by name.
        waits: called with whether the chunk does nothing but wait for servers of others.
    """

    worker: str
    ledger: Ledger
    store: Store
    catalogue: Catalogue
    embedder: Embedder
    blobs: Blobs
    settings: Settings
    threads: ThreadPoolExecutor
    feeders: Feeders
    stopping: threading.Event
    storage: Storage
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    fetches: FetchPool = field(default_factory=FetchPool)
    weights_id: str = ""
    device: Device = field(default_factory=Device)
    waits: Waits = lambda _: None
    tagger: Tagger = TAGGER
    tasks: Mapping[str, Task] = field(default_factory=lambda: IMPLEMENTED)


class WrongModel(Exception):
    """The embeddings of the collection are not those of this worker's model."""


class Chunk:
    """Works on the images of one claim, once.

    Args:
        lease: the lease of the claim, which the caller holds.
    """

    def __init__(self, parts: IngestParts, job: Job, claim: Claim, lease: Lease) -> None:
        self._parts, self._job, self._claim, self._lease = parts, job, claim, lease
        self._failures: list[Failure] = []
        self._stored_keys: list[str] = []  # primary keys of the images that `_done` counts
        self._copying: Copying | None = None
        self._copied: dict[str, int] = {}  # when the images of the last write were stored first
        self._replaced: set[str] = set()  # those of them that were stored with other content
        self._updated: set[str] = set()  # those of `_replaced` that were not embedded again
        self._changes: dict[str, tuple[Item, DetailsChanged]] = {}  # to be updated
        self._done = self._skipped = self._worked = self._file_bytes = 0
        self._timings = StageTimings()
        self._is_remote = any_remote(claim.items)
        self._began = time.monotonic()
        self._until = self._mark_at = self._began + self._budget_s()
        self._thumbnails: dict[str, bytes] = {}  # of images that are not stored yet
        self._rest: dict[str, Item] = {}  # not done yet, by primary key
        self._under_way: dict[str, Item] = {}  # part of `_rest` that an early mark keeps
        self._rate = self._model_s = 0.0
        self._rules: TagRules | None = None
        self._model_images = 0

    def run(self) -> int:
        """Index the chunk and mark it in the ledger.

        Returns:
            The number of images that were worked on.

        Raises:
            CollectionGone: the collection was deleted.
            WrongModel: the collection was made with another model of the same name.
            Interrupted: the claim is lost, or a service is unavailable and the worker stops.
            BrokenDevice: the device is broken.
        """
        collection = self._collection()
        items = self._distinct(self._claim.items)
        if is_migration(self._job.new.source):
            items = self._due(items, collection)
        keys = list(items)
        known = self._retry_store_call(lambda: self._parts.store.fingerprints(collection, keys))
        self._remove_gone(collection, items, known)
        records: list[Record] = []
        self._terms = Terms(self._job, collection, known, self._retry_until_deadline)
        self._rules = None if self._copying else self._saved_rules(collection)
        self._rest = dict(items)
        for batch in self._ready_batches(items):
            records += self._embed(batch)
            self._lease.progress()
            if self._under_way:
                self._write(collection, records)
                records = []
        self._write(collection, records)
        return self._worked

    def _remove_gone(
        self, collection: Collection, items: dict[str, Item], known: Mapping[str, Fingerprint]
    ) -> None:
        """Delete the images that are gone from their source. They count as skipped.

        A row with the same id from elsewhere stays: own vectors, and images with another URI.
        """
        gone = {pk: items.pop(pk) for pk, item in list(items.items()) if item.read == GONE}
        stored = [pk for pk in gone if pk in known and known[pk].job_id]
        if stored:
            self._retry_while_unavailable(self._lease.confirm)
            rows = self._retry_store_call(lambda: self._parts.store.fetch(collection, stored))
            keys = [pk for pk, row in rows.items() if row.uri == gone[pk].uri]
            self._delete_recorded(collection, keys)
        self._skipped += len(gone)

    def _delete_recorded(self, collection: Collection, keys: Sequence[str]) -> None:
        """Delete images as the gateway does, so that no other worker stores them again."""
        if not keys:
            return
        catalogue, deletion = self._parts.catalogue, Deletion.of(keys)
        self._retry_while_unavailable(lambda: catalogue.record_deletion(collection, deletion))
        targets = self._retry_while_unavailable(lambda: to_delete_from(catalogue, collection))
        for target in targets:
            self._delete_images(target, keys)
            self._retry_while_unavailable(partial(catalogue.record_write, target))

    def _delete_images(self, collection: Collection, keys: Sequence[str]) -> None:
        """Delete images with their thumbnails."""
        if keys:
            small = thumbnail_keys(collection, keys)
            self._retry_while_unavailable(lambda: self._parts.blobs.delete_all(small))
            self._write_rows(collection, keys, partial(self._delete, collection))

    def _write(self, collection: Collection, records: list[Record]) -> None:
        """Store the records, mark the chunk, and hand back the images that are not under way."""
        if records or self._changes:
            self._retry_while_unavailable(self._lease.confirm)
        if records:
            self._write_thumbnails(collection, records)
            by_key = {record.pk: record for record in records}
            self._write_rows(collection, by_key, partial(self._store, collection, by_key))
        changes = list(self._changes)
        for start in range(0, len(changes), UPDATES_AT_ONCE):
            keys = changes[start : start + UPDATES_AT_ONCE]
            self._write_rows(collection, keys, partial(self._update, collection))
            self._lease.progress()
        self._changes = {}
        if self._done:  # also if an earlier attempt stored them: that may have been just now
            self._retry_while_unavailable(lambda: self._parts.catalogue.record_write(collection))
            self._withdraw(collection)
        kept = tuple(self._under_way.values())
        rest = tuple(item for pk, item in self._rest.items() if pk not in self._under_way)
        failures = tuple(self._failures)
        outcome = Outcome(self._done, self._skipped, failures, rest, self._rate, kept)
        outcome = replace(outcome, replaced=len(self._replaced), updated=len(self._updated))
        if self._retry_while_unavailable(lambda: self._parts.ledger.mark(self._claim, outcome)):
            self._parts.metrics.marked(outcome)
        elif kept:
            raise Interrupted
        self._worked += len(self._claim.items) - len(rest) - len(kept)
        self._claim, self._rest = self._claim.of(kept), dict(self._under_way)
        self._done, self._skipped, self._failures, self._rate = 0, 0, [], 0.0
        self._stored_keys, self._replaced, self._updated = [], set(), set()
        self._copied = {}

    def _write_rows(
        self,
        collection: Collection,
        keys: Iterable[str],
        write: Callable[[list[str]], list[str]],
    ) -> None:
        """Write rows, each while no other writer has it in hand.

        Args:
            write: writes the rows of some of the keys, and returns those that are done.
        """
        catalogue, holder = self._parts.catalogue, self._claim.chunk

        def write_free(keys: Sequence[str]) -> list[str]:
            busy = catalogue.hold(collection, keys, holder, HOLD_S)
            free = [pk for pk in keys if pk not in busy]
            done = write(free) if free else []
            self._stored_keys += done
            self._done += len(done)
            with suppress(Unavailable):  # they are free after HOLD_S
                catalogue.release(collection, free, holder)
            return [pk for pk in keys if pk in busy]

        waiting = list(keys)
        while waiting := self._retry_store_call(partial(write_free, waiting)):
            self._lease.check()
            time.sleep(HELD_INTERVAL_S)

    def _store(
        self, collection: Collection, records: Mapping[str, Record], keys: Sequence[str]
    ) -> list[str]:
        """Store records; new ones get the time of this try, which other parts search by."""
        chosen = [records[pk] for pk in keys]
        if self._copying:
            due = self._copying.due({record.pk: record.indexed_at for record in chosen})
            chosen = [record for record in chosen if record.pk in due]
        else:
            now = int(time.time() * 1000)
            chosen = [replace(record, indexed_at=now) for record in chosen]
        if chosen:
            self._parts.store.upsert(collection, chosen)
        done = [record.pk for record in chosen]
        if self._copying:
            self._copied |= {record.pk: record.indexed_at for record in chosen}
            self._skipped += len(keys) - len(done)  # changed or deleted since
            self._replaced -= set(keys) - set(done)
        return done

    def _delete(self, collection: Collection, keys: Sequence[str]) -> list[str]:
        self._parts.store.delete(collection, keys)
        return []

    def _update(self, collection: Collection, keys: Sequence[str]) -> list[str]:
        """Replace the label, metadata and URI of stored images, whose bytes have not changed.

        An image that was deleted or has other bytes since is handed back.
        """
        stored = self._parts.store.fetch(collection, keys, include_values=False)
        records: list[Record] = []
        for pk in keys:
            item, change = self._changes[pk]
            row = stored.get(pk)
            if row is None or not has_same_bytes(row.content_hash, change.content_hash):
                self._rest[pk] = item
                self._replaced.discard(pk)
                self._updated.discard(pk)
                continue
            records.append(self._changed(row, item, change))
        self._parts.store.update(collection, records)
        return [record.pk for record in records]

    def _changed(self, row: Record, item: Item, change: DetailsChanged) -> Record:
        """A stored record with the details of an item."""
        fields = change.exif
        if fields is None:  # the bytes were not sent again
            names = exif.FIELDS if self._job.new.exif else ()
            fields = {name: row.metadata[name] for name in names if name in row.metadata}
        limit = self._parts.settings.limits.metadata_bytes
        if self._rules and isinstance(words := row.metadata.get(self._rules.field), list):
            item = _keeping(item, [w for w in words if w in self._rules.vocabulary], self._rules)
        return replace(
            row,
            uri=row.uri if item.read.startswith(STORED) else item.uri,
            label=item.label,
            metadata=with_exif(item, fields, self._terms.collection, limit),
            content_hash=change.content_hash,
            job_id=self._job.id,
            indexed_at=int(time.time() * 1000),
        )

    def _due(self, items: dict[str, Item], collection: Collection) -> dict[str, Item]:
        """The images of a chunk of copies that are not copied yet; the others count as skipped.

        An earlier attempt may have stored copies of images that were deleted just then.
        """
        parts = self._parts
        copying = self._copying = Copying(self._job, collection, parts.store, parts.catalogue)
        times = times_of(items)
        due = self._retry_store_call(lambda: copying.due(times))
        rest = {pk: at for pk, at in times.items() if pk not in due}
        self._delete_images(collection, self._retry_store_call(lambda: copying.orphans(rest)))
        self._skipped += len(items) - len(due)
        return only(items, due)

    def _write_thumbnails(self, collection: Collection, records: Sequence[Record]) -> None:
        """Write the thumbnails of images that are stored next.

        Not earlier: a thumbnail of an image that is deleted while the worker has it in hand would
        stay. On threads, since a bucket takes some 30 ms for each.
        """

        def write(keys: Sequence[str]) -> None:
            for pk in keys:
                self._write_thumbnail(thumbnail_key(collection, pk), self._thumbnails.pop(pk))

        keys = [record.pk for record in records if record.pk in self._thumbnails]
        if self._parts.blobs.folder:  # more threads would only wait for the interpreter's lock
            for start in range(0, len(keys), THUMBNAILS_AT_ONCE):
                write(keys[start : start + THUMBNAILS_AT_ONCE])
                self._lease.progress()
            return
        shares = [keys[n::THUMBNAIL_WRITERS] for n in range(THUMBNAIL_WRITERS)]
        written = [
            self._parts.threads.submit(in_context(partial(write, share))) for share in shares
        ]
        for future in written:
            future.result()
            self._lease.progress()

    def _write_thumbnail(self, key: str, small: bytes) -> None:
        self._retry_while_unavailable(lambda: self._parts.blobs.put(key, io.BytesIO(small)))

    def _withdraw(self, collection: Collection) -> None:
        """Delete stored images that a caller deleted while the worker had this chunk.

        They count as skipped. This runs after the upsert: a deletion that is recorded later finds
        the rows itself.
        """
        if self._copying:
            self._withdraw_copies(self._copying, collection)
            return
        since, catalogue = self._claim.since, self._parts.catalogue
        deletions = self._retry_while_unavailable(lambda: catalogue.deletions(collection, since))
        if not deletions:
            return
        covers = [deletion.covering(collection) for deletion in deletions]
        keys = self._stored_keys
        rows = self._retry_store_call(lambda: self._parts.store.fetch(collection, keys))
        gone = [
            pk
            for pk, row in rows.items()
            if row.job_id == self._job.id and any(covered(row) for covered in covers)
        ]
        self._delete_images(collection, gone)
        self._take_back(gone)

    def _withdraw_copies(self, copying: Copying, collection: Collection) -> None:
        """Delete copies of images that were deleted meanwhile."""
        gone = self._retry_store_call(lambda: copying.orphans(self._copied))
        self._delete_images(collection, gone)
        self._take_back(gone)

    def _take_back(self, gone: Sequence[str]) -> None:
        """Count images that were stored and deleted again as skipped."""
        self._done -= len(gone)
        self._replaced.difference_update(gone)
        self._updated.difference_update(gone)
        self._skipped += len(gone)

    def _budget_s(self) -> float:
        chunk_s = self._parts.settings.chunk_s
        if self._is_remote:
            return max(REMOTE_BUDGET * chunk_s, MIN_REMOTE_BUDGET_S)
        return max(BUDGET * chunk_s, MIN_BUDGET_S)

    @property
    def _has_time(self) -> bool:
        """Whether there is time to begin further images."""
        return time.monotonic() < self._until and not self._is_stopping

    @property
    def _is_stopping(self) -> bool:
        """Whether the worker stops: images that are done are marked, the others handed back."""
        return self._parts.stopping.is_set()

    def _retry_while_unavailable(self, call: Callable[[], T]) -> T:
        return self._lease.retry_while_unavailable(call, self._set_waiting_reason)

    def _retry_until_deadline(self, call: Callable[[], T]) -> T:
        """Retry a call until the chunk's time is over; then the image is handed back."""
        return self._lease.retry_while_unavailable(call, self._set_waiting_reason, self._until)

    def _retry_store_call(self, call: Callable[[], T]) -> T:
        """Retry a call of the store and observe the time of each try, without the waits."""

        def timed() -> T:
            with self._parts.metrics.timed("ingest", "store"):
                return call()

        return self._retry_while_unavailable(timed)

    def _set_waiting_reason(self, waiting: str) -> None:
        with suppress(Unavailable):
            self._parts.ledger.set_waiting_reason(self._job.id, waiting)

    def _collection(self) -> Collection:
        new = self._job.new
        catalogue = self._parts.catalogue
        collection = self._retry_while_unavailable(
            lambda: catalogue.generation(new.collection, new.generation)
        )
        if collection is None:
            raise CollectionGone(f"collection {new.collection!r} was deleted")
        if collection.dim != self._parts.embedder.dim:
            raise WrongModel(
                f"the collection's embeddings have {collection.dim} numbers, but embeddings of the "
                f"model {new.model!r} now have {self._parts.embedder.dim}"
            )
        if problem := weights_problem(collection, self._parts.weights_id):
            raise WrongModel(problem)
        return collection

    def _distinct(self, items: Sequence[Item]) -> dict[str, Item]:
        """The items by primary key. The last of several items with one id counts."""
        distinct: dict[str, Item] = {}
        for item in items:
            if item.problem:  # its id may be altered, and then equal another item's
                self._fail(item, "list", item.problem)
                continue
            pk = primary_key(namespace_of(item, self._job), item.id)
            self._skipped += pk in distinct
            distinct[pk] = item
        return distinct

    def _ready_batches(self, items: dict[str, Item]) -> Iterator[list[Ready]]:
        """Batches of prepared images; later ones are prepared while the caller embeds a batch."""
        reading = Reading(self._parts, self._terms)
        try:
            if self._claim.attempt > 1:
                yield from self._one_by_one(reading, items)
            else:
                yield from self._as_ready(reading, items)
        finally:
            reading.cancel()
            self._observe_timings()

    def _as_ready(self, reading: Reading, items: dict[str, Item]) -> Iterator[list[Ready]]:
        """Batches of images in the order in which they become ready.

        A batch that is not full waits for CHECK_INTERVAL_S at most. The first images are begun in
        any case, so that each claim of a chunk makes progress.
        """
        size, remaining = self._parts.embedder.batch, deque(items)
        limit = 2 * size + self._parts.feeders.ahead
        ready: list[Ready] = []
        while not self._is_stopping:
            max_under_way = limit - len(ready)
            while remaining and self._may_begin(items, remaining, reading, max_under_way):
                pk = remaining.popleft()
                reading.begin(pk, items[pk])
            if not self._has_time:
                reading.cancel_waiting()
            if not reading:
                break
            taken = self._take_ready(reading)
            ready += taken
            self._parts.waits(not (self._has_time or ready))
            if is_due := self._is_due(reading):
                remaining.clear()  # images that were not begun are handed back
                reading.cancel_waiting()
            while len(ready) >= size or (ready and (is_due or not taken)):
                yield ready[:size]
                del ready[:size]
            if is_due and reading:
                yield from self._mark_early(reading)
        while ready and not self._is_stopping:
            yield ready[:size]
            del ready[:size]
        self._measure_rate(reading)

    def _is_due(self, reading: Reading) -> bool:
        """Whether to mark the finished images of a remote chunk while others are under way."""
        is_due = self._is_remote and time.monotonic() >= self._mark_at
        return is_due and len(reading) < len(self._claim.items)

    def _mark_early(self, reading: Reading) -> Iterator[list[Ready]]:
        self._measure_rate(reading)
        self._under_way = reading.items
        yield []
        self._under_way, self._mark_at = {}, time.monotonic() + self._budget_s()

    def _measure_rate(self, reading: Reading) -> None:
        """Measure the rate in images per second, once for the chunk.

        For a remote chunk this is the rate at which images were begun: many images can wait for a
        silent server at once.
        """
        if self._is_stopping or self._mark_at > self._until:
            return
        if self._is_remote:
            begun = [at for at in reading.begun_at if at <= self._until]
            took_s = max(begun, default=self._until) - self._began
            self._rate = max(len(begun), 1) / max(took_s, MIN_MEASURED_S)
            if self._model_images:  # fetched images wait in memory for the model
                self._rate = min(self._rate, self._model_images / max(self._model_s, 1e-3))
        else:
            done = len(self._claim.items) - len(self._rest)
            self._rate = done / max(time.monotonic() - self._began, MIN_MEASURED_S)

    def _may_begin(
        self, items: dict[str, Item], remaining: deque[str], reading: Reading, max_under_way: int
    ) -> bool:
        if len(items) - len(remaining) < self._parts.embedder.batch:
            return True
        return self._has_time and (items[remaining[0]].is_remote or len(reading) < max_under_way)

    def _one_by_one(self, reading: Reading, items: dict[str, Item]) -> Iterator[list[Ready]]:
        """Single images, each recorded as the suspect in the ledger before it is prepared.

        For a chunk whose earlier attempt ended its worker.
        """
        indices = {id(item): index for index, item in enumerate(self._claim.items)}
        for pk, item in items.items():
            if not self._has_time and len(self._rest) < len(items):
                break
            mark_suspect = partial(self._suspect, indices[id(item)])
            if item.is_remote:  # a suspect once fetched: waiting for a server ends no worker
                self._suspect(None)
                reading.on_fetched = mark_suspect
            else:
                mark_suspect()
            reading.begin(pk, item)
            ready: list[Ready] = []
            while reading and not self._is_stopping:
                ready += self._take_ready(reading)
            if ready:
                yield ready
            if pk in self._rest:  # a service is unavailable, or the worker stops
                break
        self._suspect(None)

    def _take_ready(self, reading: Reading) -> list[Ready]:
        """Wait briefly and take the images that are ready; count failed and unchanged ones."""
        taken = reading.take(CHECK_INTERVAL_S)
        longest_s = self._parts.settings.fetch.total_s + self._parts.settings.stall_s
        if taken or reading.waits_for_others(longest_s):
            self._lease.progress()
        else:
            self._lease.check()
        ready = [image for entry in taken if (image := self._result(entry))]
        self._file_bytes += sum(image.prepared.file_bytes for image in ready)
        if self._file_bytes >= CHUNK_BYTES:
            self._until = min(self._until, time.monotonic())
        if self._is_remote and len(ready) < len(taken):
            reading.refuse_waiting()
        return ready

    def _suspect(self, index: int | None) -> None:
        self._retry_while_unavailable(lambda: self._parts.ledger.suspect(self._claim, index))

    def _result(self, image: UnderWay) -> Ready | None:
        try:
            return image.ready
        except Interrupted:  # a service is unavailable and the time is over: hand the image back
            return None
        except Unchanged:
            is_ours = self._terms.is_ours(image.pk)
            self._done += is_ours
            self._stored_keys += [image.pk] if is_ours else []
            self._skipped += not is_ours
        except DetailsChanged as change:
            self._changes[image.pk] = (image.item, change)
            if not self._terms.is_ours(image.pk):
                self._replaced.add(image.pk)
                self._updated.add(image.pk)
        except Failed as failed:
            self._fail(image.item, failed.stage, failed.reason)
        self._timings.add(image.timings.seconds)
        del self._rest[image.pk]
        return None

    def _embed(self, batch: Sequence[Ready]) -> list[Record]:
        if not batch:
            return []
        with self._parts.device.turn(self._job.owner) as buffer:
            if self._is_stopping:  # noticed after the wait for the turn: hand the images back
                return []
            for image in batch:
                del self._rest[image.pk]
                self._timings.add(image.timings.seconds)
            self._observe_timings()
            return self._through_model(batch, buffer)

    def _observe_timings(self) -> None:
        """Observe the timings of a batch, and of failed and unchanged images before it."""
        self._parts.metrics.observe_timings("ingest", self._timings)
        self._timings = StageTimings()

    def _through_model(self, batch: Sequence[Ready], buffer: PixelBuffer) -> list[Record]:
        began = time.monotonic()
        try:
            pixels = buffer.stacked([image.pixels for image in batch])
            rows = self._parts.embedder.embed_images(pixels)
        except BrokenDevice:
            raise
        except Exception:
            return self._embed_one_by_one(batch)
        finally:  # after the time was observed, so that no count of images is without its time
            self._parts.metrics.batch("ingest", len(batch))
            self._model_s += time.monotonic() - began
            self._model_images += len(batch)
        records = [self._record(image, row) for image, row in zip(batch, rows, strict=True)]
        return self._tagged([record for record in records if record])

    def _saved_rules(self, collection: Collection) -> TagRules | None:
        """The rules by which images get tags when they are stored; None: they get none."""
        return self._retry_while_unavailable(lambda: saved_rules(self._parts.blobs, collection))

    def _tagged(self, records: list[Record]) -> list[Record]:
        """The records with the tags of the saved rules.

        An image that cannot have them is stored without.
        """
        parts, rules = self._parts, self._rules
        if rules is None or not records:
            return records
        model = Model(parts.embedder, self._job.new.model, parts.weights_id, parts.blobs)
        rows = np.stack([record.embedding for record in records])
        chosen = parts.tagger.words(rules, rows, model, self._lease.progress)
        tagged = []
        for record, words in zip(records, chosen, strict=True):
            new = retagged(record, words, rules)
            tagged.append(record if isinstance(new, str) or self._is_too_large(new) else new)
        return tagged

    def _is_too_large(self, record: Record) -> bool:
        limit = self._parts.settings.limits.metadata_bytes
        problem = image_problem(
            self._terms.collection, record.id, record.uri, record.label, record.metadata, limit
        )
        return problem is not None

    def _embed_one_by_one(self, batch: Sequence[Ready]) -> list[Record]:
        """Fail the images that the model fails on."""
        records: list[Record] = []
        for image in batch:
            try:
                (row,) = self._parts.embedder.embed_images(image.pixels[None].copy())
            except BrokenDevice:
                raise
            except Exception as error:
                log.error("an image could not be embedded", exc_info=error)
                self._fail(image.item, "embed", f"the model failed on the image: {error}"[:300])
                continue
            if record := self._record(image, row):
                records.append(record)
        return self._tagged(records)

    def _record(self, image: Ready, row: Vectors) -> Record | None:
        if not np.isfinite(row).all():
            self._fail(image.item, "embed", "the model returned an embedding that is not finite")
            return None
        prepared, limit = image.prepared, self._parts.settings.limits.metadata_bytes
        if self._terms.replaces(image.pk, prepared.content_hash):
            self._replaced.add(image.pk)
        if prepared.thumbnail:
            self._thumbnails[image.pk] = prepared.thumbnail
        stored = image.item.stored
        return Record(
            pk=image.pk,
            id=image.item.id,
            namespace=namespace_of(image.item, self._job),
            uri=image.item.uri,
            embedding=row,
            content_hash=prepared.content_hash,
            job_id=stored.job_id if stored else self._job.id,
            label=image.item.label,
            bytes=prepared.file_bytes,
            width=prepared.width,
            height=prepared.height,
            indexed_at=stored.indexed_at if stored else 0,  # otherwise set when it is stored
            metadata=image.metadata(self._terms.collection, limit),
        )

    def _fail(self, item: Item, stage: FailureStage, reason: str) -> None:
        self._failures.append(Failure.of(item, stage, reason, self._claim.attempt))


def _keeping(item: Item, words: Sequence[str], rules: TagRules) -> Item:
    """An item whose image is stored, with the tags that the image has."""
    value = with_words(item.metadata.get(rules.field), words, rules)
    if not value:
        return item
    return item.model_copy(update={"metadata": {**item.metadata, rules.field: value}})
