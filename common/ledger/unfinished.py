"""The port of unfinished uploads: those that were begun and have not become a job.

An upload is recorded before its first byte is stored, so that the files of a gateway that was
killed can be found. The blob store is not searched for them: it may be a bucket with other data.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import redis

from clipfleet.common.redis.client import redis_time, translating_redis_errors

UNFINISHED = "clipfleet:uploads:unfinished"


class Unfinished(Protocol):
    """The unfinished uploads, by the id of the job that they shall become.

    Every call raises Unavailable when Redis is away.
    """

    def begin(self, job_id: str) -> None:
        """Record that an upload begins, with the current time.

        Args:
            job_id: the id of the job that it shall become.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def end(self, job_id: str) -> None:
        """Delete the record: the upload has become a job, or its files are deleted.

        Args:
            job_id: the id given to `begin`. An id without a record is no error.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def older(self, seconds: float, limit: int) -> list[str]:
        """List uploads that began at least `seconds` seconds ago and have no end.

        Args:
            seconds: the age of an upload at least.
            limit: the number of ids to return at most.

        Returns:
            The ids of their jobs, the oldest upload first.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryUnfinished:
    """Unfinished uploads in memory, for tests."""

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
    """Unfinished uploads in a sorted set of Redis.

    Args:
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
    """

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
            job_ids: Any = self._redis.zrangebyscore(UNFINISHED, "-inf", last, start=0, num=limit)
        return [job_id.decode() for job_id in job_ids]
