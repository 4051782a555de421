"""Queries through real gateways and a real queue; the workers are played by threads of ours."""

import json
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from select import select
from typing import Any

import pytest
import services
from contract.test_shared_state import a_card
from integration.test_events import Service, gateway

from clipfleet.common.broker import make_celery
from clipfleet.common.catalogue import RedisCatalogue
from clipfleet.common.collection import Collection
from clipfleet.common.embedder import HashEmbedder
from clipfleet.common.fleet import RedisFleet
from clipfleet.common.identity import primary_key
from clipfleet.common.messages import QueryBatch, queue_name
from clipfleet.common.replies import RedisReplies
from clipfleet.common.settings import Settings
from clipfleet.common.store import Record
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.query import QueryParts, answer_batch

MODEL = "m"
COLLECTION = Collection.new("c", metric="cosine", model=MODEL, dim=16, fields={})


class Fleet:
    """So many workers announced; they work when the test calls `answer`."""

    def __init__(self, service: Service, url: str, workers: int) -> None:
        self._redis, self._workers = service.redis, workers
        self._celery = make_celery(Settings(redis_url=url))
        self._over = threading.Event()
        self.store, self.catalogue = MemoryStore(), RedisCatalogue(service.redis)
        self.catalogue.add(COLLECTION)
        self.store.create(COLLECTION)
        self._announcing = threading.Thread(target=self._announce)

    def __enter__(self) -> "Fleet":
        self._announcing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._announcing.join()

    def end(self) -> None:
        self._over.set()

    def _announce(self) -> None:
        while True:
            for n in range(self._workers):
                card = a_card(f"w{n}", MODEL).model_copy(update={"lanes": ("query",), "dim": 16})
                RedisFleet(self._redis).announce(card)
            if self._over.wait(1):
                return

    def batches(self) -> Iterator[QueryBatch]:
        """What lies in the queue, as it comes, until the fleet is over."""
        with self._celery.connection_for_read() as connection:
            waiting = connection.SimpleQueue(queue_name("query", MODEL))
            while not self._over.is_set():
                try:
                    message = waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                message.ack()
                yield QueryBatch.model_validate_json(message.payload[0][0])

    def answer(self, batch: QueryBatch) -> int:
        embedder, replies = HashEmbedder(), RedisReplies(self._redis)
        return answer_batch(batch, QueryParts(embedder, self.store, self.catalogue, replies))

    def put(self, texts: list[str]) -> None:
        rows = HashEmbedder().embed_texts(texts)
        named = zip(texts, rows, strict=True)
        records = [Record(primary_key("default", t), t, "default", t, row) for t, row in named]
        self.store.upsert(COLLECTION, records)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with services.valkey(tmp_path / "valkey") as made:
        yield made


def asked(service: Service, text: str) -> HTTPConnection:
    """A search under way; `getresponse` waits for its answer, `close` hangs up."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    body = json.dumps({"text": text, "top_k": 1})
    connection.request(
        "POST", "/v1/collections/c/search", body, {"content-type": "application/json"}
    )
    return connection


def texts(batches: Iterable[QueryBatch]) -> list[str]:
    return [str(query.terms[0].value) for batch in batches for query in batch.queries]


def is_answered(asking: HTTPConnection, within_s: float) -> bool:
    return bool(select([asking.sock], [], [], within_s)[0])


def answer(asking: HTTPConnection) -> Any:
    with closing(asking):
        response = asking.getresponse()
        assert response.status == 200
        return json.load(response)


def require_refused(asking: HTTPConnection) -> None:
    with closing(asking):
        response = asking.getresponse()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert "waiting" in json.load(response)["detail"]


def with_a_place(service: Service, text: str) -> HTTPConnection:
    """Refused again and again, until it is not."""
    while is_answered(asking := asked(service, text), within_s=3):
        require_refused(asking)
    return asking


def test_when_the_queue_is_full_others_are_told_when_and_who_hangs_up_is_never_sent(
    url: str, tmp_path: Path
) -> None:
    """Two are in flight, a worker and one, and one waits."""
    tight = {"CLIPFLEET_LIMITS__QUERY_QUEUE": "1", "CLIPFLEET_QUERY_TIMEOUT_S": "60"}
    with gateway(tmp_path, url, **tight) as service, Fleet(service, url, 1) as fleet:
        batches = fleet.batches()
        first = asked(service, "first"), next(batches)
        second = asked(service, "second"), next(batches)
        late = [asked(service, "third"), asked(service, "fourth")]
        services.eventually(lambda: any(is_answered(one, 1) for one in late), 30, "a refusal")
        late.sort(key=lambda one: is_answered(one, 0))
        waiting, refused = late
        require_refused(refused)

        waiting.close()
        fifth = with_a_place(service, "fifth")
        for asking, batch in (first, second):
            fleet.answer(batch)
            answer(asking)
        batch = next(batches)
        assert texts([batch]) == ["fifth"]
        fleet.answer(batch)
        answer(fifth)


def test_two_gateways_each_get_their_own_answers_from_workers_that_share_the_work(
    url: str, tmp_path: Path
) -> None:
    words = [f"word {n}" for n in range(40)]
    with (
        gateway(tmp_path, url) as one,
        gateway(tmp_path, url) as other,
        Fleet(one, url, 2) as fleet,
        ThreadPoolExecutor(len(words) + 2) as threads,
    ):
        fleet.put(words)
        shares: list[Counter[str]] = [Counter(), Counter()]

        def work(share: Counter[str]) -> None:
            for batch in fleet.batches():
                share[batch.reply_to] += fleet.answer(batch)

        def found(service: Service, word: str) -> str:
            return str(answer(asked(service, word))["matches"][0]["id"])

        for share in shares:
            threads.submit(work, share)
        for service in (one, other):
            assert list(threads.map(partial(found, service), words)) == words
        both = sum(shares, Counter[str]())
        assert sorted(both.values()) == [len(words)] * 2
        assert all(share.total() for share in shares)
        fleet.end()
