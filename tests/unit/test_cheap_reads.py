"""Cheap reads by key of milvus-lite give what the package gives by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_lite.db import MilvusLite
from milvus_lite.engine.collection import Collection
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema

from clipfleet.embedded.cheap_reads import _cheap

KEYS = [f"k{n}" for n in range(40)]
SCHEMA = CollectionSchema(
    [
        FieldSchema("pk", DataType.VARCHAR, is_primary=True, max_length=32),
        FieldSchema("label", DataType.VARCHAR, max_length=9, nullable=True),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=4),
    ],
    enable_dynamic_field=True,
)
PLAIN, CHEAP = Collection.get, _cheap(Collection.get)


def rows(random: np.random.Generator) -> list[dict[str, Any]]:
    keys = random.choice(KEYS, random.integers(1, 12), replace=False)
    return [
        {
            "pk": str(key),
            "label": None if random.random() < 0.2 else str(random.integers(1_000)),
            "embedding": random.standard_normal(4).astype(np.float32).tolist(),
            "year": int(random.integers(2_000)),
        }
        for key in keys
    ]


@pytest.mark.parametrize("seed", range(6))
def test_rows_by_key_are_the_same(tmp_path: Path, seed: int) -> None:
    """In memory and in files, replaced and deleted, in any order of the keys."""
    random = np.random.default_rng(seed)
    database = MilvusLite(str(tmp_path))
    collection = database.create_collection("c", SCHEMA)
    collection.load()
    fields = (["pk"], ["label"], ["label", "pk"], ["pk", "embedding"], ["*"], ["year"], None)
    for _ in range(25):
        match random.integers(4):
            case 0 | 1:
                collection.upsert(rows(random))
            case 2:
                collection.delete([str(key) for key in random.choice(KEYS, 5, replace=False)])
            case _:
                collection.flush()
        for names in fields:
            keys = [*map(str, random.permutation(KEYS)), "absent"]
            expected = PLAIN(collection, keys, output_fields=names)
            assert CHEAP(collection, keys, output_fields=names) == expected
    assert CHEAP(collection, [], output_fields=["pk"]) == []
    some = {"expr": "year > 1000", "output_fields": ["pk"]}
    assert CHEAP(collection, KEYS, **some) == PLAIN(collection, KEYS, **some)
    database.close()
