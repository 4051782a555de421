"""Milvus that is unavailable, and milvus-lite after a restart."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from clipfleet.common.collection import Collection
from clipfleet.common.store import Record, StoreUnavailable
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded.bulk_writes import EXACT_ROWS
from support import services
from support.power import sitecustomize as power
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


def _write(
    at_once: threading.Barrier, collection: Collection, store: MilvusStore, records: list[Record]
) -> None:
    at_once.wait()
    store.upsert(collection, records)


def test_requests_that_come_at_once_after_a_restart_lose_nothing(tmp_path: Path) -> None:
    """The first request opens the collection, and it is opened once."""
    collection, writers = a_collection(), 8
    with services.milvus_lite(tmp_path) as uri:
        MilvusStore(uri).create(collection)
    for number in range(3):
        records = [a_record(f"{number}-{n}", n) for n in range(8 * writers)]
        with services.milvus_lite(tmp_path) as uri, ThreadPoolExecutor(writers) as threads:
            stores = [MilvusStore(uri) for _ in range(writers)]
            for store in stores:
                store.ping()
            at_once = threading.Barrier(writers)
            shares = [records[n::writers] for n in range(writers)]
            write = partial(_write, at_once, collection)
            list(threads.map(write, stores, shares))
    with services.milvus_lite(tmp_path) as uri:
        assert MilvusStore(uri).count(collection) == 3 * 8 * writers


def test_what_milvus_lite_confirmed_outlives_a_power_cut(tmp_path: Path) -> None:
    """The rows fill several data files, which are merged, and indexes are built."""
    collection = a_collection()
    records = [a_record(f"{n}", n, metadata={"text": "x" * 400}) for n in range(6_000)]
    on, after = tmp_path / "on", tmp_path / "after"
    watched = {
        "PYTHONPATH": str(Path(power.__file__).parent),
        power.FOLDER: str(on / "data"),
        power.DISK: str(after / "data"),
    }
    with services.milvus_lite(on, **watched) as uri:
        store = MilvusStore(uri)
        store.create(collection)
        for start in range(0, 6_000, 500):
            store.upsert(collection, records[start : start + 500])
        store.delete(collection, [record.pk for record in records[:100]])
        files = {path.relative_to(after) for path in after.rglob("*") if path.is_file()}
        disk = tmp_path / "disk"
        shutil.copytree(after, disk)
    assert any(path.suffix == ".parquet" for path in files)
    with services.milvus_lite(disk) as uri:
        store = MilvusStore(uri)
        assert store.count(collection) == 5_900
        (hits,) = store.search(
            collection, records[4_321].embedding[None], namespace="default", top_k=1
        )
        assert hits[0].record.id == "4321"


def test_an_index_that_cannot_be_read_is_built_anew(tmp_path: Path) -> None:
    """A power cut can leave such an index. Small data files have none."""
    collection = a_collection()
    count = 2 * EXACT_ROWS
    records = [a_record(f"{n}", n % 3_000) for n in range(count)]
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        store.create(collection)
        store.upsert(collection, records)
        services.eventually(lambda: indexes(tmp_path), 60, "an index")
    for index in indexes(tmp_path):
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        assert store.count(collection) == count
        (hits,) = store.search(collection, records[7].embedding[None], namespace="default", top_k=1)
        assert int(hits[0].record.id) % 3_000 == 7


def test_milvus_lite_reads_by_itself_what_it_wrote_with_our_changes(tmp_path: Path) -> None:
    collection, records = a_collection(), [a_record(f"{n}", n) for n in range(5_000)]
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        store.create(collection)
        store.upsert(collection, records)
        store.upsert(collection, [a_record("7", 7, label="again")])
    with services.plain_milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        assert store.count(collection) == 5_000
        (hits,) = store.search(collection, records[7].embedding[None], namespace="default", top_k=1)
        assert (hits[0].record.id, hits[0].record.label) == ("7", "again")
    with services.milvus_lite(tmp_path) as uri:  # and the other way round
        (hits,) = MilvusStore(uri).search(
            collection, records[8].embedding[None], namespace="default", top_k=1
        )
        assert hits[0].record.id == "8"


def indexes(folder: Path) -> list[Path]:
    return sorted((folder / "data").rglob("*.idx"))
