"""How answers come back: a list per gateway in Redis, read by one loop, nothing lost between."""

import asyncio
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

KEEP_S = 60
RECEIVE_S = 2
PIXELS = "clipfleet:pixels:"


class Replies(Protocol):
    """The workers' side."""

    def push(self, reply_to: str, reply: BatchReply, most: Sequence[int] | None = None) -> None:
        """Send it. `most`: bytes of each answer, for a gateway that reads packed replies."""
        ...

    def now(self) -> float:
        """Unix seconds by the clock that deadlines are set by: hosts' own clocks differ."""
        ...

    def pixels(self, key: str) -> Pixels | None:
        """A query image that a gateway left there; None when it has expired."""
        ...


class Inbox(Protocol):
    """The gateway's side."""

    def stash(self, key: str, packed: bytes, seconds: float) -> None:
        """Keep a packed query image for the workers; it expires by itself."""
        ...

    async def receive(self, reply_to: str) -> bytes | None:
        """The next reply in a list; None when none came within RECEIVE_S seconds."""
        ...


def _written(reply: BatchReply, most: Sequence[int] | None) -> bytes:
    return reply.model_dump_json().encode() if most is None else pack(reply, most)


class RedisReplies:
    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def push(self, reply_to: str, reply: BatchReply, most: Sequence[int] | None = None) -> None:
        raw = _written(reply, most)
        with translating_redis_errors():
            pipe = self._redis.pipeline()
            pipe.rpush(reply_to, raw)
            pipe.expire(reply_to, KEEP_S)
            pipe.execute()

    def now(self) -> float:
        return redis_time(self._redis)

    def pixels(self, key: str) -> Pixels | None:
        with translating_redis_errors():
            raw: Any = self._redis.get(PIXELS + key)
        return unpack(raw) if raw else None


class RedisInbox:
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
    """Both sides: workers push on any thread, a gateway receives on its event loop."""

    def __init__(self) -> None:
        self.pushed: list[BatchReply] = []
        self.images: dict[str, Pixels] = {}
        self._lock = threading.Lock()
        self._lists: dict[str, deque[bytes]] = defaultdict(deque)
        self._arrivals: dict[str, Future[None]] = {}

    def push(self, reply_to: str, reply: BatchReply, most: Sequence[int] | None = None) -> None:
        raw = _written(reply, most)
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
        """Nothing expires here."""
        self.images[key] = unpack(packed)

    async def receive(self, reply_to: str) -> bytes | None:
        with self._lock:
            waiting = self._lists[reply_to]
            if waiting:
                return waiting.popleft()
            arrival = self._arrivals[reply_to] = Future[None]()
        try:
            await asyncio.wait_for(asyncio.wrap_future(arrival), RECEIVE_S)
        except TimeoutError:
            return None
        with self._lock:
            return waiting.popleft()
