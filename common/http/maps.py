"""Models of maps: where the images of a collection are in two dimensions."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import JobOut, Namespace
from clipfleet.common.identity import DEFAULT_NAMESPACE

MapMethod = Literal["auto", "pca", "pacmap"]


class MapIn(Request):
    """A request to make the map of a namespace of a collection."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"method": "auto"}]})

    method: MapMethod = Field(
        "auto",
        description="pca: the first two principal components. pacmap: PaCMAP, which keeps near "
        "images near; workers need the extra `map`. auto: pacmap where the worker has it, "
        "otherwise pca.",
    )
    field: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="A metadata field to colour the points by, beside the label and the declared "
        "fields.",
    )
    namespace: Namespace = DEFAULT_NAMESPACE
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        description="The same seed and the same images give the same map.",
    )


class MapColours(BaseModel):
    """The values of a field on a map."""

    values: list[str | int | float | bool] = Field(
        description="The most frequent values, the most frequent first. A field of numbers with "
        "many values has ranges instead."
    )
    counts: list[int] = Field(description="How many points have each of them.")
    other: int = Field(description="Number of points with other values.")
    none: int = Field(description="Number of points without a value.")


class MapOut(BaseModel):
    """What is known of the map of a namespace."""

    state: Literal["none", "making", "made"] = Field(
        description="none: there is no map, and no job makes one. making: a job makes the first "
        "one. made: there is one."
    )
    namespace: str = Field(description="Namespace of its images.")
    job: JobOut | None = Field(description="The job that makes a new map now.")
    map_id: str | None = Field(None, description="Id of the map: that of the job that made it.")
    method: Literal["pca", "pacmap"] | None = Field(None, description="How the points were placed.")
    seed: int | None = Field(None, description="Seed of the layout.")
    began_at: float | None = Field(None, description="Unix seconds at which its job was created.")
    made_at: float | None = Field(None, description="Unix seconds at which it was finished.")
    points: int = Field(0, description="Number of its points.")
    sampled: int = Field(
        0,
        description="Number of points that PaCMAP placed. The others are at the mean of their "
        "nearest neighbours among these.",
    )
    pages: int = Field(0, description="Number of pages that its points have.")
    not_on_map: int = Field(
        0,
        description="Number of images that were stored, or replaced, since the job began: they "
        "are not on the map, or at their former places.",
    )
    fields: dict[str, MapColours] = Field(
        {}, description="The fields that its points can be coloured by."
    )


class MapPoints(BaseModel):
    """A page of the points of a map, as columns of equal lengths."""

    map_id: str = Field(description="Id of the map.")
    ids: list[str] = Field(description="Ids of the images.")
    x: list[float] = Field(description="0 to 1, from left to right.")
    y: list[float] = Field(description="0 to 1, from bottom to top.")
    codes: list[int] = Field(
        description="Places in `values` of the field; -1: another value, -2: none. Empty without a "
        "field."
    )
    next: int | None = Field(description="The next page; null on the last one.")
