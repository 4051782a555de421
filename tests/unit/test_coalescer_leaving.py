"""Queries that are cancelled while others wait, and errors of sending and of replies."""

import asyncio
import time
from contextlib import suppress

import pytest

from clipfleet.common.errors import ClipfleetError, Unavailable
from clipfleet.common.queue.packed import PackedAnswer, Reply
from support.coalescer_harness import LONG, Desk, played, settled


async def cancelled(*tasks: "asyncio.Task[PackedAnswer]") -> None:
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
        assert [(await task).detail for task in (first, third)] == ["a", "c"]

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
    """Otherwise cancelled queries keep other callers out while the batch before them hangs."""

    async def scene() -> None:
        desk = Desk(queue=2)
        first, *gone = await desk.ask("a", "b", "c")
        assert desk.queries.waiting().total() == 2
        await cancelled(*gone)
        assert desk.queries.waiting().total() == 0
        (after,) = await desk.ask("d")
        desk.answer(desk.sent[0])
        await settled()
        assert desk.texts() == [["a"], ["d"]]
        desk.answer(desk.sent[1])
        assert [(await task).detail for task in (first, after)] == ["a", "d"]

    played(scene)


def test_a_query_sent_but_cancelled_leaves_the_others_of_its_batch_alone() -> None:
    async def scene() -> None:
        desk = Desk()
        first, second, third = await desk.ask("a", "b", "c")
        desk.answer(desk.sent[0])
        await settled()
        await cancelled(second)
        desk.answer(desk.sent[1])
        assert [(await task).detail for task in (first, third)] == ["a", "c"]

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
            desk.queries.receive(Reply(desk.sent[0].batch_id, ()))
        await settled()
        assert desk.texts() == [["a"], ["b"]]
        assert task.done()
        await cancelled(task, waiting)

    played(scene)


def test_each_query_travels_with_the_time_its_own_caller_gives_up() -> None:
    """A worker that embeds for callers who gave up delays the callers who still wait."""

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
