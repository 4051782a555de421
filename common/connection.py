"""The connection to Redis, and what its silence is called."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from clipfleet.common.errors import Unavailable
from clipfleet.common.settings import Settings


class RedisUnavailable(Unavailable):
    """Redis did not answer in time."""


def make_redis(settings: Settings) -> "redis.Redis":
    """A client whose every call ends within twice `call_timeout_s`, one way or the other."""
    return redis.Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.call_timeout_s,
        socket_connect_timeout=settings.call_timeout_s,
        retry=Retry(NoBackoff(), 1),  # once more: the pool may hold a connection that died
    )


@contextmanager
def answering() -> Iterator[None]:
    """RedisUnavailable in place of redis-py's own errors for a server that is away or starting."""
    passing = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)
    try:
        yield
    except passing as error:
        raise RedisUnavailable("Redis does not answer just now; try again") from error
