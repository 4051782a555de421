"""The next chunk: claim, read and decode on threads, embed in batches, one upsert, mark."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from clipfleet.common.blobs import Blobs
from clipfleet.common.broker import Publisher
from clipfleet.common.catalogue import Catalogue
from clipfleet.common.collection import Collection
from clipfleet.common.embedder import Embedder
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.identity import primary_key
from clipfleet.common.ledger import Claim, Failure, Item, Job, Ledger, Outcome, Stage, Unknown
from clipfleet.common.logs import about, in_context
from clipfleet.common.messages import IngestNudge
from clipfleet.common.settings import Settings
from clipfleet.common.store import CollectionGone, Fingerprint, Record, Store, Vectors
from clipfleet.common.thumbnails import thumbnail_key
from clipfleet.common.versions import OtherVersion
from clipfleet.workers.arrivals import pass_over
from clipfleet.workers.device import BrokenDevice
from clipfleet.workers.lease import Interrupted, Lease
from clipfleet.workers.metrics import Spent, WorkerMetrics
from clipfleet.workers.places import Places
from clipfleet.workers.prepare import Failed, Prepare, Ready, Unchanged

T = TypeVar("T")
# A worker that has had a chunk for so long marks what is done of it and gives the rest back.
BUDGET = 3.0  # times chunk_s
MIN_BUDGET_S = 10.0
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
    places: Places
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)


class WrongModel(Exception):
    """The collection's embeddings and this worker's cannot be compared."""


@dataclass
class Worked:
    """What a nudge led to. `images`: how many were worked on."""

    claim: Claim | None = None
    images: int = 0

    @property
    def context(self) -> dict[str, str]:
        """Of log lines about it."""
        return _context(self.claim) if self.claim else {}

    def __str__(self) -> str:
        if self.claim is None:
            return "no chunk was pending"
        return f"job {self.claim.job_id}, chunk {self.claim.no}: {self.images} images"


def ingest_next(parts: IngestParts, claimed: Callable[[Claim], None] = lambda _: None) -> Worked:
    """Claim the next pending chunk of this worker's model and work on it.

    Args:
        claimed: is called with the claim before the work begins.

    Raises:
        BrokenDevice: this worker can do no more; the chunk was handed back.
    """
    settings = parts.settings
    claim = parts.ledger.claim(
        settings.model, parts.worker, settings.lease_s, settings.max_attempts
    )
    if isinstance(claim, Unknown):
        detail = _other_release(parts.ledger, claim.job_id)
        pass_over(claim.job_id, detail, parts.ledger, parts.worker, parts.stopping)
        return Worked()
    if claim is None:
        return Worked()
    claimed(claim)
    with about(**_context(claim)):
        return Worked(claim, _work_on(claim, parts))


def pass_on(publisher: Publisher, model: str) -> Callable[[Claim], None]:
    """Nudge another worker when a claim leaves more chunks pending and the queue is empty.

    The planner would do so later.
    """
    nudge = IngestNudge(model=model)

    def claimed(claim: Claim) -> None:
        with suppress(Unavailable):
            if claim.more and not publisher.waiting(nudge.queue):
                publisher.publish(nudge)

    return claimed


def _other_release(ledger: Ledger, job_id: str) -> str:
    try:
        ledger.job(job_id)
    except OtherVersion as error:
        return error.detail
    except NotFound:
        pass
    return f"job {job_id!r} comes from another release; are all parts of one release?"


def _context(claim: Claim) -> dict[str, str]:
    return {"job_id": claim.job_id, "chunk_id": f"{claim.job_id}/{claim.no}"}


def _work_on(claim: Claim, parts: IngestParts) -> int:
    settings = parts.settings
    lease = Lease(
        parts.ledger,
        claim,
        seconds=settings.lease_s,
        stall_s=settings.stall_s,
        stopping=parts.stopping,
    )
    try:
        with lease:
            job = parts.ledger.job(claim.job_id)
            with about(collection=job.new.collection):
                return _Chunk(parts, job, claim, lease).run()
    except CollectionGone:
        _cancel(parts.ledger, claim, "the collection was deleted")
    except NotFound:  # the job was removed while we worked on it
        return 0
    except WrongModel as error:
        _cancel(parts.ledger, claim, str(error))
    except OtherVersion as error:
        _hand_back(parts.ledger, claim, count_attempt=False)
        pass_over(claim.job_id, error.detail, parts.ledger, parts.worker, parts.stopping)
    except (Interrupted, Unavailable):
        _hand_back(parts.ledger, claim, count_attempt=False)
    except BrokenDevice as error:
        _hand_back(parts.ledger, claim, count_attempt=False)
        with suppress(Unavailable):
            parts.ledger.note(claim.job_id, f"{error}; its worker ends and is to be started anew")
        raise
    except Exception:
        log.exception("chunk %s/%s failed; it will be tried again", claim.job_id, claim.no)
        _hand_back(parts.ledger, claim, count_attempt=True)
    return 0


def _cancel(ledger: Ledger, claim: Claim, reason: str) -> None:
    with suppress(NotFound, Unavailable):  # removed; or the next to claim the chunk finds the same
        ledger.cancel(claim.job_id, reason)


def _hand_back(ledger: Ledger, claim: Claim, *, count_attempt: bool) -> None:
    with suppress(Unavailable):  # then the lease runs out, which says the same
        ledger.release(claim, count_attempt=count_attempt)


class _Chunk:
    def __init__(self, parts: IngestParts, job: Job, claim: Claim, lease: Lease) -> None:
        self._parts, self._job, self._claim, self._lease = parts, job, claim, lease
        self._failures: list[Failure] = []
        self._done = self._skipped = 0
        self._until = time.monotonic() + max(BUDGET * parts.settings.chunk_s, MIN_BUDGET_S)
        self._rest: dict[str, Item] = {}  # not begun yet, by primary key

    def run(self) -> int:
        collection = self._collection()
        items = self._distinct(self._claim.items)
        known = self._stored(lambda: self._parts.store.fingerprints(collection, list(items)))
        records: list[Record] = []
        prepare = Prepare(self._parts, self._job, collection, self._patiently)
        self._rest = dict(items)
        for batch in self._decoded(prepare, items, known):
            records += self._embedded(batch)
            self._lease.progress()
        if records:
            self._patiently(self._lease.confirm)
            self._stored(lambda: self._parts.store.upsert(collection, records))
            self._done += len(records)
        if self._done:  # ours from before a redelivery may be as fresh
            self._patiently(lambda: self._parts.catalogue.wrote(collection))
            self._withdraw(collection, list(items))
        failures, rest = tuple(self._failures), tuple(self._rest.values())
        outcome = Outcome(self._done, self._skipped, failures, rest)
        if self._patiently(lambda: self._parts.ledger.mark(self._claim, outcome)):
            self._parts.metrics.marked(outcome)
        return len(self._claim.items) - len(rest)

    def _withdraw(self, collection: Collection, keys: Sequence[str]) -> None:
        """Delete from the store what a caller deleted while this chunk was in hand: it counts as
        skipped. After the upsert: a deletion noted later finds the row itself."""
        since, catalogue = self._claim.since, self._parts.catalogue
        deletions = self._patiently(lambda: catalogue.deletions(collection, since))
        if not deletions:
            return
        covers = [deletion.covering(collection) for deletion in deletions]
        rows = self._stored(lambda: self._parts.store.fetch(collection, keys))
        gone = [
            pk
            for pk, row in rows.items()
            if row.job_id == self._job.id and any(covered(row) for covered in covers)
        ]
        small = [thumbnail_key(collection, pk) for pk in gone]
        self._patiently(lambda: self._parts.blobs.delete_all(small))
        self._stored(lambda: self._parts.store.delete(collection, gone))
        self._done -= len(gone)
        self._skipped += len(gone)

    def _in_time(self) -> bool:
        """Whether there is time to begin with more. The first items have it in any case: then
        each claim of a chunk makes it smaller."""
        return time.monotonic() < self._until

    def _patiently(self, call: Callable[[], T]) -> T:
        return self._lease.patiently(call, self._say_why)

    def _stored(self, call: Callable[[], T]) -> T:
        """Likewise, of the store; the time that it took counts, not that of waiting for it."""

        def timed() -> T:
            with self._parts.metrics.timed("ingest", "store"):
                return call()

        return self._patiently(timed)

    def _say_why(self, waiting: str) -> None:
        with suppress(Unavailable):
            self._parts.ledger.note(self._job.id, waiting)

    def _collection(self) -> Collection:
        new = self._job.new
        found = self._patiently(lambda: self._parts.catalogue.find(new.collection))
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
        """Batches, the next one being decoded while the caller embeds the last."""

        def submit(part: Sequence[str]) -> tuple[Spent, list[tuple[Item, Future[Ready]]]]:
            submit, spent = self._parts.threads.submit, Spent()
            for pk in part:
                del self._rest[pk]
            return spent, [
                (items[pk], submit(in_context(prepare), pk, items[pk], known.get(pk), spent))
                for pk in part
            ]

        if self._claim.attempt > 1:
            yield from self._carefully(prepare, items, known)
            return
        if not items:
            return
        keys, size = list(items), self._parts.embedder.batch
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        ahead = submit(parts[0])
        for following in [*parts[1:], []]:
            (spent, current), ahead = ahead, submit(following if self._in_time() else [])
            ready = [one for item, future in current if (one := self._result(item, future))]
            self._parts.metrics.spent("ingest", spent)
            yield ready
            if not ahead[1]:
                return

    def _carefully(
        self, prepare: Prepare, items: dict[str, Item], known: dict[str, Fingerprint]
    ) -> Iterator[list[Ready]]:
        """One at a time, the ledger knowing which: an earlier attempt ended its worker."""
        places = {id(item): place for place, item in enumerate(self._claim.items)}
        for pk, item in items.items():
            if not self._in_time() and len(self._rest) < len(items):
                break
            del self._rest[pk]
            self._suspect(places[id(item)])
            spent = Spent()
            prepared = self._parts.threads.submit(
                in_context(prepare), pk, item, known.get(pk), spent
            )
            ready = [one] if (one := self._result(item, prepared)) else []
            self._parts.metrics.spent("ingest", spent)
            yield ready
        self._suspect(None)

    def _suspect(self, place: int | None) -> None:
        self._patiently(lambda: self._parts.ledger.suspect(self._claim, place))

    def _result(self, item: Item, future: Future[Ready]) -> Ready | None:
        try:
            return future.result()
        except Unchanged as unchanged:
            self._done += unchanged.ours
            self._skipped += not unchanged.ours
        except Failed as failed:
            self._fail(item, failed.stage, failed.reason)
        return None

    def _embedded(self, batch: Sequence[Ready]) -> list[Record]:
        if not batch:
            return []
        try:
            rows = self._parts.embedder.embed_images(np.stack([one.pixels for one in batch]))
        except BrokenDevice:
            raise
        except Exception:
            return self._embedded_one_by_one(batch)
        finally:  # after the time that it took: a look in between would find images without one
            self._parts.metrics.batch("ingest", len(batch))
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
