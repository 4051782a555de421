"""What the in-memory ledger keeps of a job."""

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
    items: tuple[Item, ...]
    attempt: int = 0
    token: str = ""
    lease_until: float = 0.0
    suspect: int | None = None
    since: float = 0.0

    @property
    def remote(self) -> bool:
        return any_remote(self.items)

    def seen(self, name: str, now: float) -> OpenChunk:
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
    job: Job
    open: dict[str, Chunk] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    cursor: str = ""
    planner: str = ""
    planner_token: str = ""
    whole: NewJob | None = None  # what was asked for
    served_at: float = 0.0
    look_at: float = 0.0

    @property
    def running(self) -> bool:
        return self.job.state == "running"

    @property
    def pending(self) -> list[str]:
        """The names of its pending chunks, in the order of planning."""
        if not self.running:
            return []
        return sorted(name for name, chunk in self.open.items() if not chunk.lease_until)

    @property
    def in_hand(self) -> int:
        """How many of its chunks are leased, those whose lease ran out too."""
        return sum(chunk.lease_until > 0 for chunk in self.open.values())

    def add(self, unique: str, items: Sequence[Item], attempt: int = 0) -> str:
        self.job = replace(self.job, chunks=self.job.chunks + 1)
        name = f"{self.job.chunks:08d}-{unique}"
        self.open[name] = Chunk(tuple(items), attempt)
        return name

    @property
    def lease(self) -> PlanLease:
        return PlanLease(self.planner_token, self.cursor, self.job.planned)

    def look_by(self, time: float) -> None:
        """A planner is to look at it then, or sooner."""
        self.look_at = min(self.look_at, time)

    def set_free(self, now: float) -> None:
        self.planner, self.look_at = "", now

    def look(self, now: float, seconds: float, max_attempts: int) -> Look:
        """The next look comes after so many seconds, or when the first lease runs out."""
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
        return self.running and self.planner_token == token and not self.job.planned

    def held(self, claim: Claim) -> Chunk | None:
        chunk = self.open.get(claim.chunk)
        return chunk if chunk and chunk.token == claim.token else None


def removed() -> Entry:
    """Stands for a job that is not there: to planners and workers it is one that is over."""
    new = NewJob(
        id="", collection="", generation="", model="", namespace="", source={"type": "none"}
    )
    return Entry(Job(new=new, state="cancelled", created_at=0.0))
