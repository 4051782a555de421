"""A Celery thread pool that wakes the worker's event loop when a task ends.

The loop takes no message while the pool is full, and sleeps for up to a second at a time. Celery's
own pool does not wake the loop when a thread is done, so a worker without prefetch would idle half
a second per message.
"""

from typing import Any

from celery.concurrency import thread


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    """Celery's thread pool with one callback more: a finished task wakes the event loop."""

    _hub: Any = None

    def register_with_event_loop(self, loop: Any) -> None:
        """Keep the event loop, which Celery passes at every connection.

        kombu's `get_event_loop` returns None once a connection was lost.
        """
        self._hub = loop

    def on_apply(self, *args: Any, **options: Any) -> Any:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(self._wake)
        return result

    def _wake(self, _: object) -> None:
        if self._hub is not None:
            self._hub.call_soon(lambda: None)
