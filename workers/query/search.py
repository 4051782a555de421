"""Searches for a group of queries with equal parameters."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipfleet.common.queue.messages import Search
from clipfleet.common.store import Match, Store, Vectors
from clipfleet.common.store.filters import Filter, parse_filter
from clipfleet.workers.query.confidence import NEAREST
from clipfleet.workers.query.exact import Bounds, exact_search
from clipfleet.workers.query.ranking import PageSpec, Ranking

MAX_WINDOW = 10_000  # matches, without grouping or collapsing; Milvus allows 16,384
MAX_NUMBERS = 4_000_000  # in embeddings of one store response: 16 MB of the 64 MB that gRPC allows


def search_group(
    store: Store,
    search: Search,
    vectors: Vectors,
    *,
    fresh: bool,
    exact: Bounds,
) -> list[Ranking]:
    """Search for all vectors together, in windows that grow for rankings that are not complete.

    Args:
        vectors: [n, dim].
        fresh: whether the search must see the latest writes.
        exact: the bounds, if the search is exact.

    Returns:
        The ranking of each vector, in their order.

    Raises:
        InvalidRequest: the filter is not valid, or an exact search takes too long.
        NotFound: the collection was deleted.
        Unavailable: the store does not answer.
    """
    where = parse_filter(search.filter or {}, search.collection.fields)
    spec = _page_spec(search)
    rankings = [Ranking(spec, search.collection.metric) for _ in vectors]
    for size in spec.windows():
        short = [n for n, ranking in enumerate(rankings) if not ranking.is_complete]
        for part in _parts(short, size, search):
            hits = _search(store, search, where, vectors[part], size, fresh, exact)
            for n, matches in zip(part, hits, strict=True):
                rankings[n].add(matches, size)
    return rankings


def _search(
    store: Store,
    search: Search,
    where: Filter | None,
    vectors: Vectors,
    size: int,
    fresh: bool,
    exact: Bounds,
) -> list[list[Match]]:
    options: dict[str, Any] = {
        "namespace": search.namespace,
        "top_k": size,
        "where": where,
        "include_values": _needs_values(search),
    }
    if search.exact:
        return exact_search(store, search.collection, vectors, exact, **options)
    # Groups may be by any field of a record.
    brief = search.group_by is None and not search.include_size
    return store.search(search.collection, vectors, fresh=fresh, brief=brief, **options)


def _page_spec(search: Search) -> PageSpec:
    sifts = search.group_by is not None or search.collapse is not None
    return PageSpec(
        top_k=search.top_k,
        offset=search.offset,
        min_score=search.min_score,
        group_by=search.group_by,
        group_size=search.group_size,
        collapse=search.collapse,
        max_window=search.candidates if sifts else MAX_WINDOW,
        examined=NEAREST if search.confidence else 1,
    )


def _needs_values(search: Search) -> bool:
    return search.include_values or search.collapse is not None or search.confidence


def _parts(indices: Sequence[int], size: int, search: Search) -> Iterator[list[int]]:
    step = len(indices) or 1
    if _needs_values(search):
        step = max(1, MAX_NUMBERS // (size * search.collection.dim))
    for start in range(0, len(indices), step):
        yield list(indices[start : start + step])
