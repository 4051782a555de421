"""Exact search: every image that passes is compared, block after block, in constant memory.

The yardstick of the index. Scores are those of `Match`, computed in 64 bits: squares of distances
between neighbours would drown in the rounding of 32.
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

BLOCK = 2_000
TINY = 1e-30  # in place of the length of a vector of zeros

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """Nobody waits for longer, and a worker that is told to stop does."""

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
    """Row i answers vector i; of equal scores the smaller id comes first.

    InvalidRequest when it does not end in time.
    """
    until = time.monotonic() + bounds.seconds
    queries = np.asarray(vectors, np.float64)
    nearest = [_Nearest(offset + top_k) for _ in queries]
    after: str | None = ""
    while after is not None:
        _go_on(until, bounds)
        rows = store.scan(
            collection,
            namespace=namespace,
            where=where,
            after=after,
            limit=BLOCK,
            include_values=True,
        )
        if rows:
            far = _far(collection, queries, np.stack([row.embedding for row in rows]))
            for one, distances in zip(nearest, far, strict=True):
                one.offer(distances, rows)
        after = rows[-1].pk if len(rows) == BLOCK else None
    return [one.matches(collection, offset, include_values) for one in nearest]


def _go_on(until: float, bounds: Bounds) -> None:
    if bounds.stopping.is_set():
        raise Unavailable("the worker is told to stop; try again")
    if time.monotonic() > until:
        raise InvalidRequest(
            f"an exact search did not end within {bounds.seconds:g} s: narrow it with a filter"
        )


class _Nearest:
    """The best so far for one query."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._best: list[tuple[float, str, Record]] = []

    def offer(self, far: Doubles, rows: list[Record]) -> None:
        """`far`: [m], lower is nearer."""
        full = len(self._best) == self._keep
        near = np.flatnonzero(far <= self._best[-1][0]) if full else np.arange(len(far))
        if len(near) > self._keep:
            cut = np.partition(far[near], self._keep - 1)[self._keep - 1]
            near = near[far[near] <= cut]  # with all that are as near as the last of them
        new = [(float(far[n]), rows[n].id, rows[n]) for n in near]
        self._best = sorted([*self._best, *new], key=lambda one: one[:2])[: self._keep]

    def matches(self, collection: Collection, offset: int, values: bool) -> list[Match]:
        sign = 1.0 if collection.metric == "euclidean" else -1.0
        return [
            Match(row if values else _bare(row), sign * far) for far, _, row in self._best[offset:]
        ]


def _far(collection: Collection, queries: Doubles, rows: Vectors) -> Doubles:
    """[n, dim] against [m, dim] gives [n, m]: the distance, or the similarity below zero."""
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
