"""Waiting queries leave together: at once when idle, growing while others are in flight."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from clipfleet.api.coalescer import Coalescer, Overloaded
from clipfleet.common.collection import Collection
from clipfleet.common.errors import ClipfleetError, Unavailable
from clipfleet.common.messages import Answer, BatchReply, Query, QueryBatch, Search, Term

LONG = 30.0


MODEL = "m"
HERE = Collection.new("c", metric="cosine", model=MODEL, dim=4, fields={})


def query(text: str, kind: Any = "text") -> Query:
    search = Search(collection=HERE, namespace="n", top_k=1)
    return Query.of(Term(kind=kind, value=text), search)


class Desk:
    """A coalescer with a post that only remembers; `answer` plays the worker."""

    def __init__(
        self, *, workers: int = 0, batch: int = 4, queue: int = 100, timeout_s: float = LONG
    ) -> None:
        self.sent: list[QueryBatch] = []
        self.workers = workers
        self.broken: Exception | None = None
        limits: Any = {"batch": batch, "queue": queue, "timeout_s": timeout_s}
        self.queries = Coalescer(self._publish, self._workers, reply_to="here", **limits)

    def _workers(self, model: str) -> int:  # noqa: ARG002
        return self.workers

    async def _publish(self, batch: QueryBatch) -> None:
        if self.broken:
            raise self.broken
        self.sent.append(batch)

    def texts(self) -> list[list[str]]:
        return [[str(one.terms[0].value) for one in batch.queries] for batch in self.sent]

    def answer(self, batch: QueryBatch) -> None:
        answers = tuple(Answer(detail=str(one.terms[0].value)) for one in batch.queries)
        self.queries.receive(BatchReply(batch_id=batch.batch_id, answers=answers))

    async def ask(self, *texts: str, kind: str = "text") -> list["asyncio.Task[Answer]"]:
        """Asked one after the other; all that can leave has left when this returns."""
        tasks = [asyncio.create_task(self.queries.ask(query(text, kind), MODEL)) for text in texts]
        await settled()
        return tasks


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def played(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


def test_an_idle_service_sends_at_once() -> None:
    async def scene() -> None:
        desk = Desk()
        (task,) = await desk.ask("a")
        assert desk.texts() == [["a"]]
        desk.answer(desk.sent[0])
        assert (await task).detail == "a"

    played(scene)


def test_the_next_batch_grows_while_one_is_in_flight() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.ask("a", "b", "c")
        assert desk.texts() == [["a"]]
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts() == [["a"], ["b", "c"]]
        desk.answer(desk.sent[1])
        assert [task.detail for task in await asyncio.gather(*tasks)] == ["a", "b", "c"]

    played(scene)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_as_many_are_in_flight_as_there_are_workers_and_one(workers: int) -> None:
    async def scene() -> None:
        desk = Desk(workers=workers, batch=1)
        tasks = await desk.ask(*"abcdefgh")
        assert len(desk.sent) == workers + 1
        for n in range(8):
            desk.answer(desk.sent[n])
            await settled()
        assert [task.detail for task in await asyncio.gather(*tasks)] == list("abcdefgh")

    played(scene)


def test_a_batch_is_never_larger_than_allowed() -> None:
    async def scene() -> None:
        desk = Desk(batch=4)
        tasks = await desk.ask(*"abcdefghij")
        while not all(task.done() for task in tasks):
            desk.answer(desk.sent[-1])
            await settled()
        assert desk.texts() == [["a"], list("bcde"), list("fghi"), ["j"]]

    played(scene)


def test_terms_fill_a_batch_as_queries_of_one_do_and_none_is_cut_in_two() -> None:
    async def scene() -> None:
        desk = Desk(batch=4)
        tasks = await desk.ask("first")
        for count in (2, 2, 1, 9, 1):
            terms = tuple(Term(kind="text", value=str(count)) for _ in range(count))
            mixed = query("").model_copy(update={"terms": terms})
            tasks.append(asyncio.create_task(desk.queries.ask(mixed, MODEL)))
        await settled()
        while not all(task.done() for task in tasks):
            desk.answer(desk.sent[-1])
            await settled()
        assert desk.texts() == [["first"], ["2", "2"], ["1"], ["9"], ["1"]]

    played(scene)


def test_kinds_and_models_go_in_lanes_of_their_own() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.ask("slow", kind="image") + await desk.ask("word")
        tasks.append(asyncio.create_task(desk.queries.ask(query("word"), "other")))
        await settled()
        lanes = [(one.model, one.queries[0].speed) for one in desk.sent]
        assert lanes == [("m", "image"), ("m", "text"), ("other", "text")]
        for batch in list(desk.sent):
            desk.answer(batch)
        await asyncio.gather(*tasks)

    played(scene)


def test_without_an_answer_the_caller_is_told_and_the_next_go_on() -> None:
    async def scene() -> None:
        desk = Desk(timeout_s=0.05)
        (task,) = await desk.ask("a")
        with pytest.raises(Unavailable, match="no worker answered"):
            await task
        await asyncio.sleep(0.05)
        (after,) = await desk.ask("b")
        assert desk.texts() == [["a"], ["b"]]
        desk.answer(desk.sent[1])
        assert (await after).detail == "b"

    played(scene)


def test_a_late_reply_is_dropped_and_so_is_a_double() -> None:
    async def scene() -> None:
        desk = Desk(timeout_s=0.05)
        (task,) = await desk.ask("a")
        with pytest.raises(Unavailable):
            await task
        await asyncio.sleep(0.05)
        desk.answer(desk.sent[0])
        tasks = await desk.ask("b", "c")
        desk.answer(desk.sent[1])
        desk.answer(desk.sent[1])
        await settled()
        assert len(desk.sent) == 3
        desk.answer(desk.sent[2])
        assert [one.detail for one in await asyncio.gather(*tasks)] == ["b", "c"]
        desk.queries.receive(BatchReply(batch_id="another gateway's", answers=()))

    played(scene)


def test_too_many_waiting_are_refused_until_some_have_left() -> None:
    async def scene() -> None:
        desk = Desk(queue=2)
        tasks = await desk.ask("a", "b", "c")
        (refused,) = await desk.ask("d")
        with pytest.raises(Overloaded, match="2 queries are waiting"):
            await refused
        desk.answer(desk.sent[0])
        tasks += await desk.ask("e")
        desk.answer(desk.sent[1])
        await settled()
        desk.answer(desk.sent[2])
        assert [one.detail for one in await asyncio.gather(*tasks)] == ["a", "b", "c", "e"]

    played(scene)


async def cancelled(*tasks: "asyncio.Task[Answer]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_cancelled_query_is_not_sent() -> None:
    async def scene() -> None:
        desk = Desk()
        first, second, third = await desk.ask("a", "b", "c")
        await cancelled(second)
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts() == [["a"], ["c"]]
        desk.answer(desk.sent[1])
        assert [(await one).detail for one in (first, third)] == ["a", "c"]

    played(scene)


def test_when_all_that_waited_have_gone_nothing_is_sent() -> None:
    async def scene() -> None:
        desk = Desk()
        _, second = await desk.ask("a", "b")
        await cancelled(second)
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts() == [["a"]]

    played(scene)


def test_a_cancelled_query_gives_its_place_in_the_queue_back() -> None:
    """Else callers who hung up keep others out for as long as the batch before them hangs."""

    async def scene() -> None:
        desk = Desk(queue=2)
        first, *gone = await desk.ask("a", "b", "c")
        await cancelled(*gone)
        (after,) = await desk.ask("d")
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts() == [["a"], ["d"]]
        desk.answer(desk.sent[1])
        assert [(await one).detail for one in (first, after)] == ["a", "d"]

    played(scene)


def test_a_query_sent_but_cancelled_leaves_the_others_of_its_batch_alone() -> None:
    async def scene() -> None:
        desk = Desk()
        first, second, third = await desk.ask("a", "b", "c")
        desk.answer(desk.sent[0])
        await settled()
        await cancelled(second)
        desk.answer(desk.sent[1])
        assert [(await one).detail for one in (first, third)] == ["a", "c"]

    played(scene)


@pytest.mark.parametrize("error", [Unavailable("the queue is away"), RuntimeError("a bug")])
def test_when_sending_fails_its_callers_are_told_and_the_next_go_on(error: Exception) -> None:
    async def scene() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        desk = Desk()
        desk.broken = error
        (task,) = await desk.ask("a")
        with pytest.raises(ClipfleetError) as caught:
            await task
        assert "a bug" not in caught.value.detail
        desk.broken = None
        (after,) = await desk.ask("b")
        desk.answer(desk.sent[0])
        assert (await after).detail == "b"

    played(scene)


def test_a_reply_of_the_wrong_length_leaves_nobody_waiting() -> None:
    async def scene() -> None:
        desk = Desk()
        task, waiting = await desk.ask("a", "b")
        with suppress(ValueError):
            desk.queries.receive(BatchReply(batch_id=desk.sent[0].batch_id, answers=()))
        await settled()
        assert desk.texts() == [["a"], ["b"]]
        assert task.done()
        await cancelled(task, waiting)

    played(scene)


def test_each_query_travels_with_the_time_its_own_caller_gives_up() -> None:
    """A worker that embeds for callers who have gone makes those who are there wait."""

    async def scene() -> None:
        desk = Desk()
        tasks = await desk.ask("a", "b")
        first_gives_up = time.time() + LONG
        await asyncio.sleep(0.05)
        tasks += await desk.ask("c")
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts()[1] == ["b", "c"]
        earlier, later = desk.sent[1].deadlines
        assert earlier <= first_gives_up < later
        await cancelled(*tasks)

    played(scene)
