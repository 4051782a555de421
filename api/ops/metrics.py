"""The metrics of a gateway, and `/metrics`, which shows them together with those of the fleet.

docs/metrics.md describes each metric.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dispatch.coalescer import Coalescer, Overloaded, QueryTimeout
from clipfleet.api.http.bodies import MemoryFull
from clipfleet.api.ops.fleet_metrics import FleetCollector
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.process.metrics import make_registry
from clipfleet.common.queue.fleet import NoWorker
from clipfleet.common.queue.overview import Overviews

router = APIRouter(include_in_schema=False, route_class=AuthorizedRoute)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_SECONDS = (0.001, 0.0025, *SECONDS)
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
REASONS: dict[type[ClipfleetError], str] = {
    Overloaded: "queue_full",
    MemoryFull: "memory_full",
    NoWorker: "no_worker",
    QueryTimeout: "deadline",
}
TOO_MANY_REQUESTS = 429


class GatewayMetrics:
    """Counts the requests of one gateway and shows its metrics.

    Attributes:
        registry: the Prometheus registry of this gateway.
    """

    def __init__(self) -> None:
        self.registry = make_registry()
        # Threads of its own, so that a scrape that waits for Redis delays only scrapes.
        self._threads = ThreadPoolExecutor(2, "metrics")
        self._fleet: FleetCollector | None = None
        self._requests = Counter(
            "clipfleet_requests", "Requests answered", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "clipfleet_request_seconds", "Seconds to the end of the response", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._stages = Histogram(
            "clipfleet_query_seconds", "Seconds of searches and embeddings", ["route", "stage"],
            buckets=STAGE_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "clipfleet_refused", "Requests that were refused", ["reason"], registry=self.registry
        )
        for reason in ("rate_limit", *REASONS.values()):
            self._refused.labels(reason)

    def watch(self, overviews: Overviews, coalescers: Sequence[Coalescer], model: str) -> None:
        """Show the metrics of the fleet and of these coalescers as well.

        Args:
            overviews: reads the numbers of the fleet.
            coalescers: the coalescers of this gateway.
            model: a model that is shown even without queries.
        """
        self._fleet = FleetCollector(overviews)
        self.registry.register(self._fleet)
        self.registry.register(_Queries(coalescers, model))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a response.

        Args:
            method: the method of the request.
            route: the template of the route. A path would make every id a time series.
            status: the HTTP status.
            seconds: the duration of the request.
        """
        label = method if method in METHODS else "other"
        self._requests.labels(label, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def timed(self, route: str, durations: Mapping[str, float], request_id: str) -> None:
        """Observe the stages of an answer.

        Args:
            route: the template of the route.
            durations: seconds by stage.
            request_id: the exemplar of the buckets, which OpenMetrics shows.
        """
        exemplar = {"request_id": request_id} if request_id else None
        for stage, seconds in durations.items():
            self._stages.labels(route, stage).observe(seconds, exemplar)

    def refused(self, error: BaseException) -> None:
        """Count an error that means overload, a rate limit or missing workers; ignore others."""
        if not isinstance(error, ClipfleetError):
            return
        limited = error.status == TOO_MANY_REQUESTS
        if reason := "rate_limit" if limited else REASONS.get(type(error), ""):
            self._refused.labels(reason).inc()

    async def shown(self, accept: str) -> Response:
        """Return the metrics in the format that the Accept header asks for."""
        encode, kind = choose_encoder(accept)
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._threads, encode, self.registry)
        return Response(body, headers={"Content-Type": kind})

    def end(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._fleet:
            self._fleet.end()


class _Queries(Collector):
    """Collects the number of queries that wait or are in flight now."""

    def __init__(self, coalescers: Sequence[Coalescer], model: str) -> None:
        self._coalescers, self._model = coalescers, model

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "clipfleet_queries_waiting", "Queries not yet sent to a worker", labels=["model"]
        )
        by_model = Tally({self._model: 0})  # shown before the first query, for autoscalers
        for coalescer in self._coalescers:
            by_model.update(coalescer.waiting())
        for model, count in by_model.items():
            waiting.add_metric([model], count)
        yield waiting
        yield GaugeMetricFamily(
            "clipfleet_queries_in_flight",
            "Queries sent to workers and not answered",
            value=sum(coalescer.in_flight() for coalescer in self._coalescers),
        )


@router.get("/metrics")
@needs("nothing")
async def metrics(request: Request) -> Response:
    """Return the metrics in the format of Prometheus."""
    gateway_metrics: GatewayMetrics = request.app.state.metrics
    return await gateway_metrics.shown(request.headers.get("accept", ""))
