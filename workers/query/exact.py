"""Exact search: compares every image that passes the filter, block by block, in constant memory.

The recall of the index is measured against it. Scores are those of `Match`, computed in 64 bits: in
32 bits, rounding errors would exceed the squared distances between neighbours.
"""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest, Unavailable
from clipfleet.common.store import Match, Record, Store, Vectors
from clipfleet.common.store.filters import Filter

BLOCK = 2_000  # rows
TINY = 1e-30  # replaces the length of a vector of zeros

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """When an exact search ends early.

    Attributes:
        seconds: the longest time that a search may take.
        stopping: set when the worker is asked to stop.
    """

    seconds: float = 45.0
    stopping: threading.Event = field(default_factory=threading.Event)


def exact_search(
    store: Store,
    collection: Collection,
    vectors: Vectors,  # [n, dim]
    bounds: Bounds,
    *,
    namespace: str,
    top_k: int,
    offset: int = 0,
    where: Filter | None = None,
    include_values: bool = False,
) -> list[list[Match]]:
    """Find the nearest images of each vector; of equal scores the smaller id comes first.

    Args:
        vectors: [n, dim].
        top_k: the number of matches for each vector.
        offset: the number of nearer matches to skip.
        include_values: whether the matches keep their embeddings.

    Returns:
        The matches of each vector, in the order of the vectors.

    Raises:
        InvalidRequest: the search takes too long.
        Unavailable: the worker stops, or the store does not answer.
    """
    until = time.monotonic() + bounds.seconds
    queries = np.asarray(vectors, np.float64)
    per_query = [_Nearest(offset + top_k) for _ in queries]
    after: str | None = ""
    while after is not None:
        _check_bounds(until, bounds)
        rows = store.scan(
            collection,
            namespace=namespace,
            where=where,
            after=after,
            limit=BLOCK,
            include_values=True,
        )
        if rows:
            all_distances = _distances(
                collection, queries, np.stack([row.embedding for row in rows])
            )
            for candidates, distances in zip(per_query, all_distances, strict=True):
                candidates.offer(distances, rows)
        after = rows[-1].pk if len(rows) == BLOCK else None
    return [candidates.matches(collection, offset, include_values) for candidates in per_query]


def _check_bounds(until: float, bounds: Bounds) -> None:
    if bounds.stopping.is_set():
        raise Unavailable("the worker is stopping; try again")
    if time.monotonic() > until:
        raise InvalidRequest(
            f"an exact search did not end within {bounds.seconds:g} s: narrow it with a filter"
        )


class _Nearest:
    """The nearest rows so far for one query."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._best: list[tuple[float, str, Record]] = []

    def offer(self, distances: Doubles, rows: list[Record]) -> None:
        """Consider further rows; `distances` [m] are lower for nearer rows."""
        full = len(self._best) == self._keep
        near = np.flatnonzero(distances <= self._best[-1][0]) if full else np.arange(len(distances))
        if len(near) > self._keep:
            cut = np.partition(distances[near], self._keep - 1)[self._keep - 1]
            near = near[distances[near] <= cut]  # includes ties with the last one
        new = [(float(distances[n]), rows[n].id, rows[n]) for n in near]
        self._best = sorted([*self._best, *new], key=lambda entry: entry[:2])[: self._keep]

    def matches(self, collection: Collection, offset: int, values: bool) -> list[Match]:
        sign = 1.0 if collection.metric == "euclidean" else -1.0
        best = self._best[offset:]
        return [Match(row if values else _bare(row), sign * far) for far, _, row in best]


def _distances(collection: Collection, queries: Doubles, rows: Vectors) -> Doubles:
    """Distances [n, m] of queries [n, dim] and rows [m, dim]; similarities are negated."""
    stored = np.asarray(rows, np.float64)
    if collection.metric == "cosine":
        queries, stored = _unit(queries), _unit(stored)
    products: Any = queries @ stored.T
    if collection.metric == "euclidean":
        squares = _squares(queries)[:, None] + _squares(stored)[None, :] - 2 * products
        return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float64)
    return np.asarray(-products, np.float64)


def _unit(rows: Doubles) -> Doubles:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, TINY), np.float64)


def _squares(rows: Doubles) -> Doubles:
    return np.asarray((rows * rows).sum(axis=1), np.float64)


def _bare(record: Record) -> Record:
    return replace(record, embedding=np.empty(0, np.float32))
