"""The next chunk: claim it, work on it, and give it back when that cannot be."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.ledger import (
    Claim,
    Ledger,
    Unknown,
)
from clipfleet.common.process.logs import log_context
from clipfleet.common.queue.broker import Publisher
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.store import CollectionGone
from clipfleet.common.versions import OtherVersion
from clipfleet.workers.embedding.guarded import BrokenDevice
from clipfleet.workers.ingest.chunk import Chunk, IngestParts, WrongModel
from clipfleet.workers.ingest.lease import Interrupted, Lease
from clipfleet.workers.queue.decode import pass_over

log = logging.getLogger(__name__)


@dataclass
class Worked:
    """What a nudge led to. `images`: how many were worked on; 0 while it goes on."""

    claim: Claim | None = None
    images: int = 0

    @property
    def context(self) -> dict[str, str]:
        """Of log lines about it."""
        return _context(self.claim) if self.claim else {}

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
        claimed: is called with the claim before the work begins.
        remote: as in `Ledger.claim`.

    Raises:
        BrokenDevice: this worker can do no more; the chunk was handed back.
    """
    claim = claim_next(parts, claimed, remote=remote)
    return work_on(claim, parts) if claim else Worked()


def claim_next(
    parts: IngestParts, claimed: Callable[[Claim], None], *, remote: bool
) -> Claim | None:
    """The next pending chunk of this worker's model; arguments as in `ingest_next`."""
    settings = parts.settings
    claim = parts.ledger.claim(
        settings.model, parts.worker, settings.lease_s, settings.max_attempts, remote=remote
    )
    if isinstance(claim, Unknown):
        detail = _other_release(parts.ledger, claim.job_id)
        pass_over(claim.job_id, detail, parts.ledger, parts.worker, parts.stopping)
        return None
    if claim:
        claimed(claim)
    return claim


def work_on(claim: Claim, parts: IngestParts) -> Worked:
    """BrokenDevice as in `ingest_next`."""
    with log_context(**_context(claim)):
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
    return {"job_id": claim.job_id, "chunk_id": f"{claim.job_id}/{claim.index}"}


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
            with log_context(collection=job.new.collection):
                return Chunk(parts, job, claim, lease).run()
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
            parts.ledger.set_waiting_reason(
                claim.job_id, f"{error}; its worker ends and is to be started anew"
            )
        raise
    except Exception:
        log.exception("chunk %s/%s failed; it will be tried again", claim.job_id, claim.index)
        _hand_back(parts.ledger, claim, count_attempt=True)
    return 0


def _cancel(ledger: Ledger, claim: Claim, reason: str) -> None:
    with suppress(NotFound, Unavailable):  # removed; or the next to claim the chunk finds the same
        ledger.cancel(claim.job_id, reason)


def _hand_back(ledger: Ledger, claim: Claim, *, count_attempt: bool) -> None:
    with suppress(Unavailable):  # then the lease runs out, which says the same
        ledger.release(claim, count_attempt=count_attempt)
