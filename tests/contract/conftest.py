from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection, Metric
from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.common.store import Store
from clipfleet.common.store.memory import MemoryStore
from clipfleet.common.store.milvus import MilvusStore
from support import services
from support.ledgers import Clock
from support.stores import a_collection

EmptyCollection = Callable[[Metric], Collection]


@pytest.fixture
def client(valkey_url: str) -> Iterator["redis.Redis"]:
    """Of an empty Valkey."""
    with closing(redis.Redis.from_url(valkey_url)) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def absent_redis() -> Iterator["redis.Redis"]:
    """Of a server that does not run."""
    with closing(make_redis(Settings(redis_url="redis://127.0.0.1:9"))) as connection:
        yield connection


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis", "redis-and-blobs"])
def ledger(request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The last one keeps no failure in Redis but the first of each job."""
    if request.param == "memory":
        return MemoryLedger(clock)
    client = request.getfixturevalue("client")
    if request.param == "redis":
        return RedisLedger(client, clock)
    monkeypatch.setattr("clipfleet.common.ledger.redis.KEPT_FAILURES", 1)
    return RedisLedger(client, clock, blobs=Blobs("memory://clipfleet-ledger"))


@pytest.fixture(
    scope="session",
    params=["memory", "lite", pytest.param("server", marks=pytest.mark.server)],
)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "server":
        yield request.getfixturevalue("milvus_server").store()
    else:
        with services.milvus_lite(tmp_path_factory.mktemp("lite")) as uri:
            yield MilvusStore(uri, timeout_s=30)


@pytest.fixture(scope="session")
def empty_collection(store: Store) -> Iterator[EmptyCollection]:
    """Collections by metric, without rows. All tests share them: a server takes two seconds to
    create one."""
    collections: dict[Metric, Collection] = {}

    def emptied(metric: Metric) -> Collection:
        if metric not in collections:
            collections[metric] = a_collection(metric)
            store.create(collections[metric])
        collection = collections[metric]
        while rows := store.scan(collection, limit=10_000):
            store.delete(collection, [row.pk for row in rows])
        return collection

    yield emptied
    for collection in collections.values():
        store.drop(collection)


@pytest.fixture
def photos(empty_collection: EmptyCollection) -> Collection:
    return empty_collection("cosine")
