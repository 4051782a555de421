"""Models of requests about many images of a collection: count, list, delete, measure recall."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import Deleted, Namespace

MAX_CHANGES = 5_000  # images in one request


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


class ImageChange(Request):
    """The change of one image."""

    id: str = Field(min_length=1, max_length=2_048, description="Id of the image.")
    label: str | None = Field(
        None, description="Its new label; null or empty: it has none any more; absent: it stays."
    )
    metadata: dict[str, Any] = Field(
        {},
        description="New values of its metadata, by key; null removes a key. Other keys stay.",
    )


class UpdateIn(Which):
    """A request to change labels and metadata: of `images`, or of all that pass `filter`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"images": [{"id": "a.jpg", "label": "church", "metadata": {"year": 1900}}]},
                {"filter": {"label": "chruch"}, "label": "church", "dry_run": True},
            ]
        }
    )

    images: Annotated[list[ImageChange], Field(fail_fast=True)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CHANGES,
        description="Images and what changes of each; absent: those that pass the filter.",
    )
    all: bool = Field(
        False, description="Must be true to change all images of the namespace, without a filter."
    )
    label: str | None = Field(
        None,
        description="New label of the images that pass; null or empty: they have none any more; "
        "absent: their labels stay.",
    )
    metadata: dict[str, Any] = Field(
        {},
        description="New values of the metadata of the images that pass, by key; null removes a "
        "key. Other keys stay.",
    )
    dry_run: bool = Field(False, description="Change nothing: return how many images match.")
    after: str = Field(
        "",
        pattern="^([0-9a-f]{32})?$",
        description="With a filter: the value of `next` of the answer before; empty: begin.",
    )


class UpdateOut(BaseModel):
    """The result of a change of labels and metadata."""

    matched: int = Field(description="Images that the request names, or that pass its filter.")
    updated: int = Field(
        description="Images that were written; the others had these values already."
    )
    missing: list[str] = Field(description="Ids of the request that are not in the collection.")
    next: str | None = Field(
        None,
        description="Where to go on, as `after` of the same request, because the time was over; "
        "null: done.",
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
