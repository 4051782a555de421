"""Uploads that were begun and are no job yet, noted before their first byte is stored: a gateway
that dies in between leaves files that nobody would know of. Names, not a search of the blob store,
which may be a bucket that others use, too."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import redis

from clipfleet.common.redis.client import redis_time, translating_redis_errors

UNFINISHED = "clipfleet:uploads:unfinished"


class Unfinished(Protocol):
    def begin(self, job_id: str) -> None: ...

    def end(self, job_id: str) -> None: ...

    def older(self, seconds: float, limit: int) -> list[str]:
        """Those that were begun so long ago, the first to begin first."""
        ...


class MemoryUnfinished:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._begun: dict[str, float] = {}

    def begin(self, job_id: str) -> None:
        self._begun[job_id] = self._clock()

    def end(self, job_id: str) -> None:
        self._begun.pop(job_id, None)

    def older(self, seconds: float, limit: int) -> list[str]:
        last = self._clock() - seconds
        return [job_id for job_id, begun in list(self._begun.items()) if begun <= last][:limit]


class RedisUnfinished:
    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._redis = client
        self._clock = clock or (lambda: redis_time(client))

    def begin(self, job_id: str) -> None:
        now = self._clock()
        with translating_redis_errors():
            self._redis.zadd(UNFINISHED, {job_id: now})

    def end(self, job_id: str) -> None:
        with translating_redis_errors():
            self._redis.zrem(UNFINISHED, job_id)

    def older(self, seconds: float, limit: int) -> list[str]:
        last = self._clock() - seconds
        with translating_redis_errors():
            found: Any = self._redis.zrangebyscore(UNFINISHED, "-inf", last, start=0, num=limit)
        return [one.decode() for one in found]
