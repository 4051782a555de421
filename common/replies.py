"""How answers come back: a list per gateway in Redis, read by one loop, nothing lost between."""

import time
from typing import Any, Protocol

import redis

from clipfleet.common.connection import answering, redis_time
from clipfleet.common.messages import BatchReply
from clipfleet.common.pixels import unpack
from clipfleet.common.preprocess import Pixels

KEEP_S = 60
PIXELS = "clipfleet:pixels:"


class Replies(Protocol):
    def push(self, reply_to: str, reply: BatchReply) -> None: ...

    def now(self) -> float:
        """Unix seconds by the clock that deadlines are set by: hosts' own clocks differ."""
        ...

    def pixels(self, key: str) -> Pixels | None:
        """A query image that a gateway left there; None when it has expired."""
        ...


class RedisReplies:
    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def push(self, reply_to: str, reply: BatchReply) -> None:
        with answering():
            pipe = self._redis.pipeline()
            pipe.rpush(reply_to, reply.model_dump_json())
            pipe.expire(reply_to, KEEP_S)
            pipe.execute()

    def now(self) -> float:
        return redis_time(self._redis)

    def pixels(self, key: str) -> Pixels | None:
        with answering():
            raw: Any = self._redis.get(PIXELS + key)
        return unpack(raw) if raw else None


class MemoryReplies:
    def __init__(self) -> None:
        self.pushed: list[BatchReply] = []
        self.images: dict[str, Pixels] = {}

    def push(self, reply_to: str, reply: BatchReply) -> None:  # noqa: ARG002
        self.pushed.append(reply)

    def now(self) -> float:
        return time.time()

    def pixels(self, key: str) -> Pixels | None:
        return self.images.get(key)
