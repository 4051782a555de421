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

    @property
    def shown(self) -> str:
        """For people who watch the queues."""
        return self.model


class IngestNudge(Message):
    """Chunks of this model are pending: the worker that gets it claims the next of them.

    It names no chunk. So a nudge that is lost, doubled or late changes nothing.
    """

    task: ClassVar[str] = "clipfleet.ingest"
    lane: ClassVar[Lane] = "ingest"


class Term(BaseModel):
    """One ingredient of a query. An image's value is the key its pixels lie under."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["text", "image", "id", "vector"]
    value: str | tuple[float, ...]
    weight: float = 1.0


class Search(BaseModel):
    """Where to look for the images nearest to a query, and what of them to give back.

    `candidates`: how many matches are looked at to fill a page with `group_by` or `collapse`.
    """

    model_config = ConfigDict(frozen=True)

    collection: Collection
    namespace: str
    top_k: int
    offset: int = 0
    filter: dict[str, Any] | None = None
    min_score: float | None = None
    group_by: str | None = None
    group_size: int = 1
    collapse: float | None = None
    candidates: int = 2_000
    include_values: bool = False
    include_metadata: bool = True
    exact: bool = False


Speed = Literal["image", "text", "none"]


class Query(BaseModel):
    """Its terms are weighted and added up. Without a search, their sum itself is the answer."""

    model_config = ConfigDict(frozen=True)

    terms: tuple[Term, ...]
    search: Search | None = None

    @classmethod
    def of(cls, term: Term, search: Search | None = None) -> "Query":
        return cls(terms=(term,), search=search)

    @property
    def speed(self) -> Speed:
        """What the model has to embed for it; of several kinds the slowest."""
        kinds = {term.kind for term in self.terms}
        if "image" in kinds:
            return "image"
        return "text" if "text" in kinds else "none"


class QueryBatch(Message):
    """Queries of one speed that waited together. `deadlines`, of each: unix seconds, then nobody
    listens."""

    task: ClassVar[str] = "clipfleet.query"
    lane: ClassVar[Lane] = "query"

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]
    queries: tuple[Query, ...]

    @property
    def shown(self) -> str:
        count = len(self.queries)
        return f"{count} {'query' if count == 1 else 'queries'}, batch {self.batch_id}"

    @property
    def exact(self) -> bool:
        """Whether answering takes long: every image is compared."""
        return any(query.search and query.search.exact for query in self.queries)


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
