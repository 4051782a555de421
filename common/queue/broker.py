"""Celery on Redis: one configuration for senders and workers, and the publisher port."""

import threading
import time
from typing import Any, Protocol

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from clipfleet.common.errors import Unavailable
from clipfleet.common.queue.messages import Message
from clipfleet.common.redis.client import (
    as_unavailable,
    sentinel_options,
    tls_options,
    translating_redis_errors,
)
from clipfleet.common.redis.sentinel import SentinelAddress, sentinel_address
from clipfleet.common.settings import Settings


class BrokerUnavailable(Unavailable):
    """A message cannot be sent, since Redis is away or full."""


# kombu reads one list for each step. Older releases wrote to all of them.
PRIORITY_STEPS = (0, 3, 6, 9)
PRIORITY_SEPARATOR = "\x06\x16"
SENT_AT = "sent_at"  # a header of each message: unix seconds, by the sender's clock


class Publisher(Protocol):
    """The port for sending messages to workers.

    Implementations: `CeleryPublisher` for a service, `MemoryPublisher` for tests.
    """

    def publish(self, message: Message) -> None:
        """Send a message to its queue. It is sent once, without another try.

        Args:
            message: the message; `message.queue` names the queue.

        Raises:
            BrokerUnavailable: the message was not sent, or Redis did not confirm it.
        """
        ...

    def waiting(self, queue: str) -> int:
        """Count the messages in a queue that no worker has taken.

        Args:
            queue: the name of the queue, from `queue_name`.

        Returns:
            The number of messages; 0 for a queue that does not exist.

        Raises:
            Unavailable: Redis is away.
        """
        ...


def make_celery(settings: Settings) -> Any:
    """Create the Celery application of a part. It opens no connection, and has no result backend.

    A message that a worker has taken is not kept in Redis until it is acknowledged: it is either a
    nudge, which the planner repeats, or a query, whose deadline is over when it would come back.
    """
    address = sentinel_address(settings.redis_url)
    app = Celery("clipfleet", broker=address.broker_url if address else settings.redis_url)
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
        broker_channel_error_retry=True,  # a worker reconnects after any error of Redis
        broker_connection_timeout=settings.call_timeout_s,
        broker_use_ssl=tls_options(settings) or None,
        broker_transport_options={
            "socket_timeout": settings.call_timeout_s,
            "socket_connect_timeout": settings.call_timeout_s,
            # When the host of a worker is cut off and Redis restarts, the connection of a waiting
            # worker is never closed. The worker notices after twice this time; by default, 50 s.
            "health_check_interval": settings.call_timeout_s,
            "priority_steps": list(PRIORITY_STEPS),
            "sep": PRIORITY_SEPARATOR,
            "ack_emulation": False,
            "max_retries": 0,  # the sender gets the error at once
            **_sentinel_transport_options(settings, address),
        },
    )
    return app


def _sentinel_transport_options(
    settings: Settings, address: SentinelAddress | None
) -> dict[str, Any]:
    if address is None:
        return {}
    kwargs = sentinel_options(settings, address)
    return {"master_name": address.service, "sentinel_kwargs": kwargs}


def queue_keys(queue: str) -> list[str]:
    """The keys of the Redis lists with the messages of a queue, one for each priority."""
    return [f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]


class CeleryPublisher:
    """Sends messages as Celery tasks.

    Args:
        app: see `make_celery`.
        client: a client of the same Redis, for the lengths of queues.
    """

    def __init__(self, app: Any, client: "redis.Redis") -> None:
        self._app, self._redis = app, client

    def publish(self, message: Message) -> None:
        try:
            self._app.send_task(
                message.task,
                args=[message.model_dump_json()],  # a string: kombu revives types in JSON trees
                queue=message.queue,
                retry=False,
                headers={SENT_AT: time.time()},
                argsrepr=message.shown,  # in events and logs: it must not contain a query
            )
        except (OperationalError, redis.RedisError, OSError) as error:
            raise BrokerUnavailable(_publish_failure(error)) from error

    def close(self) -> None:
        """Close the connections over which messages were sent. A later message opens another.

        kombu shares these connections among all senders of a process with the same address.
        """
        pool = self._app.pool
        pool.resize(pool.limit, reset=True)

    def waiting(self, queue: str) -> int:
        with translating_redis_errors():
            pipe = self._redis.pipeline(transaction=False)
            for key in queue_keys(queue):
                pipe.llen(key)
            lengths: list[int] = pipe.execute()
        return sum(lengths)


def _publish_failure(error: BaseException) -> str:
    """Why a message was not sent. The cause of kombu's error is that of redis-py."""
    for known in (error, error.__cause__):
        if isinstance(known, redis.RedisError) and (unavailable := as_unavailable(known)):
            return unavailable.detail
    return "the queue does not answer; try again"


class MemoryPublisher:
    """Keeps messages in memory, after a round trip through JSON, until they are taken."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self._changed = threading.Condition()

    def publish(self, message: Message) -> None:
        copy = type(message).model_validate_json(message.model_dump_json())
        with self._changed:
            self.sent.append(copy)
            self._changed.notify_all()

    def waiting(self, queue: str) -> int:
        with self._changed:
            return sum(message.queue == queue for message in self.sent)

    def take(self, queue: str, timeout_s: float) -> Message | None:
        """Take the next message of a queue; None when none comes within `timeout_s` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.waiting(queue), timeout_s):
                return None
            first = next(n for n, message in enumerate(self.sent) if message.queue == queue)
            return self.sent.pop(first)
