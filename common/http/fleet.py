"""Models of `GET /v1/fleet`: the live parts, and the findings about them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Lane = Literal["ingest", "query"]
LANES: tuple[Lane, ...] = ("ingest", "query")


Severity = Literal["error", "warning"]


class FindingOut(BaseModel):
    """A problem of the service, and what to do about it."""

    model_config = ConfigDict(frozen=True)

    severity: Severity = Field(
        description="error: something does not work, or data is lost. warning: it works, and could "
        "work better."
    )
    part: str = Field(description="The part that the finding concerns, such as a worker's id.")
    what: str = Field(description="The problem.")
    advice: str = Field(description="What to do about it.")


class WorkerOut(BaseModel):
    """A live worker."""

    id: str = Field(description="Id of the worker: HOST-PROCESS-RANDOM.")
    host: str = Field(description="Name of its host.")
    model: str = Field(description="Model that it serves.")
    lanes: tuple[Lane, ...] = Field(
        description="What it serves: ingest (chunks of jobs), query (searches)."
    )
    device: str = Field(description="Its device, such as cpu or cuda:0.")
    rate: float | None = Field(
        description="Images per second of its last chunks; null before the first."
    )
    version: str = Field(description="Its version of clipfleet.")
    torch: str = Field(description="Its version of torch.")
    cores: int = Field(description="Processor cores that it may use.")
    gpus: int = Field(description="GPUs that it sees.")
    feeders: int = Field(description="Processes that read and decode images.")
    concurrency: dict[str, int] = Field(
        {},
        description="Images, passes or chunks that each stage of indexing works on at once.",
    )
    images: int = Field(description="Images that it has embedded for jobs since its start.")
    spent: dict[str, float] = Field(
        description="Seconds that these images took in each stage, summed over its threads."
    )


class FleetOut(BaseModel):
    """The live parts of the service, and the findings about them."""

    version: str = Field(description="The gateway's version of clipfleet.")
    work_left: int = Field(description="Images of all jobs that are not indexed yet.")
    planners: list[str] = Field(description="Names of the live planners.")
    workers: list[WorkerOut] = Field(description="The live workers.")
    findings: list[FindingOut] = Field(description="Problems of the service.")
