"""Models of uploads: what a form says of each image, and uploads in several requests."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import Namespace
from clipfleet.common.http.webhooks import WebhookIn

MAX_ASKED = 1_000  # images in one request for digests
NAMED_SUFFIXES = 60


class UploadItem(Request):
    """What a form says of one image.

    With `content_hash` or `problem` no file of the form belongs to it. Both are for uploads in
    several requests.
    """

    id: str | None = Field(
        None, description="Id of the image; absent: the name of its file.", examples=["rome/1.jpg"]
    )
    label: str | None = Field(None, description="Its label; absent: that of the form.")
    metadata: dict[str, Any] = Field({}, description="Its metadata.")
    content_hash: str | None = Field(
        None,
        pattern="^[0-9a-f]{32}$",
        description="Hash of an image that the collection has already, from `known`: its file is "
        "not sent again. It counts as skipped, or as updated if its label or metadata changed.",
    )
    problem: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="Why the client cannot send the file: the image fails for this reason.",
    )

    @property
    def has_file(self) -> bool:
        """Whether a file of the form belongs to it."""
        return self.content_hash is None and self.problem is None

    @model_validator(mode="after")
    def _named(self) -> "UploadItem":
        if not self.has_file and self.id is None:
            raise ValueError("an image without a file needs an id")
        return self


class UploadIn(Request):
    """A request to open an upload."""

    namespace: Namespace = Field("default", description="Namespace of the images.")
    on_existing: Literal["skip", "replace"] = Field(
        "skip", description="What to do with an image that is indexed and has not changed."
    )
    exif: bool = Field(
        False,
        description="Add to the metadata what EXIF says: taken_at, camera, latitude, longitude, "
        "altitude.",
    )
    key: str = Field(
        "",
        max_length=256,
        description="A text of your choice. While the upload is open, another request with it gets "
        "the same upload: so an upload that broke off goes on.",
    )


class UploadOut(BaseModel):
    """An open upload."""

    id: str = Field(description="Id of the upload, and of the job that it becomes.")
    collection: str = Field(description="Name of its collection.")
    namespace: str = Field(description="Namespace of its images.")
    images: int = Field(description="Images that it has got.")
    bytes: int = Field(description="Bytes of their files.")
    created_at: float = Field(description="When it was opened, unix time in seconds.")


class KnownIn(Request):
    """A request for what the service knows of images."""

    ids: Annotated[list[str], Field(fail_fast=True)] = Field(
        min_length=1, max_length=MAX_ASKED, description="Ids of images."
    )


class KnownOut(BaseModel):
    """What the service knows of images, in the order of the request."""

    received: list[str | None] = Field(
        description="Digest (BLAKE2b, 16 bytes, in hexadecimal) of the file that the upload has "
        "got; null: none."
    )
    stored: list[str | None] = Field(
        description="`content_hash` of the image in the collection; null: there is none. Its first "
        "20 digits are of the file and the model, the others of label and metadata."
    )


class UploadEnd(Request):
    """A request to start the job of an upload."""

    images: int = Field(
        0,
        ge=0,
        description="Images that the upload should have got at least. If it has fewer, because "
        "Redis has lost its last second, the answer is 409: ask with `known` what is missing.",
    )
    left_out: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        max_length=NAMED_SUFFIXES,
        description="Files that the client left out because they are no images, by suffix: how "
        'many. "" stands for no suffix, "*" for others.',
    )
    name: str = Field(
        "",
        max_length=1_000,
        description="What was uploaded, such as the name of a folder: the job shows it.",
    )
    webhook: WebhookIn | None = Field(
        None, description="Where the job reports its end; absent: nowhere."
    )
