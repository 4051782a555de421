from collections.abc import Iterator

import pytest
import redis
import services
from stores import photos, store

__all__ = ["photos", "store"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator["redis.Redis"]:
    """Of a Valkey that one file of tests has to itself; who needs it empty empties it."""
    with services.valkey(tmp_path_factory.mktemp("valkey")) as url:
        connection = redis.Redis.from_url(url)
        yield connection
        connection.close()
