"""Queries that wait leave together: at once when idle, in larger batches while others are in
flight."""

import asyncio

import pytest

from clipfleet.api.dispatch.coalescer import Overloaded
from clipfleet.api.http.bodies import MemoryBudget, reserving
from clipfleet.common.errors import Unavailable
from clipfleet.common.queue.messages import Term
from clipfleet.common.queue.packed import PackedAnswer, Reply
from support.coalescer_harness import MODEL, Desk, played, query, settled


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


def test_what_answers_take_fills_a_batch_too() -> None:
    """A query for many matches is sent alone, even if few queries wait."""

    async def scene() -> None:
        desk = Desk(batch=64, rows=100)
        tasks = await desk.ask("first")
        for top_k in (40, 40, 40, 500, 1, 99):
            search = query("").search
            assert search
            wide_query = query(str(top_k)).model_copy(
                update={"search": search.model_copy(update={"top_k": top_k})}
            )
            tasks.append(asyncio.create_task(desk.queries.ask(wide_query, MODEL)))
        await settled()
        while not all(task.done() for task in tasks):
            desk.answer(desk.sent[-1])
            await settled()
        assert desk.texts() == [["first"], ["40", "40"], ["40"], ["500"], ["1", "99"]]

    played(scene)


async def ask_as(desk: Desk, caller: str, *texts: str) -> list["asyncio.Task[PackedAnswer]"]:
    with reserving(MemoryBudget(0), caller):
        return await desk.ask(*texts)


def test_two_callers_do_not_take_the_whole_queue_together() -> None:
    async def scene() -> None:
        desk = Desk(queue=8)
        tasks = await ask_as(desk, "a", *"0123456789") + await ask_as(desk, "b", *"0123456789")
        assert sum(task.done() for task in tasks) == 5 + 8
        last = await ask_as(desk, "c", "last")
        assert not last[0].done()
        for task in tasks + last:
            task.cancel()
        await asyncio.gather(*tasks, *last, return_exceptions=True)

    played(scene)


def test_callers_take_turns_and_none_takes_the_whole_queue() -> None:
    async def scene() -> None:
        desk = Desk(batch=4, queue=8)
        tasks = await ask_as(desk, "hog", *"0123456")
        with pytest.raises(Overloaded):
            await tasks.pop()
        with pytest.raises(Overloaded):
            await tasks.pop()
        tasks += await ask_as(desk, "a", "x", "y")
        tasks += await ask_as(desk, "b", "z")
        while not all(task.done() for task in tasks):
            desk.answer(desk.sent[-1])
            await settled()
        assert desk.texts() == [["0"], ["1", "x", "z", "2"], ["y", "3", "4"]]

    played(scene)


def test_kinds_and_models_go_in_lanes_of_their_own() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = await desk.ask("slow", kind="image") + await desk.ask("word")
        tasks.append(asyncio.create_task(desk.queries.ask(query("word"), "other")))
        await settled()
        lanes = [(batch.model, batch.queries[0].encoder) for batch in desk.sent]
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
        assert [answer.detail for answer in await asyncio.gather(*tasks)] == ["b", "c"]
        desk.queries.receive(Reply("another gateway's", ()))

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
        assert [answer.detail for answer in await asyncio.gather(*tasks)] == ["a", "b", "c", "e"]

    played(scene)


def test_two_batches_of_a_worker_share_the_queries_of_many_callers() -> None:
    """Each caller asks again at once. Small batches beside large ones would cost the most."""

    async def scene() -> None:
        desk = Desk(workers=1, batch=64)

        async def ask_for_ever(name: str) -> None:
            while True:
                await desk.queries.ask(query(name), MODEL)

        callers = [asyncio.create_task(ask_for_ever(str(n))) for n in range(64)]
        await settled()
        for answered in range(100):
            assert len(desk.sent) - answered in (1, 2)
            desk.answer(desk.sent[answered])
            await settled()
        assert min(len(batch.queries) for batch in desk.sent[50:]) >= 24
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

    played(scene)


def test_two_floods_share_each_batch_and_a_single_query_is_in_the_next_one() -> None:
    async def scene() -> None:
        desk = Desk(workers=1, batch=8, queue=1_000)
        tasks = await ask_as(desk, "a", *(f"a{n}" for n in range(100)))
        tasks += await ask_as(desk, "b", *(f"b{n}" for n in range(100)))
        for batch in range(4):
            desk.answer(desk.sent[batch])
            await settled()
        before = len(desk.sent)
        tasks += await ask_as(desk, "c", "c")
        assert len(desk.sent) == before, "two batches are in flight"
        for batch in range(4, 12):
            desk.answer(desk.sent[batch])
            await settled()
        shares = [sorted(text[0] for text in texts) for texts in desk.texts()[before : before + 6]]
        assert shares[0] in (list("aaaabbbc"), list("aaabbbbc"))
        assert all(share == list("aaaabbbb") for share in shares[1:])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    played(scene)
