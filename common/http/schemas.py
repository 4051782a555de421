"""Models of requests and answers about collections, jobs, searches and images."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from clipfleet.common.collection import FieldType, Metric
from clipfleet.common.http.migrations import MigrationState
from clipfleet.common.http.mirror import MirrorIn, MirrorOut
from clipfleet.common.http.request import Request
from clipfleet.common.http.sources import EXAMPLES, Source
from clipfleet.common.http.webhooks import WebhookIn

JobState = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]

Namespace = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1)]
Values = Annotated[list[FiniteFloat], Field(min_length=1, max_length=32_768, fail_fast=True)]


class CollectionIn(Request):
    """A request to create a collection."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"metric": "cosine", "fields": {"year": "int"}}]}
    )

    metric: Metric = Field("cosine", description="How embeddings are compared.")
    model: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Model of the embeddings; absent: the model of the service.",
    )
    dim: int | None = Field(
        None,
        ge=1,
        le=32_768,
        description="Length of an embedding; absent: that of the model. Needed only for your own "
        "vectors, when no worker serves the model.",
    )
    fields: dict[str, FieldType] = Field(
        {}, description="Types of the metadata fields to declare and index, by name."
    )


class CollectionOut(BaseModel):
    """A collection."""

    name: str = Field(description="Name of the collection.")
    metric: Metric = Field(description="How embeddings are compared.")
    model: str = Field(description="Model of the embeddings.")
    dim: int = Field(description="Length of an embedding.")
    fields: dict[str, FieldType] = Field(description="Types of the declared fields, by name.")
    count: int = Field(description="Number of images.")
    created_at: float = Field(description="When it was created, unix time in seconds.")
    migration: MigrationState | None = Field(
        None, description="State of its migration to another model; null: it has none."
    )


class JobIn(Request):
    """A request to index the images of a source."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"source": example} for example in EXAMPLES],
        }
    )

    source: Source = Field(description="Where the images come from.")
    namespace: Namespace = Field("default", description="Namespace of the images.")
    on_existing: Literal["skip", "replace"] = Field(
        "skip", description="What to do with an image that is indexed and has not changed."
    )
    exif: bool = Field(
        False,
        description="Add to the metadata what EXIF says: taken_at, camera, latitude, longitude, "
        "altitude.",
    )
    webhook: WebhookIn | None = Field(
        None, description="Where the end of the job is reported; absent: nowhere."
    )
    mirror: MirrorIn | None = Field(
        None,
        description="Make the collection equal to the source: skip files that have not changed "
        "without reading them, and delete or report images that are gone. For folders, buckets, "
        "manifests, archives and lists of them; absent: images that are gone stay.",
    )

    @field_validator("mirror", mode="before")
    @classmethod
    def _has_options(cls, mirror: Any) -> Any:
        if isinstance(mirror, bool | str):
            raise ValueError(
                'mirror is an object: {"missing": "delete", "max_delete": 0.1, "dry_run": false}'
            )
        return mirror

    @field_validator("webhook", mode="before")
    @classmethod
    def _is_an_object(cls, webhook: Any) -> Any:
        if isinstance(webhook, str):
            raise ValueError(
                'a webhook is an object: {"url": "https://...", "secret": "whsec_..."}'
            )
        return webhook

    @field_validator("source", mode="before")
    @classmethod
    def _has_a_type(cls, source: Any) -> Any:
        if isinstance(source, dict) and "type" not in source:
            raise ValueError(
                "a source needs a type: folder, manifest, urls, archive, bucket or list"
            )
        return source


class JobOut(BaseModel):
    """A job: the indexing of the images of one source."""

    id: str = Field(description="Id of the job.")
    collection: str = Field(description="Name of its collection.")
    namespace: str = Field(description="Namespace of its images.")
    source: str = Field(
        "",
        description="Where its images come from: a path, or an address without its user and query.",
    )
    state: JobState = Field(
        description="queued, running, or how it ended. partial: some images failed."
    )
    total: int = Field(description="Images found so far; it grows while the source is listed.")
    done: int = Field(description="Images that were indexed.")
    failed: int = Field(description="Images that failed.")
    skipped: int = Field(description="Images that were indexed before and have not changed.")
    replaced: int = Field(
        0,
        description="Images among `done` that took the place of one with the same id and another "
        "content, label or metadata.",
    )
    updated: int = Field(
        0,
        description="Images among `replaced` whose label, metadata or URI alone changed: they were "
        "not embedded again.",
    )
    left_out: dict[str, int] = Field(
        {},
        description="Files of the source that are no images, by their suffix: how many were left "
        'out. "" counts files without a suffix, "*" those of rare suffixes.',
    )
    mirror: MirrorOut | None = Field(
        None, description="How the collection was made equal to the source; null: it was not asked."
    )
    remarks: dict[str, int] = Field(
        {}, description="What was changed or not read while the source was listed: how often."
    )
    rate: float | None = Field(description="Images per second; null when it is not known.")
    eta_s: float | None = Field(description="Estimated seconds to its end; null when not known.")
    created_at: float = Field(description="When it was created, unix time in seconds.")
    started_at: float | None = Field(description="When it started; null before.")
    finished_at: float | None = Field(description="When it ended; null before.")
    error: str | None = Field(description="Why it failed or was cancelled; null otherwise.")
    waiting: str | None = Field(description="Why it waits; null when it does not.")
    retry_of: str | None = Field(None, description="Id of the job whose failures it retries.")
    retried_by: str | None = Field(
        None, description="Id of the last job that retried its failures."
    )
    webhook: str | None = Field(
        None,
        description='State of its webhook: "pending", "delivered" or "failed", and after a colon '
        "why the last try failed; null: it has none.",
    )


class JobList(BaseModel):
    """A list of jobs."""

    jobs: list[JobOut] = Field(description="The jobs, the newest first.")


class FailureOut(BaseModel):
    """An image of a job that failed."""

    id: str = Field(description="Id of the image.")
    uri: str = Field(description="Where the image came from.")
    reason: str = Field(description="Why it failed.")
    stage: str = Field(
        description="Where it failed: list, read, decode, embed, store, or worker (its worker "
        "ended)."
    )
    attempts: int = Field(description="How often it was tried.")


class FailureList(BaseModel):
    """A page of the failures of a job."""

    failures: list[FailureOut] = Field(description="The failures, in the order of their counting.")
    total: int = Field(description="Number of failures of the job.")


class CollectionList(BaseModel):
    """A list of collections."""

    collections: list[CollectionOut] = Field(description="The collections, sorted by name.")


class QueryImage(Request):
    """An image to search by or to embed: exactly one of `base64` and `url`."""

    base64: str | None = Field(
        None, min_length=1, description="The image file as base64, or as a data URI."
    )
    url: str | None = Field(
        None,
        min_length=1,
        max_length=8_192,
        description="Address (http or https) from which the service fetches the image.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> "QueryImage":
        if (self.base64 is None) == (self.url is None):
            raise ValueError("give either base64 or url")
        return self


class SearchOptions(Request):
    """The options of every search."""

    top_k: int = Field(10, ge=1, description="Number of matches to return at most.")
    offset: int = Field(0, ge=0, description="Number of nearest matches to skip.")
    filter: dict[str, Any] | None = Field(
        None, description="Filter that the images pass; absent: all images."
    )
    min_score: FiniteFloat | None = Field(
        None, description="Lowest score of a match; not with the euclidean metric."
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Lowest confidence of a match. Matches with a lower one are left out of the "
        "page, which may then be shorter than `top_k`.",
    )
    namespace: Namespace = Field("default", description="Namespace of the images.")
    group_by: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Field by whose value matches are grouped: label, or a metadata field.",
    )
    group_size: int = Field(1, ge=1, description="Matches of each group at most.")
    collapse: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Cosine similarity from which on a match counts as a duplicate of a nearer "
        "match, and is left out.",
    )
    include_values: bool = Field(False, description="Return the embeddings of matches.")
    include_metadata: bool = Field(True, description="Return the metadata of matches.")
    include_size: bool = Field(False, description="Return the width and height of matches.")
    exact: bool = Field(False, description="Compare with every image, without the index.")

    @model_validator(mode="after")
    def _groups_by_something(self) -> Self:
        if self.group_size != 1 and self.group_by is None:
            raise ValueError("group_size needs group_by")
        return self


class EmbedIn(Request):
    """A request to embed either `texts` or `images`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["a church at night"]}]})

    texts: Annotated[list[Text], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="Texts to embed."
    )
    images: Annotated[list[QueryImage], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="Images to embed."
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Model that embeds them; absent: the model of the service.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "EmbedIn":
        if (self.texts is None) == (self.images is None):
            raise ValueError("give either texts or images")
        return self


class EmbedOut(BaseModel):
    """Embeddings of texts or images."""

    model: str = Field(description="Model that embedded them.")
    dim: int = Field(description="Length of an embedding.")
    embeddings: list[list[float]] = Field(
        description="One row for each text or image, in their order, each of unit length."
    )
    truncated_texts: list[int] = Field(
        [],
        description="Positions of the texts that are longer than the model reads: only the "
        "beginning of each counts.",
    )


class MatchOut(BaseModel):
    """An image that a search found."""

    id: str = Field(description="Id of the image.")
    score: float = Field(
        description="Cosine similarity or dot product (higher is nearer), or euclidean distance "
        "(lower is nearer)."
    )
    confidence: float | None = Field(
        None,
        description="How sure it is that the image is what the query asks for, 0 to 1; null: not "
        "known, see `no_confidence`.",
    )
    uri: str = Field(description="Where the image came from.")
    label: str | None = Field(description="Label of the image; null: none.")
    metadata: dict[str, Any] = Field(description="Metadata of the image.")
    values: list[float] | None = Field(
        None, description="Embedding of the image, with `include_values`."
    )
    width: int | None = Field(
        None, description="Width, pixels, with `include_size`; 0: unknown, as for own vectors."
    )
    height: int | None = Field(
        None, description="Height, pixels, with `include_size`; 0: unknown, as for own vectors."
    )
    duplicates: int | None = Field(
        None, description="Number of examined matches that `collapse` left out for this one."
    )


class SearchOut(BaseModel):
    """The answer to a search."""

    matches: list[MatchOut] = Field(description="The matches, the nearest first.")
    took_ms: float = Field(description="Duration, milliseconds.")
    truncated: str | None = Field(
        None,
        description="The limit that cut the matches short, so that there may be more: "
        "`answer_bytes` (go on with a larger `offset`), `candidates` or `window`; null: none.",
        examples=["candidates"],
    )
    truncated_texts: list[int] = Field(
        [],
        description="Texts that are longer than the model reads, so that only their beginning "
        "counts: 0 for `text`, or positions in `terms`.",
    )
    no_match: bool | None = Field(
        None,
        description="Whether none of the nearest images has a confidence of at least 0.5: nothing "
        "like the query is in the collection. null: not known, see `no_confidence`.",
    )
    no_confidence: str | None = Field(
        None, description="Why there is no confidence; null: there is."
    )
    generation: str = Field(
        "",
        description="The generation of the collection that the answer comes from: another one "
        "after a migration to another model.",
    )
    model: str = Field("", description="Model of the embeddings that were compared.")


class VectorIn(Request):
    """An image with your own embedding."""

    id: str = Field(min_length=1, max_length=2_048, description="Id of the image.")
    values: Values = Field(description="Embedding, as long as the collection's `dim`.")
    uri: str = Field("", description="Where the image came from.")
    label: str = Field("", description="Label of the image.")
    metadata: dict[str, Any] = Field({}, description="Metadata of the image.")
    content_hash: str = Field(
        "",
        pattern="^([0-9a-f]{32})?$",
        description="Hash of the image from an export: a job then skips the image if it has not "
        "changed.",
    )
    bytes: int = Field(0, ge=0, le=2**62, description="Size of the file, bytes; 0: unknown.")
    width: int = Field(0, ge=0, le=2**62, description="Width, pixels; 0: unknown.")
    height: int = Field(0, ge=0, le=2**62, description="Height, pixels; 0: unknown.")


class VectorsIn(Request):
    """A request to insert images with your own embeddings, or to replace them."""

    vectors: Annotated[list[VectorIn], Field(fail_fast=True)] = Field(
        min_length=1, description="The images."
    )
    namespace: Namespace = Field("default", description="Namespace of the images.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"vectors": [{"id": "/path/to/img1", "values": [0.1, 0.2]}]}]
        }
    )


class Upserted(BaseModel):
    """The result of an upsert."""

    upserted: int = Field(description="Number of images that were written.")


class Deleted(BaseModel):
    """The result of a deletion."""

    deleted: int = Field(description="Number of images that were deleted.")


class ImageOut(BaseModel):
    """An indexed image."""

    id: str = Field(description="Id of the image.")
    namespace: str = Field(description="Namespace of the image.")
    uri: str = Field(description="Where the image came from.")
    label: str | None = Field(description="Label of the image; null: none.")
    metadata: dict[str, Any] = Field(description="Metadata of the image.")
    bytes: int = Field(description="Size of the file, bytes; 0: unknown.")
    width: int = Field(description="Width, pixels; 0: unknown.")
    height: int = Field(description="Height, pixels; 0: unknown.")
    indexed_at: int = Field(description="When it was indexed, unix time in milliseconds.")
    values: list[float] | None = Field(
        None, description="Embedding of the image, with `include_values`."
    )


class KeyOut(BaseModel):
    """What an API key may do."""

    name: str | None = Field(description="Name of the key; null in a service without keys.")
    scopes: list[Literal["read", "write", "admin"]] = Field(
        description="What it may do: read (search), write (index, delete images), admin."
    )
    collections: list[str] | None = Field(
        description="Collections that it may use, by name or by pattern with *; null: all."
    )
    expires_at: float | None = Field(
        description="When it expires, unix time in seconds; null: never."
    )


class Health(BaseModel):
    """The answer of a gateway that runs."""

    status: Literal["ok"] = Field(description="Always ok.")
    version: str = Field(description="The gateway's version of clipfleet.")


class Readiness(BaseModel):
    """Whether a gateway can serve requests."""

    ready: bool = Field(description="Whether all parts are ok.")
    parts: dict[str, str] = Field(description="For each part: ok, or what is wrong with it.")


class Problem(BaseModel):
    """An error as problem+json (RFC 9457)."""

    type: str = Field(description="Kind of the error: urn:problem:clipfleet:KIND.")
    title: str = Field(description="The kind of the error, in words.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="What is wrong with this request.")
    instance: str = Field(description="Path of the request.")
    request_id: str = Field(description="Id of the request, as in the log and in X-Request-ID.")
    errors: list[dict[str, Any]] | None = Field(
        None, description="The invalid fields of the request, for a 422."
    )
