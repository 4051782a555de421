"""Waiting queries leave together: a message costs milliseconds whatever is in it.

A batch leaves at once while fewer are in flight than workers + 1, and only otherwise do queries
wait for the next one, so the batch grows with the load and an idle service adds no delay.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from clipfleet.api.http.bodies import reservation
from clipfleet.common.errors import ClipfleetError, Unavailable
from clipfleet.common.queue.messages import Query, QueryBatch
from clipfleet.common.queue.packed import PackedAnswer, Reply


class Overloaded(Unavailable):
    slug = "overloaded"
    title = "Too many queries are waiting"


class Late(Unavailable):
    """No answer in time."""


@dataclass
class _Waiting:
    query: Query
    expires_at: float  # unix seconds
    future: "asyncio.Future[PackedAnswer]"


class _Pending:
    """Queries by caller. They leave in turns, one of each caller, so that nobody waits for all
    that another one asks."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(own) for own in self._of.values())

    def __iter__(self) -> Iterator[_Waiting]:
        return (one for own in list(self._of.values()) for one in list(own))

    def of(self, caller: str) -> int:
        return len(self._of.get(caller, ()))

    def add(self, caller: str, waiting: _Waiting) -> None:
        self._of.setdefault(caller, deque()).append(waiting)

    @property
    def next(self) -> Query:
        return next(iter(self._of.values()))[0].query

    def pop(self) -> _Waiting:
        caller, own = next(iter(self._of.items()))
        first = own.popleft()
        self._of.move_to_end(caller)
        if not own:
            del self._of[caller]
        return first

    def forget_the_gone(self) -> None:
        left = ((caller, [one for one in own if not one.future.done()])
                for caller, own in self._of.items())  # fmt: skip
        self._of = OrderedDict((caller, deque(own)) for caller, own in left if own)


@dataclass
class _Lane:
    """Queries of one model and one speed, so that slow images never hold back words."""

    model: str
    pending: _Pending = field(default_factory=_Pending)
    in_flight: int = 0


@dataclass
class _Sent:
    lane: _Lane
    waiting: list[_Waiting]
    expiry: asyncio.TimerHandle


class Coalescer:
    """`publish` sends a batch; `workers` says how many serve a model's query lane just now,
    `clock` (unix seconds) is the one that workers hold deadlines against.

    `batch` and `rows`: the terms and the cost of the queries in one message, at most, unless it has
    one query. `queue`: queries that wait in a lane; half as many of one caller that has a key.
    """

    def __init__(
        self,
        publish: Callable[[QueryBatch], Awaitable[None]],
        workers: Callable[[str], int],
        *,
        reply_to: str,
        batch: int,
        rows: int,
        queue: int,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publish, self._workers = publish, workers
        self._reply_to, self._batch, self._rows, self._queue = reply_to, batch, rows, queue
        self._timeout_s, self._clock = timeout_s, clock
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._sent: dict[str, _Sent] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, query: Query, model: str) -> PackedAnswer:
        """The answer of a worker of `model`; Unavailable when there is none in time."""
        lane = self._lanes.setdefault((model, query.encoder), _Lane(model))
        caller = reservation().caller
        if self._is_full(lane, caller):
            lane.pending.forget_the_gone()
        if self._is_full(lane, caller):
            raise Overloaded(f"{len(lane.pending)} queries are waiting already; try again", 1)
        future = asyncio.get_running_loop().create_future()
        waiting = _Waiting(query, self._clock() + self._timeout_s, future)
        lane.pending.add(caller, waiting)
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
            count[lane.model] += sum(not waiting.future.done() for waiting in lane.pending)
        return count

    def in_flight(self) -> int:
        """Queries sent and not answered. From any thread."""
        return sum(len(sent.waiting) for sent in list(self._sent.values()))

    def _is_full(self, lane: _Lane, caller: str) -> bool:
        own = bool(caller) and lane.pending.of(caller) >= max(1, self._queue // 2)
        return own or len(lane.pending) >= self._queue

    def receive(self, reply: Reply) -> None:
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
        """A batch of queries that somebody still waits for, by terms and by cost; one at least."""
        going: list[_Waiting] = []
        room, rows = self._batch, self._rows
        while lane.pending:
            query = lane.pending.next
            if going and (len(query.terms) > room or query.cost > rows):
                break
            waiting = lane.pending.pop()
            if not waiting.future.done():
                going.append(waiting)
                room -= len(query.terms)
                rows -= query.cost
        return going

    async def _send(self, lane: _Lane, going: list[_Waiting]) -> None:
        batch = QueryBatch(
            model=lane.model,
            batch_id=secrets.token_hex(8),
            reply_to=self._reply_to,
            deadlines=tuple(waiting.expires_at for waiting in going),
            queries=tuple(waiting.query for waiting in going),
            packed=True,
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
