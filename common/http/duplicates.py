"""Models of requests about the duplicates of a collection, and of their answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import Namespace

Keep = Literal["largest", "oldest"]
Tier = Literal["exact", "near"]
MAX_APART = 1_000  # images in one request
MAX_GROUPS = 100  # in one page
MAX_MEMBERS = 200  # of one group in one page


class DuplicatesIn(Request):
    """A request to look for the duplicates of a collection."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"threshold": 0.95}]})

    threshold: float | None = Field(
        None,
        ge=0.5,
        le=1,
        allow_inf_nan=False,
        description="Cosine similarity of embeddings from which two images are near; null: the "
        "default of the model.",
    )
    keep: Keep = Field(
        "largest",
        description="Which image of a group to suggest to keep: the one with the most pixels, then "
        "bytes; or the one that was indexed first.",
    )
    namespace: Namespace | None = Field(
        None,
        description="Namespace of the images; null: all, each compared within itself.",
    )


class NotDuplicatesIn(Request):
    """A request to remember that images are no duplicates of each other."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["a.jpg", "b.jpg"]}]})

    ids: Annotated[list[str], Field(fail_fast=True)] = Field(
        min_length=2, max_length=MAX_APART, description="Ids of the images."
    )
    namespace: Namespace = Field("default", description="Namespace of the images.")


class NotDuplicates(BaseModel):
    """Images that later answers and runs keep apart."""

    images: int = Field(description="Number of images.")


class DuplicateOut(BaseModel):
    """One image of a group."""

    id: str = Field(description="Id of the image.")
    uri: str = Field(description="Where the image came from.")
    label: str | None = Field(description="Label of the image; null: none.")
    bytes: int = Field(description="Size of the file, bytes; 0: unknown.")
    width: int = Field(description="Width, pixels; 0: unknown.")
    height: int = Field(description="Height, pixels; 0: unknown.")
    indexed_at: int = Field(description="When it was indexed, unix time in milliseconds.")
    similarity: float = Field(description="Cosine similarity with the image to keep.")
    same_bytes: bool = Field(
        description="Whether its file has the same bytes as that of the image to keep."
    )
    keep: bool = Field(description="Whether this is the image that is suggested to be kept.")


class DuplicateGroup(BaseModel):
    """Images that are duplicates of the first one, which is suggested to be kept."""

    id: str = Field(description="Id of the group; it means nothing after the next run.")
    tier: Tier = Field(description="exact: the files have the same bytes. near: by embedding.")
    namespace: str = Field(description="Namespace of the images.")
    size: int = Field(description="Number of its images that exist.")
    images: list[DuplicateOut] = Field(
        description="The images, the one to keep first; at most `members` of them."
    )


class DuplicatesOut(BaseModel):
    """The groups that the last run has made, without the images that are gone since."""

    job: str | None = Field(description="Id of the job that looks for duplicates now; null: none.")
    made_at: float | None = Field(
        description="When the images were compared, unix time in seconds; null: never."
    )
    threshold: float | None = Field(description="Cosine similarity from which images are near.")
    keep: Keep | None = Field(description="Which image of a group is suggested to be kept.")
    namespace: str | None = Field(description="Namespace of the images; null: all.")
    images: int = Field(description="Number of images that were compared.")
    exact: int = Field(description="Number of groups with the same bytes, when it was made.")
    near: int = Field(description="Number of groups of near images, when it was made.")
    groups: list[DuplicateGroup] = Field(
        description="Groups of which two or more images exist, unchanged, and are not marked as no "
        "duplicates."
    )
    next: str | None = Field(description="Cursor of the next page; null on the last page.")
