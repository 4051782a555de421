"""The stream of events in Redis, and the way of its entries to registered sources."""

import json
import logging
from typing import Any

import pytest
import redis

from clipfleet.api.sources.stream import MAX_ENTRIES, StreamReader
from clipfleet.common.collection import Collection
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.event_stream import GROUP, EventStream
from clipfleet.common.ledger.registered import Look, RedisRegistry, RegisteredSource
from clipfleet.common.redis.client import RedisUnavailable

NAME = "events"
BUCKET = {"type": "bucket", "uri": "s3://b/top"}


def document(*keys: str) -> str:
    records = [
        {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}
        for key in keys
    ]
    return json.dumps({"Records": records})


class World:
    """A reader of a stream for which two sources are registered."""

    def __init__(self, client: "redis.Redis", limit: int = 100) -> None:
        self.client, self.registry = client, RedisRegistry(client)
        self.catalogue = RedisCatalogue(client)
        for name, source in (("bucket", BUCKET), ("urls", {"type": "urls", "urls": []})):
            collection = Collection.new(f"c-{name}", metric="dot", model="m", dim=4, fields={})
            self.catalogue.add(collection)
            record = RegisteredSource(
                collection=f"c-{name}", name=name, job={"source": source}, created_at=0.0
            )
            assert self.registry.save(None, record, Look(0, 0))
        self.stream = EventStream(client, NAME, take_over_s=0)
        self.reader = StreamReader(self.stream, self.registry, self.catalogue, limit)

    def send(self, **fields: Any) -> None:
        entry: Any = fields
        self.client.xadd(NAME, entry)

    def waiting(self) -> int:
        return self.registry.waiting("c-bucket", "bucket").count

    def unfinished(self) -> int:
        pending: Any = self.client.xpending(NAME, GROUP)
        return int(pending["pending"])


@pytest.fixture
def world(client: "redis.Redis") -> World:
    return World(client)


def test_events_go_to_the_sources_that_they_concern(world: World) -> None:
    assert world.reader.round() == 0
    world.send(event=document("top/a.jpg", "other/b.jpg"))
    world.send(event=document("top/a.jpg", "top/c.jpg"))
    assert world.reader.round() == 2
    assert world.waiting() == 2
    assert (world.client.xlen(NAME), world.unfinished(), world.stream.refused()) == (0, 0, 0)


def test_what_was_added_before_the_first_gateway_started_is_read(world: World) -> None:
    world.send(event=document("top/a.jpg"))
    assert world.reader.round() == 1
    world.client.delete(NAME)  # with its group
    world.send(event=document("top/b.jpg"))
    assert world.reader.round() == 1
    assert world.waiting() == 2


def test_keys_are_for_the_source_that_the_entry_names(world: World) -> None:
    world.send(event='{"keys": ["a.jpg"]}', collection="c-bucket", source="bucket")
    world.send(event='{"keys": ["b.jpg"]}')
    world.send(event='{"keys": ["c.jpg"]}', collection="c-bucket", source="none")
    world.send(event='{"keys": ["d.jpg"]}', collection="c-urls", source="urls")
    assert world.reader.round() == 4
    assert (world.waiting(), world.stream.refused()) == (1, 3)


def test_entries_that_cannot_be_used_are_put_aside_and_not_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    world.send(event="no JSON: secret")
    world.send(other=document("top/a.jpg"))
    world.send(event=b"\xff")
    world.send(event='{"a": 1}')
    world.send(event=document("top/b.jpg"))
    assert world.reader.round() == 5
    assert world.waiting() == 1
    assert (world.client.xlen(NAME), world.unfinished(), world.stream.refused()) == (0, 0, 4)
    rows: Any = world.client.xrange(world.stream.refused_name)
    assert rows[0][1][b"reason"] == b"the field `event` is no JSON"
    assert "put aside in events:refused, which has 4" in caplog.text
    assert "secret" not in caplog.text
    assert world.reader.round() == 0


def test_a_reader_that_was_killed_loses_no_entry(world: World) -> None:
    world.send(event=document("top/a.jpg"))
    world.send(event=document("top/b.jpg"))
    assert len(world.stream.read(1)) == 1  # and its gateway is killed
    patient = EventStream(world.client, NAME)
    assert [entry.fields for entry in patient.read(9)] == [{"event": document("top/b.jpg")}]
    assert world.reader.round() == 2
    assert (world.waiting(), world.unfinished()) == (2, 0)


def test_entries_that_were_trimmed_away_are_forgotten(world: World) -> None:
    world.send(event=document("top/a.jpg"))
    assert len(world.stream.read(1)) == 1
    world.client.xtrim(NAME, maxlen=0)
    assert world.reader.round() == 0
    assert world.unfinished() == 0


def test_an_entry_waits_while_its_source_has_no_room(client: "redis.Redis") -> None:
    world = World(client, limit=1)
    for key in ("a", "b"):
        world.send(event=document(f"top/{key}.jpg"))
    assert world.reader.round() == 2
    assert (world.waiting(), world.unfinished(), world.stream.refused()) == (1, 1, 0)
    record = world.registry.find("c-bucket", "bucket")
    assert record
    taking = world.registry.save(record, record, Look(0, 0), "take", 9)
    assert taking
    assert world.registry.save(taking, record, Look(0, 0), "drop")
    assert world.reader.round() == 1
    assert (world.waiting(), world.unfinished()) == (1, 0)


def test_a_round_takes_so_many_entries(world: World) -> None:
    for number in range(MAX_ENTRIES + 1):
        world.send(event=document(f"top/{number % 50}.jpg"))
    assert world.reader.round() == MAX_ENTRIES
    assert world.reader.round() == 1


def test_redis_that_is_away(absent_redis: "redis.Redis") -> None:
    stream = EventStream(absent_redis, NAME)
    with pytest.raises(RedisUnavailable):
        stream.read(1)
