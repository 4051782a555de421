"""Groups, near-duplicates and pages: every store gives what a brute-force search gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipfleet.common.collection import Collection, Metric
from clipfleet.common.identity import primary_key
from clipfleet.common.queue.messages import Search
from clipfleet.common.store import Record, Store
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.query.exact import Bounds
from clipfleet.workers.query.search import search_group
from support.stores import DIM


def shelf() -> list[Record]:
    """Two hundred images in threes that look nearly the same, some with a label, genre or tag."""
    random = np.random.default_rng(7)
    records = []
    for n in range(200):
        if n % 3 == 0:
            first = random.standard_normal(DIM)
        vector = first + 0.02 * random.standard_normal(DIM)
        metadata: dict[str, Any] = {"genre": f"g{n % 4}"} if n % 5 else {}
        records.append(
            Record(
                pk=primary_key("n", f"{n}"),
                id=f"{n}",
                namespace="n",
                uri="",
                embedding=np.asarray(vector / np.linalg.norm(vector), np.float32),
                label=f"l{n % 7}" if n % 2 else "",
                metadata={**metadata, "tags": [n % 3]},
            )
        )
    return records


RULES: list[dict[str, Any]] = [
    {},
    {"group_by": "label"},
    {"group_by": "genre", "group_size": 2},
    {"group_by": "tags"},
    {"collapse": 0.97},
    {"collapse": 0.97, "group_by": "label", "group_size": 3},
    {"collapse": 0.97, "candidates": 12},
    {"filter": {"genre": {"$prefix": "g1"}}, "collapse": 0.97},
]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_what_is_found_is_what_brute_force_finds(
    store: Store, empty_collection: Callable[[Metric], Collection], metric: Metric
) -> None:
    collection, yardstick = empty_collection(metric), MemoryStore()
    yardstick.create(collection)
    for each in (store, yardstick):
        each.upsert(collection, shelf())
    queries = np.random.default_rng(8).standard_normal((3, DIM)).astype(np.float32)
    for rules in RULES:
        for offset in (0, 4):
            search = Search(collection=collection, namespace="n", top_k=4, offset=offset, **rules)
            seen, expected = (
                [
                    [(kept.match.record.id, kept.duplicates) for kept in ranking.page()]
                    for ranking in search_group(each, search, queries, fresh=True, exact=Bounds())
                ]
                for each in (store, yardstick)
            )
            assert seen == expected, (rules, offset)
            exactly = search.model_copy(update={"exact": True})
            rankings = search_group(store, exactly, queries, fresh=True, exact=Bounds())
            pages = [ranking.page() for ranking in rankings]
            seen = [[(kept.match.record.id, kept.duplicates) for kept in page] for page in pages]
            assert seen == expected, (rules, offset)
            assert offset or all(seen), rules
