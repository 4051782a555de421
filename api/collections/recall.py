"""The route that measures recall: the share of an exact search's matches that the index finds."""

import asyncio
import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.bulk import parse_checked_filter
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.replies import error_of
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.exact import check_exact_rows
from clipfleet.common.collection import Collection, Metric
from clipfleet.common.errors import InvalidRequest, TooLarge
from clipfleet.common.http.collections import QueryRecall, RecallIn, RecallOut
from clipfleet.common.queue.messages import LARGE_ROWS, Query, Search, Term
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store import Record
from clipfleet.common.store.filters import Filter

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

MAX_WORST = 10
SCAN_TIMEOUT_S = 30.0


class ScoredId(NamedTuple):
    """The part of a match that recall needs."""

    id: str
    score: float


@router.post("/recall", summary="Measure recall")
@needs("read")
async def measure_recall(
    body: RecallIn, collection: CollectionDep, gateway: GatewayDep
) -> RecallOut:
    """Measure recall@k of the index with a sample of the collection's own images.

    Each image of the sample is searched by the index and by comparison with every image. An image
    is not its own neighbour. Another image that is as near as the k-th nearest counts as found
    (Aumüller et al. 2020, ANN-Benchmarks).
    """
    began = time.perf_counter()
    limits = gateway.settings.limits
    if body.k >= min(limits.top_k, limits.window):
        max_k = min(limits.top_k, limits.window) - 1
        raise InvalidRequest(f"k is {body.k}; the limit is {max_k}")
    if body.sample > limits.recall_sample:
        raise InvalidRequest(f"sample is {body.sample}; the limit is {limits.recall_sample}")
    where = parse_checked_filter(body, collection)
    sample = await _sample(body, where, collection, gateway)
    search = Search(
        collection=collection,
        namespace=body.namespace,
        top_k=body.k + 1,
        filter=body.filter,
        include_metadata=False,
    )
    exact = search.model_copy(update={"exact": True})
    await check_exact_rows(collection, body.namespace, where, gateway)
    worker = await gateway.worker("query", collection.model, any_model=True)
    index = gateway.large if search.rows >= LARGE_ROWS else gateway.queries
    by_index = await _search(sample, search, worker.model, index, gateway)
    by_comparison = await _search(sample, exact, worker.model, gateway.exact, gateway)
    queries = [
        QueryRecall(
            id=record.id, recall=recall(record.id, matches, nearest, body.k, collection.metric)
        )
        for record, matches, nearest in zip(sample, by_index, by_comparison, strict=True)
    ]
    incomplete = (query for query in queries if query.recall < 1)
    worst = sorted(incomplete, key=lambda query: (query.recall, query.id))
    return RecallOut(
        recall=sum(query.recall for query in queries) / len(queries),
        k=body.k,
        queries=len(queries),
        worst=worst[:MAX_WORST],
        took_ms=round(1000 * (time.perf_counter() - began), 2),
    )


def recall(
    image_id: str, by_index: Sequence[ScoredId], exact: Sequence[ScoredId], k: int, metric: Metric
) -> float:
    """Return the share of the k nearest other images that the index has found.

    An image that is as near as the k-th nearest counts as one of them.

    Args:
        image_id: the image that was searched.
        by_index: the matches of the index, nearest first.
        exact: the matches of the exact search, nearest first.
        k: the number of neighbours.
        metric: the metric of the collection.
    """
    nearest = [match for match in exact if match.id != image_id][:k]
    if not nearest:
        return 1.0
    limit = _distance(nearest[-1], metric)
    ids = {match.id for match in nearest}
    others = [match for match in by_index if match.id != image_id][: len(nearest)]
    hits = sum(match.id in ids or _within(_distance(match, metric), limit) for match in others)
    return hits / len(nearest)


def _distance(match: ScoredId, metric: Metric) -> float:
    """Smaller is nearer. Squared for distances: a store computes squares, rounded to 32 bits."""
    return match.score**2 if metric == "euclidean" else -match.score


def _within(distance: float, limit: float) -> bool:
    return distance <= limit or math.isclose(distance, limit, rel_tol=1e-6, abs_tol=1e-6)


async def _sample(
    body: RecallIn, where: Filter | None, collection: Collection, gateway: Gateway
) -> list[Record]:
    """Return the images whose keys follow a key derived from the seed.

    Keys are hashes of the ids, so that images with neighbouring keys have nothing in common.
    """
    start = hashlib.blake2b(str(body.seed).encode(), digest_size=16).hexdigest()
    options: dict[str, Any] = {
        "namespace": body.namespace,
        "where": where,
        "limit": body.sample,
        "include_values": True,
        "timeout_s": SCAN_TIMEOUT_S,
    }
    scan = gateway.store.scan
    sample = await gateway.call(scan, collection, after=start, **options)
    if len(sample) < body.sample:  # go on at the first key
        first = await gateway.call(scan, collection, **options)
        pks = {record.pk for record in sample}
        missing = body.sample - len(sample)
        sample += [record for record in first if record.pk not in pks][:missing]
    if len(sample) < 2:
        raise InvalidRequest(f"recall needs at least two images; {len(sample)} match")
    return sample


async def _search(
    sample: Sequence[Record], search: Search, model: str, queue: Coalescer, gateway: Gateway
) -> list[list[ScoredId]]:
    """Search through the queues of ordinary searches, so that the same path is measured."""
    terms = [Term(kind="vector", value=tuple(record.embedding.tolist())) for record in sample]
    answers = await asyncio.gather(*(queue.ask(Query.of(term, search), model) for term in terms))
    if failed := next((answer for answer in answers if answer.error), None):
        raise error_of(failed)
    if any(answer.truncated for answer in answers):
        raise TooLarge(
            "the matches of the sample have more bytes than one answer may have; lower k or sample"
        )
    return [await gateway.parse(_scored_ids, answer) for answer in answers]


def _scored_ids(answer: PackedAnswer) -> list[ScoredId]:
    """The ids and scores take a tenth of the memory of the matches."""
    return [ScoredId(match.id, match.score) for match in answer.matches]
