"""What a gateway counts, and how it shows the numbers of the fleet."""

import asyncio
import logging
import threading
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.coalescer import Overloaded
from clipfleet.api.http.bodies import MemoryFull
from clipfleet.api.ops.access_log import AccessLogMiddleware
from clipfleet.api.ops.fleet_metrics import FleetCollector
from clipfleet.api.ops.metrics import GatewayMetrics
from clipfleet.common.errors import ClipfleetError, NotFound
from clipfleet.common.queue.fleet import NoWorker
from clipfleet.common.queue.overview import Overview
from clipfleet.common.redis.client import RedisUnavailable
from clipfleet.common.settings import Settings
from support.coalescer_harness import MODEL, Desk, played, query
from support.overviews import SEEN, ScriptedOverviews
from support.prometheus import Scrape, faults, scraped


def shown(overviews: ScriptedOverviews, timeout_s: float = 30) -> Scrape:
    metrics = GatewayMetrics()
    metrics.registry.register(FleetCollector(overviews, timeout_s))
    return scraped(metrics.registry)


def test_the_fleets_numbers_are_what_redis_says() -> None:
    seen = shown(ScriptedOverviews(lambda: SEEN))
    assert seen.value("clipfleet_redis_up") == 1
    assert seen.value("clipfleet_work_left", model=MODEL) == 7
    assert seen.value("clipfleet_jobs", state="running") == 2
    assert seen.value("clipfleet_jobs", state="failed") == 0
    assert seen.value("clipfleet_queue_messages", lane="ingest", model=MODEL) == 3
    assert seen.value("clipfleet_queue_age_seconds", lane="ingest", model=MODEL) == 4.5
    assert seen.value("clipfleet_queue_age_seconds", lane="query", model=MODEL) is None
    assert seen.value("clipfleet_workers", lane="query", model=MODEL) == 0


def away() -> Overview:
    raise RedisUnavailable("away")


def broken() -> Overview:
    raise ValueError("not what we expect in there")


@pytest.mark.parametrize("read", [away, broken])
def test_without_redis_there_are_the_gateways_own_numbers(read: Callable[[], Overview]) -> None:
    seen = shown(ScriptedOverviews(read))
    assert seen.value("clipfleet_redis_up") == 0
    assert seen.all("clipfleet_work_left") == []
    assert seen.value("clipfleet_refused_total", reason="no_worker") == 0


def test_redis_that_hangs_is_not_waited_for_and_not_asked_again_meanwhile() -> None:
    answer = threading.Event()

    def hanging() -> Overview:
        answer.wait(60)
        return SEEN

    overviews = ScriptedOverviews(hanging)
    metrics = GatewayMetrics()
    collector = FleetCollector(overviews, timeout_s=0.01)
    metrics.registry.register(collector)
    for _ in range(3):
        assert scraped(metrics.registry).value("clipfleet_redis_up") == 0
    assert overviews.times == 1
    answer.set()
    collector._timeout_s, collector._read_at = 60, float("-inf")
    assert scraped(metrics.registry).value("clipfleet_work_left", model=MODEL) == 7


def test_many_scrapes_at_once_cost_redis_one_look() -> None:
    overviews = ScriptedOverviews(lambda: SEEN)
    metrics = GatewayMetrics()
    metrics.registry.register(FleetCollector(overviews))
    for _ in range(5):
        scraped(metrics.registry)
    assert overviews.times == 1


def test_queries_are_waiting_or_in_flight_and_then_gone() -> None:
    async def scene() -> None:
        desk = Desk(workers=0)
        metrics = GatewayMetrics()
        metrics.watch(ScriptedOverviews(lambda: SEEN), [desk.queries], "never asked")
        await desk.ask("a", "b", "c")
        seen = scraped(metrics.registry)
        assert seen.value("clipfleet_queries_waiting", model=MODEL) == 2
        assert seen.value("clipfleet_queries_waiting", model="never asked") == 0
        assert seen.value("clipfleet_queries_in_flight") == 1
        for _ in range(2):
            desk.answer(desk.sent[-1])
            await asyncio.sleep(0.01)
        seen = scraped(metrics.registry)
        assert seen.value("clipfleet_queries_waiting", model=MODEL) == 0
        assert seen.value("clipfleet_queries_in_flight") == 0

    played(scene)


class Limited(ClipfleetError):
    status = 429


def test_what_is_turned_away_for_want_of_room_or_workers_is_counted_by_reason() -> None:
    async def late() -> Exception:
        try:
            await Desk(timeout_s=0.01).queries.ask(query("a"), MODEL)
        except ClipfleetError as error:
            return error
        raise AssertionError("it was answered")

    metrics = GatewayMetrics()
    full = (Overloaded("full"), MemoryFull("full"))
    for error in (*full, NoWorker("query", MODEL), Limited("slow"), NotFound("no")):
        metrics.refused(error)
    metrics.refused(asyncio.run(late()))
    metrics.refused(ValueError("not ours"))
    refusals = scraped(metrics.registry).all("clipfleet_refused_total")
    assert {labels["reason"]: count for labels, count in refusals} == {
        "queue_full": 1,
        "memory_full": 1,
        "no_worker": 1,
        "rate_limit": 1,
        "deadline": 1,
    }


def statuses(
    app: FastAPI | AccessLogMiddleware, *requests: tuple[str, str], **headers: str
) -> list[int]:
    async def run() -> list[int]:
        way = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=way, base_url="http://here") as http:
            return [
                (await http.request(method, path, headers=headers)).status_code
                for method, path in requests
            ]

    return asyncio.run(run())


def an_app(metrics: GatewayMetrics, lines: bool = False) -> FastAPI:
    app = FastAPI()
    app.add_middleware(AccessLogMiddleware, metrics=metrics, lines=lines)

    @app.get("/things/{thing}")
    def thing(thing: str) -> str:
        if thing == "broken":
            raise RuntimeError("broken")
        return thing

    return app


def test_requests_are_counted_by_route_and_never_by_path() -> None:
    metrics = GatewayMetrics()
    things = [("GET", f"/things/{n}") for n in range(5)]
    others = [("DELETE", "/things/1"), ("GET", "/nowhere/7"), ("BREW", "/nowhere/8")]
    assert statuses(an_app(metrics), *things, *others) == [200] * 5 + [405, 404, 404]
    seen = scraped(metrics.registry)
    route = "/things/{thing}"
    assert seen.all("clipfleet_requests_total") == [
        ({"method": "GET", "route": route, "status": "200"}, 5),
        ({"method": "DELETE", "route": route, "status": "405"}, 1),
        ({"method": "GET", "route": "none", "status": "404"}, 1),
        ({"method": "other", "route": "none", "status": "404"}, 1),
    ]
    assert seen.value("clipfleet_request_seconds_count", route=route) == 6


def test_a_route_that_breaks_counts_as_a_500() -> None:
    metrics = GatewayMetrics()
    assert statuses(an_app(metrics), ("GET", "/things/broken")) == [500]
    assert scraped(metrics.registry).total("clipfleet_requests_total", status="500") == 1


def test_the_whole_gateways_routes_are_templates() -> None:
    """The requests pass all middlewares of a gateway that is connected to nothing."""
    app = create_app(Settings(allowed_hosts=("here",)))
    (metrics,) = (
        middleware.kwargs["metrics"]
        for middleware in app.user_middleware
        if "lines" in middleware.kwargs
    )
    assert isinstance(metrics, GatewayMetrics)
    assert statuses(app, ("GET", "/healthz"), ("GET", "/page/main.js"), ("GET", "/no")) == [
        200, 200, 404,
    ]  # fmt: skip
    assert statuses(app, ("GET", "/healthz"), host="stranger") == [421]
    requests = scraped(metrics.registry).all("clipfleet_requests_total")
    assert [(labels["route"], labels["status"]) for labels, _ in requests] == [
        ("/healthz", "200"),
        ("/page/{name}", "200"),
        ("none", "404"),
        ("none", "421"),
    ]


@pytest.mark.parametrize("lines", [True, False])
def test_a_request_has_a_line_where_logs_are_for_machines(
    lines: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "clipfleet.api.ops.access_log"):
        statuses(an_app(GatewayMetrics(), lines), ("GET", "/things/1?secret=x"))
    assert [record.getMessage() for record in caplog.records] == ["GET /things/1 200"] * lines


def test_names_keep_to_the_rules() -> None:
    metrics = GatewayMetrics()
    metrics.watch(ScriptedOverviews(lambda: SEEN), [Desk().queries], "m")
    metrics.answered("GET", "/healthz", 200, 0.1)
    metrics.timed("/v1/embed", {"total": 0.1}, "request")
    seen = scraped(metrics.registry)
    assert len(seen.ours) == 12
    assert faults(seen) == []
