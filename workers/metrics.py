"""Prometheus metrics of workers and planners, described in docs/metrics.md."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.http.webhooks import WebhookState
from clipfleet.common.ledger import Outcome

TimedStage = Literal["fetch", "blob", "read", "decode", "model", "store"]
RestartReason = Literal["crash", "killed", "hung"]

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

    Attributes:
        concurrency: what `set_concurrency` was called with.
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
        self._concurrency = Gauge(
            "clipfleet_stage_concurrency",
            "Images, passes or chunks that a stage of indexing works on at once", ["stage"],
            registry=registry,
        )  # fmt: skip
        self._restarts = Counter(
            "clipfleet_feeder_restarts", "Feeders that ended and were replaced", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.concurrency: dict[TimedStage, int] = {}
        self._starved = _Starved()
        registry.register(self._starved)
        for reason in get_args(RestartReason):
            self._restarts.labels(reason)
        for result in ("done", "skipped", "failed"):
            self.images.labels(result)
        for lane in LANES:
            self._in_flight.labels(lane)

    @contextmanager
    def timed(self, lane: Lane, stage: TimedStage) -> Iterator[None]:
        """Observe the time of a `with` block as time of a stage."""
        passes = 1 if (lane, stage) == ("ingest", "model") else 0
        self._starved.change(passes=passes)
        try:
            with self._stages.labels(lane, stage).time():
                yield
        finally:
            self._starved.change(passes=-passes)

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

    @contextmanager
    def in_flight(self, lane: Lane) -> Iterator[None]:
        """Count a chunk or a batch as in flight during a `with` block."""
        chunks = 1 if lane == "ingest" else 0
        self._starved.change(chunks=chunks)
        try:
            with self._in_flight.labels(lane).track_inprogress():
                yield
        finally:
            self._starved.change(chunks=-chunks)

    def chunk(self, seconds: float) -> None:
        """Observe the time from a chunk's claim to its end."""
        self._chunks.observe(seconds)

    def set_concurrency(self, counts: Mapping[TimedStage, int]) -> None:
        """Export how many images, passes or chunks each stage of indexing works on at once."""
        self.concurrency = dict(counts)
        for stage, count in counts.items():
            self._concurrency.labels(stage).set(count)

    def feeder_restarted(self, reason: RestartReason) -> None:
        """Count a feeder that ended and is replaced."""
        self._restarts.labels(reason).inc()

    def totals(self) -> tuple[int, dict[str, float]]:
        """Images embedded for jobs, and the seconds of each ingest stage, since the start."""
        value, lane = self.registry.get_sample_value, {"lane": "ingest"}
        images = value("clipfleet_batch_size_sum", lane) or 0.0
        seconds = {
            stage: spent
            for stage in get_args(TimedStage)
            if (spent := value("clipfleet_stage_seconds_sum", {**lane, "stage": stage}))
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


class _Starved(Collector):
    """Seconds in which chunks were in hand and the model computed nothing for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks = self._passes = 0
        self._seconds, self._since = 0.0, time.monotonic()

    def change(self, *, chunks: int = 0, passes: int = 0) -> None:
        """Count chunks or passes that begin or end."""
        with self._lock:
            self._count()
            self._chunks, self._passes = self._chunks + chunks, self._passes + passes

    def _count(self) -> None:
        now = time.monotonic()
        if self._chunks and not self._passes:
            self._seconds += now - self._since
        self._since = now

    def collect(self) -> Iterator[CounterMetricFamily]:
        with self._lock:
            self._count()
            seconds = self._seconds
        yield CounterMetricFamily(
            "clipfleet_device_starved_seconds",
            "Seconds in which chunks were in hand and the model computed nothing for them",
            seconds,
        )


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
        self.webhooks = Counter(
            "clipfleet_webhook_tries", "Tries to send the webhook of a job", ["state"],
            registry=registry,
        )  # fmt: skip
        for state in get_args(WebhookState):
            self.webhooks.labels(state)
        self.leased = Gauge("clipfleet_jobs_leased", "Jobs of this planner", registry=registry)
