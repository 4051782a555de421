"""Metrics of the whole fleet, read from Redis at a scrape. Every gateway shows the same."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from clipfleet.common.errors import Unavailable
from clipfleet.common.queue.overview import Overview, Overviews

log = logging.getLogger(__name__)

CACHE_S = 2.0  # so that many scrapers cost no more than one
READ_TIMEOUT_S = 3.0  # Prometheus itself waits for ten seconds


class FleetCollector(Collector):
    """Collects the metrics of the fleet.

    When Redis is unavailable or slow, there is only `clipfleet_redis_up` with the value 0.

    Args:
        overviews: reads the numbers.
        timeout_s: seconds that a scrape waits for Redis.
    """

    def __init__(self, overviews: Overviews, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._overviews, self._timeout_s = overviews, timeout_s
        self._thread = ThreadPoolExecutor(1, "overview")
        self._lock = threading.Lock()
        self._reading: Future[Overview] | None = None  # perhaps that of a scrape that timed out
        self._last: Overview | None = None
        self._read_at = float("-inf")

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing: the metrics depend on Redis, which is not read at start."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics, read at most CACHE_S ago."""
        with self._lock:
            overview = self._read()
        up = GaugeMetricFamily("clipfleet_redis_up", "Whether Redis answered this gateway")
        up.add_metric([], float(overview is not None))
        yield up
        if overview is not None:
            yield from _families(overview)

    def end(self) -> None:
        """End the thread that reads."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> Overview | None:
        if time.monotonic() - self._read_at < CACHE_S:
            return self._last
        self._reading = self._unfinished_reading() or self._thread.submit(self._overviews.read)
        try:
            self._last = self._reading.result(self._timeout_s)
        except TimeoutError:  # the reading goes on; the next scrape does not wait as long again
            self._last, self._read_at = None, time.monotonic()
            return None
        except Unavailable:
            self._last = None
        except Exception:
            log.exception("the metrics of the fleet cannot be read")
            self._last = None
        self._reading, self._read_at = None, time.monotonic()
        return self._last

    def _unfinished_reading(self) -> Future[Overview] | None:
        """The reading of a scrape that timed out, unless it has ended: its result is too old."""
        return self._reading if self._reading and not self._reading.done() else None


def _families(overview: Overview) -> Iterator[GaugeMetricFamily]:
    work_left = GaugeMetricFamily(
        "clipfleet_work_left", "Images that jobs still have to do", labels=["model"]
    )
    jobs = GaugeMetricFamily("clipfleet_jobs", "Jobs that are kept, by state", labels=["state"])
    lane = ["lane", "model"]
    depth = GaugeMetricFamily(
        "clipfleet_queue_messages", "Messages that no worker has taken", labels=lane
    )
    age = GaugeMetricFamily(
        "clipfleet_queue_age_seconds",
        "Age of the oldest message that no worker has taken",
        labels=lane,
    )
    workers = GaugeMetricFamily("clipfleet_workers", "Workers alive", labels=lane)
    for model, images in overview.remaining.items():
        work_left.add_metric([model], images)
    for state, count in overview.jobs.items():
        jobs.add_metric([state], count)
    for queue, waiting in overview.queues.items():
        depth.add_metric(queue, waiting.messages)
        if waiting.age_s is not None:
            age.add_metric(queue, waiting.age_s)
    for queue, count in overview.workers.items():
        workers.add_metric(queue, count)
    yield from (work_left, jobs, depth, age, workers)
