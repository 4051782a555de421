"""What workers and planners count, with all parts in memory."""

import time
from types import SimpleNamespace

import pytest

from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.workers.embedding.cached import CachedEmbedder
from clipfleet.workers.embedding.proxy import TimedEmbedder
from clipfleet.workers.metrics import PlannerMetrics, WorkerMetrics
from clipfleet.workers.queue.machine import worker_info
from support.ledgers import LEASE_S
from support.prometheus import Scrape, faults, scraped
from support.query_harness import TEXT, World
from support.worker_harness import Planning, Workplace


def seconds_in(seen: Scrape, lane: str) -> dict[str, float]:
    """How often each stage was timed, by its name."""
    samples = seen.all("clipfleet_stage_seconds_count", lane=lane)
    return {labels["stage"]: count for labels, count in samples}


def test_a_chunk_is_counted_by_result_and_reason(workplace: Workplace) -> None:
    broken = workplace.folder / "broken.jpg"
    broken.write_bytes(b"no image")
    twice = workplace.photo("twice.jpg", 9)
    items = [workplace.photo(f"{n}.jpg", n) for n in range(3)]
    gone = workplace.item(workplace.folder / "gone.jpg")
    workplace.run([*items, twice, twice, workplace.item(broken), gone])
    seen = scraped(workplace.metrics.registry)
    assert seen.value("clipfleet_images_total", result="done") == 4
    assert seen.value("clipfleet_images_total", result="skipped") == 1
    assert seen.value("clipfleet_images_total", result="failed") == 2
    assert seen.value("clipfleet_image_failures_total", reason="decode") == 1
    assert seen.value("clipfleet_image_failures_total", reason="read") == 1


def test_every_stage_of_every_batch_is_timed(workplace: Workplace) -> None:
    images = HashEmbedder().batch + 1
    workplace.embedder = TimedEmbedder(HashEmbedder(), "ingest", workplace.metrics)
    workplace.run([workplace.photo(f"{n}.jpg", n) for n in range(images)])
    seen = scraped(workplace.metrics.registry)
    batches, look_up_and_upsert = 2, 2
    assert seconds_in(seen, "ingest") == {
        "read": batches,
        "decode": batches,
        "model": batches,
        "store": look_up_and_upsert,
    }
    assert seen.value("clipfleet_batch_size_sum", lane="ingest") == images
    counted, spent = workplace.metrics.totals()
    assert counted == images
    assert min(spent.values()) > 0
    assert seen.total("clipfleet_stage_seconds_sum", lane="ingest") > 0


def test_reading_an_upload_is_no_time_of_the_feeders(workplace: Workplace) -> None:
    photo = workplace.photo("a.jpg", read="blob:up/a.jpg")
    with (workplace.folder / "a.jpg").open("rb") as data:
        workplace.blobs.put("up/a.jpg", data)
    workplace.run([photo])
    assert seconds_in(scraped(workplace.metrics.registry), "ingest").keys() >= {"blob", "decode"}
    assert "read" not in seconds_in(scraped(workplace.metrics.registry), "ingest")


def test_a_device_is_starved_while_a_chunk_is_in_hand_and_no_pass_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    # Only the clock of this module: event loops of other threads would sleep by the wrong one.
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("clipfleet.workers.metrics.time", clock)
    metrics = WorkerMetrics()

    def starved() -> float:
        seen = scraped(metrics.registry).value("clipfleet_device_starved_seconds_total")
        assert seen is not None
        return seen

    now = 5.0  # no chunk
    with metrics.in_flight("ingest"):
        now = 7.0
        assert starved() == 2
        with metrics.in_flight("ingest"), metrics.timed("ingest", "model"):
            now = 10.0
        with metrics.timed("query", "model"), metrics.timed("ingest", "store"):
            now = 11.0
    now = 20.0
    assert starved() == 3


def test_the_card_of_a_worker_tells_what_each_stage_does_at_once() -> None:
    metrics = WorkerMetrics()
    assert worker_info(metrics).feeders == 0  # a worker of queries has none
    metrics.set_concurrency({"decode": 3, "model": 1})
    info = worker_info(metrics)
    assert (info.feeders, info.concurrency) == (3, {"decode": 3, "model": 1})
    seen = scraped(metrics.registry)
    assert seen.value("clipfleet_stage_concurrency", stage="decode") == 3


def test_a_nudge_without_a_chunk_counts_nothing(workplace: Workplace) -> None:
    workplace.run([workplace.photo("a.jpg")])
    workplace.work()
    seen = scraped(workplace.metrics.registry)
    assert seen.value("clipfleet_images_total", result="done") == 1


def test_queries_are_counted_as_they_come_together() -> None:
    world = World()
    world.ask(world.query(TEXT), world.query(TEXT), world.query(TEXT, top_k=2))
    seen = scraped(world.metrics.registry)
    assert seen.value("clipfleet_batch_size_sum", lane="query") == 3
    assert seconds_in(seen, "query") == {"store": 2}


def test_a_cache_shows_what_it_counted_itself() -> None:
    metrics = WorkerMetrics()
    cache = CachedEmbedder(HashEmbedder(), 10)
    metrics.watch_cache("text", lambda: cache.hits, lambda: cache.misses)
    for _ in range(3):
        cache.embed_texts(["a dog", "a cat"])
    seen = scraped(metrics.registry)
    assert seen.value("clipfleet_cache_hits_total", cache="text") == 4
    assert seen.value("clipfleet_cache_misses_total", cache="text") == 2


def test_what_is_under_way_goes_down_again_however_it_ends() -> None:
    metrics = WorkerMetrics()

    def fails() -> None:
        with metrics.in_flight("query"):
            assert scraped(metrics.registry).value("clipfleet_in_flight", lane="query") == 1
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fails()
    assert scraped(metrics.registry).value("clipfleet_in_flight", lane="query") == 0


def test_a_planner_counts_images_nudges_and_leases_that_ran_out() -> None:
    world = Planning()
    world.worker()
    world.job(images=40)
    world.tick()
    seen = scraped(world.metrics.registry)
    assert seen.value("clipfleet_planned_items_total") == 40
    assert seen.value("clipfleet_nudges_sent_total") == 1
    assert seen.value("clipfleet_chunks_requeued_total") == 0
    assert seen.value("clipfleet_jobs_leased") == 1
    world.publisher.sent.clear()  # a worker takes the message and dies with its chunk
    world.take()
    world.tick(seconds=LEASE_S + 1)
    seen = scraped(world.metrics.registry)
    assert seen.value("clipfleet_planned_items_total") == 40
    assert seen.value("clipfleet_nudges_sent_total") == 2
    assert seen.value("clipfleet_chunks_requeued_total") == 1


def test_images_that_a_planner_gives_up_have_failed_with_their_worker() -> None:
    world = Planning()
    world.worker()
    job = world.job(images=1)
    for _ in range(6):
        world.tick(seconds=20)
        world.next_claim()  # and the worker is gone
    assert world.ledger.job(job).failed == 1
    seen = scraped(world.metrics.registry)
    assert seen.value("clipfleet_images_total", result="failed") == 1
    assert seen.value("clipfleet_image_failures_total", reason="worker") == 1


def test_a_planner_without_jobs_has_none_leased() -> None:
    world = Planning()
    world.worker()
    world.job(images=1)
    world.finish()
    world.tick()
    assert scraped(world.metrics.registry).value("clipfleet_jobs_leased") == 0


@pytest.mark.parametrize("metrics", [WorkerMetrics(), PlannerMetrics()])
def test_names_keep_to_the_rules(metrics: WorkerMetrics | PlannerMetrics) -> None:
    seen = scraped(metrics.registry)
    assert len(seen.ours) > 4
    assert faults(seen) == []
