"""The overview port: the work of the whole fleet, read from Redis for metrics."""

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis

from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.http.schemas import JobState
from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.redis import ROOT, RedisLedger
from clipfleet.common.queue.broker import SENT_AT, Publisher, queue_keys
from clipfleet.common.queue.fleet import Fleet, RedisFleet, WorkerCard
from clipfleet.common.queue.messages import queue_name
from clipfleet.common.redis.client import redis_time, translating_redis_errors

UNFINISHED_STATES: tuple[JobState, ...] = ("queued", "running")
COUNTS = ("state", "planned", "total", "estimated", "done", "failed", "skipped")


@dataclass(frozen=True)
class Waiting:
    """The messages in a queue that no worker has taken.

    Attributes:
        messages: their number.
        age_s: the age of the oldest, seconds; None when no message contains its time.
    """

    messages: int
    age_s: float | None


@dataclass(frozen=True)
class Overview:
    """The work of the fleet.

    Attributes:
        jobs: the number of jobs in each state.
        remaining: by model, the number of images of unfinished jobs that are not done, as far as
            they are planned or estimated.
        queues: by lane and model, the waiting messages.
        workers: by lane and model, the number of live workers.
    """

    jobs: Mapping[JobState, int]
    remaining: Mapping[str, int]
    queues: Mapping[tuple[Lane, str], Waiting]
    workers: Mapping[tuple[Lane, str], int]


class Overviews(Protocol):
    """The port for reading an overview."""

    def read(self) -> Overview:
        """Read the current overview.

        Returns:
            Numbers that are read one after the other, so that a job may move between two of them.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryOverviews:
    """Overviews of the parts in memory, for tests. Messages have no age.

    Args:
        model: a model that is always shown.
    """

    def __init__(self, ledger: Ledger, fleet: Fleet, publisher: Publisher, model: str) -> None:
        self._ledger, self._fleet, self._publisher = ledger, fleet, publisher
        self._model = model

    def read(self) -> Overview:
        cards = self._fleet.alive()
        remaining: Counter[str] = Counter()
        for job in self._ledger.jobs(sys.maxsize, states=UNFINISHED_STATES):
            remaining[job.new.model] += _remaining(vars(job))
        models = sorted({self._model, *remaining, *(card.model for card in cards)})
        return Overview(
            jobs=self._ledger.count_jobs(),
            remaining={model: remaining[model] for model in models},
            queues={
                (lane, model): self._waiting(lane, model) for model in models for lane in LANES
            },
            workers=_serving(cards, models),
        )

    def _waiting(self, lane: Lane, model: str) -> Waiting:
        messages = self._publisher.waiting(queue_name(lane, model))
        return Waiting(messages, None if messages else 0.0)


class RedisOverviews:
    """Overviews from Redis. The model of each job, which never changes, is cached.

    Args:
        client: a client of Redis.
        model: a model that is always shown, even without workers and messages.
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
    """

    def __init__(
        self, client: "redis.Redis", model: str, clock: Callable[[], float] | None = None
    ) -> None:
        self._redis, self._model = client, model
        self._clock = clock or (lambda: redis_time(client))
        self._fleet, self._ledger = RedisFleet(client), RedisLedger(client)
        self._reading = threading.Lock()
        self._models: dict[str, str] = {}

    def read(self) -> Overview:
        with self._reading, translating_redis_errors():
            rows = self._active()
            remaining: Counter[str] = Counter()
            for job_id, row in rows.items():
                remaining[self._models[job_id]] += _remaining(row)
            cards = self._fleet.alive()
            models = sorted({self._model, *remaining, *(card.model for card in cards)})
            return Overview(
                jobs=self._ledger.count_jobs(),
                remaining={model: remaining[model] for model in models},
                queues=self._queues(models),
                workers=_serving(cards, models),
            )

    def _active(self) -> dict[str, dict[str, Any]]:
        """The counts of the jobs that are queued or running, by id. Their models are cached."""
        members: Any = self._redis.smembers(f"{ROOT}jobs:active")
        ids = sorted(job_id.decode() for job_id in members)
        counts = self._counts(ids)
        self._models = self._models_of(ids)
        return {
            job_id: row
            for job_id, row in counts.items()
            if job_id in self._models and row["state"] in UNFINISHED_STATES
        }

    def _counts(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The state and the counts of jobs, by id. A job that was removed has the state ""."""
        rows = self._each(ids, lambda pipe, key: pipe.hmget(key, COUNTS))
        return {job_id: _row(raw) for job_id, raw in zip(ids, rows, strict=True)}

    def _models_of(self, ids: Sequence[str]) -> dict[str, str]:
        """The models of jobs, by id, without jobs that were removed. Reads those of new jobs."""
        models = {job_id: self._models[job_id] for job_id in ids if job_id in self._models}
        new = [job_id for job_id in ids if job_id not in models]
        records = self._each(new, lambda pipe, key: pipe.hget(key, "new"))
        for job_id, raw in zip(new, records, strict=True):
            if raw:
                models[job_id] = json.loads(raw)["model"]
        return models

    def _queues(self, models: Sequence[str]) -> dict[tuple[Lane, str], Waiting]:
        now = self._clock()
        places: list[tuple[Lane, str]] = [(lane, model) for model in models for lane in LANES]
        pipe = self._redis.pipeline(transaction=False)
        for lane, model in places:
            for key in queue_keys(queue_name(lane, model)):
                pipe.llen(key)
                pipe.lindex(key, -1)  # the oldest: kombu pushes on the left, pops on the right
        answers: list[Any] = pipe.execute()
        each = len(answers) // len(places)
        parts = [answers[n : n + each] for n in range(0, len(answers), each)]
        return {place: _waiting(part, now) for place, part in zip(places, parts, strict=True)}

    def _each(self, ids: Sequence[str], command: Callable[[Any, str], Any]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            command(pipe, f"{ROOT}job:{job_id}")
        rows: list[Any] = pipe.execute()
        return rows


def _row(raw: Sequence[bytes | None]) -> dict[str, Any]:
    state, planned, *counts = ((value or b"").decode() for value in raw)
    numbers = (int(value or 0) for value in counts)
    return {
        "state": state,
        "planned": planned == "1",
        **dict(zip(COUNTS[2:], numbers, strict=True)),
    }


def _remaining(row: Mapping[str, Any]) -> int:
    """The images of a job that are pending, claimed, or estimated to come."""
    total = row["total"] if row["planned"] else max(row["total"], row["estimated"])
    return max(0, int(total - row["done"] - row["failed"] - row["skipped"]))


def _waiting(answers: Sequence[Any], now: float) -> Waiting:
    """The messages of a queue, from the length and the oldest message of each of its lists."""
    messages, oldest = sum(answers[::2]), [raw for raw in answers[1::2] if raw]
    if not messages:
        return Waiting(0, 0.0)
    sent = [at for raw in oldest if (at := _sent_at(raw)) is not None]
    return Waiting(messages, max(0.0, now - min(sent)) if sent else None)


def _sent_at(raw: bytes) -> float | None:
    """When a message was sent; None for one of an older version or of another program."""
    try:
        return float(json.loads(raw)["headers"][SENT_AT])
    except (ValueError, KeyError, TypeError):
        return None


def _serving(cards: Sequence[WorkerCard], models: Sequence[str]) -> dict[tuple[Lane, str], int]:
    count = Counter((lane, card.model) for card in cards for lane in card.lanes)
    return {(lane, model): count[lane, model] for model in models for lane in LANES}
