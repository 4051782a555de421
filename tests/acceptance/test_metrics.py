"""Metrics of a running service: gateway, planner and workers agree with each other."""

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet.embedded import commands
from support import services
from support.prometheus import Scrape, faults, scrape
from support.stack import Up, finished, photos

IMAGES, BROKEN = 40, 2
STAGES = {"read", "decode", "model", "store"}


def part(service: Up, place: int) -> str:
    return f"http://{commands.LOOPBACK}:{service.metrics_port + place}"


PLANNER, INGEST, QUERY = range(3)


def scrapes(service: Up) -> list[Scrape]:
    return [scrape(service.url), *(scrape(part(service, n)) for n in (PLANNER, INGEST, QUERY))]


def grown(before: Scrape, after: Scrape, name: str, /, **labels: str) -> float:
    return after.total(name, **labels) - before.total(name, **labels)


@pytest.fixture(scope="module")
def indexed(
    service: Up, flickr: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Scrape], list[Scrape], Any]:
    """Metrics before and after a job with two broken images and five searches, and the job."""
    folder = tmp_path_factory.mktemp("photos")
    photos(folder, flickr, IMAGES)
    for n in range(BROKEN):
        (folder / f"broken-{n}.jpg").write_bytes(b"no image")
    with service.client() as client:

        def settled() -> list[Scrape] | None:
            """Return the metrics once they agree with the ledger.

            A worker counts just after the ledger, and a gateway caches what it reads from it.
            """
            seen = scrapes(service)
            ledger = Counter(job.state for job in client.jobs(1_000))
            gauge = {labels["state"]: count for labels, count in seen[0].all("clipfleet_jobs")}
            remaining = seen[0].total("clipfleet_work_left")
            busy = sum(scraped.total("clipfleet_in_flight") for scraped in seen)
            agree = ledger == {state: count for state, count in gauge.items() if count}
            return seen if agree and not remaining and not busy else None

        before = services.eventually(settled, 30, "the end of all earlier work")
        client.create_collection("measured")
        job = finished(client, client.index("measured", folder).id)
        for _ in range(5):
            client.search("measured", text="words that no other test searches for")
        return before, services.eventually(settled, 30, "the end of all work"), job


def test_the_worker_counts_what_the_job_counts(indexed: Any) -> None:
    before, after, job = indexed
    counted = {
        result: sum(
            grown(old, new, "clipfleet_images_total", result=result)
            for old, new in zip(before, after, strict=True)
        )
        for result in ("done", "skipped", "failed")
    }
    assert counted == {"done": job.done, "skipped": job.skipped, "failed": job.failed}
    assert counted == {"done": IMAGES, "skipped": 0, "failed": BROKEN}
    name = "clipfleet_image_failures_total"
    assert grown(before[1 + INGEST], after[1 + INGEST], name, reason="decode") == BROKEN


def test_the_planner_planned_as_many_as_the_job_has(indexed: Any) -> None:
    before, after, job = indexed
    old, new = before[1 + PLANNER], after[1 + PLANNER]
    assert grown(old, new, "clipfleet_planned_items_total") == job.total
    assert grown(old, new, "clipfleet_nudges_sent_total") > 0
    assert grown(before[1 + INGEST], after[1 + INGEST], "clipfleet_chunk_seconds_count") > 0


def test_every_stage_of_both_lanes_was_timed(indexed: Any) -> None:
    before, after, _ = indexed
    for place, lane, stages in ((INGEST, "ingest", STAGES), (QUERY, "query", {"model", "store"})):
        old, new = before[1 + place], after[1 + place]
        spent = {
            stage: grown(old, new, "clipfleet_stage_seconds_sum", lane=lane, stage=stage)
            for stage in STAGES
        }
        assert {stage for stage, seconds in spent.items() if seconds > 0} == stages
    images = grown(before[1 + INGEST], after[1 + INGEST], "clipfleet_batch_size_sum", lane="ingest")
    assert images == IMAGES
    assert grown(before[1 + QUERY], after[1 + QUERY], "clipfleet_batch_size_sum") == 5


def test_the_same_words_are_embedded_once(indexed: Any) -> None:
    before, after, _ = indexed
    old, new = before[1 + QUERY], after[1 + QUERY]
    assert grown(old, new, "clipfleet_cache_hits_total", cache="text") >= 4
    assert grown(old, new, "clipfleet_cache_misses_total", cache="text") <= 1


def test_the_gateway_counted_requests_by_route_and_sees_the_fleet(indexed: Any) -> None:
    before, after, _ = indexed
    old, new = before[0], after[0]
    route = "/v1/collections/{name}/search"
    search_labels = {"method": "POST", "route": route, "status": "200"}
    assert grown(old, new, "clipfleet_requests_total", **search_labels) == 5
    assert grown(old, new, "clipfleet_request_seconds_count", route=route) == 5
    for stage in ("queue", "embed", "search", "total"):
        labels = {"route": route, "stage": stage}
        assert grown(old, new, "clipfleet_query_seconds_count", **labels) == 5
        assert grown(old, new, "clipfleet_query_seconds_sum", **labels) > 0
    assert grown(old, new, "clipfleet_jobs", state="partial") == 1
    assert new.value("clipfleet_redis_up") == 1
    assert new.total("clipfleet_workers", lane="ingest") == 1
    assert new.total("clipfleet_workers", lane="query") == 1
    assert new.total("clipfleet_queue_messages") == 0
    assert new.total("clipfleet_queue_age_seconds") == 0
    assert not any("measured" in str(labels) for scraped in after for labels in _labels(scraped))


def _labels(seen: Scrape) -> list[Any]:
    return [sample.labels for family in seen.families for sample in family.samples]


def test_names_keep_to_the_rules_everywhere(indexed: Any) -> None:
    for seen in indexed[1]:
        assert seen.ours
        assert faults(seen) == []


def test_planner_and_workers_say_that_they_are_well(service: Up) -> None:
    for place in (PLANNER, INGEST, QUERY):
        answer = httpx.get(f"{part(service, place)}/healthz", trust_env=False)
        assert (answer.status_code, answer.text) == (200, "ok")
