"""Which generation a collection's name stands for. Kept in Redis, beside the ledger."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import redis
from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.store import Record
from clipfleet.common.store.filters import matches, parse_filter
from clipfleet.common.versions import read, skipping_unknown_versions

KEY = "clipfleet:collections"
WRITTEN = "clipfleet:written"
TO_DROP = "clipfleet:collections:to-drop"  # by generation
DELETED = "clipfleet:deleted:"  # and the generation
KEEP_DELETIONS_S = 3_600  # longer than a worker has a chunk in hand


class Deletion(BaseModel):
    """What a caller asked to delete: one image, or those of a namespace that pass a filter.

    Attributes:
        pk: the primary key of the image; "" for all that pass the filter.
        filter: as the caller gave it; {} for all.
    """

    model_config = ConfigDict(frozen=True)

    namespace: str
    pk: str = ""
    filter: dict[str, Any] = {}

    def covering(self, collection: Collection) -> Callable[[Record], bool]:
        """Whether it deletes a record of this collection."""
        where = parse_filter(self.filter, collection.fields)

        def covers(record: Record) -> bool:
            if record.namespace != self.namespace:
                return False
            if self.pk:
                return record.pk == self.pk
            return where is None or matches(where, record.values())

        return covers


class Catalogue(Protocol):
    def add(self, collection: Collection) -> Collection:
        """Take the name, unless it is taken. The generation that holds it, either way."""
        ...

    def find(self, name: str) -> Collection | None: ...

    def all(self) -> list[Collection]: ...

    def remove(self, collection: Collection) -> bool:
        """Free the name if it still stands for this generation, and note that it is to be
        dropped, in one step."""
        ...

    def to_drop(self) -> list[Collection]:
        """Generations without a name of which something may still lie somewhere."""
        ...

    def dropped(self, collection: Collection) -> None:
        """Nothing of a generation lies anywhere any more."""
        ...

    def record_write(self, collection: Collection) -> None:
        """Note that a write to the collection was just acknowledged."""
        ...

    def seconds_since_write(self, collection: Collection) -> float:
        """Seconds since the last noted write; infinity when there is none."""
        ...

    def deletes(self, collection: Collection, deletion: Deletion) -> None:
        """Note a deletion, before the store carries it out: a worker may have such an image in
        hand. It is kept for KEEP_DELETIONS_S seconds."""
        ...

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        """Those noted at this unix time or later, by the ledger's clock; the oldest first."""
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
    """`clock`: unix seconds; the ledger's, where a test sets that."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._deleted: list[tuple[str, float, Deletion]] = []
        self._lock = threading.Lock()
        self._names: dict[str, Collection] = {}
        self._to_drop: dict[str, Collection] = {}
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
            self._to_drop[collection.generation] = collection
            return True

    def to_drop(self) -> list[Collection]:
        return list(self._to_drop.values())

    def dropped(self, collection: Collection) -> None:
        self._to_drop.pop(collection.generation, None)

    def record_write(self, collection: Collection) -> None:
        self._written[collection.generation] = time.time()

    def seconds_since_write(self, collection: Collection) -> float:
        return time.time() - self._written.get(collection.generation, float("-inf"))

    def deletes(self, collection: Collection, deletion: Deletion) -> None:
        self._deleted.append((collection.generation, self._clock(), deletion))

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        return [
            deletion
            for generation, at, deletion in list(self._deleted)
            if generation == collection.generation and at >= since
        ]


# By its generation: another release may write the rest of the record a little differently.
_REMOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw or cjson.decode(raw).generation ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3])
redis.call('HSET', KEYS[4], ARGV[2], raw)
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# A stream: its ids are the server's clock in milliseconds, as the times of claims are.
_DELETES = """
local time = redis.call('TIME')
local oldest = (time[1] - ARGV[2]) * 1000
redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', 'deletion', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class RedisCatalogue:
    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._remove = client.register_script(_REMOVE)
        self._deletes = client.register_script(_DELETES)

    def add(self, collection: Collection) -> Collection:
        with translating_redis_errors():
            self._redis.hsetnx(KEY, collection.name, collection.model_dump_json())
        return self.find(collection.name) or collection

    def find(self, name: str) -> Collection | None:
        with translating_redis_errors():
            raw = self._redis.hget(KEY, name)
        return read(Collection, raw, "collection") if raw else None

    def all(self) -> list[Collection]:
        return self._records(KEY)

    def _records(self, key: str) -> list[Collection]:
        with translating_redis_errors():
            rows = self._redis.hvals(key)
        found = []
        for raw in rows:
            with skipping_unknown_versions():
                found.append(read(Collection, raw, "collection"))
        return sorted(found, key=lambda one: one.name)

    def remove(self, collection: Collection) -> bool:
        names = [collection.name, collection.generation]
        keys = [KEY, WRITTEN, _deleted(collection), TO_DROP]
        with translating_redis_errors():
            return bool(self._remove(keys=keys, args=names))

    def to_drop(self) -> list[Collection]:
        return self._records(TO_DROP)

    def dropped(self, collection: Collection) -> None:
        with translating_redis_errors():
            self._redis.hdel(TO_DROP, collection.generation)

    def record_write(self, collection: Collection) -> None:
        with translating_redis_errors():
            now = redis_time(self._redis)
            self._redis.hset(WRITTEN, collection.generation, str(now))

    def seconds_since_write(self, collection: Collection) -> float:
        pipe = self._redis.pipeline(transaction=False)  # one way there and back: every search asks
        pipe.hget(WRITTEN, collection.generation)
        pipe.time()
        with translating_redis_errors():
            raw, (seconds, micros) = pipe.execute()
        return float(seconds) + micros / 1e6 - float(raw) if raw else float("inf")

    def deletes(self, collection: Collection, deletion: Deletion) -> None:
        raw = deletion.model_dump_json()
        with translating_redis_errors():
            self._deletes(keys=[_deleted(collection)], args=[raw, KEEP_DELETIONS_S])

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        with translating_redis_errors():
            first = str(math.floor(since * 1000))
            rows: Any = self._redis.xrange(_deleted(collection), min=first)
        return [Deletion.model_validate_json(fields[b"deletion"]) for _, fields in rows]


def _deleted(collection: Collection) -> str:
    return DELETED + collection.generation
