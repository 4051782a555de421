"""The registry of sources. Both implementations."""

import pytest
import redis

from clipfleet.common.errors import NotFound
from clipfleet.common.ledger.registered import (
    COLLECT_KEYS,
    COLLECT_S,
    Look,
    MemoryRegistry,
    RedisRegistry,
    RegisteredSource,
    Registry,
    Run,
    TooManyEvents,
)
from clipfleet.common.redis.client import RedisUnavailable
from support.ledgers import Clock

LIMIT = 10_000


@pytest.fixture(params=["memory", "redis"])
def registry(request: pytest.FixtureRequest, clock: Clock) -> Registry:
    if request.param == "memory":
        return MemoryRegistry(clock)
    return RedisRegistry(request.getfixturevalue("client"), clock)


def a_source(name: str = "s", collection: str = "photos") -> RegisteredSource:
    job = {"source": {"type": "bucket", "uri": "s3://b/é"}}
    return RegisteredSource(collection=collection, name=name, job=job, created_at=1.0)


def at(seconds: float, with_keys: float | None = None) -> Look:
    return Look(seconds, seconds if with_keys is None else with_keys)


def saved(registry: Registry, record: RegisteredSource, look: Look) -> RegisteredSource:
    written = registry.save(registry.find(record.collection, record.name), record, look)
    assert written
    return written


def test_a_record_comes_back_as_it_was_written(registry: Registry, clock: Clock) -> None:
    run = Run(job="j", cause="events", began_at=2.5, state="partial", ended_at=3.25)
    record = a_source().model_copy(update={"last": run, "interval_s": 900.0, "key": "me"})
    written = saved(registry, record, at(clock.now))
    assert written == record.model_copy(update={"revision": written.revision})
    assert registry.find("photos", "s") == written
    assert registry.find("photos", "other") is None
    assert registry.find("other", "s") is None


def test_sources_are_listed_by_name_and_of_one_collection(registry: Registry) -> None:
    for name, collection in (("b", "photos"), ("a", "photos"), ("c", "other")):
        saved(registry, a_source(name, collection), at(0))
    assert [record.name for record in registry.all("photos")] == ["a", "b"]
    assert registry.all("none") == []


def test_a_record_that_was_changed_meanwhile_is_not_written(registry: Registry) -> None:
    first = registry.save(None, a_source(), at(0))
    assert first
    assert registry.save(None, a_source(), at(0)) is None
    second = registry.save(first, first.model_copy(update={"paused": True}), at(0))
    assert second
    assert registry.save(first, first, at(0)) is None
    assert registry.find("photos", "s") == second
    registry.remove("photos", "s")
    assert registry.save(second, second, at(0)) is None
    again = registry.save(None, a_source(), at(0))
    assert again
    assert registry.save(second, second, at(0)) is None  # of the source that was deleted


def test_a_source_that_is_due_is_given_to_one_until_it_is_saved(
    registry: Registry, clock: Clock
) -> None:
    record = saved(registry, a_source(), at(clock.now + 5))
    assert registry.due(9, 10) == []
    clock.now += 5
    assert registry.due(9, 10) == [("photos", "s")]
    assert registry.due(9, 10) == []
    clock.now += 10  # who had it was killed
    assert registry.due(9, 10) == [("photos", "s")]
    saved(registry, record, at(clock.now + 3))
    clock.now += 3
    assert registry.due(9, 10) == [("photos", "s")]


def test_the_longest_due_come_first(registry: Registry, clock: Clock) -> None:
    for name, late in (("a", 1), ("b", 3), ("c", 2)):
        saved(registry, a_source(name), at(clock.now - late))
    assert registry.due(2, 10) == [("photos", "b"), ("photos", "c")]
    assert registry.due(2, 10) == [("photos", "a")]


def test_a_clock_that_is_set_back_holds_nothing_up(registry: Registry, clock: Clock) -> None:
    saved(registry, a_source(), at(clock.now + 10))
    clock.now -= 86_400
    assert registry.due(9, 10) == [("photos", "s")]


def test_keys_of_events_wait_once_each_and_make_their_source_due(
    registry: Registry, clock: Clock
) -> None:
    saved(registry, a_source(), at(clock.now + 50))
    registry.add_keys("photos", "s", ["a/é", "b"], LIMIT)
    clock.now += 1
    waiting = registry.add_keys("photos", "s", ["b", "c"], LIMIT)
    assert (waiting.count, waiting.since, waiting.now) == (3, clock.now - 1, clock.now)
    assert not waiting.is_due
    assert registry.due(9, 10) == []
    clock.now += COLLECT_S - 1
    assert registry.waiting("photos", "s").is_due
    assert registry.due(9, 10) == [("photos", "s")]


def test_many_keys_make_their_source_due_at_once(registry: Registry, clock: Clock) -> None:
    saved(registry, a_source(), at(clock.now + 50))
    keys = [str(number) for number in range(COLLECT_KEYS + 1)]
    assert registry.add_keys("photos", "s", keys, LIMIT).is_due
    assert registry.due(9, 10) == [("photos", "s")]


def test_a_run_takes_the_oldest_keys_and_drops_or_restores_them(
    registry: Registry, clock: Clock
) -> None:
    record = saved(registry, a_source(), at(0))
    for key in ("c", "a", "b"):
        registry.add_keys("photos", "s", [key], LIMIT)
        clock.now += 1
    look = at(clock.now + 50, clock.now + 7)
    taking = registry.save(record, record, look, "take", 2)
    assert taking
    assert registry.taken("photos", "s") == ["a", "c"]
    assert registry.waiting("photos", "s").count == 1
    assert registry.save(record, record, look, "drop") is None  # not of this revision
    registry.add_keys("photos", "s", ["a"], LIMIT)  # again, while the run has it
    assert registry.waiting("photos", "s").count == 2
    assert registry.taken("photos", "s") == ["a", "c"]
    restored = registry.save(taking, record, look, "restore")
    assert restored
    assert registry.taken("photos", "s") == []
    waiting = registry.waiting("photos", "s")
    assert (waiting.count, waiting.since) == (3, clock.now - 3)
    taking = registry.save(restored, record, look, "take", 9)
    assert taking
    assert registry.save(taking, record, look, "drop")
    assert registry.taken("photos", "s") == []
    assert registry.waiting("photos", "s").count == 0


def test_keys_that_wait_are_looked_at_earlier(registry: Registry, clock: Clock) -> None:
    record = saved(registry, a_source(), at(clock.now + 50, clock.now + 7))
    clock.now += 7
    assert registry.due(9, 10) == []
    registry.add_keys("photos", "s", ["a"], LIMIT)
    saved(registry, record, at(clock.now + 50, clock.now + 7))
    clock.now += 7
    assert registry.due(9, 10) == [("photos", "s")]


def test_there_is_a_limit_on_keys_that_wait(registry: Registry) -> None:
    saved(registry, a_source(), at(0))
    registry.add_keys("photos", "s", ["a", "b"], 3)
    with pytest.raises(TooManyEvents, match="CLIPFLEET_LIMITS__SOURCE_EVENTS"):
        registry.add_keys("photos", "s", ["c", "d"], 3)
    assert registry.waiting("photos", "s").count == 2
    assert registry.add_keys("photos", "s", ["c"], 3).count == 3


def test_nothing_is_left_of_a_source_that_was_deleted(
    registry: Registry, request: pytest.FixtureRequest
) -> None:
    record = saved(registry, a_source(), at(0))
    registry.add_keys("photos", "s", ["a", "b"], LIMIT)
    assert registry.save(record, record, at(0), "take", 1)
    assert registry.remove("photos", "s")
    assert not registry.remove("photos", "s")
    assert registry.due(9, 10) == []
    assert registry.taken("photos", "s") == []
    assert registry.waiting("photos", "s").count == 0
    with pytest.raises(NotFound, match="has no source 's'"):
        registry.add_keys("photos", "s", ["a"], LIMIT)
    if isinstance(registry, RedisRegistry):
        client: redis.Redis = request.getfixturevalue("client")
        assert client.keys() == []


def test_redis_that_is_away(absent_redis: "redis.Redis") -> None:
    registry = RedisRegistry(absent_redis)
    for call in (
        registry.now,
        lambda: registry.find("c", "s"),
        lambda: registry.all("c"),
        lambda: registry.save(None, a_source(), at(0)),
        lambda: registry.remove("c", "s"),
        lambda: registry.add_keys("c", "s", ["k"], 1),
        lambda: registry.taken("c", "s"),
        lambda: registry.due(1, 1),
    ):
        with pytest.raises(RedisUnavailable):
            call()


def test_the_clock_of_redis_counts(client: "redis.Redis") -> None:
    registry = RedisRegistry(client)
    now = registry.now()
    assert registry.save(None, a_source(), at(now - 1))
    assert registry.due(1, 10) == [("photos", "s")]
    assert abs(registry.waiting("photos", "s").now - now) < 60
