"""Models of requests about many images of a collection: count, list, delete, measure recall."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import Deleted, Namespace

MAX_ROW_IDS = 256  # in one request for rows
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


class RowsIn(Request):
    """A request for one page of whole images: by filter and cursor, or by their ids."""

    filter: dict[str, Any] | None = Field(
        None, description="Filter that the images pass; absent: all images."
    )
    namespace: Namespace | None = Field(
        None,
        description="Namespace of the images; null: all namespaces, or `default` with `ids`.",
    )
    ids: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None,
        min_length=1,
        max_length=MAX_ROW_IDS,
        description="Ids of the images, instead of `filter` and `cursor`. Ids without an image are "
        "left out.",
    )
    cursor: str = Field(
        "",
        pattern="^([0-9a-f]{32})?$",
        description="The value of `next` of the previous page; empty for the first page.",
    )
    limit: int = Field(1_000, ge=1, le=1_000, description="Maximum number of images to return.")
    include_values: bool = Field(True, description="Return the embeddings.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.ids is not None and (self.filter is not None or self.cursor):
            raise ValueError("give either ids, or filter and cursor")
        return self


class RowOut(BaseModel):
    """One image with all that the collection holds of it."""

    id: str = Field(description="Id of the image.")
    namespace: str = Field(description="Namespace of the image.")
    uri: str = Field(description="Where the image came from.")
    label: str | None = Field(description="Label of the image; null: none.")
    content_hash: str = Field(description="Hash of bytes, metadata and model; empty: unknown.")
    bytes: int = Field(description="Size of the file, bytes; 0: unknown.")
    width: int = Field(description="Width, pixels; 0: unknown.")
    height: int = Field(description="Height, pixels; 0: unknown.")
    indexed_at: int = Field(description="When it was indexed, unix time in milliseconds.")
    metadata: dict[str, Any] = Field(description="Metadata of the image.")
    embedding: str | None = Field(
        None, description="Embedding as base64 of 32-bit floats, little-endian."
    )


class RowPage(BaseModel):
    """One page of whole images."""

    rows: list[RowOut] = Field(description="The images.")
    next: str | None = Field(description="Cursor of the next page; null on the last page.")
    created_at: float = Field(
        description="When the collection was created: another time than that of the page before "
        "means that the collection was deleted and created again."
    )


class AliasIn(Request):
    """A request to create an alias, or to move it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"collection": "photos-2"}]})

    collection: str = Field(
        min_length=1, max_length=256, description="Name of the collection that it is to stand for."
    )


class AliasOut(BaseModel):
    """A further name of a collection."""

    name: str = Field(description="The alias.")
    collection: str = Field(description="Name of the collection that it stands for.")
    changed_at: float = Field(description="When it was created or moved, unix time in seconds.")


class AliasList(BaseModel):
    """A list of aliases."""

    aliases: list[AliasOut] = Field(description="The aliases, sorted by name.")
