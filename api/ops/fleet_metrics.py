"""The fleet's numbers, as Redis has them when they are asked for: every gateway shows the same."""

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
PATIENCE_S = 3.0  # Prometheus itself waits for ten


class FleetCollector(Collector):
    """Redis away or slow: `clipfleet_redis_up 0`, and none of the others."""

    def __init__(self, overviews: Overviews, patience_s: float = PATIENCE_S) -> None:
        self._overviews, self._patience_s = overviews, patience_s
        self._thread = ThreadPoolExecutor(1, "overview")
        self._asking = threading.Lock()
        self._reading: Future[Overview] | None = None  # perhaps by somebody who gave up waiting
        self._last: Overview | None = None
        self._read_at = float("-inf")

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: what there is depends on Redis, which is not asked at start."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._asking:
            seen = self._fresh()
        up = GaugeMetricFamily("clipfleet_redis_up", "Whether Redis answered this gateway")
        up.add_metric([], float(seen is not None))
        yield up
        if seen is not None:
            yield from _families(seen)

    def end(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _fresh(self) -> Overview | None:
        if time.monotonic() - self._read_at < CACHE_S:
            return self._last
        self._reading = self._under_way() or self._thread.submit(self._overviews.read)
        try:
            self._last = self._reading.result(self._patience_s)
        except TimeoutError:  # the reading goes on, and who comes next does not wait as long again
            self._last, self._read_at = None, time.monotonic()
            return None
        except Unavailable:
            self._last = None
        except Exception:
            log.exception("the fleet's numbers cannot be read")
            self._last = None
        self._reading, self._read_at = None, time.monotonic()
        return self._last

    def _under_way(self) -> Future[Overview] | None:
        """The reading that somebody gave up, unless it has ended: that was too long ago."""
        return self._reading if self._reading and not self._reading.done() else None


def _families(seen: Overview) -> Iterator[GaugeMetricFamily]:
    remaining = GaugeMetricFamily(
        "clipfleet_work_left", "Images that jobs still have to do", labels=["model"]
    )
    jobs = GaugeMetricFamily("clipfleet_jobs", "Jobs that are kept, by state", labels=["state"])
    lane = ["lane", "model"]
    depth = GaugeMetricFamily(
        "clipfleet_queue_messages", "Messages that no worker has taken", labels=lane
    )
    age = GaugeMetricFamily(
        "clipfleet_queue_age_seconds", "How long the oldest of them has waited", labels=lane
    )
    workers = GaugeMetricFamily("clipfleet_workers", "Workers alive", labels=lane)
    for model, images in seen.remaining.items():
        remaining.add_metric([model], images)
    for state, count in seen.jobs.items():
        jobs.add_metric([state], count)
    for place, waiting in seen.queues.items():
        depth.add_metric(place, waiting.messages)
        if waiting.age_s is not None:
            age.add_metric(place, waiting.age_s)
    for place, count in seen.workers.items():
        workers.add_metric(place, count)
    yield from (remaining, jobs, depth, age, workers)
