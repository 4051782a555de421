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
    """RedisUnavailable in place of redis-py's own errors for a server that is away or full."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise RedisUnavailable("Redis does not answer just now; try again") from error
    except redis.ResponseError as error:
        if not _refuses_writes(error):
            raise
        raise RedisUnavailable(f"Redis takes no writes just now: {error}") from error


def redis_time(client: "redis.Redis") -> float:
    """Unix seconds by Redis' clock, the one that all parts share."""
    with answering():
        seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6


def _refuses_writes(error: redis.ResponseError) -> bool:
    """Out of memory, out of disk, or a replica: it passes when somebody makes room."""
    refusals = (
        redis.exceptions.OutOfMemoryError,
        redis.ReadOnlyError,
        redis.exceptions.ExecAbortError,
    )
    return isinstance(error, refusals) or "MISCONF" in str(error) or "OOM" in str(error)
