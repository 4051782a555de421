"""The messages on the queues. Each owns its task's name and its queue; `v` is its version."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.http.fleet import Lane
from clipfleet.common.http.schemas import MatchOut


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
    `answer_bytes`: of the matches as JSON, at most.
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
    answer_bytes: int = 32_000_000

    @property
    def rows(self) -> int:
        """The matches that a store finds for it, more or less; one with its values counts as
        several."""
        rows = self.offset + self.top_k
        if self.group_by is not None or self.collapse is not None:
            rows = max(rows, min(8 * rows, self.candidates))
        return rows * (4 if self.include_values or self.collapse is not None else 1)


LARGE_ROWS = 500  # a query for so many or more is answered beside the others

Encoder = Literal["image", "text", "none"]


class Query(BaseModel):
    """Its terms are weighted and added up. Without a search, their sum itself is the answer."""

    model_config = ConfigDict(frozen=True)

    terms: tuple[Term, ...]
    search: Search | None = None

    @classmethod
    def of(cls, term: Term, search: Search | None = None) -> "Query":
        return cls(terms=(term,), search=search)

    @property
    def encoder(self) -> Encoder:
        """What the model has to embed for it; of several kinds the slowest."""
        kinds = {term.kind for term in self.terms}
        if "image" in kinds:
            return "image"
        return "text" if "text" in kinds else "none"

    @property
    def cost(self) -> int:
        """What answering it takes, in rows."""
        return len(self.terms) * (self.search.rows if self.search else 1)

    @property
    def large(self) -> bool:
        return self.search is not None and self.search.rows >= LARGE_ROWS


class QueryBatch(Message):
    """Queries of one speed that waited together. `deadlines`, of each: unix seconds, then nobody
    listens. `packed`: the reply may be packed, see clipfleet.common.queue.packed."""

    task: ClassVar[str] = "clipfleet.query"
    lane: ClassVar[Lane] = "query"

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]
    queries: tuple[Query, ...]
    packed: bool = False

    @property
    def shown(self) -> str:
        count = len(self.queries)
        return f"{count} {'query' if count == 1 else 'queries'}, batch {self.batch_id}"

    @property
    def aside(self) -> Literal["", "exact", "large"]:
        """Why other queries should not wait for the answer: every image is compared, or many
        matches are given back. "" when they may, and when the model is needed for it."""
        if any(query.search and query.search.exact for query in self.queries):
            return "exact"
        alone = all(query.encoder == "none" for query in self.queries)
        return "large" if alone and any(query.large for query in self.queries) else ""


ErrorKind = Literal["", "not-found", "invalid-request", "too-large", "unavailable", "internal"]


class Answer(BaseModel):
    """Matches or an embedding, or the error that this query alone ran into."""

    model_config = ConfigDict(frozen=True)

    matches: tuple[MatchOut, ...] = ()
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""


class BatchReply(BaseModel):
    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    batch_id: str
    answers: tuple[Answer, ...]
