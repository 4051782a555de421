"""The ledger port: the truth about jobs and chunks. A message is a nudge and names no chunk.

A chunk is open from `plan` until `mark`. While open it is pending or leased. A worker claims the
next pending chunk of its model. The claim carries a random token: the last worker that claimed the
chunk holds it, and only the holder's `mark` counts. Chunks have random names. So no name and no
token comes a second time, even when Redis forgets its last second.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict

from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.http.source_grants import SourceGrant

JobState = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]
FINAL: frozenset[JobState] = frozenset({"succeeded", "partial", "failed", "cancelled"})
STATES: tuple[JobState, ...] = get_args(JobState)
KEEP_IDEMPOTENCY_S = 86_400
LOOK_S = 10.0  # as in ledger.lua
OFFER_S = 1.0


class Item(BaseModel):
    """One image of a job, by reference.

    Attributes:
        read: where its bytes lie, see `workers/storage/items.py`.
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

    @property
    def place(self) -> str:
        """Where its bytes lie, or where the archive lies that holds them."""
        kind, _, where = self.read.partition(":")
        return where.split(":", ARCHIVES[kind])[-1] if kind in ARCHIVES else self.read

    @property
    def is_remote(self) -> bool:
        """Whether its bytes come from the web or from a bucket."""
        return self.place.partition(":")[0] in REMOTE


REMOTE = ("url", "fs")  # kinds of places
ARCHIVES = {"part": 2, "zip": 4}  # how many fields come before the place of the archive


def any_remote(items: Sequence[Item]) -> bool:
    """Whether a chunk of these waits for others' servers."""
    return any(item.is_remote for item in items)


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
        v: 2 when a long source is kept apart, see `brief`.
        source: opaque here: the planner reads it.
        retry_of: the job whose failures these are.
        grant: what its API key lets it read. None: as much as the service, and so for jobs of
            releases that knew no grants.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1, 2] = 1
    id: str
    collection: str
    generation: str
    model: str
    namespace: str
    source: dict[str, Any]
    on_existing: Literal["skip", "replace"] = "skip"
    retry_of: str = ""
    grant: SourceGrant | None = None


LONG = ("urls", "items")  # of a source, which only the planner needs


def brief(new: NewJob) -> NewJob:
    """Without the images that came with the request: everybody who looks at a job reads the rest.
    Two lists of URLs are the same if their `digest` is."""
    if not any(name in new.source for name in LONG):
        return new
    rest = {name: value for name, value in new.source.items() if name not in LONG}
    if "urls" in new.source:
        raw = json.dumps(new.source["urls"]).encode()
        rest["digest"] = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return new.model_copy(update={"v": 2, "source": rest})


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
    rate: float = 0.0  # images a second of its last chunks, each in one worker; 0: not known

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
class Look:
    """What a planner sees of a job that is due.

    Attributes:
        total: the number of images planned so far.
        waiting: why the job waits; "" when it does not.
        open: the number of chunks that are not marked yet.
        open_images: the number of images in them.
        rate: images a second of its last chunks; 0 when none was measured.
        troubled: those of them whose lease ran out or that were tried too often.
    """

    job_id: str
    lease: PlanLease
    total: int
    waiting: str
    open: int
    open_images: int
    rate: float
    troubled: "tuple[OpenChunk, ...]"


@dataclass(frozen=True)
class Round:
    """What a planner has to do.

    Attributes:
        looks: its jobs that are due.
        offered: jobs without a planner, which it may lease. They are offered to no other planner
            for OFFER_S.
        owned: how many jobs it has.
    """

    looks: tuple[Look, ...] = ()
    offered: tuple[str, ...] = ()
    owned: int = 0


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
        more: whether other chunks of the model and of this kind were pending when this one was
            claimed.
        since: when the chunk was claimed for the first time, in unix seconds by Redis' clock.
    """

    job_id: str
    chunk: str
    token: str
    attempt: int
    items: tuple[Item, ...]
    more: bool = False
    since: float = 0.0

    @property
    def index(self) -> int:
        """The number of the chunk within its job, for people."""
        return int(self.chunk.partition("-")[0])

    def of(self, items: tuple[Item, ...]) -> "Claim":
        """The same claim, after a mark that kept these."""
        return replace(self, items=items)


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
        rate: images a second; 0 when it is not known.
        kept: those under way; they stay in the chunk, and the claim goes on for them.
    """

    done: int = 0
    skipped: int = 0
    failures: tuple[Failure, ...] = ()
    rest: tuple[Item, ...] = ()
    rate: float = 0.0
    kept: tuple[Item, ...] = ()


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

    def find_by_idempotency_key(self, idempotency_key: str) -> Job | None:
        """The job that this key made within the last KEEP_IDEMPOTENCY_S seconds."""
        ...

    def job(self, job_id: str) -> Job:
        """As it stands. Of a long source only what `brief` leaves."""
        ...

    def whole(self, job_id: str) -> NewJob:
        """What was asked for, with all of its source."""
        ...

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        collection: str = "",
        states: Collection[str] = (),
        sees: Callable[[str], bool] | None = None,
    ) -> list[Job]:
        """Newest first; of one collection, in some states, or all. `sees`: of which collections.

        The time that it takes depends on `offset` and `limit`, not on how many jobs are kept.
        """
        ...

    def count_jobs(self) -> dict[JobState, int]:
        """How many jobs are kept in each state. Indices that another release left behind are
        mended first."""
        ...

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        """In the order in which they were counted. FailuresLost when the blob store lost some."""
        ...

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """End the job; chunks in hand may still be marked. A finished job stays as it is."""
        ...

    def remove(self, job_id: str) -> None:
        """Forget a job with its chunks and failures, whatever its state; nothing of it stays."""
        ...

    # for the housekeeper
    def acquire_cleanup_lock(self, keeper: str, seconds: float) -> bool:
        """Whether the keeper may clean up for so long; one at a time may."""
        ...

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        """Jobs that ended so long ago or longer, the first to end first."""
        ...

    # for the planner
    def active(self) -> list[str]: ...

    def tend(
        self,
        planner: str,
        seconds: float,
        *,
        limit: int,
        offers: int,
        max_attempts: int,
        due: Collection[str] = (),
    ) -> Round:
        """Begin a round. The planner counts as alive for so many seconds from now.

        A job is due when something happened that concerns its planner: a chunk was marked, a lease
        ran out, an attempt failed. Otherwise it is due every LOOK_S. A planner that is not alive
        loses its jobs. One that has many more jobs than its share loses the surplus when another
        planner has nothing.

        Args:
            limit: at most so many looks.
            offers: at most so many jobs are offered.
            max_attempts: after which a chunk was tried too often.
            due: jobs of its own that are due now, whatever happened.
        """
        ...

    def owned(self, planner: str) -> list[str]:
        """The jobs that a planner has."""
        ...

    def deregister_planner(self, planner: str) -> None:
        """Free all jobs of a planner; it is not alive any more."""
        ...

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        """Take a job that no living planner has. The planner counts as alive for so long."""
        ...

    def estimate(self, job_id: str, images: int) -> None: ...

    def plan(
        self, job_id: str, token: str, items: Sequence[Item], after: str, cursor: str
    ) -> str | None:
        """Move the job's cursor from `after` to `cursor`, and what lies between into a new chunk.

        Its name; None when the cursor is elsewhere, the lease no longer ours, or the job over.
        """
        ...

    def finish_planning(self, job_id: str, token: str, after: str, error: str = "") -> bool:
        """Nothing comes after the cursor `after`; False when the job's cursor is elsewhere.

        The job ends with its last chunk if its counts add up then: `total = done + failed +
        skipped`. Otherwise it is planned again from its start.
        """
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

    def quarantine(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        """Fail the only item of a chunk that nobody holds."""
        ...

    # for the workers
    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        """Claim the next pending chunk of a model; None when there is none.

        `remote`: of the chunks with images that come from the web or from buckets; otherwise of all
        others.
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
        """Count the chunk exactly once. False when the claim does not hold it any more.

        With `outcome.kept` the chunk stays open: go on with `claim.of(outcome.kept)`.
        """
        ...

    def release(self, claim: Claim, *, count_attempt: bool) -> bool: ...

    def set_waiting_reason(self, job_id: str, waiting: str) -> None:
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


RATE_WEIGHT = 0.3  # of the last chunk, in a job's rate


VERSIONS = (1, 2)  # of NewJob, that this release understands


def random_name() -> str:
    """A part of a chunk's name, or a token: no other call gives the same."""
    return secrets.token_hex(8)


def unknown_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r}", job=job_id[:80])


def check_outcome(claim: Claim, outcome: Outcome) -> None:
    uncounted = len(outcome.rest) + len(outcome.kept)
    counted = outcome.done + outcome.skipped + len(outcome.failures) + uncounted
    if counted != len(claim.items):
        raise ValueError(f"chunk {claim.job_id}/{claim.chunk}: the outcome does not add up")
