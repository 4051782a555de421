"""Query workers on a real queue that answer when the test says so, and pending searches."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.queue.fleet import RedisFleet, WorkerCard
from clipfleet.common.queue.messages import QueryBatch, queue_name
from clipfleet.common.queue.replies import RedisReplies
from clipfleet.common.settings import Settings
from clipfleet.common.store import Record
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.query.batch import QueryParts, answer_batch
from support.gateways import Service

MODEL = "m"


COLLECTION = Collection.new("c", metric="cosine", model=MODEL, dim=16, fields={})


def a_card(worker: str, model: str = "m") -> WorkerCard:
    now = time.time()
    return WorkerCard(
        id=worker,
        model=model,
        dim=4,
        lanes=("query",),
        device="cpu",
        preprocess=HashEmbedder.preprocess,
        started_at=now,
        progress_at=now,
    )


class Fleet:
    """Workers that are announced, and answer when the test calls `answer`."""

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
        """Yield batches of the queue as they arrive, until the fleet ends."""
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


def begin_search(service: Service, text: str) -> HTTPConnection:
    """Send a search. `getresponse` waits for the response, `close` hangs up."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    body = json.dumps({"text": text, "top_k": 1})
    connection.request(
        "POST", "/v1/collections/c/search", body, {"content-type": "application/json"}
    )
    return connection


def answer(asking: HTTPConnection) -> Any:
    with closing(asking):
        response = asking.getresponse()
        assert response.status == 200
        return json.load(response)
