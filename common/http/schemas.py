"""What travels over HTTP. Needs pydantic only, so the client can share it."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from clipfleet.common.http.sources import EXAMPLES, Source

Metric = Literal["cosine", "dot", "euclidean"]
FieldType = Literal["string", "int", "float", "bool"]
JobState = Literal["queued", "running", "succeeded", "partial", "failed", "cancelled"]

MOST_FIELDS = 100  # of a request, known or not

Namespace = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1)]
Values = Annotated[list[FiniteFloat], Field(min_length=1, max_length=32_768, fail_fast=True)]


class Request(BaseModel):
    """What we are told: a field we do not know is an error, not a silence, and so is `"yes"` where
    true or false is meant: nothing is deleted by a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        """Each one that is wrong is named, and naming a million holds up everybody else."""
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise ValueError(f"there are {len(given)} fields; {MOST_FIELDS} at most")
        return given


class CollectionIn(Request):
    """`dim` is the model's own unless the vectors are yours and no worker has the model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"metric": "cosine", "fields": {"year": "int"}}]}
    )

    metric: Metric = "cosine"
    model: str | None = Field(
        None, min_length=1, max_length=512, description="default: the service's"
    )
    dim: int | None = Field(None, ge=1, le=32_768, description="default: the model's")
    fields: dict[str, FieldType] = Field({}, description="metadata fields to type and index")


class CollectionOut(BaseModel):
    name: str
    metric: Metric
    model: str
    dim: int
    fields: dict[str, FieldType]
    count: int
    created_at: float


class JobIn(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"source": example} for example in EXAMPLES],
        }
    )

    source: Source
    namespace: Namespace = "default"
    on_existing: Literal["skip", "replace"] = Field(
        "skip", description="what to do with an image that is in already and has not changed"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _has_a_type(cls, source: Any) -> Any:
        if isinstance(source, dict) and "type" not in source:
            raise ValueError("a source needs a type: folder, manifest, urls, archive or bucket")
        return source


class JobOut(BaseModel):
    """`total` grows while the source is listed. `rate`: images/s; `eta_s`: seconds left.

    `retry_of`: the job whose failures this one tries again; `retried_by`: the last such job.
    """

    id: str
    collection: str
    namespace: str
    state: JobState
    total: int
    done: int
    failed: int
    skipped: int
    rate: float | None
    eta_s: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    waiting: str | None
    retry_of: str | None = None
    retried_by: str | None = None


class JobList(BaseModel):
    jobs: list[JobOut]


class FailureOut(BaseModel):
    id: str
    uri: str
    reason: str
    stage: str
    attempts: int


class FailureList(BaseModel):
    failures: list[FailureOut]
    total: int


class CollectionList(BaseModel):
    collections: list[CollectionOut]


class QueryImage(Request):
    """Exactly one of `base64` and `url`."""

    base64: str | None = Field(None, min_length=1)
    url: str | None = Field(
        None, min_length=1, max_length=8_192, description="http or https, fetched by the service"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "QueryImage":
        if (self.base64 is None) == (self.url is None):
            raise ValueError("give either base64 or url")
        return self


class SearchOptions(Request):
    """What every search takes, whatever it asks with."""

    top_k: int = Field(10, ge=1)
    offset: int = Field(0, ge=0, description="matches to leave out before the first")
    filter: dict[str, Any] | None = None
    min_score: FiniteFloat | None = None
    namespace: Namespace = "default"
    group_by: str | None = Field(
        None, min_length=1, max_length=256, description="label, or any field of the metadata"
    )
    group_size: int = Field(1, ge=1, description="matches of each group, at most")
    collapse: float | None = Field(
        None,
        gt=0,
        le=1,
        description="leave out what is this near (as a cosine) to a match that is shown",
    )
    include_values: bool = False
    include_metadata: bool = True
    exact: bool = Field(False, description="compare with every image instead of asking the index")

    @model_validator(mode="after")
    def _groups_by_something(self) -> Self:
        if self.group_size != 1 and self.group_by is None:
            raise ValueError("group_size needs group_by")
        return self


class EmbedIn(Request):
    """Either `texts` or `images`. `model`: the service's, unless others are served, too."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["a church at night"]}]})

    texts: Annotated[list[Text], Field(fail_fast=True)] | None = Field(None, min_length=1)
    images: Annotated[list[QueryImage], Field(fail_fast=True)] | None = Field(None, min_length=1)
    model: str | None = Field(None, min_length=1, max_length=512)

    @model_validator(mode="after")
    def _one_kind(self) -> "EmbedIn":
        if (self.texts is None) == (self.images is None):
            raise ValueError("give either texts or images")
        return self


class EmbedOut(BaseModel):
    """`embeddings`: n rows of `dim` numbers, each of unit length; row i answers item i."""

    model: str
    dim: int
    embeddings: list[list[float]]


class MatchOut(BaseModel):
    """`score`: cosine or dot product, higher is nearer; euclidean: the distance, lower is.

    `duplicates`: how many others that were looked at `collapse` left out for this one.
    """

    id: str
    score: float
    uri: str
    label: str | None
    metadata: dict[str, Any]
    values: list[float] | None = None
    duplicates: int | None = None


class SearchOut(BaseModel):
    matches: list[MatchOut]
    took_ms: float


class VectorIn(Request):
    id: str = Field(min_length=1, max_length=2_048)
    values: Values
    uri: str = ""
    label: str = ""
    metadata: dict[str, Any] = {}
    content_hash: str = Field(
        "",
        pattern="^([0-9a-f]{32})?$",
        description="of the image as an export has it: a job then skips what has not changed",
    )
    bytes: int = Field(0, ge=0, le=2**62)
    width: int = Field(0, ge=0, le=2**62)
    height: int = Field(0, ge=0, le=2**62)


class VectorsIn(Request):
    vectors: Annotated[list[VectorIn], Field(fail_fast=True)] = Field(min_length=1)
    namespace: Namespace = "default"

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"vectors": [{"id": "/path/to/img1", "values": [0.1, 0.2]}]}]
        }
    )


class Upserted(BaseModel):
    upserted: int


class Deleted(BaseModel):
    deleted: int


class ImageOut(BaseModel):
    id: str
    namespace: str
    uri: str
    label: str | None
    metadata: dict[str, Any]
    bytes: int
    width: int
    height: int
    indexed_at: int = Field(description="unix time, milliseconds")
    values: list[float] | None = None


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Readiness(BaseModel):
    """`parts`: "ok", or what is wrong with each."""

    ready: bool
    parts: dict[str, str]


class Problem(BaseModel):
    """RFC 9457 problem+json."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, Any]] | None = None
