"""One chunk: read and decode on threads, embed in batches, upsert, mark."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.ledger import (
    Claim,
    Failure,
    Item,
    Job,
    Ledger,
    Outcome,
    Stage,
    any_remote,
)
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.settings import Settings
from clipfleet.common.store import CollectionGone, Fingerprint, Record, Store, Vectors
from clipfleet.workers.embedding.guarded import BrokenDevice
from clipfleet.workers.ingest.fair_lock import FairLock
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.ingest.lease import Interrupted, Lease
from clipfleet.workers.ingest.prepare import Failed, Prepare, Ready, Unchanged
from clipfleet.workers.ingest.reading import Reading, UnderWay
from clipfleet.workers.metrics import StageTimings, WorkerMetrics
from clipfleet.workers.storage.locations import Storage

T = TypeVar("T")
# A worker that has had a chunk for so long marks what is done of it and gives the rest back.
BUDGET = 3.0  # times chunk_s
MIN_BUDGET_S = 10.0
# The same of a chunk that waits for others' servers. What they have begun to answer goes on.
REMOTE_BUDGET = 1.0
MIN_REMOTE_BUDGET_S = 2.0
MIN_MEASURED_S = 0.1
LOOK_S = 0.25  # at most, until a worker that waits for images notices that it is to end
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestParts:
    worker: str
    ledger: Ledger
    store: Store
    catalogue: Catalogue
    embedder: Embedder
    blobs: Blobs
    settings: Settings
    threads: ThreadPoolExecutor
    stopping: threading.Event
    places: Storage
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    fetches: FetchPool = field(default_factory=FetchPool)
    device: FairLock = field(default_factory=FairLock)  # chunks take turns at the model, by job


class WrongModel(Exception):
    """The collection's embeddings and this worker's cannot be compared."""


class Chunk:
    """One claim worked on, from its images to its marks."""

    def __init__(self, parts: IngestParts, job: Job, claim: Claim, lease: Lease) -> None:
        self._parts, self._job, self._claim, self._lease = parts, job, claim, lease
        self._failures: list[Failure] = []
        self._stays: list[str] = []  # primary keys of the images that `_done` counts
        self._done = self._skipped = self._worked = 0
        self._spent = StageTimings()
        self._is_remote = any_remote(claim.items)
        self._began = time.monotonic()
        self._until = self._mark_at = self._began + self._budget_s()
        self._rest: dict[str, Item] = {}  # not done yet, by primary key
        self._kept: dict[str, Item] = {}  # of those, what is under way when the others are marked
        self._rate = self._model_s = 0.0
        self._model_images = 0

    def run(self) -> int:
        collection = self._collection()
        items = self._distinct(self._claim.items)
        known = self._stored(lambda: self._parts.store.fingerprints(collection, list(items)))
        records: list[Record] = []
        prepare = Prepare(self._parts, self._job, collection, self._patiently_in_time)
        self._rest = dict(items)
        for batch in self._decoded(prepare, items, known):
            records += self._embedded(batch)
            self._lease.progress()
            if self._kept:
                self._write(collection, records)
                records = []
        self._write(collection, records)
        return self._worked

    def _write(self, collection: Collection, records: list[Record]) -> None:
        """Store and count what is done, and give the rest back, but for what is kept."""
        if records:
            self._retry_while_unavailable(self._lease.confirm)
            self._stored(lambda: self._parts.store.upsert(collection, records))
            self._done += len(records)
            self._stays += [record.pk for record in records]
        if self._done:  # ours from before a redelivery may be as fresh
            self._retry_while_unavailable(lambda: self._parts.catalogue.record_write(collection))
            self._withdraw(collection)
        kept = tuple(self._kept.values())
        rest = tuple(item for pk, item in self._rest.items() if pk not in self._kept)
        failures = tuple(self._failures)
        outcome = Outcome(self._done, self._skipped, failures, rest, self._rate, kept)
        if self._retry_while_unavailable(lambda: self._parts.ledger.mark(self._claim, outcome)):
            self._parts.metrics.marked(outcome)
        elif kept:
            raise Interrupted
        self._worked += len(self._claim.items) - len(rest) - len(kept)
        self._claim, self._rest = self._claim.of(kept), dict(self._kept)
        self._done, self._skipped, self._failures, self._rate = 0, 0, [], 0.0
        self._stays = []

    def _withdraw(self, collection: Collection) -> None:
        """Delete from the store what a caller deleted while this chunk was in hand: it counts as
        skipped. After the upsert: a deletion noted later finds the row itself."""
        since, catalogue = self._claim.since, self._parts.catalogue
        deletions = self._retry_while_unavailable(lambda: catalogue.deletions(collection, since))
        if not deletions:
            return
        covers = [deletion.covering(collection) for deletion in deletions]
        rows = self._stored(lambda: self._parts.store.fetch(collection, self._stays))
        gone = [
            pk
            for pk, row in rows.items()
            if row.job_id == self._job.id and any(covered(row) for covered in covers)
        ]
        small = [thumbnail_key(collection, pk) for pk in gone]
        self._retry_while_unavailable(lambda: self._parts.blobs.delete_all(small))
        self._stored(lambda: self._parts.store.delete(collection, gone))
        self._done -= len(gone)
        self._skipped += len(gone)

    def _budget_s(self) -> float:
        chunk_s = self._parts.settings.chunk_s
        if self._is_remote:
            return max(REMOTE_BUDGET * chunk_s, MIN_REMOTE_BUDGET_S)
        return max(BUDGET * chunk_s, MIN_BUDGET_S)

    @property
    def _has_time(self) -> bool:
        """Whether there is time to begin with more. The first items have it in any case: then
        each claim of a chunk makes it smaller."""
        return time.monotonic() < self._until and not self._is_stopping

    @property
    def _is_stopping(self) -> bool:
        """Then what is done is marked, and the rest goes back."""
        return self._parts.stopping.is_set()

    def _retry_while_unavailable(self, call: Callable[[], T]) -> T:
        return self._lease.retry_while_unavailable(call, self._say_why)

    def _patiently_in_time(self, call: Callable[[], T]) -> T:
        """Likewise, as long as the chunk has time; then the image goes back with the rest."""
        return self._lease.retry_while_unavailable(call, self._say_why, self._until)

    def _stored(self, call: Callable[[], T]) -> T:
        """Likewise, of the store; the time that it took counts, not that of waiting for it."""

        def timed() -> T:
            with self._parts.metrics.timed("ingest", "store"):
                return call()

        return self._retry_while_unavailable(timed)

    def _say_why(self, waiting: str) -> None:
        with suppress(Unavailable):
            self._parts.ledger.set_waiting_reason(self._job.id, waiting)

    def _collection(self) -> Collection:
        new = self._job.new
        found = self._retry_while_unavailable(lambda: self._parts.catalogue.find(new.collection))
        if found is None or found.generation != new.generation:
            raise CollectionGone(f"collection {new.collection!r} is not there any more")
        if found.dim != self._parts.embedder.dim:
            raise WrongModel(
                f"the collection's embeddings have {found.dim} numbers, those of the model "
                f"{new.model!r} now have {self._parts.embedder.dim}"
            )
        return found

    def _distinct(self, items: Sequence[Item]) -> dict[str, Item]:
        """By primary key; of items with one id the last counts, as with writes one by one."""
        distinct: dict[str, Item] = {}
        for item in items:
            if item.problem:  # its name may only look like another's
                self._fail(item, "list", item.problem)
                continue
            pk = primary_key(self._job.new.namespace, item.id)
            self._skipped += pk in distinct
            distinct[pk] = item
        return distinct

    def _decoded(
        self, prepare: Prepare, items: dict[str, Item], known: dict[str, Fingerprint]
    ) -> Iterator[list[Ready]]:
        """Batches, the next ones being read and decoded while the caller embeds the last."""
        reading = Reading(self._parts, self._job.id, prepare, known)
        try:
            if self._claim.attempt > 1:
                yield from self._carefully(reading, items)
            else:
                yield from self._in_batches(reading, items)
        finally:
            reading.cancel()
            self._observe_spent()

    def _in_batches(self, reading: Reading, items: dict[str, Item]) -> Iterator[list[Ready]]:
        """In the order in which they are ready. A batch that is not full does not wait long."""
        size, left = self._parts.embedder.batch, deque(items)
        ready: list[Ready] = []
        while not self._is_stopping:
            ahead = 2 * size - len(ready)
            while left and self._may_begin(items, left, reading, ahead):
                pk = left.popleft()
                reading.begin(pk, items[pk])
            if not self._has_time:
                reading.cancel_waiting()
            if not reading:
                break
            taken = self._taken(reading)
            ready += taken
            if is_due := self._is_due(reading):
                left.clear()  # what is not begun is given back
                reading.cancel_waiting()
            while len(ready) >= size or (ready and (is_due or not taken)):
                yield ready[:size]
                del ready[:size]
            if is_due and reading:
                yield from self._keeping(reading)
        while ready and not self._is_stopping:
            yield ready[:size]
            del ready[:size]
        self._measure(reading)

    def _is_due(self, reading: Reading) -> bool:
        """Whether to mark what is done of a remote chunk, while the last images are under way."""
        is_due = self._is_remote and time.monotonic() >= self._mark_at
        return is_due and len(reading) < len(self._claim.items)

    def _keeping(self, reading: Reading) -> Iterator[list[Ready]]:
        self._measure(reading)
        self._kept = reading.items
        yield []
        self._kept, self._mark_at = {}, time.monotonic() + self._budget_s()

    def _measure(self, reading: Reading) -> None:
        """Images a second, once for the chunk. Of a remote one, as fast as they could be begun: how
        long a server is silent says nothing about how many images can wait for it at once."""
        if self._is_stopping or self._mark_at > self._until:
            return
        if self._is_remote:
            begun = [at for at in reading.begun_at if at <= self._until]
            took_s = max(begun, default=self._until) - self._began
            self._rate = max(len(begun), 1) / max(took_s, MIN_MEASURED_S)
            if self._model_images:  # what is fetched waits for the model, in memory
                self._rate = min(self._rate, self._model_images / max(self._model_s, 1e-3))
        else:
            done = len(self._claim.items) - len(self._rest)
            self._rate = done / max(time.monotonic() - self._began, MIN_MEASURED_S)

    def _may_begin(
        self, items: dict[str, Item], left: deque[str], reading: Reading, ahead: int
    ) -> bool:
        if len(items) - len(left) < self._parts.embedder.batch:
            return True
        return self._has_time and (items[left[0]].is_remote or len(reading) < ahead)

    def _carefully(self, reading: Reading, items: dict[str, Item]) -> Iterator[list[Ready]]:
        """One at a time, the ledger knowing which: an earlier attempt ended its worker."""
        indices = {id(item): index for index, item in enumerate(self._claim.items)}
        for pk, item in items.items():
            if not self._has_time and len(self._rest) < len(items):
                break
            name = partial(self._suspect, indices[id(item)])
            if item.is_remote:  # waiting for a server ends no worker: it is named when it is here
                self._suspect(None)
                reading.on_fetched = name
            else:
                name()
            reading.begin(pk, item)
            ready: list[Ready] = []
            while reading and not self._is_stopping:
                ready += self._taken(reading)
            if ready:
                yield ready
            if pk in self._rest:  # a part is away, or the worker is to end
                break
        self._suspect(None)

    def _taken(self, reading: Reading) -> list[Ready]:
        """What is ready after a moment; those that fail or need no work are counted."""
        taken = reading.take(LOOK_S)
        longest_s = self._parts.settings.fetch.total_s + self._parts.settings.stall_s
        if taken or reading.waits_for_others(longest_s):
            self._lease.progress()
        else:
            self._lease.check()
        ready = [one for each in taken if (one := self._result(each))]
        if self._is_remote and len(ready) < len(taken):
            reading.refuse_waiting()
        return ready

    def _suspect(self, place: int | None) -> None:
        self._retry_while_unavailable(lambda: self._parts.ledger.suspect(self._claim, place))

    def _result(self, image: UnderWay) -> Ready | None:
        try:
            return image.result.result()
        except Interrupted:  # a part is away, and time is over: it stays in the rest
            return None
        except Unchanged as unchanged:
            self._done += unchanged.ours
            self._stays += [image.pk] if unchanged.ours else []
            self._skipped += not unchanged.ours
        except Failed as failed:
            self._fail(image.item, failed.stage, failed.reason)
        self._spent.add(image.spent)
        del self._rest[image.pk]
        return None

    def _embedded(self, batch: Sequence[Ready]) -> list[Record]:
        if not batch:
            return []
        with self._parts.device.turn(self._job.id):
            if self._is_stopping:  # others had their turn before; what is left goes back
                return []
            for one in batch:
                del self._rest[one.pk]
                self._spent.add(one.spent)
            self._observe_spent()
            return self._through_model(batch)

    def _observe_spent(self) -> None:
        """What the images of a batch took, and those that failed or needed no work before it."""
        self._parts.metrics.spent("ingest", self._spent)
        self._spent = StageTimings()

    def _through_model(self, batch: Sequence[Ready]) -> list[Record]:
        began = time.monotonic()
        try:
            rows = self._parts.embedder.embed_images(np.stack([one.pixels for one in batch]))
        except BrokenDevice:
            raise
        except Exception:
            return self._embedded_one_by_one(batch)
        finally:  # after the time that it took: a look in between would find images without one
            self._parts.metrics.batch("ingest", len(batch))
            self._model_s += time.monotonic() - began
            self._model_images += len(batch)
        records = [self._record(one, row) for one, row in zip(batch, rows, strict=True)]
        return [record for record in records if record]

    def _embedded_one_by_one(self, batch: Sequence[Ready]) -> list[Record]:
        """Fail the images that the model fails on."""
        records: list[Record] = []
        for one in batch:
            try:
                (row,) = self._parts.embedder.embed_images(one.pixels[None])
            except BrokenDevice:
                raise
            except Exception as error:
                log.error("an image could not be embedded", exc_info=error)
                self._fail(one.item, "embed", f"the model failed on it: {error}"[:300])
                continue
            if record := self._record(one, row):
                records.append(record)
        return records

    def _record(self, one: Ready, row: Vectors) -> Record | None:
        if not np.isfinite(row).all():
            self._fail(one.item, "embed", "the model gave an embedding that is not finite")
            return None
        return Record(
            pk=one.pk,
            id=one.item.id,
            namespace=self._job.new.namespace,
            uri=one.item.uri,
            embedding=row,
            content_hash=one.content_hash,
            job_id=self._job.id,
            label=one.item.label,
            bytes=one.bytes,
            width=one.width,
            height=one.height,
            indexed_at=int(time.time() * 1000),
            metadata=one.item.metadata,
        )

    def _fail(self, item: Item, stage: Stage, reason: str) -> None:
        self._failures.append(Failure.of(item, stage, reason, self._claim.attempt))
