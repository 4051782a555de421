"""What the in-memory ledger keeps of a job."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clipfleet.common.ledger import Claim, Failure, Item, Job, NewJob


@dataclass
class Chunk:
    items: tuple[Item, ...]
    attempt: int = 0
    token: int = 0
    lease_until: float = 0.0
    sent: float = 0.0
    suspect: int | None = None


@dataclass
class Entry:
    job: Job
    open: dict[int, Chunk] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    fence: int = 0
    cursor: str = ""
    planner: str = ""
    planner_until: float = 0.0
    planner_token: int = 0

    @property
    def running(self) -> bool:
        return self.job.state == "running"

    def next_token(self) -> int:
        self.fence += 1
        return self.fence

    def add(self, items: Sequence[Item], attempt: int = 0) -> int:
        self.job = replace(self.job, chunks=self.job.chunks + 1)
        self.open[self.job.chunks] = Chunk(tuple(items), attempt)
        return self.job.chunks

    def may_plan(self, token: int) -> bool:
        return self.running and self.planner_token == token and not self.job.planned

    def held(self, claim: Claim) -> Chunk | None:
        chunk = self.open.get(claim.no)
        return chunk if chunk and chunk.token == claim.token else None


def removed() -> Entry:
    """Stands for a job that is not there: to planners and workers it is one that is over."""
    new = NewJob(
        id="", collection="", generation="", model="", namespace="", source={"type": "none"}
    )
    return Entry(Job(new=new, state="cancelled", created_at=0.0))
