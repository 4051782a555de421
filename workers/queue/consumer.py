"""A Celery consumer that waits until Redis accepts writes, and events that nothing waits for.

Celery's own consumer waits until a connection can be opened. A connection to a replica or to a full
Redis can be opened: the consumer then fails at its first write and restarts at once, several times
a second. When no connection can be opened it pauses for up to 30 s, so that work is still stopped
when Redis is available again.
"""

import logging
import time
from collections import deque
from typing import Any

from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer import consumer
from celery.worker.state import maybe_shutdown

from clipfleet.common.errors import Unavailable
from clipfleet.common.process.logs import OutageLog
from clipfleet.common.process.probe import RedisProbe
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings

RETRY_INTERVAL_S = 0.5
KEPT_EVENTS = 100  # of those that could not be sent
log = logging.getLogger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Connects to Redis once it accepts writes."""

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc]
        def info(self, parent: Any) -> dict[str, Any]:
            """The worker's details that Flower shows, without the Sentinels' password."""
            shown: dict[str, Any] = super().info(parent)
            broker = shown.get("broker")
            if isinstance(broker, dict):
                broker.pop("transport_options", None)
            return shown

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        settings = Settings()
        self._probe = RedisProbe(make_redis(settings), settings)
        self._outage = OutageLog(log, "waiting for Redis")

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for a connection that can write, and open it. A shutdown ends the wait."""
        while True:
            maybe_shutdown()
            try:
                self._probe.write()
                conn.connect()
                break
            except Unavailable as error:
                self._outage.away(error.detail)
            except self.connection_errors as error:  # Redis became unavailable after the probe
                self._outage.away(str(error))
            time.sleep(RETRY_INTERVAL_S)
        self._outage.back()
        self.first_connection_attempt = False
        return conn


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Sends each event once, and keeps the last ones that could not be sent.

    Celery repeats a heartbeat, every second and for ever, on the thread that takes messages and
    notices a shutdown. While Redis refused writes, a worker therefore ignored SIGTERM.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._outbound_buffer: deque[Any] = deque(maxlen=KEPT_EVENTS)

    def send(self, kind: str, *args: Any, retry: bool = False, **fields: Any) -> None:  # noqa: ARG002
        super().send(kind, *args, retry=False, **fields)
