"""Rate limits of API keys: a token bucket in Redis for each key, shared by all gateways.

A bucket holds the requests of one minute and fills evenly within a minute. One script makes one
round trip. The counters of rate-limiting libraries make two, and allow twice as many requests where
two windows meet.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import redis

from clipfleet.common.redis.client import translating_redis_errors

SCRIPT = (Path(__file__).parent / "rate_limit.lua").read_text()
ROOT = "clipfleet:rate:"


@dataclass(frozen=True)
class RateLimit:
    """The state of a bucket after a request. The names are those of the RateLimit headers.

    Attributes:
        allowed: whether this request is within the limit.
        limit: requests per minute.
        remaining: requests that remain.
        retry_after_s: seconds until one request remains, rounded up.
        reset_after_s: seconds until all requests remain, rounded up.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: int
    reset_after_s: int

    def headers(self) -> list[tuple[str, str]]:
        """The headers of draft-ietf-httpapi-ratelimit-headers, and Retry-After after a refusal."""
        wait = [] if self.allowed else [("Retry-After", str(max(1, self.retry_after_s)))]
        return [
            ("RateLimit-Policy", f'"key";q={self.limit};w=60'),
            ("RateLimit", f'"key";r={self.remaining};t={self.reset_after_s}'),
            *wait,
        ]


class RateLimiter(Protocol):
    """The port of rate limits."""

    def take(self, who: str, limit: int) -> RateLimit:
        """Take one request from a bucket. A refused request takes nothing.

        Args:
            who: the name of the bucket. A name that was not used before begins with a full bucket.
            limit: requests per minute, which is also the size of the bucket.

        Returns:
            Whether the request is allowed, and the state of the bucket after it.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryRateLimiter:
    """Rate limits in the memory of one process, for tests.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # requests that remained, and when

    def take(self, who: str, limit: int) -> RateLimit:
        now, a_second = self._clock(), limit / 60
        with self._lock:
            remaining, at = self._buckets.get(who, (float(limit), now))
            remaining = min(float(limit), remaining + max(0.0, now - at) * a_second)
            allowed = remaining >= 1
            remaining -= allowed
            self._buckets[who] = (remaining, now)
        next_s, reset_after_s = max(0.0, 1 - remaining) / a_second, (limit - remaining) / a_second
        return RateLimit(
            allowed, limit, int(remaining), math.ceil(next_s), math.ceil(reset_after_s)
        )


class RedisRateLimiter:
    """Rate limits in Redis.

    Args:
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
    """

    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._script = client.register_script(SCRIPT)
        self._clock = clock

    def take(self, who: str, limit: int) -> RateLimit:
        clock = "" if self._clock is None else f"{self._clock():.6f}"
        with translating_redis_errors():
            taken, remaining, next_s, reset_after_s = self._script(
                keys=[ROOT + who], args=[limit, clock]
            )
        allowed = bool(taken)
        return RateLimit(
            allowed,
            limit,
            int(remaining),
            math.ceil(float(next_s)),
            math.ceil(float(reset_after_s)),
        )
