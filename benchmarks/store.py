"""Measures the store alone: the cost of filters, and recall of the index.

    python benchmarks/store.py VECTORS.npz [--rounds 5] [--server MILVUS_URI]

It uses a milvus-lite of its own, and the server of --server. Filters: 20,000 vectors with a
declared field of each type; searches with and without a filter take turns. recall@10: 10,000
vectors of benchmarks/vectors.py, 500 of them as queries, compared with exact search in numpy.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from parts import milvus, shown, until

from clipfleet.common.collection import Collection, FieldType
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record, Vectors
from clipfleet.common.store.filters import parse_filter
from clipfleet.common.store.milvus import MilvusStore

FIELDS: dict[str, FieldType] = {"kind": "string", "year": "int", "weight": "float", "new": "bool"}
FILTERS: dict[str, Mapping[str, Any]] = {
    "string": {"kind": "k3"},
    "strings": {"kind": {"$in": ["k1", "k4", "k7"]}},
    "int": {"year": {"$gte": 2010, "$lt": 2015}},
    "float": {"weight": {"$lt": 0.5}},
    "bool": {"new": True},
    "label": {"label": "l2"},
    "two": {"$and": [{"kind": "k3"}, {"year": {"$gt": 2005}}]},
}
K = 10
QUERIES = 500
SEARCHES = 20
BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", default="", help="address of a Milvus server")
    args = parser.parse_args()
    with np.load(args.vectors) as arrays:
        rows = arrays["rows"]
    with tempfile.TemporaryDirectory() as folder, milvus(Path(folder)) as uri:
        for name, address in (("milvus-lite", uri), ("server", args.server)):
            if address:
                store = MilvusStore(address, timeout_s=60)
                until(partial(answers, store))
                print(name)
                recall(store, rows[:10_000])
                filters(store, np.concatenate([rows, rows])[:20_000], args.rounds)
    print(f"load {os.getloadavg()[0]:.1f}")


def answers(store: MilvusStore) -> bool:
    store.ping()
    return True


@contextmanager
def filled(store: MilvusStore, rows: Vectors) -> Iterator[Collection]:
    collection = Collection.new(
        "benchmark", metric="cosine", model="m", dim=rows.shape[1], fields=FIELDS
    )
    store.create(collection)
    try:
        records = [record(number, row) for number, row in enumerate(rows)]
        for start in range(0, len(records), BATCH):
            store.upsert(collection, records[start : start + BATCH])
        time.sleep(10)  # indexes are built after the writes
        yield collection
    finally:
        store.drop(collection)


def record(number: int, row: Vectors) -> Record:
    name = str(number)
    metadata = {
        "kind": f"k{number % 10}",
        "year": 2000 + number % 25,
        "weight": number % 100 / 100,
        "new": number % 2 == 0,
    }
    key = primary_key("default", name)
    return Record(key, name, "default", name, row, label=f"l{number % 5}", metadata=metadata)


def search(
    store: MilvusStore, collection: Collection, rows: Vectors, where: Any = None
) -> list[Any]:
    parsed = parse_filter(where or {}, FIELDS)
    return store.search(collection, rows, namespace="default", top_k=K, where=parsed, fresh=True)


def recall(store: MilvusStore, rows: Vectors) -> None:
    """Print recall by score, not by id: of two equal photos either one is right."""
    queries = rows[np.random.default_rng(0).choice(len(rows), QUERIES, replace=False)]
    exact = -np.sort(-(queries @ rows.T), axis=1)[:, K - 1]
    with filled(store, rows) as collection:
        results: list[Any] = []
        for start in range(0, QUERIES, 50):
            results += search(store, collection, queries[start : start + 50])
    right = [
        sum(match.score >= least - 1e-5 for match in matches) / K
        for matches, least in zip(results, exact, strict=True)
    ]
    print(f"  recall@{K} of {len(rows):,} vectors: {statistics.mean(right):.4f}, {QUERIES} queries")


def filters(store: MilvusStore, rows: Vectors, rounds: int) -> None:
    with filled(store, rows) as collection:
        print(f"  filters, {len(rows):,} vectors, ms a search")
        taken: dict[str, list[float]] = {"none": []}
        ratios: dict[str, list[float]] = {name: [] for name in FILTERS}
        for _ in range(rounds):
            bare = timed(store, collection, rows)
            taken["none"].append(bare)
            for name, where in FILTERS.items():
                taken.setdefault(name, []).append(timed(store, collection, rows, where))
                ratios[name].append(taken[name][-1] / bare)
    for name, values in taken.items():
        print(f"    {name}: {shown(values)}", *as_ratio(ratios.get(name, ())))


def as_ratio(values: Sequence[float]) -> list[str]:
    return [f"ratio {shown(values, 2)}"] if values else []


def timed(store: MilvusStore, collection: Collection, rows: Vectors, where: Any = None) -> float:
    """Median milliseconds of SEARCHES searches."""
    seconds = []
    for number in range(SEARCHES):
        began = time.perf_counter()
        (matches,) = search(store, collection, rows[number : number + 1], where)
        seconds.append(time.perf_counter() - began)
        assert len(matches) == K
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
