"""Celery's thread pool, waking the worker's event loop when a task has ended.

The loop takes no message while the pool is full, and sleeps for up to a second at a time. Nothing
wakes it when a thread is done, so a worker without prefetch would idle half a second per message.
"""

from typing import Any

from celery.concurrency import thread


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    _hub: Any = None

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery hands over the loop at every connection. kombu's `get_event_loop` would give None
        once a connection was lost."""
        self._hub = loop

    def on_apply(self, *args: Any, **how: Any) -> Any:
        result = super().on_apply(*args, **how)
        result.f.add_done_callback(self._wake)
        return result

    def _wake(self, _: object) -> None:
        if self._hub is not None:
            self._hub.call_soon(lambda: None)
