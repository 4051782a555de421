"""The messages on the queues. Each owns its task's name and its queue; `v` is its version."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.schemas import MatchOut

Lane = Literal["ingest", "query"]
LANES: tuple[Lane, ...] = ("ingest", "query")


def queue_name(lane: Lane, model: str) -> str:
    """Queues carry the model, so work always reaches workers that have it."""
    return f"{lane}.{model}"


class Message(BaseModel):
    model_config = ConfigDict(frozen=True)

    task: ClassVar[str]
    lane: ClassVar[Lane]

    v: Literal[1] = 1
    model: str

    @property
    def queue(self) -> str:
        return queue_name(self.lane, self.model)


class IngestChunk(Message):
    """A nudge: this chunk waits. The ledger knows what is in it."""

    task: ClassVar[str] = "clipfleet.ingest"
    lane: ClassVar[Lane] = "ingest"

    job_id: str
    no: int


class Term(BaseModel):
    """One ingredient of a query. An image's value is the key its pixels lie under."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["text", "image", "id", "vector"]
    value: str | tuple[float, ...]


class Search(BaseModel):
    """Where to look for the images nearest to a query, and what of them to give back."""

    model_config = ConfigDict(frozen=True)

    collection: Collection
    namespace: str
    top_k: int
    offset: int = 0
    filter: dict[str, Any] | None = None
    include_values: bool = False


class Query(BaseModel):
    """Without a search, its embedding itself is the answer."""

    model_config = ConfigDict(frozen=True)

    term: Term
    search: Search | None = None


class QueryBatch(Message):
    """Queries of one kind that waited together. `deadlines`, of each: unix seconds, then nobody
    listens."""

    task: ClassVar[str] = "clipfleet.query"
    lane: ClassVar[Lane] = "query"

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]
    queries: tuple[Query, ...]


class Answer(BaseModel):
    """Matches or an embedding, or the error that this query alone ran into."""

    model_config = ConfigDict(frozen=True)

    matches: tuple[MatchOut, ...] = ()
    embedding: tuple[float, ...] = ()
    error: Literal["", "not-found", "invalid-request", "unavailable", "internal"] = ""
    detail: str = ""


class BatchReply(BaseModel):
    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    batch_id: str
    answers: tuple[Answer, ...]
