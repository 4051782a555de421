"""What the parts in memory do beyond what the contract tests ask of every implementation."""

import asyncio
import threading

import numpy as np
import pytest

from clipfleet.common.ledger import Outcome
from clipfleet.common.queue import replies
from clipfleet.common.queue.messages import Answer, BatchReply, IngestNudge, QueryBatch, queue_name
from clipfleet.common.queue.overview import Waiting
from clipfleet.common.queue.pixels import pack
from clipfleet.common.settings import Settings
from clipfleet.testing import MemoryOverviews, MemoryPublisher, MemoryReplies, memory_parts
from support.ledgers import MODEL, claimed, planned

QUEUE = queue_name("query", MODEL)


def batch(name: str) -> QueryBatch:
    return QueryBatch(model=MODEL, batch_id=name, reply_to="r", deadlines=(), queries=())


def reply(batch_id: str) -> BatchReply:
    return BatchReply(batch_id=batch_id, answers=(Answer(detail="é"),))


def written(batch_id: str) -> bytes:
    return reply(batch_id).model_dump_json().encode()


def test_messages_of_a_queue_are_taken_by_age() -> None:
    publisher = MemoryPublisher()
    for message in (batch("1"), IngestNudge(model=MODEL), batch("2"), batch("3")):
        publisher.publish(message)
    assert publisher.waiting(QUEUE) == 3
    assert [publisher.take(QUEUE, 0) for _ in range(4)] == [*map(batch, "123"), None]
    assert publisher.sent == [IngestNudge(model=MODEL)]


def test_who_waits_for_a_message_gets_it_when_it_comes() -> None:
    publisher = MemoryPublisher()
    threading.Timer(0.01, publisher.publish, [batch("1")]).start()
    assert publisher.take(QUEUE, 60) == batch("1")


def test_replies_come_in_order_to_the_list_they_are_for() -> None:
    box = MemoryReplies()
    for to, batch in (("a", "1"), ("b", "2"), ("a", "3")):
        box.push(to, reply(batch))

    async def received() -> list[object]:
        return [await box.receive("a"), await box.receive("a"), await box.receive("b")]

    raw = asyncio.run(received())
    assert raw == [written(batch) for batch in ("1", "3", "2")]


def test_a_reply_from_another_thread_wakes_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "RECEIVE_S", 60)
    box = MemoryReplies()
    threading.Timer(0.01, box.push, ["a", reply("1")]).start()
    assert asyncio.run(box.receive("a")) == written("1")


def test_no_reply_is_none_and_none_is_lost_to_who_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "RECEIVE_S", 0.01)
    box = MemoryReplies()
    assert asyncio.run(box.receive("a")) is None
    box.push("a", reply("1"))
    assert asyncio.run(box.receive("a")) == written("1")


def test_a_stashed_image_is_found_by_its_key() -> None:
    box, pixels = MemoryReplies(), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    box.stash("key", pack(pixels, 1_000), 30)
    image = box.pixels("key")
    assert image is not None
    assert np.array_equal(image, pixels)
    assert box.pixels("other") is None


def test_the_overview_counts_what_the_parts_hold() -> None:
    parts = memory_parts(Settings(model=MODEL, blobs="memory://clipfleet-unit-tests/parts"))
    assert isinstance(parts.overviews, MemoryOverviews)
    planned(parts.ledger, ("a", "b"), ("c",))
    parts.ledger.mark(claimed(parts.ledger), Outcome(done=2))
    parts.publisher.publish(IngestNudge(model=MODEL))
    seen = parts.overviews.read()
    assert (seen.jobs["running"], seen.jobs["failed"]) == (1, 0)
    assert seen.remaining == {MODEL: 1}
    assert seen.queues["ingest", MODEL] == Waiting(1, None)
    assert seen.queues["query", MODEL] == Waiting(0, 0.0)
    assert seen.workers == {("ingest", MODEL): 0, ("query", MODEL): 0}
    parts.ledger.cancel("j")
    seen = parts.overviews.read()
    assert (seen.jobs["running"], seen.jobs["cancelled"], seen.remaining) == (0, 1, {MODEL: 0})
