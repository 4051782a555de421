from collections.abc import Iterator
from contextlib import closing

import pytest
import redis


@pytest.fixture
def client(valkey_url: str) -> Iterator["redis.Redis"]:
    """Of an empty Valkey."""
    with closing(redis.Redis.from_url(valkey_url)) as connection:
        connection.flushall()
        yield connection
