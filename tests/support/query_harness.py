"""A collection of three images in memory, and a worker to ask about them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger.catalogue import MemoryCatalogue
from clipfleet.common.queue.messages import Answer, Query, QueryBatch, Search, Term
from clipfleet.common.queue.replies import MemoryReplies
from clipfleet.common.store import Match, Record, StoreUnavailable, Vectors
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.query.batch import QueryParts, answer_batch

TEXT = Term(kind="text", value="a church")
IMAGE = Term(kind="image", value="key")


class RecordingStore(MemoryStore):
    """Remembers the searches: how many vectors each had, and whether it was a fresh one."""

    def __init__(self) -> None:
        super().__init__()
        self.searches: list[tuple[int, bool]] = []
        self.fetched: list[int] = []  # how many keys each read asked for
        self.away = False

    def fetch(
        self, collection: Collection, keys: Sequence[str], *, include_values: bool = True
    ) -> dict[str, Record]:
        self.fetched.append(len(keys))
        return super().fetch(collection, keys, include_values=include_values)

    def search(self, collection: Collection, vectors: Vectors, **more: Any) -> list[list[Match]]:
        if self.away:
            raise StoreUnavailable("the store is away")
        self.searches.append((len(vectors), more["fresh"]))
        return super().search(collection, vectors, **more)


class Aged(MemoryCatalogue):
    age = float("inf")

    def seconds_since_write(self, collection: Collection) -> float:  # noqa: ARG002
        return self.age


class World:
    def __init__(self) -> None:
        self.store, self.catalogue, self.replies = RecordingStore(), Aged(), MemoryReplies()
        self.embedder, self.metrics = HashEmbedder(), WorkerMetrics()
        self.packed = False
        self.weights_id = ""
        self.collection = self.new("c")
        words = self.embedder.embed_texts(["a church", "a dog"])
        self.put("church.jpg", words[0], label="church")
        self.put("dog.jpg", words[1], label="dog")
        pixels = np.full((8, 8, 3), 9, np.uint8)
        self.put("nine.jpg", self.embedder.embed_images(pixels[None])[0])
        self.replies.images["key"] = pixels

    def new(self, name: str, metric: Any = "cosine") -> Collection:
        collection = Collection.new(name, metric=metric, model="m", dim=16, fields={})
        self.store.create(self.catalogue.add(collection))
        return collection

    def put(self, name: str, embedding: Vectors, label: str = "") -> None:
        record = Record(
            primary_key("n", name), name, "n", f"/{name}", embedding, label=label
        )  # fmt: skip
        self.store.upsert(self.collection, [record])

    def query(self, term: Term, **more: Any) -> Query:
        fields = {"collection": self.collection, "namespace": "n", "top_k": 1}
        return Query.of(term, Search(**{**fields, **more}))

    def mixed(self, *terms: Term, **more: Any) -> Query:
        return self.query(terms[0], **more).model_copy(update={"terms": terms})

    def ask(self, *queries: Query, patience_s: Sequence[float] = ()) -> tuple[Answer, ...]:
        timeouts_s = patience_s or [60.0] * len(queries)
        batch = QueryBatch(
            model="m",
            batch_id="b",
            reply_to="r",
            deadlines=tuple(time.time() + seconds for seconds in timeouts_s),
            queries=queries,
            packed=self.packed,
        )
        parts = QueryParts(
            self.embedder,
            self.store,
            self.catalogue,
            self.replies,
            metrics=self.metrics,
            weights_id=self.weights_id,
        )
        answered = answer_batch(batch, parts)
        if not self.replies.pushed:
            assert answered == 0
            return ()
        reply = self.replies.pushed[-1]
        assert reply.batch_id == "b"
        assert answered == sum(seconds > 0 for seconds in timeouts_s)
        assert len(reply.answers) == len(queries)
        return reply.answers


def ids(answers: Sequence[Answer]) -> list[list[str]]:
    return [[match.id for match in answer.matches] for answer in answers]


def by_id(name: str) -> Term:
    return Term(kind="id", value=name)
