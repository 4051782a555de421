"""What a gateway counts, and `/metrics`, which shows it together with the fleet's numbers.

docs/metrics.md says what each means.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dispatch.coalescer import Coalescer, Late, Overloaded
from clipfleet.api.http.bodies import Overfull
from clipfleet.api.ops.fleet_metrics import FleetCollector
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.process.metrics import make_registry
from clipfleet.common.queue.fleet import NoWorker
from clipfleet.common.queue.overview import Overviews

router = APIRouter(include_in_schema=False, route_class=AuthorizedRoute)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
REASONS: dict[type[ClipfleetError], str] = {
    Overloaded: "queue_full",
    Overfull: "memory_full",
    NoWorker: "no_worker",
    Late: "deadline",
}
TOO_MANY_REQUESTS = 429


class GatewayMetrics:
    def __init__(self) -> None:
        self.registry = make_registry()
        # Of their own: one scrape that waits for Redis holds up nobody but scrapers.
        self._threads = ThreadPoolExecutor(2, "metrics")
        self._fleet: FleetCollector | None = None
        self._requests = Counter(
            "clipfleet_requests", "Requests answered", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "clipfleet_request_seconds", "Seconds to the end of the answer", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "clipfleet_refused", "What was turned away", ["reason"], registry=self.registry
        )
        for reason in ("rate_limit", *REASONS.values()):
            self._refused.labels(reason)

    def watch(self, overviews: Overviews, coalescers: Sequence[Coalescer], model: str) -> None:
        """`model`: one whose queries are shown even when there are none."""
        self._fleet = FleetCollector(overviews)
        self.registry.register(self._fleet)
        self.registry.register(_Queries(coalescers, model))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route`: its template, never the path, or every id would be a series."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, error: BaseException) -> None:
        """Counts those that mean that there was too much to do, or nobody to do it."""
        if not isinstance(error, ClipfleetError):
            return
        limited = error.status == TOO_MANY_REQUESTS
        if reason := "rate_limit" if limited else REASONS.get(type(error), ""):
            self._refused.labels(reason).inc()

    async def shown(self, accept: str) -> Response:
        encode, kind = choose_encoder(accept)
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._threads, encode, self.registry)
        return Response(body, headers={"Content-Type": kind})

    def end(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._fleet:
            self._fleet.end()


class _Queries(Collector):
    """The queries in this gateway's hands just now."""

    def __init__(self, coalescers: Sequence[Coalescer], model: str) -> None:
        self._coalescers, self._model = coalescers, model

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(
            "clipfleet_queries_waiting", "Queries not yet sent to a worker", labels=["model"]
        )
        by_model = Tally({self._model: 0})  # shown before the first query: who scales by it asks
        for one in self._coalescers:
            by_model.update(one.waiting())
        for model, count in by_model.items():
            waiting.add_metric([model], count)
        yield waiting
        yield GaugeMetricFamily(
            "clipfleet_queries_in_flight",
            "Queries sent to workers and not answered",
            value=sum(one.in_flight() for one in self._coalescers),
        )


@router.get("/metrics")
@needs("nothing")
async def metrics(request: Request) -> Response:
    """In Prometheus' format."""
    mine: GatewayMetrics = request.app.state.metrics
    return await mine.shown(request.headers.get("accept", ""))
