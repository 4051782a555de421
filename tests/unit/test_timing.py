"""Where the time of an answer went: `Server-Timing`, metric, client and command line."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from clipfleet import ProblemError
from clipfleet.api.search.timing import Timing, longest
from clipfleet.client._requests import timing
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.common.queue.messages import BatchReply
from clipfleet.common.queue.packed import pack, read_reply
from clipfleet.testing import HashEmbedder, MemoryService
from support.in_process import run_cli
from support.prometheus import parsed, scrape
from support.query_harness import IMAGE, TEXT, World, by_id
from support.services import eventually

DIM = 16
IMAGE_FILE = Path(__file__).parents[2] / "clipfleet" / "samples" / "buildings" / "house.png"
SEARCH = "/v1/collections/c/search"
STAGES = ["queue", "embed", "search", "total"]
SYNTAX = re.compile(r"[a-z]+;dur=\d+\.\d{3}(, [a-z]+;dur=\d+\.\d{3})*")


class WatchedEmbedder(HashEmbedder):
    """Waits at a gate, and measures its calls."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.gate = threading.Event()
        self.gate.set()
        self.spans_s: list[float] = []

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        began = time.perf_counter()
        assert self.gate.wait(60)
        rows = super().embed_texts(texts)
        self.spans_s.append(time.perf_counter() - began)
        return rows


@pytest.fixture(scope="module")
def embedder() -> WatchedEmbedder:
    return WatchedEmbedder()


@pytest.fixture(scope="module")
def service(embedder: WatchedEmbedder) -> Iterator[MemoryService]:
    with MemoryService(embedder=embedder) as running, running.client() as client:
        client.create_collection("c")
        rows = HashEmbedder(DIM).embed_texts([f"{n}" for n in range(600)])
        client.upsert("c", [{"id": f"{n}", "values": row.tolist()} for n, row in enumerate(rows)])
        yield running


@pytest.fixture
def web(service: MemoryService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http:
        yield http


def stages_of(answer: httpx.Response) -> dict[str, float]:
    """The milliseconds of an answer, whose header has the right syntax."""
    assert answer.is_success, answer.text
    header = answer.headers["Server-Timing"]
    assert SYNTAX.fullmatch(header)
    pairs = [stage.split(";dur=") for stage in header.split(", ")]
    return {name: float(milliseconds) for name, milliseconds in pairs}


def adds_up(stages: dict[str, float]) -> bool:
    parts = [milliseconds for name, milliseconds in stages.items() if name != "total"]
    return min(parts) >= 0 and sum(parts) <= stages["total"]


def answers(web: httpx.Client) -> Iterator[tuple[str, httpx.Response]]:
    """An answer to each kind of search."""
    for body in (
        {"text": "a"},
        {"id": "1"},
        {"vector": [1.0] * DIM},
        {"terms": [{"text": "a"}, {"id": "1"}]},
        {"text": "a", "top_k": 600},  # embedded with others, searched aside
        {"terms": [{"text": "a"}, {"text": "b"}], "exact": True},
    ):
        yield str(body), web.post(SEARCH, json=body)
    with IMAGE_FILE.open("rb") as file:
        yield "image", web.post(f"{SEARCH}/image", files={"file": file})
    queries = [{"text": "a"}, {"id": "unknown"}, {"text": "b", "top_k": 600}]
    yield "batch", web.post(f"{SEARCH}/batch", json={"queries": queries})


def test_the_stages_of_every_search_add_up_to_no_more_than_its_total(web: httpx.Client) -> None:
    for name, answer in answers(web):
        stages = stages_of(answer)
        assert list(stages) == STAGES, name
        assert adds_up(stages), name
        assert stages["search"] > 0, name
        assert answer.json()["took_ms"] <= stages["total"] + 0.01, name


@pytest.mark.parametrize("options", [{}, {"top_k": 600}, {"exact": True}])
def test_what_is_embedded_apart_from_the_search_is_embedding(
    embedder: WatchedEmbedder, web: httpx.Client, options: dict[str, Any]
) -> None:
    embedder.spans_s.clear()
    stages = stages_of(web.post(SEARCH, json={"terms": [{"text": "a"}, {"text": "b"}], **options}))
    assert len(embedder.spans_s) == (2 if options else 1)
    assert stages["embed"] >= 1e3 * sum(embedder.spans_s) - 0.002


def test_an_embedding_has_no_search(web: httpx.Client) -> None:
    stages = stages_of(web.post("/v1/embed", json={"texts": ["a", "b", "c"]}))
    assert list(stages) == ["queue", "embed", "total"]
    assert adds_up(stages)


def test_the_time_of_the_model_is_embed_and_that_of_the_wait_for_it_is_queue(
    service: MemoryService, embedder: WatchedEmbedder, web: httpx.Client
) -> None:
    """The model holds a query. Others wait until two are sent and one is not."""
    embedder.spans_s.clear()
    embedder.gate.clear()
    try:
        with ThreadPoolExecutor(3) as threads:
            searches = [threads.submit(web.post, SEARCH, json={"text": t}) for t in "abc"]
            waiting = "clipfleet_queries_waiting"
            eventually(lambda: scrape(service.url).total(waiting) == 1, 60, "a queue")
            began = time.perf_counter()
            eventually(lambda: time.perf_counter() - began > 0.02, 60, "a moment")
            held_ms = 1e3 * (time.perf_counter() - began)
            embedder.gate.set()
            stages = [stages_of(search.result()) for search in searches]
    finally:
        embedder.gate.set()
    assert all(map(adds_up, stages))
    (held,) = [own for own in stages if own["embed"] >= held_ms]
    assert held["embed"] >= 1e3 * max(embedder.spans_s) - 0.001
    others = [own for own in stages if own is not held]
    assert [own["queue"] >= held_ms for own in others] == [True, True]


def test_a_worker_measures_what_it_does() -> None:
    world = World()
    world.ask(world.query(TEXT), world.query(IMAGE), world.query(by_id("dog.jpg")))
    embed_us, search_us, work_us = world.replies.pushed[-1].times
    assert 0 < embed_us + search_us <= work_us + 1
    assert search_us > 0


def test_the_work_of_packing_is_no_queue() -> None:
    world = World()
    matches = world.ask(world.query(TEXT, top_k=3))[0].matches
    reply = BatchReply(
        batch_id="b",
        answers=world.replies.pushed[-1].answers[:1],
        times=(5, 7, 12),
    )
    packed = read_reply(pack(reply, [100_000])).answers[0]
    assert packed.matches == matches
    assert packed.times[:2] == (5, 7)
    assert packed.times[2] > 12


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_reply_of_the_release_before_has_no_times(is_packed: bool) -> None:
    plain = b'{"v":1,"batch_id":"b","answers":[{"matches":[]}]}'
    packed = b'{"v":2,"batch_id":"b","answers":[{"size":2,"embedding":[],"error":""}]}\n[]'
    reply = read_reply(packed if is_packed else plain)
    assert reply.answers[0].times == ()
    later = (packed if is_packed else plain).replace(b'"b",', b'"b","times":[1,2,4,9],')
    assert read_reply(later).answers[0].times == (1, 2, 4, 9)


@pytest.fixture
def old_worker(service: MemoryService, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = service.parts.inbox
    push = inbox.push

    def push_old(reply_to: str, reply: BatchReply, *limits: Any, **more: Any) -> None:
        push(reply_to, reply.model_copy(update={"times": ()}), *limits, **more)

    monkeypatch.setattr(inbox, "push", push_old)


@pytest.mark.usefixtures("old_worker")
def test_with_a_worker_of_the_release_before_there_is_the_total_alone(web: httpx.Client) -> None:
    for name, answer in answers(web):
        assert list(stages_of(answer)) == ["total"], name
    assert list(stages_of(web.post("/v1/embed", json={"texts": ["a"]}))) == ["total"]


def test_the_stages_of_a_batch_are_those_of_its_longest_query() -> None:
    timings = [Timing() for _ in range(3)]
    timings[1].answered(0.5, (200_000, 100_000, 300_000))
    timings[2].answered(0.3, (200_000, 100_000, 300_000))
    assert longest(timings) == {"queue": pytest.approx(0.2), "embed": 0.2, "search": 0.1}
    assert longest(timings[:1]) == {}


def test_the_metric_has_the_numbers_of_the_header_and_the_request_as_exemplar(
    web: httpx.Client,
) -> None:
    route = "/v1/collections/{name}/search"
    total = {"route": route, "stage": "total"}
    name = "clipfleet_query_seconds"

    def sums() -> dict[str, float]:
        shown = parsed(web.get("/metrics").text).all(f"{name}_sum", route=route)
        return {labels["stage"]: value for labels, value in shown}

    web.post(SEARCH, json={"text": "a"})
    before = sums()
    answer = web.post(SEARCH, json={"text": "a"}, headers={"X-Request-ID": "the-one"})
    after = eventually(lambda: (now := sums()) != before and now, 60, "an observation")
    for stage, milliseconds in stages_of(answer).items():
        assert after[stage] - before[stage] == pytest.approx(milliseconds / 1e3, abs=2e-6)
    assert "the-one" not in web.get("/metrics").text
    shown = web.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    exemplars = [
        sample.exemplar
        for family in text_string_to_metric_families(shown)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.name == f"{name}_bucket" and total.items() <= sample.labels.items()
    ]
    ours = [e for e in exemplars if e and e.labels == {"request_id": "the-one"}]
    assert [e.value for e in ours] == [pytest.approx(stages_of(answer)["total"] / 1e3, abs=2e-6)]


def test_the_client_says_where_the_time_went(service: MemoryService) -> None:
    with service.client() as client:
        single = client.search("c", text="a")
        assert single.timing
        assert adds_up(single.timing.model_dump())
        several = client.search_many("c", [{"text": "a"}, {"id": "unknown"}, {"id": "1"}])
        assert isinstance(several[1], ProblemError)
        for result in (several[0], several[2]):
            assert not isinstance(result, ProblemError)
            assert result.timing
            assert adds_up(result.timing.model_dump())


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("", None),
        ("cache;dur=3", None),
        ("total;dur=3.5", {"total": 3.5}),
        ('edge;dur=1;desc="x, total;dur=9", queue;dur=0, total;dur=12', {"queue": 0, "total": 12}),
        ("queue ; dur=1.0,embed;dur=2,search;dur=3,total;dur=7",
         {"queue": 1, "embed": 2, "search": 3, "total": 7}),
    ],
)  # fmt: skip
def test_a_header_may_be_missing_or_have_more(header: str, stages: Any) -> None:
    seen = timing(httpx.Headers({"Server-Timing": header}))
    assert (seen and seen.model_dump(exclude_none=True)) == stages


def test_the_command_line_shows_it(service: MemoryService) -> None:
    plain = run_cli(service.url, "search", "a", "--collection", "c")
    timed = run_cli(service.url, "search", "a", "--collection", "c", "--timing")
    stages = r"queue \d+\.\d, embed \d+\.\d, search \d+\.\d, total \d+\.\d ms"
    assert not re.search(stages, plain.stderr)
    assert re.search(stages, timed.stderr)
    assert plain.stdout == timed.stdout
    document = run_cli(service.url, "search", "a", "--collection", "c", "--json")
    assert '"total":' in document.stdout


@pytest.mark.usefixtures("old_worker")
def test_the_command_line_shows_what_there_is(service: MemoryService) -> None:
    timed = run_cli(service.url, "search", "a", "--collection", "c", "--timing")
    assert re.search(r"^total \d+\.\d ms$", timed.stderr, re.MULTILINE)


def test_the_description_of_the_service_names_the_header(web: httpx.Client) -> None:
    paths = web.get("/openapi.json").json()["paths"]
    search = "/v1/collections/{name}/search"
    for path in (search, f"{search}/image", f"{search}/batch", "/v1/embed"):
        answer = paths[path]["post"]["responses"]["200"]
        assert "Server-Timing" in answer["headers"], path
        assert "schema" in answer["content"]["application/json"], path
