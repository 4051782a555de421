"""Which generation a collection's name stands for. Kept in Redis, beside the ledger."""

import threading
import time
from typing import Protocol

import redis

from clipfleet.common.collection import Collection
from clipfleet.common.connection import answering, redis_time
from clipfleet.common.errors import NotFound
from clipfleet.common.versions import leaving_out, read

KEY = "clipfleet:collections"
WRITTEN = "clipfleet:written"


class Catalogue(Protocol):
    def add(self, collection: Collection) -> Collection:
        """Take the name, unless it is taken. The generation that holds it, either way."""
        ...

    def find(self, name: str) -> Collection | None: ...

    def all(self) -> list[Collection]: ...

    def remove(self, collection: Collection) -> bool:
        """Free the name if it still stands for this generation."""
        ...

    def wrote(self, collection: Collection) -> None:
        """Note that a write to the collection was just acknowledged."""
        ...

    def last_write(self, collection: Collection) -> float:
        """Seconds since the last noted write; infinity when there is none."""
        ...


def require(catalogue: Catalogue, name: str) -> Collection:
    found = catalogue.find(name)
    if found is None:
        raise unknown_collection(name)
    return found


def unknown_collection(name: str) -> NotFound:
    return NotFound(
        f"there is no collection {name[:80]!r}; PUT /v1/collections/NAME makes one",
        collection=name[:80],
    )


class MemoryCatalogue:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, Collection] = {}
        self._written: dict[str, float] = {}

    def add(self, collection: Collection) -> Collection:
        with self._lock:
            return self._names.setdefault(collection.name, collection)

    def find(self, name: str) -> Collection | None:
        return self._names.get(name)

    def all(self) -> list[Collection]:
        return sorted(self._names.values(), key=lambda one: one.name)

    def remove(self, collection: Collection) -> bool:
        with self._lock:
            if self._names.get(collection.name) != collection:
                return False
            del self._names[collection.name]
            return True

    def wrote(self, collection: Collection) -> None:
        self._written[collection.generation] = time.time()

    def last_write(self, collection: Collection) -> float:
        return time.time() - self._written.get(collection.generation, float("-inf"))


# By its generation: another release may write the rest of the record a little differently.
_REMOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw or cjson.decode(raw).generation ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[2])
return redis.call('HDEL', KEYS[1], ARGV[1])
"""


class RedisCatalogue:
    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._remove = client.register_script(_REMOVE)

    def add(self, collection: Collection) -> Collection:
        with answering():
            self._redis.hsetnx(KEY, collection.name, collection.model_dump_json())
        return self.find(collection.name) or collection

    def find(self, name: str) -> Collection | None:
        with answering():
            raw = self._redis.hget(KEY, name)
        return read(Collection, raw, "collection") if raw else None

    def all(self) -> list[Collection]:
        with answering():
            rows = self._redis.hvals(KEY)
        found = []
        for raw in rows:
            with leaving_out():
                found.append(read(Collection, raw, "collection"))
        return sorted(found, key=lambda one: one.name)

    def remove(self, collection: Collection) -> bool:
        names = [collection.name, collection.generation]
        with answering():
            return bool(self._remove(keys=[KEY, WRITTEN], args=names))

    def wrote(self, collection: Collection) -> None:
        with answering():
            now = redis_time(self._redis)
            self._redis.hset(WRITTEN, collection.generation, str(now))

    def last_write(self, collection: Collection) -> float:
        pipe = self._redis.pipeline(transaction=False)  # one way there and back: every search asks
        pipe.hget(WRITTEN, collection.generation)
        pipe.time()
        with answering():
            raw, (seconds, micros) = pipe.execute()
        return float(seconds) + micros / 1e6 - float(raw) if raw else float("inf")
