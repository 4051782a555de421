"""Answers a batch of queries.

One pass through the model per kind of term, one search per group of queries with equal parameters.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from clipfleet.common.collection import Collection, weights_problem
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
from clipfleet.workers.query.nouns import NounBanks
from clipfleet.workers.query.ranking import RankedMatch
from clipfleet.workers.query.search import MAX_NUMBERS, search_group
from clipfleet.workers.query.sure import confidences

log = logging.getLogger(__name__)

# Milvus' bounded staleness is 5 s by default. A bounded search twice that long after the last write
# misses nothing.
STALENESS_S = 10.0
TOO_LATE = Answer(error="unavailable", detail="the query waited too long; try again")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class QueryParts:
    """What a worker needs to answer queries.

    Attributes:
        replies: where answers are sent, and where query images are read.
        exact: the bounds of exact searches.
        weights_id: which weights the model has; "": not known.
        model: held while a batch is embedded. Another batch searches meanwhile.
        lookups: reads from the catalogue while a batch is embedded.
        nouns: the nouns that give matches a confidence; None: matches have none.
    """

    embedder: Embedder
    store: Store
    catalogue: Catalogue
    replies: Replies
    exact: Bounds = field(default_factory=Bounds)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    weights_id: str = ""
    model: threading.Lock = field(default_factory=threading.Lock)
    lookups: Executor = field(default_factory=lambda: ThreadPoolExecutor(2, "lookups"))
    nouns: NounBanks | None = None


Position = tuple[int, int]  # index of a query in the batch, index of a term in the query


@dataclass
class _Work:
    """The state of a batch.

    Attributes:
        queries: the queries whose deadlines have not passed.
        model: the model of the worker.
        terms: the embeddings of terms, by position.
        cut_terms: the indices of terms whose texts the model cuts, by index of the query.
        vectors: the combined vectors, by index of the query.
        answers: the answers so far, by index of the query.
        fresh: whether a collection was written lately, by its generation.
    """

    queries: Sequence[Query]
    model: str
    terms: dict[Position, Vectors] = field(default_factory=dict)
    cut_terms: dict[int, tuple[int, ...]] = field(default_factory=dict)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    fresh: dict[str, Future[bool]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[Position, str | tuple[float, ...]]:
        """The values of the terms of one kind, by position."""
        return {
            (n, t): term.value
            for n, query in enumerate(self.queries)
            for t, term in enumerate(query.terms)
            if term.kind == kind
        }

    @property
    def needs_model(self) -> bool:
        """Whether a query has to be embedded."""
        return any(query.encoder != "none" for query in self.queries)


def answer_batch(batch: QueryBatch, parts: QueryParts) -> int:
    """Answer the queries of a batch whose deadlines have not passed, and send one reply.

    Returns:
        The number of queries that were answered; 0 without a reply if all were too late.

    Raises:
        Unavailable: the reply cannot be sent.
    """
    now = parts.replies.now()
    in_time = [n for n, deadline in enumerate(batch.deadlines) if now <= deadline]
    if not in_time:
        return 0
    parts.metrics.batch("query", len(in_time))
    work = _Work([batch.queries[n] for n in in_time], batch.model)
    began = embedded = time.perf_counter()
    for query in work.queries:
        if query.search and query.search.collection.generation not in work.fresh:
            look_up = parts.lookups.submit(_written_lately, query.search.collection, parts)
            work.fresh[query.search.collection.generation] = look_up
    try:
        with parts.model if work.needs_model else nullcontext():
            began = time.perf_counter()
            _embed(work, parts)
            embedded = time.perf_counter()
        _look_up(work, parts)
        _refuse_other_weights(work, parts)
        _combine(work)
        _search(work, parts)
    except Unavailable as error:
        _answer_the_rest(work, Answer(error="unavailable", detail=error.detail))
    except Exception:
        log.exception("a batch of %d queries failed", len(batch.queries))
        _answer_the_rest(work, Answer(error="internal", detail="the search failed"))
    ended = time.perf_counter()
    times = tuple(int(1e6 * s) for s in (embedded - began, ended - embedded, ended - began))
    answers = [TOO_LATE] * len(batch.queries)
    for position, n in enumerate(in_time):
        answers[n] = work.answers[position]
    reply = BatchReply(batch_id=batch.batch_id, answers=tuple(answers), times=times)
    limits = [query.search.answer_bytes if query.search else 0 for query in batch.queries]
    packed = limits if batch.packed else None
    parts.replies.push(batch.reply_to, reply, packed, batch.reply_bytes)
    return len(in_time)


def _answer_the_rest(work: _Work, answer: Answer) -> None:
    for n in range(len(work.queries)):
        work.answers.setdefault(n, answer)


def _embed(work: _Work, parts: QueryParts) -> None:
    for position, value in work.of_kind("vector").items():
        work.terms[position] = np.asarray(value, np.float32)
    if texts := work.of_kind("text"):
        rows = parts.embedder.embed_texts([str(text) for text in texts.values()])
        work.terms.update(zip(texts, rows, strict=True))
        cuts = parts.embedder.cut_texts([str(text) for text in texts.values()])
        for (n, t), is_cut in zip(texts, cuts, strict=True):
            if is_cut:
                work.cut_terms[n] = (*work.cut_terms.get(n, ()), t)
    _embed_images(work, parts)


def _embed_images(work: _Work, parts: QueryParts) -> None:
    keys = work.of_kind("image")
    stashed = {position: parts.replies.pixels(str(key)) for position, key in keys.items()}
    present = {position: pixels for position, pixels in stashed.items() if pixels is not None}
    for n, _ in stashed.keys() - present.keys():
        work.answers[n] = Answer(error="unavailable", detail="the query image has expired")
    # The shapes may differ if workers of two versions prepared the images.
    for shape in {pixels.shape for pixels in present.values()}:
        same = {position: pixels for position, pixels in present.items() if pixels.shape == shape}
        rows = parts.embedder.embed_images(np.stack(list(same.values())))
        work.terms.update(zip(same, rows, strict=True))


def _look_up(work: _Work, parts: QueryParts) -> None:
    """Read the embeddings of stored images, with one read per collection for all ids."""
    lookups: dict[str, tuple[Collection, dict[Position, str]]] = {}
    for (n, t), value in work.of_kind("id").items():
        search = work.queries[n].search
        if search is None:
            raise ValueError("an id without a collection to look it up in")
        _, keys = lookups.setdefault(search.collection.generation, (search.collection, {}))
        keys[n, t] = primary_key(search.namespace, str(value))
    for collection, keys in lookups.values():
        try:
            with parts.metrics.timed("query", "store"):
                rows = parts.store.fetch(collection, list(dict.fromkeys(keys.values())))
        except NotFound as error:
            not_found = Answer(error="not-found", detail=error.detail)
            work.answers.update((n, not_found) for n, _ in keys)
            continue
        for (n, t), key in keys.items():
            if key in rows:
                work.terms[n, t] = rows[key].embedding
            else:
                name = str(work.queries[n].terms[t].value)
                detail = f"there is no image {name[:200]!r} in the collection"
                work.answers[n] = Answer(error="not-found", detail=detail)


def _refuse_other_weights(work: _Work, parts: QueryParts) -> None:
    """Answer queries whose embeddings do not belong to the collection's: they would look right."""
    for n, query in enumerate(work.queries):
        if query.search and query.encoder != "none":
            problem = weights_problem(query.search.collection, parts.weights_id)
            if problem:
                work.answers[n] = Answer(error="invalid-request", detail=problem)


NOT_FINITE = "the model returned numbers that are not finite"


def _combine(work: _Work) -> None:
    for n, query in enumerate(work.queries):
        if n in work.answers:
            continue
        rows = [work.terms[n, t] for t in range(len(query.terms))]
        if not all(np.isfinite(row).all() for row in rows):  # JSON has no name for such numbers
            work.answers[n] = Answer(error="internal", detail=NOT_FINITE)
            continue
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
                f"the query's embedding has {row.size} numbers, but embeddings of the collection "
                f"have {dim}: the model was changed"
            )


def _search(work: _Work, parts: QueryParts) -> None:
    groups: dict[str, tuple[Search, list[int]]] = {}
    for n, vector in work.vectors.items():
        search = work.queries[n].search
        if search is None:
            embedding, cut_terms = tuple(vector.tolist()), work.cut_terms.get(n, ())
            work.answers[n] = Answer(embedding=embedding, truncated_texts=cut_terms)
        else:
            groups.setdefault(search.model_dump_json(), (search, []))[1].append(n)
    for search, members in groups.values():
        try:
            _search_group(work, search, members, parts)
        except (NotFound, InvalidRequest) as error:
            answer = Answer(error=error.slug, detail=error.detail)
            work.answers.update(dict.fromkeys(members, answer))
        except Unavailable:
            raise
        except Exception:
            log.exception("a group of %d queries failed", len(members))
            answer = Answer(error="internal", detail="the search failed")
            work.answers.update(dict.fromkeys(members, answer))


def _search_group(work: _Work, search: Search, members: Sequence[int], parts: QueryParts) -> None:
    vectors = np.stack([work.vectors[n] for n in members])
    reason = _no_confidence(work, search, parts) if search.confidence else ""
    if reason and search.min_confidence is not None:
        raise InvalidRequest(f"min_confidence needs a confidence: {reason}")
    if reason:
        search = search.model_copy(update={"confidence": False})
    fresh = work.fresh[search.collection.generation].result()
    with parts.metrics.timed("query", "store"):
        rankings = search_group(parts.store, search, vectors, fresh=fresh, exact=parts.exact)
    for n, ranking in zip(members, rankings, strict=True):
        page, no_match, why = ranking.page(), None, reason
        if search.confidence and parts.nouns:
            terms = [(term, work.terms[n, t]) for t, term in enumerate(work.queries[n].terms)]
            sure = confidences(terms, ranking, search, parts.nouns.bank())
            page, no_match, why = sure.page, sure.no_match, sure.reason
            if why and search.min_confidence is not None:
                detail = f"min_confidence needs a confidence: {why}"
                work.answers[n] = Answer(error="invalid-request", detail=detail)
                continue
        work.answers[n] = Answer(
            matches=tuple(match_out(ranked, search) for ranked in page),
            no_match=no_match,
            no_confidence=why,
            truncated=ranking.truncated,
            truncated_texts=work.cut_terms.get(n, ()),
        )


def _no_confidence(work: _Work, search: Search, parts: QueryParts) -> str:
    """Why matches in a collection have no confidence; "": they have one."""
    collection = search.collection
    if parts.nouns is None:
        return "the worker has no nouns to compare images with"
    if collection.model != work.model:
        return f"no worker that serves the model {collection.model!r} answered"
    if weights_problem(collection, parts.weights_id) or collection.dim != parts.embedder.dim:
        return "the weights of the model are not those of the collection"
    if (search.offset + search.top_k) * collection.dim > MAX_NUMBERS:
        return f"offset + top_k is over {MAX_NUMBERS // collection.dim}"
    return ""


def _written_lately(collection: Collection, parts: QueryParts) -> bool:
    return parts.catalogue.seconds_since_write(collection) < STALENESS_S


def match_out(ranked: RankedMatch, search: Search) -> MatchOut:
    """The match as the HTTP API returns it, with the parts that the search includes."""
    record: Record = ranked.match.record
    return MatchOut(
        id=record.id,
        score=max(-LARGEST, min(LARGEST, ranked.match.score)),  # JSON has no infinity
        confidence=ranked.confidence,
        uri=record.uri,
        label=record.label or None,
        metadata=record.metadata if search.include_metadata else {},
        values=record.embedding.tolist() if search.include_values else None,
        width=record.width if search.include_size else None,
        height=record.height if search.include_size else None,
        duplicates=None if search.collapse is None else ranked.duplicates,
    )
