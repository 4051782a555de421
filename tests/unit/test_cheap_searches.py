"""Cheap searches of milvus-lite give what the package gives by itself."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from milvus_lite.engine.collection import Collection
from milvus_lite.engine.compaction import CompactionManager
from milvus_lite.index.faiss_hnsw import FaissHnswIndex
from milvus_lite.schema.arrow_builder import build_wal_data_schema, build_wal_delta_schema
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema
from milvus_lite.search.executor_indexed import execute_search_with_index
from milvus_lite.search.filter import compile_expr, parse_expr
from milvus_lite.storage.delta_index import DeltaIndex
from milvus_lite.storage.memtable import MemTable
from milvus_lite.storage.segment import Segment

from clipfleet.embedded import cheap_searches
from clipfleet.embedded.bulk_writes import EXACT_ROWS, ExactIndex

DIM = 4
SCHEMA = CollectionSchema(
    [
        FieldSchema("pk", DataType.VARCHAR, is_primary=True, max_length=32),
        FieldSchema("label", DataType.VARCHAR, max_length=3),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=DIM),
    ],
    enable_dynamic_field=True,
)
FILTER = compile_expr(parse_expr('label == "b"'), SCHEMA)


class Shelf:
    """A collection of milvus-lite to which random things happen, without its files."""

    def __init__(self, seed: int, metric: str) -> None:
        self.random, self.metric, self.seq = np.random.default_rng(seed), metric, 0
        self.segments: list[Segment] = []
        self.deleted = DeltaIndex("pk")
        self.memtable = MemTable(SCHEMA)

    def keys(self) -> list[str]:
        return [f"k{n}" for n in self.random.choice(40, self.random.integers(1, 8), replace=False)]

    def insert(self) -> None:
        keys = self.keys()
        columns = {
            "_seq": list(range(self.seq, self.seq + len(keys))),
            "_partition": ["_default"] * len(keys),
            "pk": keys,
            "label": list(self.random.choice(["a", "b"], len(keys))),
            "embedding": list(self.random.standard_normal((len(keys), DIM)).astype(np.float32)),
            "$meta": [f'{{"n": {n}}}' for n in range(len(keys))],
        }
        self.seq += len(keys)
        schema = build_wal_data_schema(SCHEMA)
        self.memtable.apply_insert(pa.RecordBatch.from_pydict(columns, schema=schema))

    def delete(self) -> None:
        keys = self.keys()
        columns = {
            "pk": keys,
            "_seq": [self.seq] * len(keys),
            "_partition": ["_default"] * len(keys),
        }
        self.seq += 1
        schema = build_wal_delta_schema(SCHEMA)
        columns = {name: columns[name] for name in schema.names}
        self.memtable.apply_delete(pa.RecordBatch.from_pydict(columns, schema=schema))

    def flush(self) -> None:
        table = self.memtable.to_search_snapshot("embedding", include_table=True)[4]
        for key, (seq, _) in self.memtable.delete_index_snapshot().items():
            self.deleted._map[key] = seq
        if table is not None and table.num_rows:
            vectors = np.array(table.column("embedding").to_pylist(), np.float32)
            pks, seqs = (table.column(name).to_pylist() for name in ("pk", "_seq"))
            segment = Segment(
                "", "_default", "pk", "embedding", pks, np.array(seqs, np.uint64), vectors, table
            )
            segment.attach_index(ExactIndex.build(vectors, self.metric))
            self.segments.append(segment)
        self.memtable = MemTable(SCHEMA)

    def forget(self) -> None:
        """A segment goes, as when files are merged."""
        if self.segments:
            self.segments.pop(self.random.integers(len(self.segments)))

    def answers(self, top_k: int, compiled: Any, fields: list[str] | None) -> tuple[Any, Any]:
        """Those of clipfleet and of milvus-lite to the same queries."""
        queries = self.random.standard_normal((3, DIM)).astype(np.float32)
        ours, theirs = (
            search(
                queries,
                tuple(self.segments),
                self.memtable,
                self.deleted.frozen_copy(),
                top_k,
                self.metric,
                "pk",
                "embedding",
                None,
                compiled,
                fields,
                None,
                lambda record: {
                    name: value for name, value in record.items() if name in (fields or record)
                },
            )
            for search in (cheap_searches.search, execute_search_with_index)
        )
        return ours, theirs


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_searches.make_searches_cheap(monkeypatch.setattr)


def require_same(ours: Any, theirs: Any) -> int:
    """The number of matches, which are the same in both."""
    for some, others in zip(ours, theirs, strict=True):
        assert [hit["id"] for hit in some] == [hit["id"] for hit in others]
        for hit, other in zip(some, others, strict=True):
            assert hit["distance"] == pytest.approx(other["distance"], abs=1e-5)
            assert hit["entity"] == other["entity"]
    return sum(map(len, ours))


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
def test_a_filter_that_few_rows_of_a_graph_pass_leaves_none_of_them_out(metric: str) -> None:
    shelf, count = Shelf(0, metric), 2 * EXACT_ROWS
    vectors = shelf.random.standard_normal((count, DIM)).astype(np.float32)
    labels = ["b" if n % 1_000 == 7 else "a" for n in range(count)]
    table = pa.table({
        "pk": [f"k{n}" for n in range(count)], "_seq": range(count), "label": labels,
        "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
        "$meta": ["{}"] * count,
    })  # fmt: skip
    pks, seqs = table.column("pk").to_pylist(), np.arange(count, dtype=np.uint64)
    segment = Segment("", "_default", "pk", "embedding", pks, seqs, vectors, table)
    segment.attach_index(FaissHnswIndex.build(vectors, metric, {"M": 16, "efConstruction": 64}))
    shelf.segments.append(segment)
    ours, theirs = shelf.answers(30, FILTER, ["label"])
    assert [len(hits) for hits in ours] == [20] * 3
    assert [len(hits) for hits in theirs] < [20] * 3, "milvus-lite finds them all by itself"
    segment.indexes["embedding"] = ExactIndex.build(vectors, metric)
    exact, _ = shelf.answers(30, FILTER, ["label"])
    assert {hit["id"] for hit in ours[0]} == {hit["id"] for hit in exact[0]}


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
@pytest.mark.parametrize("seed", range(6))
def test_every_search_finds_the_current_rows(seed: int, metric: str) -> None:
    shelf = Shelf(seed, metric)
    matches = 0
    for _ in range(40):
        step = shelf.random.choice(
            ["insert", "delete", "flush", "forget", "none"], p=[0.5, 0.2, 0.15, 0.05, 0.1]
        )
        getattr(shelf, step, lambda: None)()
        top_k = int(shelf.random.integers(1, 50))
        for compiled in (None, FILTER):
            for fields in (["pk", "label"], ["label", "embedding"]):
                ours, theirs = shelf.answers(top_k, compiled, fields)
                matches += require_same(ours, theirs)
    assert matches > 500


def rows(keys: Sequence[str]) -> list[dict[str, Any]]:
    return [{"pk": key, "label": "a", "embedding": [float(len(key)), 1, 1, 1]} for key in keys]


def test_a_search_goes_on_while_files_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging, merged = threading.Event(), threading.Event()

    def merge(*_: Any) -> None:
        merging.set()
        assert merged.wait(60)

    shelf = Collection("c", str(tmp_path), SCHEMA)
    shelf.create_index("embedding", {"index_type": "HNSW", "metric_type": "COSINE"})
    shelf.load()
    shelf._wait_for_bg()
    monkeypatch.setattr(CompactionManager, "maybe_compact", merge)
    try:
        shelf.insert(rows(["a", "bb"]))
        shelf._trigger_flush()  # `flush` waits for the merge
        assert merging.wait(30)
        with ThreadPoolExecutor(1) as threads:
            search = threads.submit(shelf.search, [[1, 1, 1, 1]], top_k=5, output_fields=["label"])
            try:
                (hits,) = search.result(20)
            finally:
                merged.set()
        assert [hit["id"] for hit in hits] == ["a", "bb"]
    finally:
        merged.set()
        shelf.close()
