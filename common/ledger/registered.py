"""The registry port: sources that are registered with a collection, and what waits to be run.

A record is changed by comparison: `save` takes the record that the caller has read, and fails when
another process has changed it meanwhile. So any number of schedulers may work at the same time.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import redis
from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.http.registered import Cause
from clipfleet.common.http.schemas import JobState
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.versions import parse_versioned, skipping_unknown_versions

SCRIPT = (Path(__file__).parent / "registered.lua").read_text()
ROOT = "clipfleet:sources:"
MAX_LOOK_S = 60.0  # every source is looked at within this time
COLLECT_S = 2.0  # events are collected for this long
COLLECT_KEYS = 1_000  # or until so many keys have arrived
PAGE = 1_000  # keys in one call of the script
MISSING, FULL = -1, -2  # answers of the script

Keys = Literal["keep", "take", "drop", "restore"]
"""What `Registry.save` does with keys of events: `take` moves waiting keys to those that a run has
taken, `restore` moves those back, `drop` deletes them."""


class Run(BaseModel):
    """One run of a source.

    Attributes:
        job: the id of its job.
        cause: why it was started.
        began_at: unix seconds, as are all times here.
        created: whether the ledger has the job.
        state: how the job ended; "": it has not.
        error: why the job failed or was cancelled.
        ended_at: when that was noticed.
    """

    model_config = ConfigDict(frozen=True)

    job: str
    cause: Cause
    began_at: float
    created: bool = False
    state: JobState | Literal["", "deleted"] = ""
    error: str = ""
    ended_at: float | None = None


class RegisteredSource(BaseModel):
    """A source that is registered with a collection, and the state of its schedule.

    Attributes:
        v: the version of this record.
        collection: the name of the collection.
        name: the name of the source in the collection.
        revision: random, another one after each change.
        job: the request of the jobs that it starts, as `JobIn`; may contain a webhook's secret.
        interval_s: seconds between two runs; None: it has no schedule.
        paused: whether it starts no run by itself.
        key: the name of the API key that registered it; "": there were no keys.
        created_at: when it was registered.
        next_run: when the next run of its schedule is due; None: never.
        current: the run that is under way; None: none.
        last: the last run that has ended; None: none.
        problem: why it cannot run now; "": it can.
        retry_at: no run begins before this time.
        keys_at: no run for events begins before this time.
        failures: how many runs failed as a whole, one after the other.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    collection: str
    name: str
    revision: str = ""
    job: dict[str, Any] = Field(repr=False)
    interval_s: float | None = None
    paused: bool = False
    key: str = ""
    created_at: float
    next_run: float | None = None
    current: Run | None = None
    last: Run | None = None
    problem: str = ""
    retry_at: float = 0.0
    keys_at: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Waiting:
    """The keys of events that wait for a run.

    Attributes:
        count: the number of keys.
        since: when the first of them arrived; 0 when there is none.
        now: the time by the registry's clock.
    """

    count: int
    since: float
    now: float

    @property
    def is_due(self) -> bool:
        """Whether a run for them should begin."""
        return self.count >= COLLECT_KEYS or (self.count > 0 and self.now >= self.since + COLLECT_S)


@dataclass(frozen=True)
class Look:
    """When to look at a source again.

    Attributes:
        at: unix seconds.
        with_keys: the same while keys of events wait, if that is earlier.
    """

    at: float
    with_keys: float


class TooManyEvents(Unavailable):
    """As many keys of events wait as may wait."""

    slug = "too-many-events"
    title = "Too many events wait"

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(
            f"{limit} keys of events wait for source {name!r}, which is the limit "
            "(CLIPFLEET_LIMITS__SOURCE_EVENTS); send the events again later",
            retry_after_s=30,
        )


def unknown_source(collection: str, name: str) -> NotFound:
    """The error for a name without a source."""
    return NotFound(
        f"collection {collection[:80]!r} has no source {name[:80]!r}; register it with "
        f"PUT /v1/collections/{collection[:80]}/sources/NAME"
    )


class Registry(Protocol):
    """The port of registered sources.

    Implementations: `RedisRegistry` for a service, `MemoryRegistry` for tests. Every call raises
    Unavailable when Redis is away.
    """

    def now(self) -> float:
        """Return the time by the registry's clock, unix seconds.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def find(self, collection: str, name: str) -> RegisteredSource | None:
        """Look up a source.

        Args:
            collection: the name of the collection.
            name: the name of the source.

        Returns:
            The source; None when there is none.

        Raises:
            OtherVersion: another release wrote the record.
            Unavailable: Redis is away.
        """
        ...

    def all(self, collection: str) -> list[RegisteredSource]:
        """List the sources of a collection. Records of another version are left out.

        Args:
            collection: the name of the collection.

        Returns:
            The sources, sorted by name.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def save(
        self,
        before: RegisteredSource | None,
        after: RegisteredSource,
        look: Look,
        keys: Keys = "keep",
        limit: int = 0,
    ) -> RegisteredSource | None:
        """Write a record, unless another process has changed it, and say when to look at it.

        Args:
            before: the record as it was read; None: there is none yet.
            after: the new record, of the same collection and name.
            look: when to look at it.
            keys: what becomes of the keys of events, in the same step.
            limit: the number of keys to take at most, the oldest first.

        Returns:
            The record with its new revision; None, without a change, when the record is another
            one than `before`.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def remove(self, collection: str, name: str) -> bool:
        """Delete a source with everything that waits for it.

        Args:
            collection: the name of the collection.
            name: the name of the source.

        Returns:
            Whether there was one.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def add_keys(self, collection: str, name: str, keys: Sequence[str], limit: int) -> Waiting:
        """Add keys of events. A key that waits already is not added again.

        Args:
            collection: the name of the collection.
            name: the name of the source.
            keys: keys of objects, or paths.
            limit: the number of keys that may wait.

        Returns:
            The keys that wait then.

        Raises:
            NotFound: there is no such source.
            TooManyEvents: too many keys would wait. Some of these keys may have been added.
            Unavailable: Redis is away.
        """
        ...

    def waiting(self, collection: str, name: str) -> Waiting:
        """Count the keys of events that wait, without those that a run has taken.

        Args:
            collection: the name of the collection.
            name: the name of the source.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def taken(self, collection: str, name: str) -> list[str]:
        """List the keys that the current run has taken.

        Args:
            collection: the name of the collection.
            name: the name of the source.

        Returns:
            The keys, sorted.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def due(self, limit: int, hold_s: float) -> list[tuple[str, str]]:
        """Take sources that are to be looked at now.

        Args:
            limit: the number of sources to return at most.
            hold_s: no other call returns the same sources for so many seconds, unless `save` says
                otherwise. A scheduler that is killed loses nothing: its sources are due again.

        Returns:
            The names of the collection and of the source, of each.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryRegistry:
    """A registry in the memory of one process, for tests.

    Args:
        clock: returns unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._records: dict[tuple[str, str], RegisteredSource] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], dict[str, float]] = {}
        self._taken: dict[tuple[str, str], dict[str, float]] = {}

    def now(self) -> float:
        return self._clock()

    def find(self, collection: str, name: str) -> RegisteredSource | None:
        return self._records.get((collection, name))

    def all(self, collection: str) -> list[RegisteredSource]:
        records = list(self._records.values())
        mine = [record for record in records if record.collection == collection]
        return sorted(mine, key=lambda record: record.name)

    def save(
        self,
        before: RegisteredSource | None,
        after: RegisteredSource,
        look: Look,
        keys: Keys = "keep",
        limit: int = 0,
    ) -> RegisteredSource | None:
        place = after.collection, after.name
        with self._lock:
            present = self._records.get(place)
            if (present.revision if present else "") != (before.revision if before else ""):
                return None
            self._records[place] = saved = _revised(after)
            waiting, taken = self._waiting.setdefault(place, {}), self._taken.setdefault(place, {})
            match keys:
                case "take":
                    oldest = sorted(waiting, key=lambda key: (waiting[key], key))[:limit]
                    taken.update((key, waiting.pop(key)) for key in oldest)
                case "drop":
                    taken.clear()
                case "restore":
                    waiting.update(taken)
                    taken.clear()
            self._due[place] = min(look.at, look.with_keys) if waiting else look.at
            return saved

    def remove(self, collection: str, name: str) -> bool:
        with self._lock:
            for of_source in (self._due, self._waiting, self._taken):
                of_source.pop((collection, name), None)
            return self._records.pop((collection, name), None) is not None

    def add_keys(self, collection: str, name: str, keys: Sequence[str], limit: int) -> Waiting:
        place = collection, name
        with self._lock:
            if place not in self._records:
                raise unknown_source(collection, name)
            waiting, now = self._waiting.setdefault(place, {}), self._clock()
            for page in _pages(keys):
                if len(waiting) + len(page) > limit:
                    raise TooManyEvents(name, limit)
                for key in page:
                    waiting.setdefault(key, now)
                look_at = now + COLLECT_S if len(waiting) < COLLECT_KEYS else now
                self._due[place] = min(look_at, self._due.get(place, look_at))
        return self.waiting(collection, name)

    def waiting(self, collection: str, name: str) -> Waiting:
        waiting = self._waiting.get((collection, name), {})
        return Waiting(len(waiting), min(waiting.values(), default=0.0), self._clock())

    def taken(self, collection: str, name: str) -> list[str]:
        return sorted(self._taken.get((collection, name), ()))

    def due(self, limit: int, hold_s: float) -> list[tuple[str, str]]:
        with self._lock:
            now = self._clock()
            for place, at in self._due.items():
                if at > now + hold_s + MAX_LOOK_S:
                    self._due[place] = now
            ready = sorted((at, place) for place, at in self._due.items() if at <= now)[:limit]
            for _, place in ready:
                self._due[place] = now + hold_s
            return [place for _, place in ready]


class RedisRegistry:
    """The registry in Redis.

    Args:
        client: see `make_redis`.
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
    """

    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._redis, self._clock = client, clock
        self._script = client.register_script(SCRIPT)

    def now(self) -> float:
        if self._clock:
            return self._clock()
        with translating_redis_errors():
            return redis_time(self._redis)

    def find(self, collection: str, name: str) -> RegisteredSource | None:
        with translating_redis_errors():
            raw = self._redis.hget(ROOT + collection, name)
        return parse_versioned(RegisteredSource, raw, "source") if raw else None

    def all(self, collection: str) -> list[RegisteredSource]:
        with translating_redis_errors():
            rows = self._redis.hvals(ROOT + collection)
        records = []
        for raw in rows:
            with skipping_unknown_versions():
                records.append(parse_versioned(RegisteredSource, raw, "source"))
        return sorted(records, key=lambda record: record.name)

    def save(
        self,
        before: RegisteredSource | None,
        after: RegisteredSource,
        look: Look,
        keys: Keys = "keep",
        limit: int = 0,
    ) -> RegisteredSource | None:
        saved, revision = _revised(after), before.revision if before else ""
        names = (after.collection, after.name, revision, saved.revision, saved.model_dump_json())
        looks = (f"{look.at:.6f}", f"{look.with_keys:.6f}")
        return saved if self._run("save", *names, *looks, keys, limit) else None

    def remove(self, collection: str, name: str) -> bool:
        return bool(self._run("remove", collection, name))

    def add_keys(self, collection: str, name: str, keys: Sequence[str], limit: int) -> Waiting:
        for page in _pages(keys):
            options = (limit, COLLECT_S, COLLECT_KEYS)
            count = int(self._run("add", collection, name, *options, *page))
            if count == MISSING:
                raise unknown_source(collection, name)
            if count == FULL:
                raise TooManyEvents(name, limit)
        return self.waiting(collection, name)

    def waiting(self, collection: str, name: str) -> Waiting:
        count, since, now = self._run("waiting", collection, name)
        return Waiting(int(count), float(since), float(now))

    def taken(self, collection: str, name: str) -> list[str]:
        with translating_redis_errors():
            keys: Any = self._redis.zrange(f"{ROOT}{collection}:{name}:taken", 0, -1)
        return sorted(key.decode() for key in keys)

    def due(self, limit: int, hold_s: float) -> list[tuple[str, str]]:
        members = self._run("due", limit, hold_s, hold_s + MAX_LOOK_S)
        places = (member.decode().partition("/") for member in members)
        return [(collection, name) for collection, _, name in places]

    def _run(self, operation: str, *args: str | float) -> Any:
        clock = f"{self._clock():.6f}" if self._clock else ""
        with translating_redis_errors():
            return self._script(args=[operation, clock, *args])


def _revised(record: RegisteredSource) -> RegisteredSource:
    return record.model_copy(update={"revision": secrets.token_hex(8)})


def _pages(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + PAGE] for start in range(0, len(keys), PAGE))
