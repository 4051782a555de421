"""Prometheus metrics of workers and planners, described in docs/metrics.md."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.ledger import Outcome

TimedStage = Literal["read", "decode", "model", "store"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CHUNK_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class StageTimings:
    """Seconds that the images of one batch spent in each stage, summed over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[TimedStage, float] = {}

    @contextmanager
    def timed(self, stage: TimedStage) -> Iterator[None]:
        """Add the time of the `with` block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took

    def add(self, seconds: Mapping[TimedStage, float]) -> None:
        """Add the seconds of other images, by stage."""
        with self._lock:
            for stage, more in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + more


class FailureMetrics:
    """Counters of images that failed: in workers, or quarantined by the planner."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.images = Counter(
            "clipfleet_images", "Images that jobs have finished", ["result"], registry=registry
        )
        self._failures = Counter(
            "clipfleet_image_failures", "Failed images by the stage that failed", ["reason"],
            registry=registry,
        )  # fmt: skip

    def failed(self, reason: str) -> None:
        """Count a failed image by the stage that failed."""
        self.images.labels("failed").inc()
        self._failures.labels(reason).inc()


class WorkerMetrics(FailureMetrics):
    """The metrics of a worker process.

    Args:
        registry: where the metrics are registered; a registry of their own by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = self.registry = registry or CollectorRegistry()
        super().__init__(registry)
        self._stages = Histogram(
            "clipfleet_stage_seconds", "Seconds in a stage", ["lane", "stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "clipfleet_batch_size", "Images in a forward pass, queries in a message", ["lane"],
            buckets=SIZES, registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge(
            "clipfleet_in_flight", "Chunks or batches in progress", ["lane"], registry=registry
        )
        self._chunks = Histogram(
            "clipfleet_chunk_seconds", "Seconds from a chunk's claim to its end",
            buckets=CHUNK_SECONDS, registry=registry,
        )  # fmt: skip
        for result in ("done", "skipped", "failed"):
            self.images.labels(result)
        for lane in LANES:
            self._in_flight.labels(lane)

    def timed(self, lane: Lane, stage: TimedStage) -> AbstractContextManager[object]:
        """Observe the time of a `with` block as time of a stage."""
        return self._stages.labels(lane, stage).time()

    def observe_timings(self, lane: Lane, timings: StageTimings) -> None:
        """Observe the seconds that one batch spent in each stage."""
        for stage, seconds in timings.seconds.items():
            self._stages.labels(lane, stage).observe(seconds)

    def batch(self, lane: Lane, size: int) -> None:
        """Observe the number of images in a forward pass, or of queries in a message."""
        self._batches.labels(lane).observe(size)

    def marked(self, outcome: Outcome) -> None:
        """Count an outcome that the ledger has accepted, so that these counts equal the jobs'."""
        self.images.labels("done").inc(outcome.done)
        self.images.labels("skipped").inc(outcome.skipped)
        for failure in outcome.failures:
            self.failed(failure.stage)

    def in_flight(self, lane: Lane) -> AbstractContextManager[object]:
        """Count a chunk or a batch as in flight during a `with` block."""
        return self._in_flight.labels(lane).track_inprogress()

    def chunk(self, seconds: float) -> None:
        """Observe the time from a chunk's claim to its end."""
        self._chunks.observe(seconds)

    def totals(self) -> tuple[int, dict[str, float]]:
        """Images embedded for jobs, and the seconds of each ingest stage, since the start."""
        value, lane = self.registry.get_sample_value, {"lane": "ingest"}
        images = value("clipfleet_batch_size_sum", lane) or 0.0
        seconds = {
            stage: value("clipfleet_stage_seconds_sum", {**lane, "stage": stage}) or 0.0
            for stage in get_args(TimedStage)
        }
        return int(images), seconds

    def watch_cache(self, name: str, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        """Export the counts of a cache.

        Args:
            name: the value of the label `cache`.
            hits: returns the number of hits since the start.
            misses: returns the number of misses since the start.
        """
        self.registry.register(_Cache(name, hits, misses))


class _Cache(Collector):
    def __init__(self, name: str, hits: Callable[[], int], misses: Callable[[], int]) -> None:
        self._name, self._counts = name, {"hits": hits, "misses": misses}

    def collect(self) -> Iterator[CounterMetricFamily]:
        for what, count in self._counts.items():
            family = CounterMetricFamily(
                f"clipfleet_cache_{what}", f"Cache {what}", labels=["cache"]
            )
            family.add_metric([self._name], count())
            yield family


class PlannerMetrics(FailureMetrics):
    """The metrics of a planner process.

    Args:
        registry: where the metrics are registered; a registry of their own by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = self.registry = registry or CollectorRegistry()
        super().__init__(registry)
        self.planned = Counter(
            "clipfleet_planned_items", "Images put into chunks", registry=registry
        )
        self.nudges = Counter(
            "clipfleet_nudges_sent", "Messages to workers to claim a chunk", registry=registry
        )
        self.requeued = Counter(
            "clipfleet_chunks_requeued", "Chunks pending again after their lease expired",
            registry=registry,
        )  # fmt: skip
        self.leased = Gauge("clipfleet_jobs_leased", "Jobs of this planner", registry=registry)
