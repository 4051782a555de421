"""Results of the clients. They are the schemas of the HTTP API under shorter names."""

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.collections import AliasOut as Alias
from clipfleet.common.http.collections import RecallOut as Recall
from clipfleet.common.http.collections import UpdateOut as Updated
from clipfleet.common.http.fleet import FleetOut as Fleet
from clipfleet.common.http.maps import MapOut as Map
from clipfleet.common.http.maps import MapPoints
from clipfleet.common.http.migrations import MigrationOut as Migration
from clipfleet.common.http.migrations import UnreadablePage as UnreadableImages
from clipfleet.common.http.mirror import MirrorOut as Mirror
from clipfleet.common.http.mirror import MissingPage as Missing
from clipfleet.common.http.registered import EventsOut as EventsAnswer
from clipfleet.common.http.registered import RunOut as SourceRun
from clipfleet.common.http.registered import SourceOut as RegisteredSource
from clipfleet.common.http.schemas import CollectionOut as Collection
from clipfleet.common.http.schemas import FailureList as Failures
from clipfleet.common.http.schemas import FailureOut as Failure
from clipfleet.common.http.schemas import ImageOut as Image
from clipfleet.common.http.schemas import JobOut as Job
from clipfleet.common.http.schemas import MatchOut as Match
from clipfleet.common.http.schemas import SearchOut
from clipfleet.common.http.tags import SavedTags, TagsPreview

__all__ = [
    "Alias",
    "Collection",
    "EventsAnswer",
    "Export",
    "Failure",
    "Failures",
    "Fleet",
    "Image",
    "Job",
    "Map",
    "MapPoints",
    "Match",
    "Migration",
    "Mirror",
    "Missing",
    "Recall",
    "RegisteredSource",
    "SavedTags",
    "SearchResult",
    "SourceRun",
    "TagsPreview",
    "Timing",
    "UnreadableImages",
    "Updated",
]


class Timing(BaseModel):
    """Where the time of a request went, in milliseconds, from the header `Server-Timing`.

    A stage is None if the service does not name it: its workers are of an earlier release.
    """

    model_config = ConfigDict(frozen=True)

    queue: float | None = Field(None, description="Waiting for a worker.")
    embed: float | None = Field(None, description="Embedding texts and images.")
    search: float | None = Field(None, description="Searching the collection.")
    total: float = Field(description="All of the service's time.")


class SearchResult(SearchOut):
    """The answer to a search."""

    timing: Timing | None = Field(
        None, description="Where the time of the request went; null if the service does not say."
    )


class Export(BaseModel):
    """What `export_images` wrote."""

    path: str = Field(description="The file, or the folder of shards.")
    format: str = Field(description="parquet, manifest or webdataset.")
    images: int = Field(description="Number of images in it.")
    bytes: int = Field(description="Its size, bytes.")
    shards: int | None = Field(None, description="Number of shards; null for other formats.")
    left_out: int = Field(
        0,
        description="Images without a sample, because their file cannot be read. `left-out.jsonl` "
        "has them, with metadata, embedding and reason.",
    )
    reasons: dict[str, int] = Field({}, description="The reasons for that: how often.")
    not_indexable: int = Field(
        0,
        description="Rows of a manifest without an address that a job could read: uploads, own "
        "vectors, images in archives.",
    )
    gone: int = Field(0, description="Matches of the query that were deleted meanwhile.")
    truncated: str | None = Field(
        None, description="The limit that cut the matches of the query short; null: none."
    )


# states of a job that has ended
ENDED = ("succeeded", "partial", "failed", "cancelled")
