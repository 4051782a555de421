"""Stores to test against - in memory, milvus-lite, a real Milvus server - and what to put in."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clipfleet.common.collection import Collection, FieldType, Metric
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record, Store
from clipfleet.common.store.memory import MemoryStore
from clipfleet.common.store.milvus import MilvusStore
from support import services

DIM = 8
FIELDS: dict[str, FieldType] = {
    "genre": "string",
    "year": "int",
    "price": "float",
    "sold": "bool",
}


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Milvus]:
    """One for all tests: it has fixed ports beside its own."""
    with services.milvus_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(
    scope="session",
    params=["memory", "lite", pytest.param("server", marks=pytest.mark.server)],
)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    if request.param == "server":
        yield request.getfixturevalue("milvus_server").store()
        return
    with services.milvus_lite(tmp_path_factory.mktemp("lite")) as uri:
        yield MilvusStore(uri, timeout_s=30)


@pytest.fixture
def photos(store: Store) -> Iterator[Collection]:
    collection = a_collection()
    store.create(collection)
    yield collection
    store.drop(collection)


def a_collection(metric: Metric = "cosine") -> Collection:
    return Collection.new("my-photos", metric=metric, model="m", dim=DIM, fields=FIELDS)


def a_record(image_id: str, seed: int = 0, **more: Any) -> Record:
    namespace = more.get("namespace", "default")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    blank = Record(
        pk=primary_key(namespace, image_id),
        id=image_id,
        namespace=namespace,
        uri=f"/photos/{image_id}"[:300],
        embedding=vector / np.linalg.norm(vector),
    )
    return replace(blank, **more)
