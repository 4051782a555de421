"""Exact search, block by block, compared with plain numpy; and recall, which builds on it."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfleet.api.collections.recall import ScoredId, recall
from clipfleet.common.collection import Collection, Metric
from clipfleet.common.errors import InvalidRequest, Unavailable
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Match, Record, Vectors
from clipfleet.common.store.filters import parse_filter
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.query import exact
from clipfleet.workers.query.exact import Bounds, exact_search

DIM = 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK", 7)


def a_shelf(metric: Metric, rows: Vectors) -> tuple[MemoryStore, Collection]:
    store = MemoryStore()
    collection = Collection.new("c", metric=metric, model="m", dim=DIM, fields={})
    store.create(collection)
    for n, row in enumerate(rows):
        name = f"{n:03}"
        store.upsert(
            collection,
            [Record(primary_key("n", name), name, "n", "", row, label="odd" if n % 2 else "")],
        )
    return store, collection


def some(count: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def search(
    store: MemoryStore, collection: Collection, queries: Vectors, **more: Any
) -> list[list[Match]]:
    options: dict[str, Any] = {"namespace": "n", "top_k": 10, **more}
    return exact_search(store, collection, queries, Bounds(), **options)


def ids(matches: list[Match]) -> list[str]:
    return [match.record.id for match in matches]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("offset", [0, 4])
def test_it_finds_what_a_store_finds_that_compares_all(metric: Metric, offset: int) -> None:
    store, collection = a_shelf(
        metric, some(60) * np.linspace(0.5, 2, 60, dtype=np.float32)[:, None]
    )
    queries = some(5, seed=1)
    where = parse_filter({"label": "odd"}, {})
    options: dict[str, Any] = {"namespace": "n", "top_k": 9, "offset": offset, "where": where}
    expected = store.search(collection, queries, **options)
    for mine, other in zip(search(store, collection, queries, **options), expected, strict=True):
        assert ids(mine) == ids(other)
        assert [m.score for m in mine] == pytest.approx([m.score for m in other], abs=1e-5)


def test_equal_scores_are_ordered_by_id_across_blocks() -> None:
    store, collection = a_shelf("cosine", np.ones((40, DIM), np.float32))
    (matches,) = search(store, collection, np.ones((1, DIM), np.float32), top_k=12)
    assert ids(matches) == [f"{n:03}" for n in range(12)]


def test_an_image_is_at_no_distance_from_itself() -> None:
    rows = some(20) * 100
    store, collection = a_shelf("euclidean", rows)
    (matches,) = search(store, collection, rows[3:4], top_k=1)
    assert ids(matches) == ["003"]
    assert matches[0].score < 1e-4


def test_values_are_there_when_asked_for() -> None:
    rows = some(3)
    store, collection = a_shelf("dot", rows)
    (full,) = search(store, collection, rows[:1], top_k=3, include_values=True)
    assert all(match.record.embedding.shape == (DIM,) for match in full)
    (bare,) = search(store, collection, rows[:1], top_k=3)
    assert all(match.record.embedding.size == 0 for match in bare)


def test_nobody_waits_for_longer_than_the_bound_nor_for_a_worker_that_stops() -> None:
    store, collection = a_shelf("dot", some(3))
    options: dict[str, Any] = {"namespace": "n", "top_k": 1}
    with pytest.raises(InvalidRequest, match="narrow it with a filter"):
        exact_search(store, collection, some(1), Bounds(seconds=-1), **options)
    over = threading.Event()
    over.set()
    with pytest.raises(Unavailable, match="is stopping"):
        exact_search(store, collection, some(1), Bounds(60, over), **options)


def hits(*scored: tuple[str, float]) -> list[ScoredId]:
    return [ScoredId(*match) for match in scored]


def test_recall_leaves_the_image_itself_out() -> None:
    right = hits(("me", 1.0), ("a", 0.9), ("b", 0.8))
    assert recall("me", right, right, 2, "cosine") == 1
    assert recall("me", hits(("me", 1.0), ("b", 0.8), ("c", 0.1)), right, 2, "cosine") == 0.5
    assert recall("me", hits(("me", 1.0)), right, 2, "cosine") == 0


def test_an_equally_near_image_stands_for_another() -> None:
    right = hits(("me", 1.0), ("a", 0.9), ("b", 0.8))
    assert recall("me", hits(("a", 0.9), ("twin of b", 0.8)), right, 2, "cosine") == 1
    far = hits(("me", 0.0), ("a", 0.0), ("b", 0.0))
    assert recall("me", hits(("x", 0.0003), ("y", 0.0)), far, 2, "euclidean") == 1
    assert recall("me", hits(("x", 0.3), ("y", 0.0)), far, 2, "euclidean") == 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 12), st.sampled_from(["cosine", "dot", "euclidean"]),
    st.integers(0, 5),
)  # fmt: skip
def test_recall_of_the_right_answer_is_one(count: int, k: int, metric: Metric, seed: int) -> None:
    store, collection = a_shelf(metric, some(count, seed))
    (matches,) = search(store, collection, some(1, seed)[:1], top_k=k + 1)
    right = hits(*((match.record.id, match.score) for match in matches))
    assert recall("000", right, right, k, metric) == 1
    if count > k + 1:  # without the nearest there is a gap, unless the next is as near
        assert recall("000", [m for m in right if m.id == "000"], right, k, metric) == 0
