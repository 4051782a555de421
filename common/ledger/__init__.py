"""The ledger port: the truth about jobs and chunks. A message is a nudge and names no chunk.

A chunk is open from `plan` until `mark`. While open it is pending or leased. A worker claims the
next pending chunk of its model. The claim carries a random token: the last worker that claimed the
chunk holds it, and only the holder's `mark` counts. Chunks have random names. So no name and no
token comes a second time, even when Redis forgets its last second.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.source_grants import SourceGrant

JobState = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]
FINAL: frozenset[JobState] = frozenset({"succeeded", "partial", "failed", "cancelled"})
KEEP_IDEMPOTENCY_S = 86_400


class Item(BaseModel):
    """One image of a job, by reference.

    Attributes:
        read: where its bytes lie, see `workers/read.py`.
        problem: found while listing the source; the item fails with this reason.
        row: "line 12" of a manifest whose text there may be no URI at all. A failure is called so
            unless a picture was seen: nobody learns what a file says that is no manifest.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    uri: str
    read: str
    label: str = ""
    metadata: dict[str, Any] = {}
    problem: str | None = None
    row: str = ""


Stage = Literal["list", "read", "decode", "embed", "store", "worker"]


class Failure(Item):
    """An item that failed, with all that is needed to try it again."""

    read: str = ""
    reason: str
    stage: Stage
    attempts: int = 1

    @classmethod
    def of(cls, item: Item, stage: Stage, reason: str, attempts: int) -> "Failure":
        return cls(**dict(item), stage=stage, reason=reason, attempts=attempts)

    def item(self) -> Item:
        return Item.model_validate(self.model_dump())


class NewJob(BaseModel):
    """What the gateway asks for.

    Attributes:
        source: opaque here: the planner reads it.
        retry_of: the job whose failures these are.
        grant: what its API key lets it read. None: as much as the service, and so for jobs of
            releases that knew no grants.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    collection: str
    generation: str
    model: str
    namespace: str
    source: dict[str, Any]
    on_existing: Literal["skip", "replace"] = "skip"
    retry_of: str = ""
    grant: SourceGrant | None = None


@dataclass(frozen=True)
class Job:
    """A job as it stands. Times are unix seconds; `total` counts the images planned so far."""

    new: NewJob
    state: JobState
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    planned: bool = False
    total: int = 0
    estimated: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    chunks: int = 0
    error: str = ""
    waiting: str = ""
    retried_by: str = ""

    @property
    def id(self) -> str:
        return self.new.id


@dataclass(frozen=True)
class PlanLease:
    """The right to plan one job. `cursor`: where the source's stream goes on; "" at its start."""

    token: str
    cursor: str
    planned: bool


@dataclass(frozen=True)
class OpenChunk:
    """A chunk that is not marked yet.

    Attributes:
        name: unique; names of one job sort in the order of planning.
        size: its number of items.
        attempt: how often it was claimed.
        leased: whether a claim was granted and neither marked nor released.
        expired: whether the lease of that claim ran out.
        suspect: the index of the item that was in hand when the last attempt ended.
    """

    name: str
    size: int
    attempt: int
    leased: bool
    expired: bool
    suspect: int | None = None


@dataclass(frozen=True)
class Claim:
    """The right to work on a chunk.

    Attributes:
        token: random, one per claim.
        attempt: 1 for the first claim of the chunk.
        more: whether other chunks of the model were pending when this one was claimed.
    """

    job_id: str
    chunk: str
    token: str
    attempt: int
    items: tuple[Item, ...]
    more: bool = False

    @property
    def no(self) -> int:
        """The number of the chunk within its job, for people."""
        return int(self.chunk.partition("-")[0])


@dataclass(frozen=True)
class Unknown:
    """No chunk is pending that this release understands, but one of this job is."""

    job_id: str


Part = tuple[tuple[Item, ...], int]  # of a chunk: items, and the attempts that count for them


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk's items.

    Attributes:
        done: how many are in the store.
        skipped: how many needed no work.
        failures: those that failed.
        rest: those that were not tried; they become a chunk of their own, and this attempt does not
            count for it.
    """

    done: int = 0
    skipped: int = 0
    failures: tuple[Failure, ...] = ()
    rest: tuple[Item, ...] = ()


class Ledger(Protocol):
    """Every call raises Unavailable when Redis is away.

    `job`, `cancel` and `remove` raise NotFound for unknown jobs; to everything else a job that was
    removed is one that is over.
    """

    def create(self, new: NewJob, idempotency_key: str = "") -> Job:
        """The new job, or the one that this key made before.

        A retry that goes on is given instead of a second one. Conflict when the job to be retried
        has not ended or has no failures.
        """
        ...

    def made(self, idempotency_key: str) -> Job | None:
        """The job that this key made within the last KEEP_IDEMPOTENCY_S seconds."""
        ...

    def job(self, job_id: str) -> Job: ...

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        collection: str = "",
        states: Collection[str] = (),
        sees: Callable[[str], bool] | None = None,
    ) -> list[Job]:
        """Newest first; of one collection, in some states, or all. `sees`: of which collections."""
        ...

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]: ...

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """End the job; chunks in hand may still be marked. A finished job stays as it is."""
        ...

    def remove(self, job_id: str) -> None:
        """Forget a job with its chunks and failures, whatever its state; nothing of it stays."""
        ...

    # for the housekeeper
    def keep_house(self, keeper: str, seconds: float) -> bool:
        """Whether the keeper may clean up for so long; one at a time may."""
        ...

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        """Jobs that ended so long ago or longer, the first to end first."""
        ...

    # for the planner
    def active(self) -> list[str]: ...

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None: ...

    def estimate(self, job_id: str, images: int) -> None: ...

    def plan(
        self, job_id: str, token: str, items: Sequence[Item], after: str, cursor: str
    ) -> str | None:
        """Move the job's cursor from `after` to `cursor`, and what lies between into a new chunk.

        Its name; None when the cursor is elsewhere, the lease no longer ours, or the job over.
        """
        ...

    def end_plan(self, job_id: str, token: str, error: str = "") -> bool:
        """Nothing more comes. The job ends with its last chunk if its counts add up then:
        `total = done + failed + skipped`. Otherwise it is planned again from its start."""
        ...

    def open_chunks(self, job_id: str) -> list[OpenChunk]: ...

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]: ...

    def requeue(self, job_id: str, chunk: OpenChunk) -> bool:
        """Make a chunk pending whose lease ran out. Its late holder may mark it until it is claimed
        again."""
        ...

    def pending(self, model: str, limit: int) -> int:
        """How many chunks of a model are pending; counting stops at `limit`."""
        ...

    def split(self, job_id: str, chunk: OpenChunk) -> bool:
        """Replace a chunk that nobody holds by two, as `apart` says."""
        ...

    def bury(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        """Fail the only item of a chunk that nobody holds."""
        ...

    # for the workers
    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int
    ) -> Claim | Unknown | None:
        """Claim the next pending chunk of a model; None when there is none.

        Of several jobs the one with the fewest chunks in hand comes first, then the one that was
        served least recently. Chunks with `max_attempts` claims are left to the planner.
        """
        ...

    def renew(self, claim: Claim, seconds: float) -> bool:
        """False when the claim is lost or the job was cancelled: stop working on it."""
        ...

    def suspect(self, claim: Claim, index: int | None) -> bool:
        """Which item is in hand, before it is touched: should the worker not survive it."""
        ...

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        """Count the chunk exactly once. False when the claim does not hold it any more."""
        ...

    def release(self, claim: Claim, *, count_attempt: bool) -> bool: ...

    def note(self, job_id: str, waiting: str) -> None:
        """Say why the job waits; the next `mark` clears it."""
        ...


NO_RETRY = {
    "running": "job {0} has not ended; cancel it or wait for its end, then retry it",
    "nothing": "job {0} has no failures to retry",
}


def no_retry(job_id: str, why: str) -> Conflict:
    return Conflict(NO_RETRY[why].format(job_id), job=job_id)


def apart(items: Sequence[Item], chunk: OpenChunk) -> tuple[Part, Part]:
    """A suspect alone, with one more attempt, and the others, who begin anew; where there is no
    suspect two halves, with one more attempt each."""
    alone = chunk.suspect
    if alone is not None:
        others = (*items[:alone], *items[alone + 1 :])
        return ((items[alone],), chunk.attempt - 1), (others, 0)
    middle = len(items) // 2
    return (tuple(items[:middle]), chunk.attempt - 1), (tuple(items[middle:]), chunk.attempt - 1)


VERSIONS = (1,)  # of NewJob, that this release understands


def random_name() -> str:
    """A part of a chunk's name, or a token: no other call gives the same."""
    return secrets.token_hex(8)


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r}", job=job_id[:80])


def check_outcome(claim: Claim, outcome: Outcome) -> None:
    counted = outcome.done + outcome.skipped + len(outcome.failures) + len(outcome.rest)
    if counted != len(claim.items):
        raise ValueError(f"chunk {claim.job_id}/{claim.chunk}: the outcome does not add up")
