"""Cheap writes to milvus-lite and Milvus give what the packages give by themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from milvus_lite.adapter.grpc.translators import records
from milvus_lite.engine.collection import validate_record
from milvus_lite.exceptions import SchemaValidationError
from milvus_lite.index.brute_force import BruteForceIndex
from milvus_lite.schema.arrow_builder import build_wal_data_schema
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema
from milvus_lite.storage.memtable import MemTable
from pymilvus import DataType as Kind
from pymilvus.client.prepare import Prepare

from clipfleet.common.store.request import Upsert
from clipfleet.common.store.rows import to_row
from clipfleet.embedded import bulk_writes
from support.stores import DIM, a_collection, a_record

SCHEMA = CollectionSchema(
    [
        FieldSchema("pk", DataType.VARCHAR, is_primary=True, max_length=32),
        FieldSchema("label", DataType.VARCHAR, max_length=3),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=DIM),
    ]
)


def vectors(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.02, 0.0])
def test_an_exact_index_finds_what_milvus_lite_finds_without_an_index(
    metric: str, share: float
) -> None:
    rows, queries = vectors(200), vectors(4, seed=1)
    rows[17] = 0
    valid = None if share == 1.0 else np.arange(200) < 200 * share
    ours = bulk_writes.ExactIndex.build(rows, metric).search(queries, 10, valid)
    theirs = BruteForceIndex.build(rows, metric).search(queries, 10, valid)
    assert np.array_equal(ours[0], theirs[0])
    assert np.allclose(ours[1], theirs[1], atol=1e-5)


def a_memtable() -> tuple[MemTable, list[tuple[int, int]]]:
    """A memtable with rows that were replaced and deleted, and the places of the others."""
    memtable = MemTable(SCHEMA)
    for batch, keys in enumerate(("abc", "bde", "fa")):
        count = len(keys)
        columns = {
            "_seq": [10 * batch + n for n in range(count)],
            "_partition": ["_default"] * count,
            "pk": list(keys),
            "label": [f"{batch}"] * count,
            "embedding": list(vectors(count, seed=batch)),
        }
        schema = build_wal_data_schema(SCHEMA)
        memtable.apply_insert(pa.RecordBatch.from_pydict(columns, schema=schema))
    live = [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    return memtable, live


def test_a_data_file_has_the_live_rows_of_the_memtable(tmp_path: Path) -> None:
    memtable, live = a_memtable()
    for rows in (live, [(0, 0), (0, 1), (0, 2)]):
        table = bulk_writes._data_table(memtable, rows)
        assert table.equals(memtable._build_data_table(rows))
        path = str(tmp_path / "data.parquet")
        bulk_writes._write_table(table, path)
        assert pq.read_table(path).equals(table)


def test_the_numbers_of_a_request_are_read_as_arrays() -> None:
    collection = a_collection()
    sent = [a_record(f"{n}", n) for n in range(5)]
    (field,) = (
        field
        for field in Upsert(collection, sent).request("c", 0).fields_data
        if field.field_name == "embedding"
    )
    extract = bulk_writes._rows_of_numbers(records._extract_vector_column)
    rows = extract(field, Kind.FLOAT_VECTOR, 5)
    assert np.array_equal(rows, [record.embedding for record in sent])
    assert all(isinstance(row, np.ndarray) for row in rows)
    assert extract(field, Kind.FLOAT_VECTOR, 5)[0].dtype == np.float32
    with pytest.raises(SchemaValidationError):  # of milvus-lite itself: one row is missing
        extract(field, Kind.FLOAT_VECTOR, 6)


def test_a_row_is_checked_but_for_its_numbers() -> None:
    validate = bulk_writes._without_numbers(validate_record)
    (numbers,) = vectors(1)
    record = {"pk": "a", "label": "x", "embedding": numbers}
    validate(record, SCHEMA)
    assert record["embedding"] is numbers
    for wrong in (
        {"label": "long"},
        {"label": None},
        {"pk": None},
        {"embedding": numbers[:3]},
        {"embedding": None},
        {"unknown": 1},
    ):
        with pytest.raises(SchemaValidationError):
            validate({**record, **wrong}, SCHEMA)


def test_a_request_is_that_of_pymilvus() -> None:
    """Compared with what pymilvus makes of the rows."""
    from clipfleet.common.store.layout import schema_of

    collection = a_collection()
    metadata = {"genre": "é", "year": 3, "price": 0.5, "sold": True, "free": {"a": ["ü", None, 1]}}
    sent = [a_record(f"{n}", n, metadata=metadata) for n in range(200)] + [a_record("none")]
    rows = [to_row(collection, record) for record in sent]
    fields = schema_of(collection).to_dict()["fields"]
    theirs = Prepare.row_upsert_param("c", rows, "", fields, schema_timestamp=7)
    ours = Prepare.row_upsert_param("c", Upsert(collection, sent), "", fields, schema_timestamp=7)
    assert by_name(ours) == by_name(theirs)
    assert (ours.collection_name, ours.num_rows, ours.schema_timestamp) == ("c", 201, 7)


def by_name(request: Any) -> dict[str, Any]:
    return {field.field_name: field for field in request.fields_data}


def test_embeddings_of_another_length_are_refused() -> None:
    record = a_record("a")
    short = Upsert(a_collection(), [a_record("b", embedding=record.embedding[:3])])
    with pytest.raises(ValueError, match=f"not {DIM} numbers"):
        short.request("c", 0)
