"""Waiting queries leave together: a message costs milliseconds whatever is in it.

A batch leaves at once while fewer are in flight than workers + 1, and only otherwise do queries
wait for the next one, so the batch grows with the load and an idle service adds no delay.
"""

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from clipfleet.common.errors import ClipfleetError, Unavailable
from clipfleet.common.messages import Answer, BatchReply, Query, QueryBatch


class Overloaded(Unavailable):
    slug = "overloaded"
    title = "Too many queries are waiting"


class Late(Unavailable):
    """No answer in time."""


@dataclass
class _Waiting:
    query: Query
    expires_at: float  # unix seconds
    future: "asyncio.Future[Answer]"


@dataclass
class _Lane:
    """Queries of one model and one speed, so that slow images never hold back words."""

    model: str
    pending: deque[_Waiting] = field(default_factory=deque)
    in_flight: int = 0

    def forget_the_gone(self) -> None:
        self.pending = deque(one for one in self.pending if not one.future.done())


@dataclass
class _Sent:
    lane: _Lane
    waiting: list[_Waiting]
    expiry: asyncio.TimerHandle


class Coalescer:
    """`publish` sends a batch; `workers` says how many serve a model's query lane just now,
    `clock` (unix seconds) is the one that workers hold deadlines against."""

    def __init__(
        self,
        publish: Callable[[QueryBatch], Awaitable[None]],
        workers: Callable[[str], int],
        *,
        reply_to: str,
        batch: int,
        queue: int,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publish, self._workers = publish, workers
        self._reply_to, self._batch, self._queue = reply_to, batch, queue
        self._timeout_s, self._clock = timeout_s, clock
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._sent: dict[str, _Sent] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, query: Query, model: str) -> Answer:
        """The answer of a worker of `model`; Unavailable when there is none in time."""
        lane = self._lanes.setdefault((model, query.speed), _Lane(model))
        if len(lane.pending) >= self._queue:
            lane.forget_the_gone()
        if len(lane.pending) >= self._queue:
            raise Overloaded(f"{self._queue} queries are waiting already; try again", 1)
        future = asyncio.get_running_loop().create_future()
        waiting = _Waiting(query, self._clock() + self._timeout_s, future)
        lane.pending.append(waiting)
        self._pump(lane)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await waiting.future
        except TimeoutError as error:
            raise self._late() from error

    def waiting(self) -> Counter[str]:
        """Queries not yet sent whose caller waits for the answer, by model. From any thread."""
        count: Counter[str] = Counter()
        for lane in list(self._lanes.values()):
            count[lane.model] += sum(not waiting.future.done() for waiting in list(lane.pending))
        return count

    def in_flight(self) -> int:
        """Queries sent and not answered. From any thread."""
        return sum(len(sent.waiting) for sent in list(self._sent.values()))

    def receive(self, reply: BatchReply) -> None:
        """A batch came back. One that expired before is dropped."""
        sent = self._sent.get(reply.batch_id)
        if sent is None:
            return
        if len(reply.answers) != len(sent.waiting):
            self.fail(reply.batch_id, ClipfleetError("a worker's reply does not fit its batch"))
            return
        self._landed(reply.batch_id)
        for waiting, answer in zip(sent.waiting, reply.answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(answer)
        self._pump(sent.lane)

    def _pump(self, lane: _Lane) -> None:
        while lane.pending and lane.in_flight <= self._workers(lane.model):
            going = self._take(lane)
            if going:
                lane.in_flight += 1
                task = asyncio.create_task(self._send(lane, going))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        """Up to a batch of terms, but one query at least, that somebody still waits for."""
        going: list[_Waiting] = []
        room = self._batch
        while lane.pending and (not going or len(lane.pending[0].query.terms) <= room):
            waiting = lane.pending.popleft()
            if not waiting.future.done():
                going.append(waiting)
                room -= len(waiting.query.terms)
        return going

    async def _send(self, lane: _Lane, going: list[_Waiting]) -> None:
        batch = QueryBatch(
            model=lane.model,
            batch_id=secrets.token_hex(8),
            reply_to=self._reply_to,
            deadlines=tuple(waiting.expires_at for waiting in going),
            queries=tuple(waiting.query for waiting in going),
        )
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(self._timeout_s, self.fail, batch.batch_id, self._late())
        self._sent[batch.batch_id] = _Sent(lane, going, expiry)
        try:
            await self._publish(batch)
        except ClipfleetError as error:
            self.fail(batch.batch_id, error)
        except Exception:
            self.fail(batch.batch_id, ClipfleetError("the query could not be sent"))
            raise

    def fail(self, batch_id: str, error: ClipfleetError) -> None:
        """Nobody will answer the batch; nothing happens when somebody did."""
        sent = self._landed(batch_id)
        if sent is None:
            return
        for waiting in sent.waiting:
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self._pump(sent.lane)

    def _landed(self, batch_id: str) -> _Sent | None:
        sent = self._sent.pop(batch_id, None)
        if sent is not None:
            sent.expiry.cancel()
            sent.lane.in_flight -= 1
        return sent

    def _late(self) -> Late:
        return Late(f"no worker answered within {self._timeout_s:g} s; try again")
