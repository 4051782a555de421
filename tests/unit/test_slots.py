"""Slots that all callers share: no key takes all of them, and who waits for one gets it in turn."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.dispatch.slots import SharedSlots, Slot
from clipfleet.api.http.bodies import MemoryBudget, reserving
from clipfleet.common.errors import RateLimited, Unavailable
from clipfleet.common.settings import Limits
from clipfleet.common.shares import may_take
from support.asgi import Exchange, speak
from support.gateway_harness import World

SOON_S = 30.0


def called_by(key: str) -> Any:
    """A request of this key, for the length of the block."""
    return reserving(MemoryBudget(1), key)


def played(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), SOON_S))


def taken_by(key: str, slots: SharedSlots, held: ExitStack) -> int:
    """The number of slots that a key takes until it is refused."""
    count = 0
    with called_by(key):
        while True:
            try:
                held.enter_context(slots.hold())
            except (RateLimited, Unavailable):
                return count
            count += 1


def test_each_key_takes_half_of_what_is_free_and_the_last_ones_one_each() -> None:
    slots = SharedSlots(16, "tests")
    with ExitStack() as held:
        assert [taken_by(key, slots, held) for key in "abcdef"] == [8, 4, 2, 1, 1, 0]
        assert slots.taken == 16
    assert slots.taken == 0


def test_the_only_slot_is_for_whoever_comes_first() -> None:
    slots = SharedSlots(1, "tests")
    with ExitStack() as held:
        assert [taken_by(key, slots, held) for key in "ab"] == [1, 0]


@pytest.mark.parametrize("limit", range(2, 40))
def test_after_one_key_there_is_room_for_another(limit: int) -> None:
    slots = SharedSlots(limit, "tests")
    with ExitStack() as held:
        assert 1 <= taken_by("a", slots, held) <= (limit + 1) / 2
        assert taken_by("b", slots, held) >= 1


def test_without_keys_all_slots_may_be_taken() -> None:
    slots = SharedSlots(8, "tests")
    with ExitStack() as held:
        assert taken_by("", slots, held) == 8


def test_a_refusal_names_the_setting_and_whose_slots_they_are() -> None:
    slots = SharedSlots(4, "tests", "CLIPFLEET_LIMITS__TESTS", 7)
    with ExitStack() as held:
        assert taken_by("a", slots, held) == 2
        with called_by("a"), pytest.raises(RateLimited, match="this key has 2 of them") as share:
            held.enter_context(slots.hold())
        assert share.value.headers == [("Retry-After", "7")]
        assert [taken_by(key, slots, held) for key in "bc"] == [1, 1]
        with called_by("a"), pytest.raises(Unavailable, match="all are taken") as full:
            held.enter_context(slots.hold())
        assert full.value.retry_after_s == 7
        for refusal in (share, full):
            assert "4 slots for tests (CLIPFLEET_LIMITS__TESTS)" in refusal.value.detail


class Queue:
    """Takes turns of keys in tasks of its own. `served` are the keys that have got a slot."""

    def __init__(self, limit: int) -> None:
        self.slots = SharedSlots(limit, "tests")
        self.served: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.Event] = []

    async def ask(self, keys: str, timeout_s: float = SOON_S) -> None:
        self.tasks += [asyncio.create_task(self._serve(key, timeout_s)) for key in keys]
        await self.settle()

    async def _serve(self, key: str, timeout_s: float) -> None:
        with called_by(key.strip("-")):
            async with self.slots.turn(timeout_s):
                self.served.append(key)
                end = asyncio.Event()
                self._ends.append(end)
                await end.wait()

    async def end(self, n: int) -> None:
        """End the work in the slot that was taken as number `n`."""
        self._ends[n].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def test_who_waits_with_many_does_not_delay_another_key() -> None:
    async def scene() -> None:
        queue = Queue(4)
        await queue.ask("aaaaaaaa")
        assert queue.served == ["a", "a"]
        await queue.ask("b")
        assert queue.served == ["a", "a", "b"]

    played(scene)


def test_waiting_keys_take_turns() -> None:
    async def scene() -> None:
        queue = Queue(1)
        await queue.ask("aaabbc")
        for n in range(5):
            await queue.end(n)
        assert "".join(queue.served) == "aabcab"

    played(scene)


def test_without_keys_those_who_wait_are_served_in_order() -> None:
    async def scene() -> None:
        queue = Queue(2)
        await queue.ask("----")
        assert len(queue.served) == 2
        await queue.end(0)
        await queue.end(1)
        assert len(queue.served) == 4

    played(scene)


def test_who_gives_up_waiting_keeps_no_slot() -> None:
    async def scene() -> None:
        queue = Queue(1)
        await queue.ask("a")
        await queue.ask("b", timeout_s=0)
        with pytest.raises(Unavailable, match="all are taken"):
            await queue.tasks[-1]
        await queue.ask("cd")
        queue.tasks[-2].cancel()
        await queue.end(0)
        assert queue.served == ["a", "d"]
        await queue.end(1)
        assert queue.slots.taken == 0

    played(scene)


def test_who_is_cancelled_at_the_moment_of_its_turn_gives_it_back() -> None:
    async def scene() -> None:
        slots = SharedSlots(1, "tests")

        async def wait() -> None:
            async with slots.turn(SOON_S):
                raise AssertionError

        with slots.hold():
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
        assert slots.taken == 1  # it is granted to the task, which has not run since
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert slots.taken == 0

    played(scene)


def test_a_key_that_waits_for_its_own_share_is_told_so() -> None:
    async def scene() -> None:
        queue = Queue(4)
        await queue.ask("aa")
        await queue.ask("a", timeout_s=0)
        with pytest.raises(RateLimited, match="this key has 2 of them"):
            await queue.tasks[-1]

    played(scene)


@contextmanager
def blocked() -> Iterator[tuple[Callable[[], None], threading.Event]]:
    """A function that returns once the event is set, which the end of the block does."""
    release = threading.Event()
    try:
        yield (lambda: assert_true(release.wait(SOON_S))), release
    finally:
        release.set()


def assert_true(value: bool) -> None:
    assert value


def test_a_slot_is_taken_until_its_thread_has_ended_though_nobody_waits() -> None:
    async def scene() -> None:
        slots = SharedSlots(1, "tests")
        with blocked() as (block, release), ThreadPoolExecutor(1) as pool:

            async def work() -> None:
                async with slots.turn(SOON_S) as slot:
                    await slot.call(pool, block)

            working = asyncio.create_task(work())
            while not slots.taken:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert slots.taken == 1
            release.set()
            async with slots.turn(SOON_S) as slot:
                assert await slot.call(pool, lambda: "free") == "free"
        assert slots.taken == 0

    played(scene)


def test_a_call_may_return_after_its_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    with blocked() as (block, release), ThreadPoolExecutor(1) as pool:

        async def scene() -> None:
            slot = Slot()
            calling = asyncio.create_task(slot.call(pool, block))
            await asyncio.sleep(0)
            calling.cancel()
            slot.end(lambda: None)

        played(scene)
        release.set()
    assert not caplog.records


def test_many_large_query_images_of_one_key_leave_a_thread_to_others(tmp_path: Path) -> None:
    async def scene() -> None:
        gateway = World(tmp_path).app.state.gateway
        with blocked() as (block, _):
            with called_by("a"):
                tasks = [asyncio.create_task(gateway.decode(block)) for _ in range(16)]
                await asyncio.sleep(0)
            with called_by("b"):
                assert await gateway.decode(lambda: "decoded") == "decoded"
        await asyncio.gather(*tasks)

    played(scene)


def test_event_streams_of_one_key_leave_some_to_others(tmp_path: Path) -> None:
    world = World(tmp_path, limits=Limits(event_streams=4))

    async def follow(key: str) -> Exchange:
        return await speak(world.app, "GET /v1/jobs/job-other/events", (), key)

    async def scene() -> None:
        streams = [asyncio.create_task(follow("read")) for _ in range(10)]
        while sum(stream.done() for stream in streams) < 8:
            await asyncio.sleep(0)
        for stream in streams:
            if stream.done():
                refused = stream.result()
                assert refused.status == 429
                assert "CLIPFLEET_LIMITS__EVENT_STREAMS" in refused.problem["detail"]
                assert refused.headers["retry-after"] == "10"
        world.parts.ledger.cancel("job-other")  # so that the other key's stream ends
        assert (await follow("write")).status == 200
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    played(scene)


def test_active_jobs_of_one_key_leave_room_for_others(tmp_path: Path) -> None:
    world = World(tmp_path, limits=Limits(active_jobs=8), source_roots=[tmp_path])
    world.parts.ledger.cancel("job-other")
    job = {"source": {"type": "folder", "path": str(tmp_path)}}

    def start(key: str, name: str = "acme") -> Any:
        return world.ask(f"POST /v1/collections/{name}/jobs", key, json=job)

    ids = [start("write", name).json()["id"] for name in ("acme", "other", "acme", "other")]
    refused = start("write")
    assert refused.status_code == 503
    assert refused.json()["type"].endswith("too-many-jobs")
    assert {"active": 4, "of_key": 4, "limit": 8}.items() <= refused.json().items()
    assert "CLIPFLEET_LIMITS__ACTIVE_JOBS" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    files = {"files": ("a.jpg", b"x")}
    upload = "POST /v1/collections/acme/images"
    assert world.ask(upload, "write", files=files).status_code == 503
    assert world.ask(upload, "acme-write", files=files).status_code == 202
    assert start("acme-write").status_code == 202
    world.parts.ledger.cancel(ids[0])
    assert start("write").status_code == 503  # 3 jobs of it, and 3 are free
    world.parts.ledger.cancel(ids[1])
    assert start("write").status_code == 202


@pytest.mark.parametrize("limit", [1, 2, 3, 1_000])
def test_the_rule(limit: int) -> None:
    assert may_take(0, limit)
    assert not may_take(0, 0)
    assert not may_take(limit, limit)
