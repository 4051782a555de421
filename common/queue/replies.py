"""The ports of replies: workers push to a Redis list for each gateway, the gateway receives."""

import asyncio
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import redis
import redis.asyncio

from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.queue.messages import BatchReply
from clipfleet.common.queue.packed import pack
from clipfleet.common.queue.pixels import unpack
from clipfleet.common.redis.client import (
    RedisUnavailable,
    forget_connections,
    redis_time,
    translating_redis_errors,
)

KEEP_S = 60  # after which a list of replies that no gateway reads expires
CLOCK_S = 10.0  # after which a worker reads Redis' clock again; each time costs 0.5 ms
RECEIVE_S = 2  # for which `receive` waits
PIXELS = "clipfleet:pixels:"


class Replies(Protocol):
    """The side of the workers. Every call raises Unavailable when Redis is away."""

    def push(
        self,
        reply_to: str,
        reply: BatchReply,
        limits: Sequence[int] | None = None,
        reply_bytes: int = 0,
    ) -> None:
        """Send a reply to a gateway. The list expires KEEP_S seconds after its last reply.

        Args:
            reply_to: the list of the gateway, from `QueryBatch.reply_to`.
            reply: the reply.
            limits: for a gateway that reads packed replies, see `packed.pack`; None for others.
            reply_bytes: see `packed.pack`.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def now(self) -> float:
        """Read the clock of the deadlines: the clocks of hosts differ.

        Returns:
            Unix seconds.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def pixels(self, key: str) -> Pixels | None:
        """Read a query image that a gateway has stashed. It can be read more than once.

        Args:
            key: the key with which the gateway has stashed it.

        Returns:
            uint8 [height, width, 3]; None when it has expired.

        Raises:
            ValueError: the image has a format of another version.
            Unavailable: Redis is away.
        """
        ...


class Inbox(Protocol):
    """The side of the gateway. Every call raises Unavailable when Redis is away."""

    def stash(self, key: str, packed: bytes, seconds: float) -> None:
        """Keep a query image for the workers.

        Args:
            key: the key with which workers ask for it.
            packed: the image, from `pixels.pack`.
            seconds: the time after which it expires.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    async def receive(self, reply_to: str) -> bytes | None:
        """Take the next reply from a list. Waits for RECEIVE_S seconds at most.

        Args:
            reply_to: the list, from `QueryBatch.reply_to`.

        Returns:
            The reply as a worker has pushed it, for `packed.read_reply`; None when none came.

        Raises:
            Unavailable: Redis is away.
        """
        ...


def _written(reply: BatchReply, limits: Sequence[int] | None, reply_bytes: int) -> bytes:
    if limits is None:
        return reply.model_dump_json().encode()
    return pack(reply, limits, reply_bytes)


class RedisReplies:
    """The side of the workers, in Redis."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._ahead, self._read_at = 0.0, -math.inf  # of Redis' clock to time.monotonic, seconds

    def push(
        self,
        reply_to: str,
        reply: BatchReply,
        limits: Sequence[int] | None = None,
        reply_bytes: int = 0,
    ) -> None:
        raw = _written(reply, limits, reply_bytes)
        with translating_redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.rpush(reply_to, raw)
            pipe.expire(reply_to, KEEP_S)
            pipe.execute()

    def now(self) -> float:
        now = time.monotonic()
        if now - self._read_at > CLOCK_S:
            self._ahead, self._read_at = redis_time(self._redis) - now, now
        return now + self._ahead

    def pixels(self, key: str) -> Pixels | None:
        with translating_redis_errors():
            raw: Any = self._redis.get(PIXELS + key)
        return unpack(raw) if raw else None


class RedisInbox:
    """The side of the gateway, in Redis.

    Args:
        client: for `stash`.
        receiver: for `receive`; its timeout must be longer than RECEIVE_S.
    """

    def __init__(self, client: "redis.Redis", receiver: "redis.asyncio.Redis") -> None:
        self._redis, self._receiver = client, receiver

    def stash(self, key: str, packed: bytes, seconds: float) -> None:
        with translating_redis_errors():
            self._redis.set(PIXELS + key, packed, px=int(1000 * seconds))

    async def receive(self, reply_to: str) -> bytes | None:
        try:
            with translating_redis_errors():
                row: Any = await self._receiver.blpop([reply_to], timeout=RECEIVE_S)
        except RedisUnavailable:
            await forget_connections(self._receiver)
            raise
        except (redis.RedisError, OSError) as error:
            raise RedisUnavailable(str(error)) from error
        return row[1] if row else None


class MemoryReplies:
    """Both sides in memory, for tests: workers push on threads, a gateway receives on its loop."""

    def __init__(self) -> None:
        self.pushed: list[BatchReply] = []
        self.images: dict[str, Pixels] = {}
        self._lock = threading.Lock()
        self._lists: dict[str, deque[bytes]] = defaultdict(deque)
        self._arrivals: dict[str, Future[None]] = {}

    def push(
        self,
        reply_to: str,
        reply: BatchReply,
        limits: Sequence[int] | None = None,
        reply_bytes: int = 0,
    ) -> None:
        raw = _written(reply, limits, reply_bytes)
        with self._lock:
            self.pushed.append(reply)
            self._lists[reply_to].append(raw)
            arrival = self._arrivals.pop(reply_to, None)
        if arrival and arrival.set_running_or_notify_cancel():
            arrival.set_result(None)

    def now(self) -> float:
        return time.time()

    def pixels(self, key: str) -> Pixels | None:
        return self.images.get(key)

    def stash(self, key: str, packed: bytes, seconds: float) -> None:  # noqa: ARG002
        """Keep a query image. It never expires."""
        self.images[key] = unpack(packed)

    async def receive(self, reply_to: str) -> bytes | None:
        with self._lock:
            waiting = self._lists[reply_to]
            if waiting:
                return waiting.popleft()
            arrival = self._arrivals[reply_to] = Future[None]()
        try:
            async with asyncio.timeout(RECEIVE_S):  # wait_for of Python 3.11 can lose a cancel
                await asyncio.wrap_future(arrival)
        except TimeoutError:
            return None
        with self._lock:
            return waiting.popleft()
