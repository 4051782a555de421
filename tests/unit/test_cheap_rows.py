"""Cheap queries and updates of milvus-lite give what the package gives by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_lite.adapter.grpc.translators import records
from milvus_lite.db import MilvusLite
from milvus_lite.engine import collection
from milvus_lite.engine.collection import Collection
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema

from clipfleet.embedded import bulk_writes, cheap_rows, cheap_searches

DIM = 4
EMBEDDING = FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=DIM)
SCHEMA = CollectionSchema(
    [
        FieldSchema("pk", DataType.VARCHAR, is_primary=True, max_length=32),
        FieldSchema("label", DataType.VARCHAR, max_length=3),
        FieldSchema("metadata", DataType.JSON),
        EMBEDDING,
    ]
)
FIELDS = (["pk"], ["label", "metadata"], ["pk", "label", "metadata", "embedding"])
FILTERS = (None, 'label == "b"', 'metadata["n"] > 20', 'pk > "k10" and pk <= "k30"', 'pk == ""')


@pytest.fixture(autouse=True)
def searches(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_searches.make_searches_cheap(monkeypatch.setattr)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Collection]:
    """Rows in files and in memory, some of them replaced or deleted, in either."""
    random = np.random.default_rng(0)
    with MilvusLite(str(tmp_path)) as database:
        shelf = database.create_collection("c", SCHEMA)
        for step in range(8):
            keys = [f"k{n:02d}" for n in random.choice(40, 10, replace=False)]
            shelf.upsert([
                {"pk": key, "label": str(random.choice(["a", "b"])), "metadata": {"n": step * n},
                 "embedding": random.standard_normal(DIM).astype(np.float32).tolist()}
                for n, key in enumerate(keys)
            ])  # fmt: skip
            shelf.delete([f"k{n:02d}" for n in random.choice(40, 2, replace=False)])
            if step in (2, 5):
                shelf.flush()
        shelf.create_index(
            "embedding", {"index_type": "HNSW", "metric_type": "COSINE", "params": {}}
        )
        shelf.load()
        yield shelf


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        ({name: np.asarray(value).tolist() for name, value in row.items()} for row in rows),
        key=lambda row: str(row["pk"]),
    )


@pytest.mark.parametrize("expression", FILTERS)
@pytest.mark.parametrize("fields", FIELDS)
def test_a_query_returns_the_same_rows(
    shelf: Collection, expression: str | None, fields: list[str]
) -> None:
    query = cheap_rows._by_columns(Collection.query)
    theirs = shelf.query(expression, output_fields=fields)
    assert plain(query(shelf, expression, output_fields=fields)) == plain(theirs)
    assert len(query(shelf, expression)) == len(theirs)
    assert len(query(shelf, expression, output_fields=fields, limit=3)) == min(3, len(theirs))
    assert query(shelf, expression, order_by_pk=True, offset=1) == shelf.query(
        expression, order_by_pk=True, offset=1
    )


def test_an_update_keeps_what_it_leaves_out(
    shelf: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = FIELDS[2]
    before = plain(shelf.query(output_fields=fields))
    cheap_rows.make_rows_cheap(monkeypatch.setattr)
    validate = bulk_writes._without_numbers(collection.validate_record)
    monkeypatch.setattr(collection, "validate_record", validate)
    assert plain(shelf.query(output_fields=fields)) == before
    assert plain(shelf.get([row["pk"] for row in before], output_fields=fields)) == before
    shelf.upsert([{"pk": row["pk"], "label": "new"} for row in before])
    shelf.flush()
    after = plain(shelf.query(output_fields=fields))
    assert after == [{**row, "label": "new"} for row in before]


def test_embeddings_are_written_as_milvus_lite_writes_them() -> None:
    column = list(np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32))
    build = cheap_rows._in_one_piece(records._build_field_data)
    theirs = records._build_field_data("embedding", EMBEDDING, [row.tolist() for row in column])
    assert build("embedding", EMBEDDING, column) == theirs
    for other in ([row.tolist() for row in column], []):
        assert build("embedding", EMBEDDING, other) == records._build_field_data(
            "embedding", EMBEDDING, other
        )
