"""The catalogue port: the collections by name, and the generation that each name stands for."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis
from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.store import Record
from clipfleet.common.store.filters import matches, parse_filter
from clipfleet.common.versions import parse_versioned, skipping_unknown_versions

KEY = "clipfleet:collections"
WRITTEN = "clipfleet:written"
TO_DROP = "clipfleet:collections:to-drop"  # a hash, by generation
DELETED = "clipfleet:deleted:"  # the prefix of a stream for each generation
KEEP_DELETIONS_S = 3_600  # longer than a worker works on a chunk


class Deletion(BaseModel):
    """A request to delete one image, some images, or those of a namespace that pass a filter.

    Attributes:
        namespace: the namespace of the images; "" with `pks`, so that an older release, which
            does not know them, does not take the deletion for one of a whole namespace.
        pk: the primary key of the image; "" for all images that pass the filter.
        filter: the filter of the request; {} for all images.
        pks: primary keys; empty: those of `pk` or `filter`.
    """

    model_config = ConfigDict(frozen=True)

    namespace: str
    pk: str = ""
    filter: dict[str, Any] = {}
    pks: tuple[str, ...] = ()

    @classmethod
    def of(cls, pks: Sequence[str]) -> "Deletion":
        """The deletion of some images by their primary keys."""
        return cls(namespace="", pks=tuple(pks))

    def covering(self, collection: Collection) -> Callable[[Record], bool]:
        """A function that says whether this deletes a record of the collection."""
        where = parse_filter(self.filter, collection.fields, for_store=False)
        if self.pks:
            keys = frozenset(self.pks)
            return lambda record: record.pk in keys

        def covers(record: Record) -> bool:
            if record.namespace != self.namespace:
                return False
            if self.pk:
                return record.pk == self.pk
            return where is None or matches(where, record.values())

        return covers


class Catalogue(Protocol):
    """The port of the catalogue: names, generations to drop, the last writes, recent deletions.

    Implementations: `RedisCatalogue` for a service, `MemoryCatalogue` for tests. Every call raises
    Unavailable when Redis is away.
    """

    def add(self, collection: Collection) -> Collection:
        """Register a collection under its name, unless the name is taken.

        Args:
            collection: the collection, with a generation that was not used before.

        Returns:
            The generation that has the name then: this one, or the one that had it before.

        Raises:
            OtherVersion: the name is taken, and another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def find(self, name: str) -> Collection | None:
        """Look up a collection by its name.

        Args:
            name: the name.

        Returns:
            The generation that has the name; None when there is none.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def all(self) -> list[Collection]:
        """List all collections.

        Returns:
            The collections, sorted by name. Records of another version are left out.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def remove(self, collection: Collection) -> bool:
        """Free the name and add the generation to those to drop, in one step.

        Args:
            collection: the generation to remove.

        Returns:
            False, without a change, when the name stands for another generation or for none.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def to_drop(self) -> list[Collection]:
        """List generations without a name, whose data may still exist.

        Returns:
            The generations that were removed and not yet recorded as dropped. Records of another
            version
            are left out.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def record_dropped(self, collection: Collection) -> None:
        """Record that all data of a generation is deleted, in the store and in the blob store.

        Args:
            collection: the generation. One that is not to be dropped is no error.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def record_write(self, collection: Collection) -> None:
        """Record that the store has just acknowledged a write to the collection.

        Searches then see the write: `seconds_since_write` says whether a search must be fresh.

        Args:
            collection: the collection.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def seconds_since_write(self, collection: Collection) -> float:
        """Measure the time since the last recorded write.

        Args:
            collection: the collection.

        Returns:
            Seconds; infinity when no write is recorded.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def record_deletion(self, collection: Collection, deletion: Deletion) -> None:
        """Record a deletion for KEEP_DELETIONS_S seconds.

        Call it before the store deletes: a worker that is storing such an image must see it.

        Args:
            collection: the collection.
            deletion: what is deleted.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        """List the recorded deletions of a collection.

        Args:
            collection: the collection.
            since: unix seconds by the ledger's clock; earlier deletions are left out.

        Returns:
            The deletions, the oldest first.

        Raises:
            Unavailable: Redis is away.
        """
        ...


def require(catalogue: Catalogue, name: str) -> Collection:
    """The collection with this name.

    Raises:
        NotFound: there is none.
    """
    collection = catalogue.find(name)
    if collection is None:
        raise unknown_collection(name)
    return collection


def unknown_collection(name: str) -> NotFound:
    """The error for a name without a collection."""
    return NotFound(
        f"there is no collection {name[:80]!r}; create it with PUT /v1/collections/NAME",
        collection=name[:80],
    )


class MemoryCatalogue:
    """A catalogue in the memory of one process, for tests.

    Args:
        clock: returns the time of deletions in unix seconds; use that of the ledger.
    """

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
        return sorted(self._names.values(), key=lambda collection: collection.name)

    def remove(self, collection: Collection) -> bool:
        with self._lock:
            if self._names.get(collection.name) != collection:
                return False
            del self._names[collection.name]
            self._to_drop[collection.generation] = collection
            return True

    def to_drop(self) -> list[Collection]:
        return list(self._to_drop.values())

    def record_dropped(self, collection: Collection) -> None:
        self._to_drop.pop(collection.generation, None)

    def record_write(self, collection: Collection) -> None:
        self._written[collection.generation] = time.time()

    def seconds_since_write(self, collection: Collection) -> float:
        return time.time() - self._written.get(collection.generation, float("-inf"))

    def record_deletion(self, collection: Collection, deletion: Deletion) -> None:
        self._deleted.append((collection.generation, self._clock(), deletion))

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        return [
            deletion
            for generation, at, deletion in list(self._deleted)
            if generation == collection.generation and at >= since
        ]


# Compares the generation only: another release may write the rest of the record differently.
_REMOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw or cjson.decode(raw).generation ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3])
redis.call('HSET', KEYS[4], ARGV[2], raw)
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# A stream: its ids are milliseconds by Redis' clock, which also gives the times of claims.
_RECORD_DELETION = """
local time = redis.call('TIME')
local oldest = (time[1] - ARGV[2]) * 1000
redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', 'deletion', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class RedisCatalogue:
    """The catalogue in Redis: a hash of collections by name, and keys for each generation."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._remove = client.register_script(_REMOVE)
        self._record_deletion = client.register_script(_RECORD_DELETION)

    def add(self, collection: Collection) -> Collection:
        with translating_redis_errors():
            self._redis.hsetnx(KEY, collection.name, collection.model_dump_json())
        return self.find(collection.name) or collection

    def find(self, name: str) -> Collection | None:
        with translating_redis_errors():
            raw = self._redis.hget(KEY, name)
        return parse_versioned(Collection, raw, "collection") if raw else None

    def all(self) -> list[Collection]:
        return self._records(KEY)

    def _records(self, key: str) -> list[Collection]:
        with translating_redis_errors():
            rows = self._redis.hvals(key)
        collections = []
        for raw in rows:
            with skipping_unknown_versions():
                collections.append(parse_versioned(Collection, raw, "collection"))
        return sorted(collections, key=lambda collection: collection.name)

    def remove(self, collection: Collection) -> bool:
        names = [collection.name, collection.generation]
        keys = [KEY, WRITTEN, _deleted(collection), TO_DROP]
        with translating_redis_errors():
            return bool(self._remove(keys=keys, args=names))

    def to_drop(self) -> list[Collection]:
        return self._records(TO_DROP)

    def record_dropped(self, collection: Collection) -> None:
        with translating_redis_errors():
            self._redis.hdel(TO_DROP, collection.generation)

    def record_write(self, collection: Collection) -> None:
        with translating_redis_errors():
            now = redis_time(self._redis)
            self._redis.hset(WRITTEN, collection.generation, str(now))

    def seconds_since_write(self, collection: Collection) -> float:
        pipe = self._redis.pipeline(transaction=False)  # one round trip: every search calls this
        pipe.hget(WRITTEN, collection.generation)
        pipe.time()
        with translating_redis_errors():
            raw, (seconds, micros) = pipe.execute()
        return float(seconds) + micros / 1e6 - float(raw) if raw else float("inf")

    def record_deletion(self, collection: Collection, deletion: Deletion) -> None:
        raw = deletion.model_dump_json()
        with translating_redis_errors():
            self._record_deletion(keys=[_deleted(collection)], args=[raw, KEEP_DELETIONS_S])

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        with translating_redis_errors():
            first = str(math.floor(since * 1000))
            rows: Any = self._redis.xrange(_deleted(collection), min=first)
        return [Deletion.model_validate_json(fields[b"deletion"]) for _, fields in rows]


def _deleted(collection: Collection) -> str:
    return DELETED + collection.generation
