"""The images that a migration cannot copy, because their files cannot be read any more."""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import redis
from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.ledger.migrations import Migration
from clipfleet.common.redis.client import translating_redis_errors

ROOT = "clipfleet:unreadable:"
KEEP_S = 30 * 86_400  # after the last image was added
MAX_LISTED = 100_000  # images of one migration: 30 MB in Redis. Further ones count as missing


class Lost(BaseModel):
    """An image that cannot be copied.

    Attributes:
        pk: its primary key.
        id: its id.
        namespace: its namespace.
        uri: where it came from.
        reason: why it cannot be read.
        indexed_at: when it was stored, unix time in milliseconds.
    """

    model_config = ConfigDict(frozen=True)

    pk: str
    id: str
    namespace: str
    uri: str
    reason: str
    indexed_at: int


def list_of(migration: Migration, target: Collection) -> str:
    """The name of the list of the images that cannot be copied to a generation."""
    return f"{migration.id}:{target.generation}"


class Unreadable(Protocol):
    """The port of the lists of images that cannot be copied, in the order of primary keys.

    Implementations: `RedisUnreadable` for a service, `MemoryUnreadable` for tests. Every call
    raises Unavailable when Redis is away.
    """

    def add(self, name: str, images: Sequence[Lost]) -> None:
        """Add images to a list, or replace those with the same primary key.

        A list has MAX_LISTED images at most.

        Args:
            name: the list, see `list_of`.
            images: the images.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def known(self, name: str, keys: Sequence[str]) -> Mapping[str, int]:
        """Look up which images a list has.

        Args:
            name: the list.
            keys: primary keys.

        Returns:
            When each image that is in the list was stored, unix time in milliseconds.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def page(self, name: str, after: str, limit: int) -> list[Lost]:
        """Read the next images of a list.

        Args:
            name: the list.
            after: the primary key of the last image before; "": from the beginning.
            limit: the number of images at most.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def count(self, name: str) -> int:
        """Count the images in a list.

        Args:
            name: the list.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def forget(self, name: str, keys: Sequence[str] | None = None) -> None:
        """Remove images from a list.

        Args:
            name: the list.
            keys: their primary keys; None: all of them.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryUnreadable:
    """The lists in the memory of one process, for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: dict[str, dict[str, Lost]] = {}

    def add(self, name: str, images: Sequence[Lost]) -> None:
        with self._lock:
            listed = self._lists.setdefault(name, {})
            for image in images:
                if image.pk in listed or len(listed) < MAX_LISTED:
                    listed[image.pk] = image

    def known(self, name: str, keys: Sequence[str]) -> Mapping[str, int]:
        listed = self._lists.get(name, {})
        return {pk: listed[pk].indexed_at for pk in keys if pk in listed}

    def page(self, name: str, after: str, limit: int) -> list[Lost]:
        with self._lock:
            listed = self._lists.get(name, {})
            return [listed[pk] for pk in sorted(listed) if pk > after][:limit]

    def count(self, name: str) -> int:
        return len(self._lists.get(name, {}))

    def forget(self, name: str, keys: Sequence[str] | None = None) -> None:
        with self._lock:
            if keys is None:
                self._lists.pop(name, None)
                return
            for pk in keys:
                self._lists.get(name, {}).pop(pk, None)


# A hash of the images, and their keys as a sorted set, so that pages have an order.
_ADD = """
for i = 3, #ARGV, 2 do
  if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[1])
     or redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[2], 0, ARGV[i])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
"""


class RedisUnreadable:
    """The lists in Redis.

    Args:
        client: see `make_redis`.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._add = client.register_script(_ADD)

    def add(self, name: str, images: Sequence[Lost]) -> None:
        if not images:
            return
        values = [text for image in images for text in (image.pk, image.model_dump_json())]
        with translating_redis_errors():
            self._add(keys=_keys(name), args=[MAX_LISTED, KEEP_S, *values])

    def known(self, name: str, keys: Sequence[str]) -> Mapping[str, int]:
        return {image.pk: image.indexed_at for image in self._images(name, keys)}

    def page(self, name: str, after: str, limit: int) -> list[Lost]:
        first = f"({after}" if after else "-"
        with translating_redis_errors():
            keys = self._redis.zrangebylex(_keys(name)[1], first, "+", start=0, num=limit)
        return self._images(name, [_text(key) for key in keys])

    def _images(self, name: str, keys: Sequence[str]) -> list[Lost]:
        if not keys:
            return []
        with translating_redis_errors():
            rows = self._redis.hmget(_keys(name)[0], list(keys))
        return [Lost.model_validate_json(row) for row in rows if row]

    def count(self, name: str) -> int:
        with translating_redis_errors():
            return int(self._redis.hlen(_keys(name)[0]))

    def forget(self, name: str, keys: Sequence[str] | None = None) -> None:
        images, order = _keys(name)
        with translating_redis_errors():
            if keys is None:
                self._redis.unlink(images, order)
            elif keys:
                self._redis.hdel(images, *keys)
                self._redis.zrem(order, *keys)


def _keys(name: str) -> list[str]:
    return [f"{ROOT}{name}", f"{ROOT}{name}:order"]


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
