"""The pages that a group of queries with equal parameters asked for."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipfleet.common.queue.messages import Search
from clipfleet.common.store import Match, Store, Vectors
from clipfleet.common.store.filters import parse_filter
from clipfleet.workers.query.exact import Bounds, exact_search
from clipfleet.workers.query.ranking import PageSpec, RankedMatch, Ranking

WINDOW = 10_000  # the widest without grouping or collapsing; Milvus ends at 16,384
NUMBERS = 4_000_000  # of embeddings in one answer of the store: 16 MB of the 64 that gRPC takes


def find(
    store: Store,
    query: Search,
    vectors: Vectors,
    *,
    fresh: bool,
    exact: Bounds,
) -> list[list[RankedMatch]]:
    """Row i answers vector i. All are looked for together, in windows that grow for those who
    have not enough yet."""
    wanted = _wanted(query)
    rankings = [Ranking(wanted, query.collection.metric) for _ in vectors]
    for size in wanted.windows():
        short = [n for n, ranking in enumerate(rankings) if not ranking.enough]
        for some in _in_parts(short, size, query):
            hits = _search(store, query, vectors[some], size, fresh, exact)
            for n, matches in zip(some, hits, strict=True):
                rankings[n].add(matches, size)
    return [ranking.page() for ranking in rankings]


def _search(
    store: Store, query: Search, vectors: Vectors, size: int, fresh: bool, exact: Bounds
) -> list[list[Match]]:
    told: dict[str, Any] = {
        "namespace": query.namespace,
        "top_k": size,
        "where": parse_filter(query.filter or {}, query.collection.fields),
        "include_values": _needs_values(query),
    }
    if query.exact:
        return exact_search(store, query.collection, vectors, exact, **told)
    return store.search(query.collection, vectors, fresh=fresh, **told)


def _wanted(query: Search) -> PageSpec:
    sifts = query.group_by is not None or query.collapse is not None
    return PageSpec(
        top_k=query.top_k,
        offset=query.offset,
        min_score=query.min_score,
        group_by=query.group_by,
        group_size=query.group_size,
        collapse=query.collapse,
        looked_at=query.candidates if sifts else WINDOW,
    )


def _needs_values(query: Search) -> bool:
    return query.include_values or query.collapse is not None


def _in_parts(places: Sequence[int], size: int, query: Search) -> Iterator[list[int]]:
    step = len(places) or 1
    if _needs_values(query):
        step = max(1, NUMBERS // (size * query.collection.dim))
    for start in range(0, len(places), step):
        yield list(places[start : start + step])
