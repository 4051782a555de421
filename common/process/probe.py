"""The probe port: what a gateway's readiness check asks of Redis."""

import time
from typing import Protocol

import redis

from clipfleet.common.process.checks import Finding, check_redis
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.settings import Settings


class Probe(Protocol):
    """The server that all parts share. Every call raises Unavailable when it is away."""

    def now(self) -> float:
        """Read the clock that all parts share.

        Returns:
            Unix seconds. The clocks of hosts differ; this one decides about expiry and deadlines.

        Raises:
            Unavailable: the server is away.
        """
        ...

    def write(self) -> None:
        """Write one key that expires after a second.

        Raises:
            Unavailable: the server is away, or refuses writes, for example because its memory is
                full.
        """
        ...

    def findings(self) -> list[Finding]:
        """Check the server's version and configuration, as each part does when it starts.

        Returns:
            The problems; empty when there are none.

        Raises:
            Unavailable: the server is away.
        """
        ...


class MemoryProbe:
    """A probe of no server: the time is this machine's, and nothing is ever wrong."""

    def now(self) -> float:
        return time.time()

    def write(self) -> None:
        return None

    def findings(self) -> list[Finding]:
        return []


class RedisProbe:
    """A probe of Redis."""

    def __init__(self, client: "redis.Redis", settings: Settings) -> None:
        self._redis, self._settings = client, settings

    def now(self) -> float:
        return redis_time(self._redis)

    def write(self) -> None:
        with translating_redis_errors():
            self._redis.set("clipfleet:probe", 1, px=1000)

    def findings(self) -> list[Finding]:
        return check_redis(self._settings, self._redis)
