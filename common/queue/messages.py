"""Messages on the queues. Each class defines the name of its task, its queue and its version."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.http.fleet import Lane
from clipfleet.common.http.schemas import MatchOut


def queue_name(lane: Lane, model: str) -> str:
    """The name of a queue. It contains the model, so that only workers with the model read it."""
    return f"{lane}.{model}"


class Message(BaseModel):
    """A message to workers.

    Attributes:
        task: the name of the Celery task.
        lane: the lane of the queue.
        v: the version of the message.
        model: the model of the queue.
    """

    model_config = ConfigDict(frozen=True)

    task: ClassVar[str]
    lane: ClassVar[Lane]

    v: Literal[1] = 1
    model: str

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return queue_name(self.lane, self.model)

    @property
    def shown(self) -> str:
        """A summary for people who watch the queues. It contains no query."""
        return self.model


class IngestNudge(Message):
    """Tells a worker that chunks of this model are pending. The worker claims the next of them.

    It names no chunk, so a nudge that is lost, doubled or late has no effect.
    """

    task: ClassVar[str] = "clipfleet.ingest"
    lane: ClassVar[Lane] = "ingest"


class Term(BaseModel):
    """One term of a query.

    Attributes:
        kind: what `value` is.
        value: a text, the key of an image's pixels (see `Inbox.stash`), the id of a stored image,
            or a vector.
        weight: the factor of its embedding in the sum of all terms.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["text", "image", "id", "vector"]
    value: str | tuple[float, ...]
    weight: float = 1.0


class Search(BaseModel):
    """Where to search for the images nearest to a query, and what to return of them.

    Attributes:
        collection: the collection.
        namespace: the namespace of the images.
        top_k: the number of matches to return at most.
        offset: the number of nearest matches to skip.
        filter: the filter that the images pass, as in the request; None: all images.
        min_score: the lowest score of a match; None: any. Not used with the euclidean metric.
        group_by: the field by whose value matches are grouped; None: no groups.
        group_size: the number of matches of each group at most.
        collapse: the cosine similarity from which on a match counts as a duplicate of a nearer
            one; None: duplicates are returned.
        candidates: the number of matches that are examined to fill a page with `group_by` or
            `collapse`.
        include_values: whether matches have embeddings.
        include_metadata: whether matches have metadata.
        include_size: whether matches have a width and a height. Workers of the release before
            return none.
        exact: whether to compare with every image.
        answer_bytes: the size of the matches as JSON at most, bytes.
        confidence: whether matches have a confidence. Gateways of the release before ask for none.
        min_confidence: the lowest confidence of a match; None: any.
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
    include_size: bool = False
    exact: bool = False
    answer_bytes: int = 32_000_000
    confidence: bool = False
    min_confidence: float | None = None

    @property
    def rows(self) -> int:
        """The approximate number of matches that a store finds for it.

        A match with its embedding counts as four.
        """
        rows = self.offset + self.top_k
        if self.group_by is not None or self.collapse is not None:
            rows = max(rows, min(8 * rows, self.candidates))
        return rows * (4 if self.include_values or self.collapse is not None else 1)


LARGE_ROWS = 500  # queries for so many matches or more are answered on a separate thread

Encoder = Literal["image", "text", "none"]


class Query(BaseModel):
    """A query: the weighted sum of its terms, and where to search for it.

    Attributes:
        terms: the terms.
        search: where to search; None: the answer is the sum itself.
    """

    model_config = ConfigDict(frozen=True)

    terms: tuple[Term, ...]
    search: Search | None = None

    @classmethod
    def of(cls, term: Term, search: Search | None = None) -> "Query":
        """A query with one term."""
        return cls(terms=(term,), search=search)

    @property
    def encoder(self) -> Encoder:
        """Which part of the model its terms need; the slowest of several."""
        kinds = {term.kind for term in self.terms}
        if "image" in kinds:
            return "image"
        return "text" if "text" in kinds else "none"

    @property
    def cost(self) -> int:
        """The cost of its answer, in rows."""
        return len(self.terms) * (self.search.rows if self.search else 1)

    @property
    def large(self) -> bool:
        """Whether it asks for LARGE_ROWS matches or more."""
        return self.search is not None and self.search.rows >= LARGE_ROWS


class QueryBatch(Message):
    """Queries with the same `encoder` that a worker answers together.

    Attributes:
        batch_id: identifies the reply.
        reply_to: the key of the Redis list to which the reply is pushed.
        deadlines: for each query, when its answer is not needed any more, unix seconds by Redis'
            clock.
        queries: the queries.
        packed: whether the gateway reads packed replies, see `packed.py`.
        reply_bytes: the size of the matches in the reply at most, bytes, if the gateway passes
            `Answer.truncated` on. 0: it does not, and matches that are too large are an error: no
            client may take a part of a page for all of it.
    """

    task: ClassVar[str] = "clipfleet.query"
    lane: ClassVar[Lane] = "query"

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]
    queries: tuple[Query, ...]
    packed: bool = False
    reply_bytes: int = 0

    @property
    def shown(self) -> str:
        count = len(self.queries)
        return f"{count} {'query' if count == 1 else 'queries'}, batch {self.batch_id}"

    @property
    def aside(self) -> Literal["", "exact", "large"]:
        """Why other queries should not wait for this batch; "" when they may.

        "exact": it compares with every image. "large": it returns many matches and does not need
        the model.
        """
        if any(query.search and query.search.exact for query in self.queries):
            return "exact"
        alone = all(query.encoder == "none" for query in self.queries)
        return "large" if alone and any(query.large for query in self.queries) else ""


ErrorKind = Literal["", "not-found", "invalid-request", "too-large", "unavailable", "internal"]


class Answer(BaseModel):
    """The answer to one query: matches, an embedding, or an error.

    Attributes:
        matches: the matches of a query with a search.
        embedding: the embedding of a query without a search.
        error: the kind of error; "": none.
        detail: the text of the error.
        truncated: the limit that cut the page of matches short, as in `SearchOut`; "": none.
        truncated_texts: the indices of the terms whose texts are longer than the model's context.
        no_match: whether none of the nearest images is confidently a match; None: not known.
        no_confidence: why there is no confidence; "": there is, or nobody asked.
    """

    model_config = ConfigDict(frozen=True)

    matches: tuple[MatchOut, ...] = ()
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""
    truncated: str = ""
    truncated_texts: tuple[int, ...] = ()
    no_match: bool | None = None
    no_confidence: str = ""


class BatchReply(BaseModel):
    """The reply to a `QueryBatch`.

    Attributes:
        v: the version of the reply.
        batch_id: the id of the batch.
        answers: the answers, in the order of the queries.
        times: how long the worker embedded, searched, and worked on the batch in all,
            microseconds; later releases may add numbers. Empty from workers of earlier releases.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    batch_id: str
    answers: tuple[Answer, ...]
    times: tuple[int, ...] = ()
