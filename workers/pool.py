"""Celery's thread pool, waking the worker's event loop when a task has ended.

The loop takes no message while the pool is full, and sleeps for up to a second at a time. Nothing
wakes it when a thread is done, so a worker without prefetch would idle half a second per message.
"""

from typing import Any

from celery.concurrency import thread
from kombu.asynchronous import get_event_loop


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    def on_apply(self, *args: Any, **how: Any) -> Any:
        result = super().on_apply(*args, **how)
        result.f.add_done_callback(_wake)
        return result


def _wake(_: object) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(lambda: None)
