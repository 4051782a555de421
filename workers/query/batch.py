"""One batch of queries: one pass per kind of term, one search per group of equal parameters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest, NotFound, Unavailable
from clipfleet.common.http.schemas import MatchOut
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.queue.messages import Answer, BatchReply, Query, QueryBatch, Search
from clipfleet.common.queue.replies import Replies
from clipfleet.common.store import Record, Store, Vectors
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.query.combine import combine
from clipfleet.workers.query.exact import Bounds
from clipfleet.workers.query.ranking import RankedMatch
from clipfleet.workers.query.search import find

log = logging.getLogger(__name__)

# Milvus' bounded staleness is 5 s by default; twice that and a bounded search misses nothing.
STALENESS_S = 10.0
TOO_LATE = Answer(error="unavailable", detail="the query waited too long; try again")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class QueryParts:
    embedder: Embedder
    store: Store
    catalogue: Catalogue
    replies: Replies
    exact: Bounds = field(default_factory=Bounds)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)


Place = tuple[int, int]  # of a query in the batch, of a term in the query


@dataclass
class _Work:
    """What is found so far, by place, and answers already given, by the query's."""

    queries: Sequence[Query]
    terms: dict[Place, Vectors] = field(default_factory=dict)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[Place, str | tuple[float, ...]]:
        """The values of such terms."""
        return {
            (n, t): term.value
            for n, query in enumerate(self.queries)
            for t, term in enumerate(query.terms)
            if term.kind == kind
        }


def answer_batch(batch: QueryBatch, parts: QueryParts) -> int:
    """How many queries were answered: 0 when the batch came too late for anybody to listen."""
    now = parts.replies.now()
    in_time = [n for n, deadline in enumerate(batch.deadlines) if now <= deadline]
    if not in_time:
        return 0
    parts.metrics.batch("query", len(in_time))
    work = _Work([batch.queries[n] for n in in_time])
    try:
        _embed(work, parts)
        _combine(work)
        _search(work, parts)
    except Unavailable as error:
        _answer_the_rest(work, Answer(error="unavailable", detail=error.detail))
    except Exception:
        log.exception("a batch of %d queries failed", len(batch.queries))
        _answer_the_rest(work, Answer(error="internal", detail="the search failed"))
    answers = [TOO_LATE] * len(batch.queries)
    for place, n in enumerate(in_time):
        answers[n] = work.answers[place]
    reply = BatchReply(batch_id=batch.batch_id, answers=tuple(answers))
    most = [query.search.answer_bytes if query.search else 0 for query in batch.queries]
    parts.replies.push(batch.reply_to, reply, most if batch.packed else None)
    return len(in_time)


def _answer_the_rest(work: _Work, answer: Answer) -> None:
    for n in range(len(work.queries)):
        work.answers.setdefault(n, answer)


def _embed(work: _Work, parts: QueryParts) -> None:
    for place, value in work.of_kind("vector").items():
        work.terms[place] = np.asarray(value, np.float32)
    if texts := work.of_kind("text"):
        rows = parts.embedder.embed_texts([str(text) for text in texts.values()])
        work.terms.update(zip(texts, rows, strict=True))
    _embed_images(work, parts)
    _look_up(work, parts)


def _embed_images(work: _Work, parts: QueryParts) -> None:
    found = {place: parts.replies.pixels(str(key)) for place, key in work.of_kind("image").items()}
    here = {place: pixels for place, pixels in found.items() if pixels is not None}
    for n, _ in found.keys() - here.keys():
        work.answers[n] = Answer(error="unavailable", detail="the query image has expired")
    for shape in {pixels.shape for pixels in here.values()}:  # workers of two versions may differ
        same = {place: pixels for place, pixels in here.items() if pixels.shape == shape}
        rows = parts.embedder.embed_images(np.stack(list(same.values())))
        work.terms.update(zip(same, rows, strict=True))


def _look_up(work: _Work, parts: QueryParts) -> None:
    """The embeddings of images that are in the collection already: a single read of each
    collection, whatever the number of ids."""
    wanted: dict[str, tuple[Collection, dict[Place, str]]] = {}
    for (n, t), value in work.of_kind("id").items():
        search = work.queries[n].search
        if search is None:
            raise ValueError("an id without a collection to look it up in")
        _, keys = wanted.setdefault(search.collection.generation, (search.collection, {}))
        keys[n, t] = primary_key(search.namespace, str(value))
    for collection, keys in wanted.values():
        try:
            with parts.metrics.timed("query", "store"):
                found = parts.store.fetch(collection, list(dict.fromkeys(keys.values())))
        except NotFound as error:
            gone = Answer(error="not-found", detail=error.detail)
            work.answers.update((n, gone) for n, _ in keys)
            continue
        for (n, t), key in keys.items():
            if key in found:
                work.terms[n, t] = found[key].embedding
            else:
                asked = str(work.queries[n].terms[t].value)
                said = f"there is no image {asked[:200]!r} in the collection"
                work.answers[n] = Answer(error="not-found", detail=said)


def _combine(work: _Work) -> None:
    for n, query in enumerate(work.queries):
        if n in work.answers:
            continue
        rows = [work.terms[n, t] for t in range(len(query.terms))]
        try:
            if query.search:
                _check_lengths(rows, query.search.collection.dim)
            metric = query.search.collection.metric if query.search else "cosine"
            work.vectors[n] = combine([term.weight for term in query.terms], rows, metric)
        except InvalidRequest as error:
            work.answers[n] = Answer(error="invalid-request", detail=error.detail)


def _check_lengths(rows: Sequence[Vectors], dim: int) -> None:
    for row in rows:
        if row.size != dim:
            raise InvalidRequest(
                f"the query's embedding has {row.size} numbers, those of the collection have "
                f"{dim}: the model was changed"
            )


def _search(work: _Work, parts: QueryParts) -> None:
    groups: dict[str, tuple[Search, list[int]]] = {}
    for n, vector in work.vectors.items():
        search = work.queries[n].search
        if search is None:
            work.answers[n] = Answer(embedding=tuple(vector.tolist()))
        else:
            groups.setdefault(search.model_dump_json(), (search, []))[1].append(n)
    for search, members in groups.values():
        try:
            _search_group(work, search, members, parts)
        except (NotFound, InvalidRequest) as error:
            refused = Answer(error=error.slug, detail=error.detail)
            work.answers.update(dict.fromkeys(members, refused))
        except Unavailable:
            raise
        except Exception:
            log.exception("a group of %d queries failed", len(members))
            broken = Answer(error="internal", detail="the search failed")
            work.answers.update(dict.fromkeys(members, broken))


def _search_group(work: _Work, query: Search, members: Sequence[int], parts: QueryParts) -> None:
    vectors = np.stack([work.vectors[n] for n in members])
    fresh = _written_lately(query.collection, parts)
    with parts.metrics.timed("query", "store"):
        pages = find(parts.store, query, vectors, fresh=fresh, exact=parts.exact)
    for n, page in zip(members, pages, strict=True):
        work.answers[n] = Answer(matches=tuple(match_out(kept, query) for kept in page))


def _written_lately(collection: Collection, parts: QueryParts) -> bool:
    return parts.catalogue.seconds_since_write(collection) < STALENESS_S


def match_out(kept: RankedMatch, query: Search) -> MatchOut:
    record: Record = kept.match.record
    return MatchOut(
        id=record.id,
        score=max(-LARGEST, min(LARGEST, kept.match.score)),  # JSON has no infinity
        uri=record.uri,
        label=record.label or None,
        metadata=record.metadata if query.include_metadata else {},
        values=record.embedding.tolist() if query.include_values else None,
        duplicates=None if query.collapse is None else kept.duplicates,
    )
