"""Claims the next chunk, works on it, and hands it back if it cannot be finished."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import Claim, Job, Ledger, Unknown
from clipfleet.common.ledger.stored_images import is_over_stored, is_stored
from clipfleet.common.process.logs import log_context
from clipfleet.common.queue.broker import Publisher
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.store import CollectionGone
from clipfleet.common.versions import OtherVersion
from clipfleet.workers.analysis.chunk import StoredChunk
from clipfleet.workers.analysis.task import Refused, Run
from clipfleet.workers.embedding.guarded import BrokenDevice
from clipfleet.workers.ingest.chunk import Chunk, IngestParts, WrongModel
from clipfleet.workers.ingest.lease import Interrupted, Lease
from clipfleet.workers.queue.decode import skip_job

log = logging.getLogger(__name__)


@dataclass
class Worked:
    """The result of a nudge.

    Attributes:
        claim: the claimed chunk; None when no chunk was pending.
        images: the number of images that were worked on; 0 while the work continues.
    """

    claim: Claim | None = None
    images: int = 0

    @property
    def context(self) -> dict[str, str]:
        """The log context of the claim."""
        return _context(self.claim) if self.claim else {}

    @property
    def embedded(self) -> int:
        """The number of images whose rate is that of the model."""
        return 0 if self.claim and is_stored(self.claim.items[0]) else self.images

    def __str__(self) -> str:
        if self.claim is None:
            return "no chunk was pending"
        images = self.images or f"begun with {len(self.claim.items)}"
        return f"job {self.claim.job_id}, chunk {self.claim.index}: {images} images"


def ingest_next(
    parts: IngestParts,
    claimed: Callable[[Claim], None] = lambda _: None,
    *,
    remote: bool = False,
) -> Worked:
    """Claim the next pending chunk of this worker's model and work on it.

    Args:
        claimed: called with the claim before the work begins.
        remote: as in `Ledger.claim`.

    Raises:
        BrokenDevice: the device is broken; the chunk was handed back.
        Unavailable: the ledger does not answer.
    """
    claim = claim_next(parts, claimed, remote=remote)
    return work_on(claim, parts) if claim else Worked()


def claim_next(
    parts: IngestParts, claimed: Callable[[Claim], None], *, remote: bool
) -> Claim | None:
    """Claim the next pending chunk of this worker's model, if there is one.

    Arguments as in `ingest_next`. A chunk of another release is left to other workers.
    """
    settings = parts.settings
    claim = parts.ledger.claim(
        settings.model, parts.worker, settings.lease_s, settings.max_attempts, remote=remote
    )
    if isinstance(claim, Unknown):
        detail = _unknown_job_reason(parts.ledger, claim.job_id)
        skip_job(claim.job_id, detail, parts.ledger, parts.worker, parts.stopping)
        return None
    if claim:
        claimed(claim)
    return claim


def work_on(claim: Claim, parts: IngestParts) -> Worked:
    """Work on a claimed chunk; raises BrokenDevice as `ingest_next` does."""
    with log_context(**_context(claim)):
        return Worked(claim, _work_on(claim, parts))


def pass_on(publisher: Publisher, model: str) -> Callable[[Claim], None]:
    """A callback for claims that nudges another worker if more chunks are pending.

    It sends no nudge while the queue has messages. The planner would send one later anyway.
    """
    nudge = IngestNudge(model=model)

    def claimed(claim: Claim) -> None:
        with suppress(Unavailable):
            if claim.more and not publisher.waiting(nudge.queue):
                publisher.publish(nudge)

    return claimed


def _unknown_job_reason(ledger: Ledger, job_id: str) -> str:
    try:
        ledger.job(job_id)
    except OtherVersion as error:
        return error.detail
    except NotFound:
        pass
    return f"job {job_id!r} comes from another release; are all parts of one release?"


def _context(claim: Claim) -> dict[str, str]:
    return {"job_id": claim.job_id, "chunk_id": f"{claim.job_id}/{claim.index}"}


def _work_on(claim: Claim, parts: IngestParts) -> int:
    """Work on the chunk. 0 images if it could not be finished; then `_settle` has handled it."""
    try:
        return _run(claim, parts)
    except BrokenDevice as error:
        _hand_back(parts.ledger, claim, count_attempt=False)
        _set_waiting_reason(
            parts.ledger, claim.job_id, f"{error}; the worker exits and must be restarted"
        )
        raise
    except Exception as error:
        _settle(error, claim, parts)
        return 0


def _run(claim: Claim, parts: IngestParts) -> int:
    settings = parts.settings
    lease = Lease(
        parts.ledger,
        claim,
        seconds=settings.lease_s,
        stall_s=settings.stall_s,
        stopping=parts.stopping,
    )
    with lease:
        job = parts.ledger.job(claim.job_id)
        with log_context(collection=job.new.collection):
            if is_over_stored(job.new.source):
                StoredChunk(parts.ledger, claim, _run_of(job, lease, parts), parts.tasks).run()
                return len(claim.items)
            return Chunk(parts, job, claim, lease).run()


def _run_of(job: Job, lease: Lease, parts: IngestParts) -> Run:
    """What a task over stored images gets.

    Raises:
        CollectionGone: the collection was deleted.
    """
    new, ledger = job.new, parts.ledger
    waiting = partial(_set_waiting_reason, ledger, job.id)
    collection = lease.retry_while_unavailable(
        lambda: parts.catalogue.generation(new.collection, new.generation), waiting
    )
    if collection is None:
        raise CollectionGone(f"collection {new.collection!r} was deleted")
    return Run(
        job=job,
        collection=collection,
        lease=lease,
        store=parts.store,
        catalogue=parts.catalogue,
        blobs=parts.blobs,
        embedder=parts.embedder,
        stopping=parts.stopping,
        metadata_bytes=parts.settings.limits.metadata_bytes,
        waiting=waiting,
        weights_id=parts.weights_id,
    )


def _settle(error: Exception, claim: Claim, parts: IngestParts) -> None:
    """Cancel the job, or hand the chunk back, as the error demands. Called while it is handled."""
    ledger = parts.ledger
    match error:
        case CollectionGone():
            _cancel(ledger, claim, "the collection was deleted")
        case WrongModel() | Refused():
            _cancel(ledger, claim, str(error))
        case NotFound():  # the job was deleted while the worker had the chunk
            pass
        case OtherVersion():
            _hand_back(ledger, claim, count_attempt=False)
            skip_job(claim.job_id, error.detail, ledger, parts.worker, parts.stopping)
        case Interrupted() | Unavailable():
            _hand_back(ledger, claim, count_attempt=False)
        case _:
            log.exception("chunk %s/%s failed; it will be retried", claim.job_id, claim.index)
            _hand_back(ledger, claim, count_attempt=True)


def _cancel(ledger: Ledger, claim: Claim, reason: str) -> None:
    # NotFound: the job was deleted. Unavailable: the next worker of the chunk cancels the job.
    with suppress(NotFound, Unavailable):
        ledger.cancel(claim.job_id, reason)


def _set_waiting_reason(ledger: Ledger, job_id: str, reason: str) -> None:
    with suppress(Unavailable):
        ledger.set_waiting_reason(job_id, reason)


def _hand_back(ledger: Ledger, claim: Claim, *, count_attempt: bool) -> None:
    with suppress(Unavailable):  # then the lease expires, with the same effect
        ledger.release(claim, count_attempt=count_attempt)
