"""Milvus that is away, and milvus-lite that comes back."""

from pathlib import Path

import pytest

from clipfleet.common.store import StoreUnavailable
from clipfleet.common.store.milvus import MilvusStore
from support import services
from support.stores import a_collection, a_record


def test_a_store_that_is_away_is_said_to_be() -> None:
    with pytest.raises(StoreUnavailable):
        MilvusStore("http://127.0.0.1:9", timeout_s=1).ping()


def test_milvus_lite_gives_back_everything_after_a_restart(tmp_path: Path) -> None:
    collection, records = a_collection(), [a_record(f"{n}", n) for n in range(50)]
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        store.create(collection)
        store.upsert(collection, records)
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        (hits,) = store.search(collection, records[7].embedding[None], namespace="default", top_k=1)
        assert hits[0].record.id == "7"
        assert store.count(collection) == 50
