"""Celery on Redis: one configuration for those who send and those who work."""

from typing import Any, Protocol

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from clipfleet.common.connection import answering
from clipfleet.common.errors import Unavailable
from clipfleet.common.messages import Message
from clipfleet.common.settings import Settings


class BrokerUnavailable(Unavailable):
    """The queue cannot be reached."""


class Publisher(Protocol):
    def publish(self, message: Message) -> None: ...

    def waiting(self, queue: str) -> int:
        """Messages in the queue that no worker has taken."""
        ...


def make_celery(settings: Settings) -> Any:
    """Opens no connection. The ledger, not a result backend, knows what became of a task."""
    app = Celery("clipfleet", broker=settings.redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_concurrency=1,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=settings.call_timeout_s,
        broker_transport_options={
            "socket_timeout": settings.call_timeout_s,
            "socket_connect_timeout": settings.call_timeout_s,
        },
    )
    return app


class CeleryPublisher:
    def __init__(self, app: Any, client: "redis.Redis") -> None:
        self._app, self._redis = app, client

    def publish(self, message: Message) -> None:
        try:
            self._app.send_task(
                message.task,
                args=[message.model_dump_json()],  # a string: kombu revives types in JSON trees
                queue=message.queue,
                retry=False,
            )
        except (OperationalError, redis.RedisError, OSError) as error:
            raise BrokerUnavailable("the queue does not answer just now; try again") from error

    def waiting(self, queue: str) -> int:
        with answering():
            length: Any = self._redis.llen(queue)
        return int(length)


class MemoryPublisher:
    """Keeps messages in a list, for tests."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def publish(self, message: Message) -> None:
        self.sent.append(message)

    def waiting(self, queue: str) -> int:
        return sum(message.queue == queue for message in self.sent)
