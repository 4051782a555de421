"""One batch of queries: embed them in one pass, one search per group of equal parameters."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipfleet.common.catalogue import Catalogue
from clipfleet.common.collection import Collection
from clipfleet.common.embedder import Embedder
from clipfleet.common.errors import InvalidRequest, NotFound, Unavailable
from clipfleet.common.filters import parse_filter
from clipfleet.common.identity import primary_key
from clipfleet.common.messages import Answer, BatchReply, Query, QueryBatch, Search
from clipfleet.common.replies import Replies
from clipfleet.common.schemas import MatchOut
from clipfleet.common.store import Match, Record, Store, Vectors

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


@dataclass
class _Work:
    """Vectors found so far and answers already given, by the query's place in the batch."""

    queries: Sequence[Query]
    vectors: dict[int, Vectors] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[int]:
        return [n for n, query in enumerate(self.queries) if query.term.kind == kind]


def answer_batch(batch: QueryBatch, parts: QueryParts) -> int:
    """How many queries were answered: 0 when the batch came too late for anybody to listen."""
    now = parts.replies.now()
    in_time = [n for n, deadline in enumerate(batch.deadlines) if now <= deadline]
    if not in_time:
        return 0
    work = _Work([batch.queries[n] for n in in_time])
    try:
        _embed(work, parts)
        _search(work, parts)
    except Unavailable as error:
        _answer_the_rest(work, Answer(error="unavailable", detail=error.detail))
    except Exception:
        log.exception("a batch of %d queries failed", len(batch.queries))
        _answer_the_rest(work, Answer(error="internal", detail="the search failed"))
    answers = [TOO_LATE] * len(batch.queries)
    for place, n in enumerate(in_time):
        answers[n] = work.answers[place]
    parts.replies.push(batch.reply_to, BatchReply(batch_id=batch.batch_id, answers=tuple(answers)))
    return len(in_time)


def _answer_the_rest(work: _Work, answer: Answer) -> None:
    for n in range(len(work.queries)):
        work.answers.setdefault(n, answer)


def _embed(work: _Work, parts: QueryParts) -> None:
    for n in work.of_kind("vector"):
        work.vectors[n] = np.asarray(work.queries[n].term.value, np.float32)
    if texts := work.of_kind("text"):
        rows = parts.embedder.embed_texts([str(work.queries[n].term.value) for n in texts])
        work.vectors.update(zip(texts, rows, strict=True))
    _embed_images(work, parts)
    _look_up(work, parts)


def _embed_images(work: _Work, parts: QueryParts) -> None:
    found = {
        n: parts.replies.pixels(str(work.queries[n].term.value)) for n in work.of_kind("image")
    }
    here = {n: pixels for n, pixels in found.items() if pixels is not None}
    for n in found.keys() - here.keys():
        work.answers[n] = Answer(error="unavailable", detail="the query image has expired")
    for shape in {pixels.shape for pixels in here.values()}:  # workers of two versions may differ
        same = {n: pixels for n, pixels in here.items() if pixels.shape == shape}
        rows = parts.embedder.embed_images(np.stack(list(same.values())))
        work.vectors.update(zip(same, rows, strict=True))


def _look_up(work: _Work, parts: QueryParts) -> None:
    """The embedding of an image that is in the collection already."""
    for n in work.of_kind("id"):
        asked, search = str(work.queries[n].term.value), work.queries[n].search
        if search is None:
            raise ValueError("an id without a collection to look it up in")
        key = primary_key(search.namespace, asked)
        try:
            found = parts.store.fetch(search.collection, [key])
        except NotFound as error:
            work.answers[n] = Answer(error="not-found", detail=error.detail)
            continue
        if key in found:
            work.vectors[n] = found[key].embedding
        else:
            said = f"there is no image {asked[:200]!r} in the collection"
            work.answers[n] = Answer(error="not-found", detail=said)


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
    lengths = {work.vectors[n].size for n in members}
    if lengths != {query.collection.dim}:
        raise InvalidRequest(
            f"the query's embedding has {max(lengths)} numbers, those of the collection have "
            f"{query.collection.dim}: the model was changed"
        )
    hits = parts.store.search(
        query.collection,
        np.stack([work.vectors[n] for n in members]),
        namespace=query.namespace,
        top_k=query.top_k,
        offset=query.offset,
        where=parse_filter(query.filter or {}, query.collection.fields),
        include_values=query.include_values,
        fresh=_written_lately(query.collection, parts.catalogue),
    )
    for n, matches in zip(members, hits, strict=True):
        found = tuple(match_out(match, values=query.include_values) for match in matches)
        work.answers[n] = Answer(matches=found)


def _written_lately(collection: Collection, catalogue: Catalogue) -> bool:
    return catalogue.last_write(collection) < STALENESS_S


def match_out(match: Match, *, values: bool) -> MatchOut:
    record: Record = match.record
    return MatchOut(
        id=record.id,
        score=max(-LARGEST, min(LARGEST, match.score)),  # JSON has no infinity
        uri=record.uri,
        label=record.label or None,
        metadata=record.metadata,
        values=record.embedding.tolist() if values else None,
    )
