"""The ledger port: the state of jobs and chunks. Messages are in `queue`, embeddings in `store`.

Messages name no chunk. A chunk is open from `plan` until `mark`. While open, it is pending or
leased. A worker claims the next pending chunk of its model. The claim has a random token: the last
worker that claimed the chunk holds it, and only the holder's `mark` counts. Chunks have random
names. So no name and no token is used twice, even when Redis loses the writes of its last second.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.errors import Conflict, NotFound, Unavailable
from clipfleet.common.http.mirror import MirrorIn
from clipfleet.common.http.schemas import JobState
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.http.webhooks import WebhookState
from clipfleet.common.shares import Owner

FINAL: frozenset[JobState] = frozenset({"succeeded", "partial", "failed", "cancelled"})
STATES: tuple[JobState, ...] = get_args(JobState)
KEEP_IDEMPOTENCY_S = 86_400
UNLIMITED = 2**53
LOOK_INTERVAL_S = 10.0  # between two looks at a job of which nothing happened; as in ledger.lua
OFFER_S = 1.0  # for which a job is offered to one planner only; as in ledger.lua


class Stored(BaseModel):
    """What an image keeps that is copied from one generation of a collection to the other.

    Attributes:
        namespace: its namespace.
        job_id: the job that stored it in the first one.
        indexed_at: when that was, unix time in milliseconds.
        content_hash: its hash there; "": not known.
    """

    model_config = ConfigDict(frozen=True)

    namespace: str
    job_id: str
    indexed_at: int
    content_hash: str = ""


class Item(BaseModel):
    """A reference to one image of a job.

    Attributes:
        id: the id of the image in its collection.
        uri: the URI that is stored with the image.
        read: where its bytes are; `workers/storage/items.py` defines the forms.
        label: its label; "": none.
        metadata: its metadata.
        problem: why the item fails, when that is known from the listing of the source.
        row: "line 12" of a manifest, when the text of that line may not be a URI. A failure shows
            `row` in place of the URI unless an image was decoded: the answer must not reveal the
            text of a file that is not a manifest.
        stored: what the image keeps, when it is copied from another generation; None: it is new.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    uri: str
    read: str
    label: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)  # pydantic copies `{}` deeply each time
    problem: str | None = None
    row: str = ""
    stored: Stored | None = None

    @property
    def place(self) -> str:
        """Where its bytes are, or the archive that contains them."""
        kind, _, where = self.read.partition(":")
        return where.split(":", ARCHIVES[kind])[-1] if kind in ARCHIVES else self.read

    @property
    def is_remote(self) -> bool:
        """Whether its bytes are read from the web or from a bucket."""
        return self.place.partition(":")[0] in REMOTE


REMOTE = ("url", "fs")  # kinds of places
GONE = "gone:"  # the `read` of an image that is no longer in its source, and is to be removed
ARCHIVES = {"part": 2, "zip": 4}  # number of fields before the place of the archive


def any_remote(items: Sequence[Item]) -> bool:
    """Whether a chunk of these items has to wait for servers outside the service."""
    return any(item.is_remote for item in items if "url:" in item.read or "fs:" in item.read)


@dataclass(frozen=True)
class JobRoom:
    """The limit on active jobs, which `may_take` shares between API keys.

    Attributes:
        limit: the number of jobs that are queued or running at most.
        key: the name of the API key that starts a job; "": none, and no share.
    """

    limit: int = UNLIMITED
    key: str = ""


ANY_ROOM = JobRoom()


class TooManyJobs(Unavailable):
    """The service, or one API key, has as many active jobs as it may have.

    Args:
        room: the limit, and the key.
        active: the number of active jobs.
        of_key: the number of those that the key has started.
    """

    slug = "too-many-jobs"
    title = "Too many jobs are queued or running"

    def __init__(self, room: JobRoom, active: int, of_key: int) -> None:
        detail = f"{active} jobs are queued or running"
        facts = {"active": active, "limit": room.limit}
        if room.key:
            detail += f", {of_key} of them of this key"
            facts["of_key"] = of_key
        detail += f"; the limit is {room.limit} (CLIPFLEET_LIMITS__ACTIVE_JOBS)"
        if active < room.limit:
            detail += ", and the rest of it is for other keys"
        super().__init__(f"{detail}; try again later", retry_after_s=30, **facts)


FailureStage = Literal["list", "read", "decode", "embed", "store", "worker"]


class Failure(Item):
    """An item that failed. It contains the item, so that it can be retried.

    Attributes:
        reason: why it failed, without the name of the item.
        stage: the step in which it failed. "worker": it ended its worker.
        attempts: the number of times that it was tried.
    """

    read: str = ""
    reason: str
    stage: FailureStage
    attempts: int = 1

    @classmethod
    def of(cls, item: Item, stage: FailureStage, reason: str, attempts: int) -> "Failure":
        """The failure of an item."""
        return cls(**dict(item), stage=stage, reason=reason, attempts=attempts)

    def item(self) -> Item:
        """The item, to be tried again."""
        return Item.model_validate(self.model_dump())


class Webhook(BaseModel):
    """Where a job reports its end.

    Attributes:
        url: the address.
        secret: signs the reports. No answer and no log line contains it.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    secret: str = Field(repr=False)

    @property
    def host(self) -> str:
        """The host of the URL, without a blank; never empty."""
        try:
            host = urlsplit(self.url).hostname or ""
        except ValueError:
            host = ""
        return "".join(host.split()) or "?"


class NewJob(BaseModel):
    """The request for a job.

    Attributes:
        v: 2 when a long source is stored separately, see `brief`; 3 with `mirror`, which planners
            of earlier releases would ignore; 4 for a job that copies images to another generation;
            5 for a job over stored images.
        id: the id of the job.
        collection: the name of the collection.
        generation: the generation of the collection.
        model: the model that embeds the images.
        namespace: the namespace of the images.
        source: where the images come from; only the planner interprets it.
        on_existing: what to do with an image that is stored and unchanged.
        exif: fields from the EXIF of the images become metadata.
        retry_of: the id of the job whose failures this job retries; "": none.
        grant: what the API key lets the job read. None: as much as the service, which also holds
            for jobs of releases without grants.
        webhook: where the job reports its end; None: nowhere.
        is_low: whether its chunks wait for those of all other jobs. Such a job has no key.
        mirror: what the job does about images that are gone from its source; None: nothing.
        origin: the identity of the source whose snapshot the job keeps (`source_identity`);
            "": no snapshot.
        incremental: whether `source` is only some images of the source that `origin` names. They
            are added to the snapshot, and none is removed.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1, 2, 3, 4, 5] = 1
    id: str
    collection: str
    generation: str
    model: str
    namespace: str
    source: dict[str, Any]
    on_existing: Literal["skip", "replace"] = "skip"
    exif: bool = False
    retry_of: str = ""
    grant: SourceGrant | None = None
    webhook: Webhook | None = None
    is_low: bool = False
    mirror: MirrorIn | None = None
    origin: str = ""
    incremental: bool = False


LONG = (
    "urls",
    "items",
    "sources",
    "keys",
)  # the fields of a source that may be long, for planners alone


def brief(new: NewJob) -> NewJob:
    """The job without the images in its source, for all readers but the planner.

    A list of URLs or of sources is replaced by its `digest`: two lists are the same if their
    digests are.
    """
    if not any(name in new.source for name in LONG):
        return new
    rest = {name: value for name, value in new.source.items() if name not in LONG}
    for name in ("urls", "sources", "keys"):
        if name in new.source:
            raw = json.dumps(new.source[name]).encode()
            rest["digest"] = hashlib.blake2b(raw, digest_size=16).hexdigest()
    return new.model_copy(update={"v": max(2, new.v), "source": rest})


@dataclass(frozen=True)
class MirrorResult:
    """What a mirror did about images that are gone from its source.

    Attributes:
        gone: the number of indexed images that are gone.
        deleted: how many of them were deleted.
        kept: why none or some were not deleted although the job deletes; "" otherwise.
    """

    gone: int = 0
    deleted: int = 0
    kept: str = ""


@dataclass(frozen=True)
class Job:
    """The current state of a job.

    Attributes:
        new: the request, as `brief` shortens it.
        state: its state.
        created_at: unix seconds, as are all times here.
        started_at: when a planner leased it for the first time.
        finished_at: when it ended.
        planned: whether the whole source has been planned.
        total: the number of images planned so far.
        estimated: the probable number of images; 0 when it is not known.
        done: the number of images stored.
        failed: the number of images that failed.
        skipped: the number of images that were stored already.
        replaced: how many of those that are done replaced an image with other content.
        updated: how many of those were not embedded again: only label, metadata or URI changed.
        chunks: the number of chunks planned so far.
        error: why the job failed or was cancelled; "" otherwise.
        waiting: why the job waits; "" when it does not.
        retried_by: the id of the last job that retried its failures; "": none.
        rate: images per second of its last chunks, each in one worker; 0 when it is not known.
        key: the name of the API key that started it; "": none.
        notes: what was left out or changed while the source was listed, see `notes.py`.
        webhook: the state of its webhook; "": it has none.
        webhook_reason: why the last try of the webhook failed; "": it did not.
        webhook_tries: how often the webhook was sent.
        mirror: what became of images that are gone; None before that is known.
    """

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
    rate: float = 0.0
    key: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)
    replaced: int = 0
    updated: int = 0
    webhook: WebhookState | Literal[""] = ""
    webhook_reason: str = ""
    webhook_tries: int = 0
    mirror: MirrorResult | None = None

    @property
    def id(self) -> str:
        return self.new.id

    @property
    def webhook_host(self) -> str:
        """The host of its webhook; "": it has none."""
        return self.new.webhook.host if self.new.webhook else ""

    @property
    def owner(self) -> Owner:
        """Whom its share of a worker is for."""
        return Owner(self.key, self.id)


@dataclass(frozen=True)
class PlanLease:
    """The right to plan one job.

    Attributes:
        token: proves the right in `plan` and `finish_planning`.
        cursor: the position in the source from which to continue; "" at its start.
        planned: whether the whole source has been planned.
    """

    token: str
    cursor: str
    planned: bool


@dataclass(frozen=True)
class Look:
    """What a planner sees of a job that is due.

    Attributes:
        job_id: the id of the job.
        lease: the planner's lease.
        total: the number of images planned so far.
        waiting: why the job waits; "" when it does not.
        open: the number of chunks that are not marked yet.
        open_images: the number of images in open chunks.
        rate: images per second of its last chunks; 0 when it is not known.
        troubled: open chunks whose lease expired or that were tried too often.
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
    """What a planner has to do in one round.

    Attributes:
        looks: its jobs that are due.
        offered: ids of jobs without a planner, which it may lease. They are offered to no other
            planner for OFFER_S.
        owned: the number of jobs that it has leased.
    """

    looks: tuple[Look, ...] = ()
    offered: tuple[str, ...] = ()
    owned: int = 0


@dataclass(frozen=True)
class OpenChunk:
    """A chunk that is not marked yet.

    Attributes:
        name: unique; the names of one job sort in the order of planning.
        size: the number of its items.
        attempt: the number of times that it was claimed.
        leased: whether a worker has claimed it and neither marked nor released it.
        expired: whether that claim has expired.
        suspect: the index of the item that the worker was working on when its last attempt ended.
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
        job_id: the id of the job.
        chunk: the name of the chunk.
        token: random, one for each claim.
        attempt: 1 for the first claim of the chunk.
        items: the items to work on.
        more: whether other chunks of the model, with the same value of `remote`, were pending.
        since: when the chunk was claimed for the first time, unix seconds by Redis' clock.
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
        """The number of the chunk in its job, for log lines."""
        return int(self.chunk.partition("-")[0])

    def of(self, items: tuple[Item, ...]) -> "Claim":
        """The claim that remains after a `mark` with these items in `Outcome.kept`."""
        return replace(self, items=items)


@dataclass(frozen=True)
class Unknown:
    """Only chunks of jobs of another version are pending; `job_id` is such a job."""

    job_id: str


Part = tuple[tuple[Item, ...], int]  # of a split chunk: its items, and the attempts counted so far


@dataclass(frozen=True)
class Outcome:
    """The result of the work on a chunk. It accounts for each of its items once.

    Attributes:
        done: the number of items that were stored.
        skipped: the number of items that were stored already.
        failures: the items that failed.
        rest: the items that were not tried; they become another chunk, for which this attempt does
            not count.
        rate: images per second; 0 when it is not known.
        kept: the items that are still being worked on; they stay in the chunk under this claim.
        replaced: how many of `done` replaced an image with other content.
        updated: how many of `replaced` were not embedded again.
    """

    done: int = 0
    skipped: int = 0
    failures: tuple[Failure, ...] = ()
    rest: tuple[Item, ...] = ()
    rate: float = 0.0
    kept: tuple[Item, ...] = ()
    replaced: int = 0
    updated: int = 0


class Ledger(Protocol):
    """The port of the ledger: jobs, their chunks and their failures.

    Implementations: `RedisLedger` for a service, `MemoryLedger` for tests. Every write is one
    atomic step. Every call raises Unavailable when Redis is away. `job`, `whole`, `cancel` and
    `remove` raise NotFound for a job that does not exist; all other calls treat a job that was
    removed like one that has ended.
    """

    def create(self, new: NewJob, idempotency_key: str = "", room: JobRoom = ANY_ROOM) -> Job:
        """Create a job, unless it exists.

        Args:
            new: the job. A second call with the same `new.id` returns the job of the first.
            idempotency_key: a second call with this key within KEEP_IDEMPOTENCY_S seconds returns
                the job
                of the first; "": no key.
            room: the limit on active jobs for a new job, and the API key that it counts for.

        Returns:
            The new job, the job that the key already created, or, for a retry, the job that is
            already retrying the same failures.

        Raises:
            NotFound: the job to retry does not exist.
            Conflict: the job to retry has not ended, or has no failures; or another mirror of the
                same source has not ended.
            TooManyJobs: there is no room for a new job.
            Unavailable: Redis is away.
        """
        ...

    def require_room(self, room: JobRoom) -> None:
        """Check whether `create` would find room for a new job now.

        Args:
            room: the limit on active jobs.

        Raises:
            TooManyJobs: there is no room.
            Unavailable: Redis is away.
        """
        ...

    def find_by_idempotency_key(self, idempotency_key: str) -> Job | None:
        """Look up the job that a key created.

        Args:
            idempotency_key: the key given to `create`.

        Returns:
            The job; None when the key created none within the last KEEP_IDEMPOTENCY_S seconds, or
            when
            that job was removed.

        Raises:
            OtherVersion: another release wrote the job.
            Unavailable: Redis is away.
        """
        ...

    def job(self, job_id: str) -> Job:
        """Read the current state of a job. Of a long source, it has only what `brief` keeps.

        Args:
            job_id: the id of the job.

        Raises:
            NotFound: there is no such job.
            OtherVersion: another release wrote the job.
            Unavailable: Redis is away.
        """
        ...

    def whole(self, job_id: str) -> NewJob:
        """Read the request that created a job, with its whole source.

        Args:
            job_id: the id of the job.

        Returns:
            The request. Once the job has ended, a long source may be shortened as by `brief`.

        Raises:
            NotFound: there is no such job.
            OtherVersion: another release wrote the job.
            Unavailable: Redis is away.
        """
        ...

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        collection: str = "",
        states: Collection[str] = (),
        sees: Callable[[str], bool] | None = None,
    ) -> list[Job]:
        """List jobs, the newest first. Jobs of another version are left out.

        The duration depends on `offset` and `limit`, not on the number of jobs in the ledger.

        Args:
            limit: the number of jobs to return at most.
            offset: the number of jobs to skip.
            collection: the name of their collection; "": any.
            states: their states; empty: any.
            sees: takes the name of a collection, and says whether to list its jobs; None: all.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def count_jobs(self) -> dict[JobState, int]:
        """Count the jobs in each state.

        Repairs the indices first when parts of another release have not kept them.

        Returns:
            A number for every state, 0 included.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        """Read the failures of a job in the order in which they were counted.

        Args:
            job_id: the id of the job.
            limit: the number of failures to return at most.
            offset: the number of failures to skip.

        Returns:
            The failures; empty when there is no such job.

        Raises:
            FailuresLost: the blob store has lost some of them.
            BlobsUnavailable: the blob store, which has all but the first failures, is away.
            Unavailable: Redis is away.
        """
        ...

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """End a job as "cancelled". A job that has ended stays as it is.

        Chunks that workers have claimed may still be marked.

        Args:
            job_id: the id of the job.
            reason: becomes the job's `error`.

        Returns:
            The job as it is then.

        Raises:
            NotFound: there is no such job.
            Unavailable: Redis is away.
        """
        ...

    def begin_removal(self, job_id: str, reason: str = "") -> Job:
        """Cancel a job and record that its removal has begun. It cannot be retried any more.

        Call this before the files of a job are deleted, and `remove` afterwards: nothing is deleted
        while Redis takes no writes, and `removals` lists what was not completed.

        Args:
            job_id: the id of the job.
            reason: becomes the job's `error`, unless it has ended.

        Returns:
            The job as it is then.

        Raises:
            NotFound: there is no such job.
            Unavailable: Redis is away.
        """
        ...

    def removals(self, limit: int) -> list[str]:
        """List jobs whose removal has begun and is not complete.

        Args:
            limit: the number of ids to return at most.

        Returns:
            The ids, the removal that began first at the beginning.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def remove(self, job_id: str) -> None:
        """Delete a job with its chunks and failures, whatever its state.

        Args:
            job_id: the id of the job.

        Raises:
            NotFound: there is no such job.
            BlobsUnavailable: the job has failures in the blob store, which is away.
            Unavailable: Redis is away.
        """
        ...

    # for the housekeeper
    def acquire_cleanup_lock(self, keeper: str, seconds: float) -> bool:
        """Acquire or extend the lock under which one housekeeper at a time cleans up.

        Args:
            keeper: the name of the housekeeper.
            seconds: the time after which the lock expires.

        Returns:
            False when another housekeeper holds the lock.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        """List jobs that ended at least `seconds_ago` seconds ago.

        Args:
            seconds_ago: the time since the end of a job at least, seconds.
            limit: the number of ids to return at most.

        Returns:
            The ids, the oldest end first.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    # for the planner
    def active(self) -> list[str]:
        """List all jobs that are queued or running.

        Returns:
            Their ids, sorted.

        Raises:
            Unavailable: Redis is away.
        """
        ...

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
        """Begin a round of a planner: what it has to look at, and which jobs it may lease.

        A job is due when something happened that concerns its planner: a chunk was marked, a lease
        expired, an attempt failed. Otherwise it is due every LOOK_INTERVAL_S. A planner whose time
        has expired loses its jobs. A planner that has many more jobs than its share loses the
        surplus when another planner has none.

        Args:
            planner: the name of the planner.
            seconds: the time for which the planner counts as alive from now.
            limit: the number of looks to return at most.
            offers: the number of jobs to offer at most.
            max_attempts: the number of attempts after which a chunk counts as troubled.
            due: ids of jobs of this planner that are due now in any case.

        Returns:
            The looks, the offers, and the number of jobs that the planner has.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def owned(self, planner: str) -> list[str]:
        """List the jobs that a planner has leased.

        Args:
            planner: the name of the planner.

        Returns:
            Their ids, sorted.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def deregister_planner(self, planner: str) -> None:
        """Free all jobs of a planner, which does not count as alive any more.

        Args:
            planner: the name of the planner. One that has no jobs is no error.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        """Lease a job to a planner. A job that was queued is running then.

        Args:
            job_id: the id of the job.
            planner: the name of the planner.
            seconds: the time for which the planner counts as alive from now.

        Returns:
            The lease; None when another living planner has the job, or when the job has ended.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def estimate(self, job_id: str, images: int) -> None:
        """Record how many images the job will probably have.

        Args:
            job_id: the id of the job.
            images: the number of images; 0 when it is not known.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def plan(
        self,
        job_id: str,
        token: str,
        items: Sequence[Item],
        after: str,
        cursor: str,
        notes: Mapping[str, int] | None = None,
        skipped: int = 0,
    ) -> str | None:
        """Add a chunk to a job and move its cursor, in one step.

        Args:
            job_id: the id of the job.
            token: the token of the planner's lease.
            items: the items of the source between `after` and `cursor`.
            after: the cursor that the job must have.
            cursor: the cursor that the job has then.
            notes: what was left out or changed on the way, to be added to the job's notes.
            skipped: the number of images on the way that need no work. They count as skipped.

        Returns:
            The name of the chunk; "" when there are no items; None, without a change, when the job
            has another cursor, when the lease is lost, or when the job has ended.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def finish_planning(
        self,
        job_id: str,
        token: str,
        after: str,
        error: str = "",
        notes: Mapping[str, int] | None = None,
    ) -> bool:
        """Record that the source has no more items.

        The job ends with its last chunk if its counts then add up: `total = done + failed +
        skipped`. Otherwise it is planned again from the start of its source. A mirror then does not
        end, but waits for `close`.

        Args:
            job_id: the id of the job.
            token: the token of the planner's lease.
            after: the cursor that the job must have.
            error: why the rest of the source cannot be read; the job then ends as "failed".
            notes: what was left out or changed since `after`, to be added to the job's notes.

        Returns:
            False, without a change, when the job has another cursor, when the lease is lost, or
            when the job has ended.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def begin_close(self, job_id: str, token: str) -> Literal["begun", "wait", "lost"]:
        """Begin, or go on with, the last step of a mirror: no other of its collection does so then.

        Args:
            job_id: the id of a mirror, which is planned and has no open chunks.
            token: the token of the planner's lease.

        Returns:
            "wait" while another mirror of the generation is in this step; "lost" when the lease is
            lost, or the job has ended or is not that far.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def close(self, job_id: str, token: str, result: MirrorResult, error: str = "") -> bool:
        """End a mirror.

        Args:
            job_id: the id of the job.
            token: the token of the planner's lease.
            result: what became of images that are gone.
            error: why the job ends as "failed"; "" otherwise.

        Returns:
            False, without a change, as "lost" of `begin_close`.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        """List the chunks of a job that are not marked yet.

        Args:
            job_id: the id of the job.

        Returns:
            The chunks, in the order of planning.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]:
        """Read the items of a chunk.

        Args:
            job_id: the id of the job.
            chunk: the name of the chunk.

        Returns:
            The items; empty when the chunk is not open.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def requeue(self, job_id: str, chunk: OpenChunk) -> bool:
        """Make a chunk pending whose lease expired.

        Its late holder may still mark the chunk, until another worker claims it.

        Args:
            job_id: the id of the job.
            chunk: the chunk, as the caller has seen it.

        Returns:
            False when the chunk is no longer as `chunk` shows it.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def pending(self, model: str, limit: int) -> int:
        """Count the pending chunks of a model.

        Args:
            model: the name of the model.
            limit: the number at which counting stops.

        Returns:
            The number of pending chunks, at most `limit`.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def split(self, job_id: str, chunk: OpenChunk) -> bool:
        """Replace a chunk that no worker holds by two, as `bisect_items` divides it.

        Args:
            job_id: the id of the job.
            chunk: the chunk, as the caller has seen it.

        Returns:
            False when the chunk has one item, or is no longer as `chunk` shows it.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def quarantine(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        """Fail the only item of a chunk that no worker holds.

        Args:
            job_id: the id of the job.
            chunk: the chunk, as the caller has seen it.
            failure: the failure of its item.

        Returns:
            False when the chunk is no longer as `chunk` shows it.

        Raises:
            BlobsUnavailable: the failure does not fit into Redis, and the blob store is away.
            Unavailable: Redis is away.
        """
        ...

    # for the workers
    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        """Claim the next pending chunk of a model.

        API keys take turns: the one with the fewest claimed chunks comes first, then the one that
        was served least recently. So do the jobs of one key. A job without a key counts as a key.
        A job that `is_low` comes after all others.

        Args:
            model: the name of the model.
            worker: the name of the worker.
            seconds: the time after which the claim expires, unless renewed.
            max_attempts: chunks with so many claims are left to the planner.
            remote: True for chunks with images from the web or from buckets; False for all others.

        Returns:
            The claim; Unknown when only jobs of another version have pending chunks; None when
            there is no pending chunk.

        Raises:
            Unavailable: Redis is away.

        Example:
            claim = ledger.claim(model, "worker-1", 15.0, 2)
            if isinstance(claim, Claim):
                ledger.mark(claim, Outcome(done=len(claim.items)))
        """
        ...

    def renew(self, claim: Claim, seconds: float) -> bool:
        """Extend a claim.

        Args:
            claim: the claim.
            seconds: the time from now after which the claim expires.

        Returns:
            False when the claim is lost or the job was cancelled: stop working on it.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def suspect(self, claim: Claim, index: int | None) -> bool:
        """Record which item the worker is about to touch, in case the worker does not survive it.

        Args:
            claim: the claim.
            index: the index of the item in `claim.items`; None: no item.

        Returns:
            False when the claim is lost.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        """Count the outcome of a chunk, exactly once, and clear the job's `waiting`.

        With `outcome.kept` the chunk stays open: continue with `claim.of(outcome.kept)`.

        Args:
            claim: the claim.
            outcome: what became of each of its items.

        Returns:
            False, without a change, when the claim is lost or was marked already.

        Raises:
            ValueError: the outcome does not account for every item of the claim.
            BlobsUnavailable: the failures do not fit into Redis, and the blob store is away.
            Unavailable: Redis is away.
        """
        ...

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        """Give up a claim, so that the chunk is pending again.

        Args:
            claim: the claim.
            count_attempt: False when the chunk is not to blame, so that this attempt does not
                count towards `max_attempts`.

        Returns:
            False when the claim is lost.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def set_waiting_reason(self, job_id: str, waiting: str) -> None:
        """Set the reason why a running job waits. The next `mark` clears it.

        Args:
            job_id: the id of the job. A job that is not running stays as it is.
            waiting: the reason, for the caller of the job.

        Raises:
            Unavailable: Redis is away.
        """
        ...


NO_RETRY = {
    "running": "job {0} has not ended; cancel it or wait for its end, then retry it",
    "nothing": "job {0} has no failures to retry",
}


def no_retry(job_id: str, why: str) -> Conflict:
    """The error for a job whose failures cannot be retried; `why` is a key of NO_RETRY."""
    return Conflict(NO_RETRY[why].format(job_id), job=job_id)


def bisect_items(items: Sequence[Item], chunk: OpenChunk) -> tuple[Part, Part]:
    """Divide the items of a chunk that failed too often, to find the item that is to blame.

    Returns:
        With a suspect: the suspect, which has one attempt left, and the other items, whose attempts
        start again at 0. Without a suspect: two halves, which have one attempt left each.
    """
    suspect = chunk.suspect
    if suspect is not None:
        others = (*items[:suspect], *items[suspect + 1 :])
        return ((items[suspect],), chunk.attempt - 1), (others, 0)
    middle = len(items) // 2
    return (tuple(items[:middle]), chunk.attempt - 1), (tuple(items[middle:]), chunk.attempt - 1)


RATE_WEIGHT = 0.3  # of the last chunk in the moving average that is a job's rate


VERSIONS = (1, 2, 3, 4, 5)  # the versions of NewJob that this release understands


def random_name() -> str:
    """A random part of a chunk's name, or a token. Each call returns another one."""
    return secrets.token_hex(8)


def mirror_key(new: NewJob) -> str:
    """The key under which one mirror at a time runs; "": any number may."""
    if new.mirror is None or new.mirror.dry_run:
        return ""
    return f"{new.collection}:{new.origin}"  # generations of one name share their snapshots


def mirror_runs(job_id: str) -> Conflict:
    """The error for a second mirror of a source."""
    return Conflict(
        f"job {job_id} mirrors this source; wait for its end or cancel it, then start this one",
        job=job_id,
    )


def unknown_job(job_id: str) -> NotFound:
    """The error for an id without a job."""
    return NotFound(f"there is no job {job_id[:80]!r}", job=job_id[:80])


def check_outcome(claim: Claim, outcome: Outcome) -> None:
    """Raise ValueError unless the outcome accounts for every item of the claim."""
    uncounted = len(outcome.rest) + len(outcome.kept)
    counted = outcome.done + outcome.skipped + len(outcome.failures) + uncounted
    if counted != len(claim.items):
        raise ValueError(f"chunk {claim.job_id}/{claim.chunk}: the outcome does not add up")
