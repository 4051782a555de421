"""The worker's thread pool wakes the loop once a task is over, and not before."""

from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub, set_event_loop

from clipfleet.workers.queue.pool import TaskPool


@pytest.fixture
def hub() -> Iterator[Any]:
    hub = Hub()
    set_event_loop(hub)
    yield hub
    hub.close()


def run(hub: Any) -> list[str]:
    """What one task leads to, in its order."""
    events: list[str] = []
    pool = TaskPool(limit=1)
    if hub:
        pool.register_with_event_loop(hub)
        hub.call_soon = lambda _: events.append("woken")
    note: Any = events.append
    pool.on_apply(note, args=("ran",), callback=lambda _: events.append("counted")).get(30)
    pool.executor.shutdown(wait=True)
    return events


def test_a_finished_task_wakes_the_loop_after_its_callbacks(hub: Any) -> None:
    assert run(hub) == ["ran", "counted", "woken"]


def test_a_loop_that_lost_its_connection_is_woken_as_before(hub: Any) -> None:
    hub.reset()  # as Celery does it
    assert run(hub) == ["ran", "counted", "woken"]


def test_without_a_loop_there_is_nothing_to_wake() -> None:
    assert run(None) == ["ran", "counted"]
