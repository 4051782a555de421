"""The ledger port: the truth about jobs and chunks. A message is only a nudge.

A chunk is open from `plan` until `mark`; while open it is pending or leased. A claim carries a
fencing token: whoever claimed last holds the chunk, and only the holder's `mark` counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from clipfleet.common.errors import NotFound

JobState = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]
FINAL: frozenset[JobState] = frozenset({"succeeded", "partial", "failed", "cancelled"})


class Item(BaseModel):
    """One image of a job, by reference. `read`: where its bytes lie, see `workers/read.py`."""

    model_config = ConfigDict(frozen=True)

    id: str
    uri: str
    read: str
    label: str = ""
    metadata: dict[str, Any] = {}
    problem: str | None = None  # found while listing the source: it fails with this reason


class Failure(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    uri: str
    reason: str
    stage: Literal["list", "read", "decode", "embed", "store", "worker"]
    attempts: int = 1


class NewJob(BaseModel):
    """What the gateway asks for. `source` is opaque here: the planner reads it."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    collection: str
    generation: str
    model: str
    namespace: str
    source: dict[str, Any]
    on_existing: Literal["skip", "replace"] = "skip"


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

    @property
    def id(self) -> str:
        return self.new.id


@dataclass(frozen=True)
class PlanLease:
    """The right to plan one job. `cursor`: where the source's stream goes on; "" at its start."""

    token: int
    cursor: str
    planned: bool


@dataclass(frozen=True)
class OpenChunk:
    """`waited_s`: seconds since a message last named it, infinite when none did."""

    no: int
    size: int
    attempt: int
    leased: bool
    expired: bool
    waited_s: float


@dataclass(frozen=True)
class Claim:
    job_id: str
    no: int
    token: int
    attempt: int
    items: tuple[Item, ...]


class Refusal(StrEnum):
    """Why a claim was not granted. None of them is an error: the message was late or doubled."""

    CLOSED = "closed"  # the job is over
    DONE = "done"  # the chunk is
    HELD = "held"  # somebody else works on it


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk's items; the three numbers add up to its size."""

    done: int = 0
    skipped: int = 0
    failures: tuple[Failure, ...] = field(default=())


class Ledger(Protocol):
    """Every call raises Unavailable when Redis is away, and NotFound for unknown jobs."""

    def create(self, new: NewJob, idempotency_key: str = "") -> Job:
        """The new job, or the one that this key made before."""
        ...

    def job(self, job_id: str) -> Job: ...

    def jobs(self, limit: int = 50, offset: int = 0) -> list[Job]:
        """Newest first."""
        ...

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]: ...

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """End the job; chunks in hand may still be marked. A finished job stays as it is."""
        ...

    # for the planner
    def active(self) -> list[str]: ...

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None: ...

    def estimate(self, job_id: str, images: int) -> None: ...

    def plan(
        self, job_id: str, token: int, items: Sequence[Item], after: str, cursor: str
    ) -> int | None:
        """Move the job's cursor from `after` to `cursor`, and what lies between into a new chunk.

        Its number; None when the cursor is elsewhere, the lease no longer ours, or the job over.
        """
        ...

    def end_plan(self, job_id: str, token: int, error: str = "") -> bool: ...

    def open_chunks(self, job_id: str) -> list[OpenChunk]: ...

    def items(self, job_id: str, no: int) -> tuple[Item, ...]: ...

    def sent(self, job_id: str, no: int) -> None:
        """A message names the chunk now. One whose lease ran out is pending again, so that it is
        not sent a second time while that message waits; a late holder may still mark it."""
        ...

    def split(self, job_id: str, chunk: OpenChunk, at: int) -> bool:
        """Replace a chunk that nobody holds by two; each half gets one more attempt."""
        ...

    def bury(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        """Fail the only item of a chunk that nobody holds."""
        ...

    # for the workers
    def claim(self, job_id: str, no: int, worker: str, seconds: float) -> Claim | Refusal: ...

    def renew(self, claim: Claim, seconds: float) -> bool:
        """False when the claim is lost or the job was cancelled: stop working on it."""
        ...

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        """Count the chunk, exactly once. False when the token is stale."""
        ...

    def release(self, claim: Claim, *, count_attempt: bool) -> bool: ...

    def note(self, job_id: str, waiting: str) -> None:
        """Say why the job waits; the next `mark` clears it."""
        ...


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r}", job=job_id[:80])


def check_outcome(claim: Claim, outcome: Outcome) -> None:
    if outcome.done + outcome.skipped + len(outcome.failures) != len(claim.items):
        raise ValueError(f"chunk {claim.job_id}/{claim.no}: the outcome does not add up")
