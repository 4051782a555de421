"""The records of the in-memory ledger."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clipfleet.common.ledger import (
    Claim,
    Failure,
    Item,
    Job,
    Look,
    NewJob,
    OpenChunk,
    PlanLease,
    any_remote,
)


@dataclass
class Chunk:
    """An open chunk.

    Attributes:
        items: its items.
        attempt: the number of times that it was claimed.
        token: the token of the last claim; "" after a release.
        lease_until: when that claim expires, unix seconds; 0 while the chunk is pending.
        suspect: the index of the item that its worker is working on.
        since: when it was claimed for the first time, unix seconds; 0: never.
    """

    items: tuple[Item, ...]
    attempt: int = 0
    token: str = ""
    lease_until: float = 0.0
    suspect: int | None = None
    since: float = 0.0

    @property
    def remote(self) -> bool:
        """Whether its images come from the web or from buckets."""
        return any_remote(self.items)

    def seen(self, name: str, now: float) -> OpenChunk:
        """The chunk as planners see it at this time."""
        return OpenChunk(
            name=name,
            size=len(self.items),
            attempt=self.attempt,
            leased=self.lease_until > 0,
            expired=0 < self.lease_until <= now,
            suspect=self.suspect,
        )


@dataclass
class Entry:
    """A job with its chunks and failures.

    Attributes:
        job: the job.
        open: its open chunks, by name.
        failures: its failures, in the order in which they were counted.
        cursor: the position in the source up to which it is planned.
        planner: the planner that has it; "": none.
        planner_token: the token of that planner's lease.
        whole: the request, with its whole source.
        served_at: when one of its chunks was claimed last, unix seconds; 0: never.
        look_at: when its planner should look at it next, unix seconds.
    """

    job: Job
    open: dict[str, Chunk] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    cursor: str = ""
    planner: str = ""
    planner_token: str = ""
    whole: NewJob | None = None
    served_at: float = 0.0
    look_at: float = 0.0

    @property
    def running(self) -> bool:
        """Whether its state is "running"."""
        return self.job.state == "running"

    @property
    def pending(self) -> list[str]:
        """The names of its pending chunks, in the order of planning."""
        if not self.running:
            return []
        return sorted(name for name, chunk in self.open.items() if not chunk.lease_until)

    @property
    def in_hand(self) -> int:
        """The number of its leased chunks, including those whose lease expired."""
        return sum(chunk.lease_until > 0 for chunk in self.open.values())

    def add(self, unique: str, items: Sequence[Item], attempt: int = 0) -> str:
        """Add a pending chunk. Returns its name, which ends in `unique`."""
        self.job = replace(self.job, chunks=self.job.chunks + 1)
        name = f"{self.job.chunks:08d}-{unique}"
        self.open[name] = Chunk(tuple(items), attempt)
        return name

    @property
    def lease(self) -> PlanLease:
        """The lease of its planner."""
        return PlanLease(self.planner_token, self.cursor, self.job.planned)

    def look_by(self, time: float) -> None:
        """Request that a planner looks at it at this time or earlier."""
        self.look_at = min(self.look_at, time)

    def set_free(self, now: float) -> None:
        """Take it from its planner. It is due at once."""
        self.planner, self.look_at = "", now

    def look(self, now: float, seconds: float, max_attempts: int) -> Look:
        """What its planner sees. Sets the next look: after `seconds`, or when a lease expires."""
        ends = [chunk.lease_until for chunk in self.open.values() if chunk.lease_until > now]
        self.look_at = min([now + seconds, *ends])
        seen = [chunk.seen(name, now) for name, chunk in sorted(self.open.items())]
        troubled = [
            chunk
            for chunk in seen
            if chunk.expired or (not chunk.leased and chunk.attempt >= max_attempts)
        ]
        job = self.job
        images = sum(chunk.size for chunk in seen)
        return Look(
            job.id,
            self.lease,
            job.total,
            job.waiting,
            len(seen),
            images,
            job.rate,
            tuple(troubled),
        )

    def may_plan(self, token: str) -> bool:
        """Whether the holder of this lease may add chunks."""
        return self.running and self.planner_token == token and not self.job.planned

    def may_close(self, token: str) -> bool:
        """Whether the holder of this lease may do the last step of a mirror."""
        job = self.job
        is_due = job.new.mirror is not None and job.mirror is None
        is_idle = self.running and job.planned and not self.open
        return is_due and is_idle and self.planner_token == token

    def held(self, claim: Claim) -> Chunk | None:
        """The chunk that the claim holds; None when the claim is lost."""
        chunk = self.open.get(claim.chunk)
        return chunk if chunk and chunk.token == claim.token else None


def removed() -> Entry:
    """A stand-in for a job that does not exist: to planners and workers it has ended."""
    new = NewJob(
        id="", collection="", generation="", model="", namespace="", source={"type": "none"}
    )
    return Entry(Job(new=new, state="cancelled", created_at=0.0))
