"""How much of what an exact search finds the index finds, too."""

import asyncio
import hashlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.bulk import checked
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.exact import require_few
from clipfleet.api.search.routes import refusal
from clipfleet.common.collection import Collection, Metric
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import QueryRecall, RecallIn, RecallOut
from clipfleet.common.queue.messages import LARGE_ROWS, Query, Search, Term
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store import Record

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

WORST = 10
SCAN_S = 30.0


class Found(NamedTuple):
    """What recall needs to know of a match."""

    id: str
    score: float


@router.post("/recall")
@needs("read")
async def measure_recall(
    body: RecallIn, collection: CollectionDep, gateway: GatewayDep
) -> RecallOut:
    """recall@k of the index: a sample of the collection's own images is searched for by the index
    and by comparing with every image. An image does not count as its own neighbour; another one
    that is as near as the k-th nearest does count (Aumüller et al. 2020, ANN-Benchmarks)."""
    began = time.perf_counter()
    limits = gateway.settings.limits
    if body.k >= min(limits.top_k, limits.window):
        raise InvalidRequest(f"k is {body.k}; {min(limits.top_k, limits.window) - 1} at most")
    if body.sample > limits.recall_sample:
        raise InvalidRequest(f"sample is {body.sample}; {limits.recall_sample} at most")
    sample = await _sample(body, collection, gateway)
    search = Search(
        collection=collection,
        namespace=body.namespace,
        top_k=body.k + 1,
        filter=body.filter,
        include_metadata=False,
    )
    exact = search.model_copy(update={"exact": True})
    await require_few(exact, gateway)
    worker = await gateway.worker("query", collection.model, any_model=True)
    index = gateway.large if search.rows >= LARGE_ROWS else gateway.queries
    found = await _search(sample, search, worker.model, index, gateway)
    right = await _search(sample, exact, worker.model, gateway.exact, gateway)
    each = [
        QueryRecall(id=record.id, recall=recall(record.id, mine, best, body.k, collection.metric))
        for record, mine, best in zip(sample, found, right, strict=True)
    ]
    worst = sorted((one for one in each if one.recall < 1), key=lambda one: (one.recall, one.id))
    return RecallOut(
        recall=sum(one.recall for one in each) / len(each),
        k=body.k,
        queries=len(each),
        worst=worst[:WORST],
        took_ms=round(1000 * (time.perf_counter() - began), 2),
    )


def recall(
    own: str, found: Sequence[Found], right: Sequence[Found], k: int, metric: Metric
) -> float:
    """Of the k nearest others (`right`, exact) the share that was found, nearest first both.
    Equally near ones stand for each other."""
    nearest = [match for match in right if match.id != own][:k]
    if not nearest:
        return 1.0
    last = _far(nearest[-1], metric)
    names = {match.id for match in nearest}
    others = [match for match in found if match.id != own][: len(nearest)]
    hits = sum(match.id in names or _as_near(_far(match, metric), last) for match in others)
    return hits / len(nearest)


def _far(match: Found, metric: Metric) -> float:
    """Squares for distances: that is what a store computes, with the rounding of 32 bits."""
    return match.score**2 if metric == "euclidean" else -match.score


def _as_near(far: float, last: float) -> bool:
    return far <= last or math.isclose(far, last, rel_tol=1e-6, abs_tol=1e-6)


async def _sample(body: RecallIn, collection: Collection, gateway: Gateway) -> list[Record]:
    """Images that follow on a key that the seed gives. Keys are hashes of the ids, so that
    neighbours among them have nothing else in common."""
    start = hashlib.blake2b(str(body.seed).encode(), digest_size=16).hexdigest()
    told = {
        "namespace": body.namespace,
        "where": checked(body, collection),
        "limit": body.sample,
        "include_values": True,
    }
    scan = gateway.store.scan
    found = await gateway.call(scan, collection, after=start, seconds=SCAN_S, **told)
    if len(found) < body.sample:
        first = await gateway.call(scan, collection, seconds=SCAN_S, **told)
        taken = {record.pk for record in found}
        found += [record for record in first if record.pk not in taken][: body.sample - len(found)]
    if len(found) < 2:
        raise InvalidRequest(f"recall needs at least two images; {len(found)} match")
    return found


async def _search(
    sample: Sequence[Record], search: Search, model: str, queue: Coalescer, gateway: Gateway
) -> list[list[Found]]:
    """As anybody's searches go, so that it is measured what anybody gets."""
    terms = [Term(kind="vector", value=tuple(one.embedding.tolist())) for one in sample]
    asked = [queue.ask(Query.of(term, search), model) for term in terms]
    answers = await asyncio.gather(*asked)
    if failed := next((answer for answer in answers if answer.error), None):
        raise refusal(failed)
    return [await gateway.parse(_found, answer) for answer in answers]


def _found(answer: PackedAnswer) -> list[Found]:
    """A tenth of what the matches themselves take in memory."""
    return [Found(match.id, match.score) for match in answer.matches]
