"""The worker's thread pool wakes the loop once a task is over, and not before."""

from collections.abc import Callable
from typing import Any

from kombu.asynchronous import set_event_loop

from clipfleet.workers.pool import TaskPool


class Loop:
    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()
        self._seen.append("woken")


def test_a_finished_task_wakes_the_loop_after_its_callbacks() -> None:
    seen: list[str] = []
    set_event_loop(Loop(seen))
    try:
        pool = TaskPool(limit=1)
        note: Any = seen.append
        result = pool.on_apply(note, args=("ran",), callback=lambda _: seen.append("counted"))
        result.get(30)
        pool.executor.shutdown(wait=True)
    finally:
        set_event_loop(None)
    assert seen == ["ran", "counted", "woken"]


def test_without_a_loop_there_is_nothing_to_wake() -> None:
    set_event_loop(None)
    pool = TaskPool(limit=1)
    done: list[int] = []
    pool.on_apply(done.append, args=(1,), callback=done.append).get(30)
    pool.executor.shutdown(wait=True)
    assert done[0] == 1
