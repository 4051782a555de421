from collections.abc import Iterator

import pytest
import redis

from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from support import services
from support.ledgers import Clock
from support.stores import photos, store

__all__ = ["photos", "store"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator["redis.Redis"]:
    """Of a Valkey that one file of tests has to itself; who needs it empty empties it."""
    with services.valkey(tmp_path_factory.mktemp("valkey")) as url:
        connection = redis.Redis.from_url(url)
        yield connection
        connection.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
def ledger(request: pytest.FixtureRequest, clock: Clock) -> Ledger:
    if request.param == "memory":
        return MemoryLedger(clock)
    client = request.getfixturevalue("client")
    client.flushall()
    return RedisLedger(client, clock)
