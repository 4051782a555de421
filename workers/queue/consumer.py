"""Celery's consumer of messages, which waits until Redis takes writes.

Celery's own waits until a connection can be opened. One to a replica or to a full Redis can: the
consumer then fails at its first write, and begins again at once, several times a second. And where
none can be opened it pauses for up to 30 s, so that work stands still when Redis is back.
"""

import logging
import time
from typing import Any

from celery.worker.consumer import consumer
from celery.worker.state import maybe_shutdown

from clipfleet.common.errors import Unavailable
from clipfleet.common.process.logs import OutageLog
from clipfleet.common.process.probe import RedisProbe
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings

RETRY_S = 0.5
log = logging.getLogger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc]
        def info(self, parent: Any) -> dict[str, Any]:
            """What Flower shows of the worker, without the password of the Sentinels."""
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
        """An open connection. Until there is one the worker can be told to end."""
        while True:
            maybe_shutdown()
            try:
                self._probe.write()
                conn.connect()
                break
            except Unavailable as error:
                self._outage.away(error.detail)
            except self.connection_errors as error:  # gone again since the probe
                self._outage.away(str(error))
            time.sleep(RETRY_S)
        self._outage.back()
        self.first_connection_attempt = False
        return conn
