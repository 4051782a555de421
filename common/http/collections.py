"""Models of requests about many images of a collection: count, list, delete, measure recall."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import Deleted, Namespace


class Which(Request):
    """The images of a namespace that pass a filter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"filter": {"label": "church"}}]})

    filter: dict[str, Any] | None = Field(
        None, description="Filter that the images pass; absent: all images."
    )
    namespace: Namespace = Field("default", description="Namespace of the images.")


class DeleteIn(Which):
    """A request to delete images."""

    all: bool = Field(False, description="Must be true to delete without a filter.")


class DeletedSome(Deleted):
    """The result of a deletion that may be incomplete."""

    more: bool = Field(
        description="Whether images remain because the time was over; then repeat the request."
    )


class Count(BaseModel):
    """A number of images."""

    count: int = Field(description="Number of images.")


class IdPage(BaseModel):
    """One page of the ids of images."""

    ids: list[str] = Field(description="Ids of images.")
    next: str | None = Field(description="Cursor of the next page; null on the last page.")


class OrderIn(Which):
    """A request for the ids of images in the order of a field."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"order_by": "indexed_at", "descending": True}]}
    )

    order_by: str = Field(
        min_length=1,
        max_length=256,
        description="Field whose values give the order: a built-in, declared or metadata field.",
    )
    descending: bool = Field(False, description="Whether the largest value comes first.")


class OrderedIds(BaseModel):
    """The ids of images in the order of a field."""

    ids: list[str] = Field(description="Ids of all images that pass the filter.")


class RecallIn(Which):
    """A request to measure the recall of the index, with stored images as queries."""

    k: int = Field(10, ge=1, description="Number of nearest images to look for.")
    sample: int = Field(100, ge=1, description="Number of images to use as queries.")
    seed: int = Field(
        0, ge=0, le=2**53, description="The same seed chooses the same images as queries."
    )


class QueryRecall(BaseModel):
    """The recall of one query."""

    id: str = Field(description="Id of the image that was the query.")
    recall: float = Field(description="Share of its k nearest images that the index finds, 0 to 1.")


class RecallOut(BaseModel):
    """The recall of the index, compared with an exact search."""

    recall: float = Field(
        description="Share of the k nearest images that the index finds, 0 to 1: the mean of all "
        "queries."
    )
    k: int = Field(description="Number of nearest images.")
    queries: int = Field(description="Number of queries.")
    worst: list[QueryRecall] = Field(
        description="Up to ten queries with the lowest recall, if it is below 1."
    )
    took_ms: float = Field(description="Duration, milliseconds.")
