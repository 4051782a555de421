"""What travels over HTTP about many images of a collection at once: to count them, list their ids,
delete them, measure their index."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.schemas import Deleted, Namespace, Request


class Which(Request):
    """Which images: those of a namespace that pass the filter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"filter": {"label": "church"}}]})

    filter: dict[str, Any] | None = None
    namespace: Namespace = "default"


class DeleteIn(Which):
    all: bool = Field(False, description="to be given when there is no filter")


class DeletedSome(Deleted):
    """`more`: the time was up; say it again until there are none."""

    more: bool


class Count(BaseModel):
    count: int


class IdPage(BaseModel):
    """`next`: the cursor of the next page; null on the last one."""

    ids: list[str]
    next: str | None


class RecallIn(Which):
    """`sample` images become queries, the same ones for the same `seed`."""

    k: int = Field(10, ge=1)
    sample: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, le=2**53)


class QueryRecall(BaseModel):
    id: str
    recall: float


class RecallOut(BaseModel):
    """`recall`: of the k nearest others of each image, how many the index finds; the mean.

    `worst`: up to ten of the queries for which it finds fewest, if any are missing.
    """

    recall: float
    k: int
    queries: int
    worst: list[QueryRecall]
    took_ms: float
