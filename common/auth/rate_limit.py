"""How often a key may ask: a token bucket in Redis, shared by all gateways.

A bucket holds a minute's requests: so many at once, then evenly so many a minute. One script, one
round trip: the counters of rate-limiting libraries take two, and let twice as many through where
one window meets the next.
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
    """What is left of a key's requests. The words are those of the RateLimit headers.

    Attributes:
        allowed: whether this request is within the limit.
        limit: requests a minute.
        remaining: requests that are left.
        retry_after_s: seconds until one request is left, rounded up.
        reset_after_s: seconds until all are left, rounded up.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after_s: int
    reset_after_s: int

    def headers(self) -> list[tuple[str, str]]:
        """As draft-ietf-httpapi-ratelimit-headers has them, and Retry-After where one must wait."""
        wait = [] if self.allowed else [("Retry-After", str(max(1, self.retry_after_s)))]
        return [
            ("RateLimit-Policy", f'"key";q={self.limit};w=60'),
            ("RateLimit", f'"key";r={self.remaining};t={self.reset_after_s}'),
            *wait,
        ]


class RateLimiter(Protocol):
    def take(self, who: str, most: int) -> RateLimit:
        """One request of the `most` that `who` has in a minute. Unavailable when Redis is away."""
        ...


class MemoryRateLimiter:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # what was left, and when

    def take(self, who: str, most: int) -> RateLimit:
        now, a_second = self._clock(), most / 60
        with self._lock:
            left, at = self._buckets.get(who, (float(most), now))
            left = min(float(most), left + max(0.0, now - at) * a_second)
            granted = left >= 1
            left -= granted
            self._buckets[who] = (left, now)
        next_s, reset_after_s = max(0.0, 1 - left) / a_second, (most - left) / a_second
        return RateLimit(granted, most, int(left), math.ceil(next_s), math.ceil(reset_after_s))


class RedisRateLimiter:
    """`clock`: unix seconds, for tests; left out, Redis' own clock decides."""

    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._script = client.register_script(SCRIPT)
        self._clock = clock

    def take(self, who: str, most: int) -> RateLimit:
        clock = "" if self._clock is None else f"{self._clock():.6f}"
        with translating_redis_errors():
            taken, left, next_s, reset_after_s = self._script(keys=[ROOT + who], args=[most, clock])
        granted = bool(taken)
        return RateLimit(
            granted, most, int(left), math.ceil(float(next_s)), math.ceil(float(reset_after_s))
        )
