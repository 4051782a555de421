"""Makes bulk writes to milvus-lite cheap, without a change to what it stores.

milvus-lite 3.2 spends 0.8 core-milliseconds on a row with an embedding of 512 numbers, almost all
of it on four things that nothing needs:

- An HNSW graph for each data file. A file is merged with others after three more, and the graph is
  built again for the merged one. Up to EXACT_ROWS rows are searched exactly instead, which is as
  fast and finds all neighbours.
- Merges of files of unequal size, which write the same rows again and again. Here four files of a
  size become one.
- Parquet that encodes the numbers of embeddings as a dictionary and compresses them, in vain.
- A Python object for each number, to check its type and to copy rows from the log to a file.

All files stay as milvus-lite reads them by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from milvus_lite.adapter.grpc.translators import records
from milvus_lite.engine import collection, compaction
from milvus_lite.index.protocol import VectorIndex
from milvus_lite.schema.types import DataType
from milvus_lite.storage import data_file
from milvus_lite.storage.memtable import MemTable
from milvus_lite.storage.segment import Segment
from numpy.typing import NDArray

EXACT_ROWS = 10_000  # at 512 numbers an exact search of so many rows takes 0.5 ms, HNSW 0.1 ms
TIERS = [500_000, 2_000_000, 8_000_000, 32_000_000, 128_000_000]  # bytes

Numbers = NDArray[np.float32]


def make_bulk_writes_cheap() -> None:
    """Replace the slow parts of milvus-lite in this process, before its server starts."""
    collection.validate_record = _without_numbers(collection.validate_record)
    records._extract_vector_column = _rows_of_numbers(records._extract_vector_column)
    compaction.COMPACTION_BUCKET_BOUNDARIES = TIERS
    data_file.pq = SimpleNamespace(write_table=_write_table, read_table=pq.read_table)
    MemTable._build_data_table = _data_table
    Segment.build_or_load_index = _small_ones_exact(Segment.build_or_load_index)


class ExactIndex(VectorIndex):  # type: ignore[misc]  # milvus-lite has no types
    """Searches all rows of a data file. Has no file of its own.

    Args:
        index: the rows; of unit length for the cosine metric.
        metric: COSINE, IP or L2.
    """

    index_type = "FLAT"

    def __init__(self, index: Any, metric: str) -> None:
        self._index, self.metric = index, metric
        self.num_vectors, self.dim = index.ntotal, index.d

    @classmethod
    def build(
        cls,
        vectors: Numbers,
        metric: str,
        params: Any = None,  # noqa: ARG003  # of milvus-lite
    ) -> "ExactIndex":
        kind = faiss.METRIC_L2 if metric == "L2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexFlat(vectors.shape[1], kind)
        index.add(_prepared(vectors, metric))
        return cls(index, metric)

    def add(self, vectors: Numbers) -> None:
        """Add rows behind the others."""
        self._index.add(_prepared(vectors, self.metric))
        self.num_vectors = self._index.ntotal

    def search(
        self,
        queries: Numbers,
        top_k: int,
        valid_mask: NDArray[np.bool_] | None = None,
        params: Any = None,  # noqa: ARG002  # of milvus-lite
    ) -> tuple[NDArray[np.int64], Numbers]:
        """The nearest rows of each query, the nearest first.

        Args:
            valid_mask: which rows count; None: all.

        Returns:
            (rows, distances): -1 and infinity where there are fewer than `top_k` rows.
        """
        options = None
        if valid_mask is not None:
            chosen = faiss.IDSelectorBatch(np.flatnonzero(valid_mask))
            options = faiss.SearchParameters(sel=chosen)  # type: ignore[call-arg]  # of SWIG
        queries = _prepared(np.atleast_2d(queries), self.metric)
        scores, rows = self._index.search(queries, top_k, params=options)
        if self.metric == "L2":
            distances = np.sqrt(np.maximum(scores, 0))
        else:
            distances = (1 if self.metric == "COSINE" else 0) - scores
        return rows, np.where(rows < 0, np.float32(np.inf), distances)

    def save(self, path: str) -> None:
        raise NotImplementedError("an exact index has no file; it is built from its rows")

    @classmethod
    def load(cls, path: str, metric: str, dim: int) -> "ExactIndex":
        raise NotImplementedError("an exact index has no file; it is built from its rows")


def _prepared(vectors: Numbers, metric: str) -> Numbers:
    """The vectors as faiss takes them; of unit length for the cosine metric."""
    prepared = np.array(vectors, np.float32, order="C")
    if metric == "COSINE":
        faiss.normalize_L2(prepared)  # leaves a vector of zeros as it is
    return prepared


def _small_ones_exact(build: Callable[..., None]) -> Callable[..., None]:
    """The function without the graph of a small segment that has none on disk."""

    def built(segment: Any, spec: Any, folder: str) -> None:
        is_small = 0 < segment.num_rows <= EXACT_ROWS
        if not is_small or spec.index_type != "HNSW" or spec.field_name in segment.indexes:
            return build(segment, spec, folder)
        if Path(segment.index_file_path(folder, spec.index_type, spec.field_name)).exists():
            return build(segment, spec, folder)
        vectors, _ = segment.vector_data(spec.field_name)
        index = ExactIndex.build(vectors, spec.metric_type)
        segment.attach_index(index, field_name=spec.field_name)
        return None

    return built


def _rows_of_numbers(extract: Callable[..., Any]) -> Callable[..., Any]:
    """The function with an array for each embedding, in place of a list.

    A message's numbers are at the end of its serialized form, as they are in memory.
    """

    def extracted(field: Any, dtype: int, count: int) -> Any:
        message = field.vectors.float_vector  # empty in vectors of another kind
        size = len(message.data)
        if not size or size != count * field.vectors.dim:
            return extract(field, dtype, count)
        raw = message.SerializeToString()
        return list(np.frombuffer(raw, "<f4", offset=len(raw) - 4 * size).reshape(count, -1))

    return extracted


def _without_numbers(validate: Callable[..., None]) -> Callable[..., None]:
    """The function without a check of each number of an embedding: an array has numbers only."""

    def validated(record: Any, schema: Any, **options: Any) -> None:
        vectors = [field for field in schema.fields if field.dtype == DataType.FLOAT_VECTOR]
        field = vectors[0] if len(vectors) == 1 else None
        numbers = record.get(field.name) if field else None
        if field is None or not isinstance(numbers, np.ndarray) or len(numbers) != field.dim:
            return validate(record, schema, **options)
        others = [other for other in schema.fields if other is not field]
        del record[field.name]
        try:
            return validate(record, replace(schema, fields=others), **options)
        finally:
            record[field.name] = numbers

    return validated


def _data_table(memtable: Any, rows: Sequence[tuple[int, int]]) -> pa.Table:
    """The rows of a memtable as a table for a data file, column by column.

    Args:
        rows: (batch, row in it) of each row.
    """
    batches = memtable._insert_batches
    begins = [0, *accumulate(batch.num_rows for batch in batches)]
    places = [begins[batch] + row for batch, row in rows]
    table = pa.Table.from_batches(batches).select(memtable._data_schema.names)
    if places != list(range(table.num_rows)):
        table = table.take(places)
    return table.cast(memtable._data_schema)


def _write_table(table: pa.Table, path: str) -> None:
    """Write a Parquet file, with the numbers of embeddings as they are."""
    others = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    pq.write_table(
        table,
        path,
        use_dictionary=others,
        compression=dict.fromkeys(others, "snappy"),
        write_statistics=others,
    )
