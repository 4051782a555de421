"""A coalescer whose workers are played by the test."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.common.collection import Collection
from clipfleet.common.queue.messages import Query, QueryBatch, Search, Term
from clipfleet.common.queue.packed import PackedAnswer, Reply

LONG = 30.0


MODEL = "m"
HERE = Collection.new("c", metric="cosine", model=MODEL, dim=4, fields={})


def query(text: str, kind: Any = "text") -> Query:
    search = Search(collection=HERE, namespace="n", top_k=1)
    return Query.of(Term(kind=kind, value=text), search)


class Desk:
    """A coalescer whose batches are only recorded in `sent`; `answer` plays a worker."""

    def __init__(
        self,
        *,
        workers: int = 0,
        batch: int = 4,
        rows: int = 1_000,
        queue: int = 100,
        timeout_s: float = LONG,
    ) -> None:
        self.sent: list[QueryBatch] = []
        self.workers = workers
        self.broken: Exception | None = None
        limits: Any = {"batch": batch, "rows": rows, "queue": queue, "timeout_s": timeout_s}
        self.queries = Coalescer(self._publish, self._workers, reply_to="here", **limits)

    def _workers(self, model: str) -> int:  # noqa: ARG002
        return self.workers

    async def _publish(self, batch: QueryBatch) -> None:
        if self.broken:
            raise self.broken
        self.sent.append(batch)

    def texts(self) -> list[list[str]]:
        return [[str(query.terms[0].value) for query in batch.queries] for batch in self.sent]

    def answer(self, batch: QueryBatch) -> None:
        answers = [PackedAnswer(detail=str(query.terms[0].value)) for query in batch.queries]
        self.queries.receive(Reply(batch.batch_id, answers))

    async def ask(self, *texts: str, kind: str = "text") -> list["asyncio.Task[PackedAnswer]"]:
        """Ask one query after the other, and wait until the coalescer has sent all it can."""
        tasks = [asyncio.create_task(self.queries.ask(query(text, kind), MODEL)) for text in texts]
        await settled()
        return tasks


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def played(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())
