"""What `GET /v1/fleet` says: who is there, and what is wrong with it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Lane = Literal["ingest", "query"]
LANES: tuple[Lane, ...] = ("ingest", "query")


Severity = Literal["error", "warning"]


class FindingOut(BaseModel):
    """`error`: something does not work, or loses data; `warning`: it works, and could do better."""

    model_config = ConfigDict(frozen=True)

    severity: Severity
    part: str
    what: str
    advice: str


class WorkerOut(BaseModel):
    """`rate`: images/s of its last chunks. `images`: through the model for jobs since its start,
    and `spent`: the seconds that they took by stage, added up over its threads."""

    id: str
    host: str
    model: str
    lanes: tuple[Lane, ...]
    device: str
    rate: float | None
    version: str
    torch: str
    cores: int
    gpus: int
    decode_threads: int
    images: int
    spent: dict[str, float]


class FleetOut(BaseModel):
    version: str
    work_left: int = Field(description="images of all jobs that are not in yet")
    planners: list[str]
    workers: list[WorkerOut]
    findings: list[FindingOut]
