"""What a gateway asks of the server that all parts share: its time, whether it takes writes, and
what is wrong with its set-up."""

import time
from typing import Protocol

import redis

from clipfleet.common.process.checks import Finding, check_redis
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.settings import Settings


class Probe(Protocol):
    """Every call raises Unavailable when Redis is away."""

    def now(self) -> float:
        """Unix seconds by the clock that all parts share."""
        ...

    def write(self) -> None:
        """A write, which a full Redis refuses: Unavailable."""
        ...

    def findings(self) -> list[Finding]: ...


class MemoryProbe:
    def now(self) -> float:
        return time.time()

    def write(self) -> None:
        return None

    def findings(self) -> list[Finding]:
        return []


class RedisProbe:
    def __init__(self, client: "redis.Redis", settings: Settings) -> None:
        self._redis, self._settings = client, settings

    def now(self) -> float:
        return redis_time(self._redis)

    def write(self) -> None:
        with translating_redis_errors():
            self._redis.set("clipfleet:probe", 1, px=1000)

    def findings(self) -> list[Finding]:
        return check_redis(self._settings, self._redis)
