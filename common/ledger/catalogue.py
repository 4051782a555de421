"""The catalogue port: the collections by name, the generation that each name stands for, and the
aliases, which are further names of collections."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis
from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Alias, Collection, FieldType
from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.ledger.migrations import Migration
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.store import Record
from clipfleet.common.store.filters import matches, parse_filter
from clipfleet.common.versions import parse_versioned, skipping_unknown_versions

KEY = "clipfleet:collections"
WRITTEN = "clipfleet:written"
TO_DROP = "clipfleet:collections:to-drop"  # a hash, by generation
ALIASES = "clipfleet:aliases"  # a hash, by the name of the alias
MIGRATIONS = "clipfleet:migrations"  # a hash, by the name of the collection
DELETED = "clipfleet:deleted:"  # the prefix of a stream for each generation
KEEP_DELETIONS_S = 3_600  # longer than a worker works on a chunk
HELD = "clipfleet:held:"  # the prefix of a hash for each generation
HOLD_S = 30.0  # longer than the store may take for one read and one write


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
            Conflict: the name is that of an alias.
            OtherVersion: the name is taken, and another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def find(self, name: str) -> Collection | None:
        """Look up a collection by its name. Aliases are not followed.

        Args:
            name: the name.

        Returns:
            The generation that has the name; None when there is none.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def resolve(self, name: str) -> Collection | None:
        """Look up a collection by its name or by an alias, in one step.

        Args:
            name: the name, or the alias.

        Returns:
            The generation that has the name, or that the alias stands for; None when there is none.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def set_alias(self, alias: Alias) -> Alias | None:
        """Create an alias, or move it to another collection, in one step.

        Args:
            alias: the alias with the collection that it is to stand for.

        Returns:
            The alias as it was before; None when it is new.

        Raises:
            Conflict: a collection has the name of the alias, or the target is an alias.
            NotFound: the target does not exist.
            Unavailable: Redis is away.
        """
        ...

    def find_alias(self, name: str) -> Alias | None:
        """Look up an alias.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def aliases(self) -> list[Alias]:
        """List all aliases, sorted by name. Records of another version are left out.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def remove_alias(self, name: str) -> bool:
        """Remove an alias. False when there is none.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def declare(self, collection: Collection, field: str, kind: FieldType) -> Collection:
        """Declare a further field of a collection, which must be a list: it has no column.

        Args:
            collection: the generation.
            field: the name of the field. One that is declared with this type is no error.
            kind: "string[]" or "int[]".

        Returns:
            The collection with the field.

        Raises:
            Conflict: the field has another type, or a migration of the collection is not over.
            InvalidRequest: the name of the field is not allowed, or there are too many fields.
            NotFound: the name stands for another generation.
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

    def remove(self, collection: Collection, *, unless_aliased: bool = False) -> bool:
        """Free the name and add the generation to those to drop, in one step.

        A migration of the collection is over then, and its other generation is dropped as well.

        Args:
            collection: the generation to remove.
            unless_aliased: whether aliases of the name forbid it.

        Returns:
            False, without a change, when the name stands for another generation or for none.

        Raises:
            Conflict: the name has aliases, and `unless_aliased` is set.
            Unavailable: Redis is away.
        """
        ...

    def generation(self, name: str, generation: str) -> Collection | None:
        """Look up a generation that has the name, or that a migration of it builds or keeps.

        Args:
            name: the name.
            generation: the generation.

        Returns:
            The generation; None when it is neither.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def migration(self, name: str) -> Migration | None:
        """Look up the last migration of a collection, which may be over.

        Args:
            name: the name of the collection.

        Raises:
            OtherVersion: another release wrote its record.
            Unavailable: Redis is away.
        """
        ...

    def migrations(self) -> list[Migration]:
        """List the last migration of each collection, by name. Some of them may be over.

        Records of another version are left out.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def change_migration(self, before: Migration | None, after: Migration) -> bool:
        """Change a migration, the name of its collection, and what is dropped, in one step.

        The name stands for `after.current` then. `after.dropped` is added to those to drop.

        Args:
            before: the migration as the caller has seen it; None to begin one. A collection has one
                migration at a time.
            after: the migration as it is to be.

        Returns:
            False, without a change, when the record is not `before` any more, or when the name
            does not stand for one of the two generations.

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
        """Record a deletion for KEEP_DELETIONS_S seconds, for both generations of a migration.

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

    def hold(
        self, collection: Collection, keys: Sequence[str], holder: str, seconds: float
    ) -> set[str]:
        """Take rows in hand: whoever writes rows holds them, so that no two do it at once.

        A row that is read, changed and written back would otherwise undo what was written in
        between, or bring back what was deleted.

        Args:
            collection: the collection.
            keys: the primary keys of the rows, whether they exist or not.
            holder: names the writer, who may hold the same rows again.
            seconds: the time after which they are free in any case.

        Returns:
            The keys that others hold. The writer holds all others.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def release(self, collection: Collection, keys: Sequence[str], holder: str) -> None:
        """Let go of rows. Those that others hold stay as they are.

        Raises:
            Unavailable: Redis is away.
        """
        ...


def require(catalogue: Catalogue, name: str) -> Collection:
    """The collection with this name or alias.

    Raises:
        NotFound: there is none.
    """
    collection = catalogue.resolve(name)
    if collection is None:
        raise unknown_collection(name)
    return collection


def name_of_alias(name: str) -> Conflict:
    """The error for a new collection with the name of an alias."""
    return Conflict(
        f"{name!r} is an alias; choose another name, or delete the alias with "
        f"DELETE /v1/aliases/{name}",
        alias=name,
    )


def _name_of_collection(name: str) -> Conflict:
    return Conflict(
        f"there is a collection called {name!r}, so that no alias can have this name",
        collection=name,
    )


def _alias_of_alias(name: str) -> Conflict:
    return Conflict(
        f"{name!r} is an alias; an alias stands for a collection, not for another alias",
        alias=name,
    )


def _has_aliases(collection: Collection, names: Sequence[str]) -> Conflict:
    listed = ", ".join(sorted(names))
    return Conflict(
        f"{collection.name!r} has the alias {listed}; move or delete it first "
        f"(/v1/aliases/{sorted(names)[0]})",
        aliases=listed,
    )


def both_generations(catalogue: Catalogue, collection: Collection) -> list[Collection]:
    """The generation and, during a migration, its other one: what is deleted is deleted in both."""
    migration = catalogue.migration(collection.name)
    sibling = migration.sibling(collection.generation) if migration else None
    return [collection, sibling] if sibling else [collection]


def collection_names(catalogue: Catalogue) -> set[str]:
    """The names of all collections."""
    return {collection.name for collection in catalogue.all()}


def to_delete_from(catalogue: Catalogue, collection: Collection) -> list[Collection]:
    """The generations that images are deleted from, in this order.

    During a migration the first one comes again at the end: meanwhile, a job may have copied the
    image back from the other one. A job that copies it later sees that it is gone there.
    """
    generations = both_generations(catalogue, collection)
    return [*generations, collection] if len(generations) > 1 else generations


def hidden_generations(catalogue: Catalogue) -> list[Collection]:
    """The generations that migrations build or keep beside those that have the names."""
    return [run.other for run in catalogue.migrations() if not run.is_over]


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
        self._aliases: dict[str, Alias] = {}
        self._to_drop: dict[str, Collection] = {}
        self._written: dict[str, float] = {}
        self._migrations: dict[str, Migration] = {}
        self._held: dict[tuple[str, str], tuple[str, float]] = {}  # until when, by whom

    def add(self, collection: Collection) -> Collection:
        with self._lock:
            if collection.name in self._aliases:
                raise name_of_alias(collection.name)
            return self._names.setdefault(collection.name, collection)

    def find(self, name: str) -> Collection | None:
        return self._names.get(name)

    def resolve(self, name: str) -> Collection | None:
        with self._lock:
            alias = self._aliases.get(name)
            return self._names.get(alias.collection if alias else name)

    def set_alias(self, alias: Alias) -> Alias | None:
        with self._lock:
            if alias.name in self._names:
                raise _name_of_collection(alias.name)
            if alias.collection in self._aliases:
                raise _alias_of_alias(alias.collection)
            if alias.collection not in self._names:
                raise unknown_collection(alias.collection)
            before = self._aliases.get(alias.name)
            self._aliases[alias.name] = alias
            return before

    def find_alias(self, name: str) -> Alias | None:
        return self._aliases.get(name)

    def aliases(self) -> list[Alias]:
        with self._lock:
            return sorted(self._aliases.values(), key=lambda alias: alias.name)

    def remove_alias(self, name: str) -> bool:
        with self._lock:
            return self._aliases.pop(name, None) is not None

    def declare(self, collection: Collection, field: str, kind: FieldType) -> Collection:
        with self._lock:
            known = _to_declare(self, collection, field, kind)
            if known.fields.get(field) == kind:
                return known
            declared = known.declaring(field, kind)
            self._names[collection.name] = declared
            return declared

    def all(self) -> list[Collection]:
        return sorted(self._names.values(), key=lambda collection: collection.name)

    def remove(self, collection: Collection, *, unless_aliased: bool = False) -> bool:
        with self._lock:
            if self._names.get(collection.name) != collection:
                return False
            names = [
                alias.name
                for alias in self._aliases.values()
                if alias.collection == collection.name
            ]
            if names and unless_aliased:
                raise _has_aliases(collection, names)
            del self._names[collection.name]
            migration = self._migrations.pop(collection.name, None)
            if migration and (sibling := migration.sibling(collection.generation)):
                self._to_drop[sibling.generation] = sibling
            self._to_drop[collection.generation] = collection
            return True

    def generation(self, name: str, generation: str) -> Collection | None:
        with self._lock:
            return _generation(self._names.get(name), self._migrations.get(name), generation)

    def migration(self, name: str) -> Migration | None:
        return self._migrations.get(name)

    def migrations(self) -> list[Migration]:
        return [migration for _, migration in sorted(self._migrations.items())]

    def change_migration(self, before: Migration | None, after: Migration) -> bool:
        with self._lock:
            known, holder = self._migrations.get(after.name), self._names.get(after.name)
            if before is None:
                is_expected = known is None or known.is_over
            else:
                is_expected = known is not None and _seen(known) == _seen(before)
            if not is_expected or holder not in (after.old, after.new):
                return False
            self._migrations[after.name] = _next(before, after)
            self._names[after.name] = after.current
            if after.dropped:
                self._to_drop[after.dropped.generation] = after.dropped
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
        for generation in both_generations(self, collection):
            self._deleted.append((generation.generation, self._clock(), deletion))

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        return [
            deletion
            for generation, at, deletion in list(self._deleted)
            if generation == collection.generation and at >= since
        ]

    def hold(
        self, collection: Collection, keys: Sequence[str], holder: str, seconds: float
    ) -> set[str]:
        busy = set()
        with self._lock:
            for pk in keys:
                at = (collection.generation, pk)
                owner, until = self._held.get(at, ("", -math.inf))
                if owner != holder and until > self._clock():
                    busy.add(pk)
                else:
                    self._held[at] = (holder, self._clock() + seconds)
        return busy

    def release(self, collection: Collection, keys: Sequence[str], holder: str) -> None:
        with self._lock:
            for pk in keys:
                at = (collection.generation, pk)
                if self._held.get(at, ("",))[0] == holder:
                    del self._held[at]


_ADD = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

_RESOLVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if raw then return raw end
local alias = redis.call('HGET', KEYS[2], ARGV[1])
if not alias then return false end
return redis.call('HGET', KEYS[1], cjson.decode(alias).collection)
"""

# Only while nobody else has changed the record.
_DECLARE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

_SET_ALIAS = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return {'taken'} end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return {'alias'} end
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return {'missing'} end
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return {'set', before or ''}
"""

# Compares the generation only: another release may write the rest of the record differently.
_REMOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw or cjson.decode(raw).generation ~= ARGV[2] then return 0 end
if ARGV[3] == '1' then
  local aliases = {}
  for _, alias in ipairs(redis.call('HVALS', KEYS[5])) do
    local record = cjson.decode(alias)
    if record.collection == ARGV[1] then table.insert(aliases, record.name) end
  end
  if #aliases > 0 then return aliases end
end
local migration = redis.call('HGET', KEYS[6], ARGV[1])
local id = migration and cjson.decode(migration).id or ''
if id ~= ARGV[4] then return -1 end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[4], ARGV[5], ARGV[6]) end
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3])
redis.call('HSET', KEYS[4], ARGV[2], raw)
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# The name, what the migration must be and what it is then, the generation that gets the name and
# those that may have it, what is dropped.
_CHANGE_MIGRATION = """
local name, id, revision, after = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local raw = redis.call('HGET', KEYS[2], name)
if raw then
  local known = cjson.decode(raw)
  local over = known.state == 'finished' or known.state == 'cancelled' or known.state == 'failed'
  if id == '' then
    if not over then return 0 end
  elseif known.id ~= id or known.revision ~= tonumber(revision) then
    return 0
  end
elseif id ~= '' then
  return 0
end
local holder = redis.call('HGET', KEYS[1], name)
local generation = holder and cjson.decode(holder).generation
if generation ~= ARGV[5] and generation ~= ARGV[6] then return 0 end
redis.call('HSET', KEYS[2], name, after)
if generation ~= ARGV[7] then redis.call('HSET', KEYS[1], name, ARGV[8]) end
if ARGV[9] ~= '' then redis.call('HSET', KEYS[3], ARGV[9], ARGV[10]) end
return 1
"""

# A stream: its ids are milliseconds by Redis' clock, which also gives the times of claims.
_RECORD_DELETION = """
local time = redis.call('TIME')
local oldest = (time[1] - ARGV[2]) * 1000
redis.call('XADD', KEYS[1], 'MINID', '~', oldest, '*', 'deletion', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


# A field for each row in hand: who holds it, and until when in milliseconds of Redis' clock.
_HOLD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ = string.format('%.0f', now + ARGV[2])
local busy, mine = {}, {}
local held = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
for n, value in ipairs(held) do
  local ends, holder = string.match(value or '', '^(%d+) (.*)$')
  if holder and holder ~= ARGV[1] and tonumber(ends) > now then
    busy[#busy + 1] = ARGV[n + 2]
  else
    mine[#mine + 1] = ARGV[n + 2]
    mine[#mine + 1] = until_ .. ' ' .. ARGV[1]
  end
end
if #mine > 0 then
  redis.call('HSET', KEYS[1], unpack(mine))
  redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2])
end
return busy
"""

_RELEASE = """
local held = redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
for n, value in ipairs(held) do
  if value and string.match(value, '^%d+ (.*)$') == ARGV[1] then
    redis.call('HDEL', KEYS[1], ARGV[n + 1])
  end
end
"""
HELD_AT_ONCE = 1_000  # keys in one call: Lua takes some thousands of arguments


class RedisCatalogue:
    """The catalogue in Redis: a hash of collections by name, and keys for each generation."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._add = client.register_script(_ADD)
        self._resolve = client.register_script(_RESOLVE)
        self._declare = client.register_script(_DECLARE)
        self._set_alias = client.register_script(_SET_ALIAS)
        self._remove = client.register_script(_REMOVE)
        self._change_migration = client.register_script(_CHANGE_MIGRATION)
        self._record_deletion = client.register_script(_RECORD_DELETION)
        self._hold = client.register_script(_HOLD)
        self._release = client.register_script(_RELEASE)

    def add(self, collection: Collection) -> Collection:
        values = [collection.name, collection.model_dump_json()]
        with translating_redis_errors():
            is_free = self._add(keys=[KEY, ALIASES], args=values)
        if not is_free:
            raise name_of_alias(collection.name)
        return self.find(collection.name) or collection

    def find(self, name: str) -> Collection | None:
        with translating_redis_errors():
            raw = self._redis.hget(KEY, name)
        return parse_versioned(Collection, raw, "collection") if raw else None

    def resolve(self, name: str) -> Collection | None:
        with translating_redis_errors():
            raw: Any = self._resolve(keys=[KEY, ALIASES], args=[name])
        return parse_versioned(Collection, raw, "collection") if raw else None

    def set_alias(self, alias: Alias) -> Alias | None:
        values = [alias.name, alias.collection, alias.model_dump_json()]
        with translating_redis_errors():
            result, *before = self._set_alias(keys=[KEY, ALIASES], args=values)
        if result == b"taken":
            raise _name_of_collection(alias.name)
        if result == b"alias":
            raise _alias_of_alias(alias.collection)
        if result == b"missing":
            raise unknown_collection(alias.collection)
        return parse_versioned(Alias, before[0], "alias") if before[0] else None

    def find_alias(self, name: str) -> Alias | None:
        with translating_redis_errors():
            raw = self._redis.hget(ALIASES, name)
        return parse_versioned(Alias, raw, "alias") if raw else None

    def aliases(self) -> list[Alias]:
        with translating_redis_errors():
            rows = self._redis.hvals(ALIASES)
        aliases = []
        for raw in rows:
            with skipping_unknown_versions():
                aliases.append(parse_versioned(Alias, raw, "alias"))
        return sorted(aliases, key=lambda alias: alias.name)

    def remove_alias(self, name: str) -> bool:
        with translating_redis_errors():
            return bool(self._redis.hdel(ALIASES, name))

    def declare(self, collection: Collection, field: str, kind: FieldType) -> Collection:
        while True:
            with translating_redis_errors():
                raw: Any = self._redis.hget(KEY, collection.name)
            known = _to_declare(self, collection, field, kind)
            if known.fields.get(field) == kind:
                return known
            declared = known.declaring(field, kind)
            args = [collection.name, raw or b"", declared.model_dump_json()]
            with translating_redis_errors():
                if self._declare(keys=[KEY], args=args):
                    return declared

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

    def remove(self, collection: Collection, *, unless_aliased: bool = False) -> bool:
        keys = [KEY, WRITTEN, _deleted(collection), TO_DROP, ALIASES, MIGRATIONS]
        result: Any = -1
        while result == -1:  # a migration began or ended since
            migration = self.migration(collection.name)
            sibling = migration.sibling(collection.generation) if migration else None
            values = [collection.name, collection.generation, str(int(unless_aliased))]
            values += [migration.id if migration else "", *_entry(sibling)]
            with translating_redis_errors():
                result = self._remove(keys=keys, args=values)
        if isinstance(result, list):
            raise _has_aliases(collection, [name.decode() for name in result])
        return bool(result)

    def generation(self, name: str, generation: str) -> Collection | None:
        current = self.find(name)
        if current is not None and current.generation == generation:
            return current
        return _generation(current, self.migration(name), generation)

    def migration(self, name: str) -> Migration | None:
        with translating_redis_errors():
            raw = self._redis.hget(MIGRATIONS, name)
        return parse_versioned(Migration, raw, "migration") if raw else None

    def migrations(self) -> list[Migration]:
        with translating_redis_errors():
            rows = self._redis.hvals(MIGRATIONS)
        migrations = []
        for raw in rows:
            with skipping_unknown_versions():
                migrations.append(parse_versioned(Migration, raw, "migration"))
        return sorted(migrations, key=lambda migration: migration.name)

    def change_migration(self, before: Migration | None, after: Migration) -> bool:
        after = _next(before, after)
        seen = (before.id, str(before.revision)) if before else ("", "")
        either = (after.old.generation, after.new.generation)
        values = [after.name, *seen, after.model_dump_json(), *either]
        values += [*_entry(after.current), *_entry(after.dropped)]
        with translating_redis_errors():
            changed: Any = self._change_migration(keys=[KEY, MIGRATIONS, TO_DROP], args=values)
        return bool(changed)

    def to_drop(self) -> list[Collection]:
        return self._records(TO_DROP)

    def record_dropped(self, collection: Collection) -> None:
        with translating_redis_errors():
            self._redis.hdel(WRITTEN, collection.generation)
            self._redis.unlink(_deleted(collection))
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
        for generation in both_generations(self, collection):
            with translating_redis_errors():
                self._record_deletion(keys=[_deleted(generation)], args=[raw, KEEP_DELETIONS_S])

    def deletions(self, collection: Collection, since: float) -> list[Deletion]:
        with translating_redis_errors():
            first = str(math.floor(since * 1000))
            rows: Any = self._redis.xrange(_deleted(collection), min=first)
        return [Deletion.model_validate_json(fields[b"deletion"]) for _, fields in rows]

    def hold(
        self, collection: Collection, keys: Sequence[str], holder: str, seconds: float
    ) -> set[str]:
        busy: set[str] = set()
        for start in range(0, len(keys), HELD_AT_ONCE):
            some = keys[start : start + HELD_AT_ONCE]
            args: list[str | int] = [holder, round(seconds * 1000), *some]
            with translating_redis_errors():
                busy |= {pk.decode() for pk in self._hold(keys=[_held(collection)], args=args)}
        return busy

    def release(self, collection: Collection, keys: Sequence[str], holder: str) -> None:
        for start in range(0, len(keys), HELD_AT_ONCE):
            args = [holder, *keys[start : start + HELD_AT_ONCE]]
            with translating_redis_errors():
                self._release(keys=[_held(collection)], args=args)


def _to_declare(
    catalogue: Catalogue, collection: Collection, field: str, kind: FieldType
) -> Collection:
    """The collection as it is now, unless it may not get a field."""
    known = catalogue.find(collection.name)
    if known is None or known.generation != collection.generation:
        raise unknown_collection(collection.name)
    migration = catalogue.migration(collection.name)
    if known.fields.get(field) != kind and migration is not None and not migration.is_over:
        raise Conflict(
            f"collection {known.name!r} is being migrated, and declares no field {field!r}; finish "
            "or cancel the migration first"
        )
    return known


def _held(collection: Collection) -> str:
    return HELD + collection.generation


def _deleted(collection: Collection) -> str:
    return DELETED + collection.generation


def _generation(
    current: Collection | None, migration: Migration | None, generation: str
) -> Collection | None:
    if current is None:
        return None
    if current.generation == generation:
        return current
    return migration.generation(generation) if migration else None


def _seen(migration: Migration) -> tuple[str, int]:
    return migration.id, migration.revision


def _next(before: Migration | None, after: Migration) -> Migration:
    return after.model_copy(update={"revision": before.revision + 1 if before else 0})


def _entry(collection: Collection | None) -> tuple[str, str]:
    """A field and a value of a hash by generation; two empty texts for none."""
    return (collection.generation, collection.model_dump_json()) if collection else ("", "")
