"""What the whole fleet has to do, as Redis knows it: read only, for metrics."""

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis

from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.ledger import JobState, Ledger
from clipfleet.common.ledger.redis import ROOT, RedisLedger
from clipfleet.common.queue.broker import SENT_AT, Publisher, queue_keys
from clipfleet.common.queue.fleet import Fleet, RedisFleet, WorkerCard
from clipfleet.common.queue.messages import queue_name
from clipfleet.common.redis.client import redis_time, translating_redis_errors

GOING_ON: tuple[JobState, ...] = ("queued", "running")
COUNTS = ("state", "planned", "total", "estimated", "done", "failed", "skipped")


@dataclass(frozen=True)
class Waiting:
    """Messages that nobody has taken. `age_s`: of the oldest, None when no message says it."""

    messages: int
    age_s: float | None


@dataclass(frozen=True)
class Overview:
    """`left`: images of jobs that are not over, by model, as far as they are known or estimated."""

    jobs: Mapping[JobState, int]
    left: Mapping[str, int]
    queues: Mapping[tuple[Lane, str], Waiting]
    workers: Mapping[tuple[Lane, str], int]


class Overviews(Protocol):
    def read(self) -> Overview: ...


class MemoryOverviews:
    """Of the other parts in memory. Messages have no age here."""

    def __init__(self, ledger: Ledger, fleet: Fleet, publisher: Publisher, model: str) -> None:
        self._ledger, self._fleet, self._publisher = ledger, fleet, publisher
        self._model = model

    def read(self) -> Overview:
        cards = self._fleet.alive()
        left: Counter[str] = Counter()
        for job in self._ledger.jobs(sys.maxsize, states=GOING_ON):
            left[job.new.model] += _left(vars(job))
        models = sorted({self._model, *left, *(card.model for card in cards)})
        return Overview(
            jobs=self._ledger.count_jobs(),
            left={model: left[model] for model in models},
            queues={
                (lane, model): self._waiting(lane, model) for model in models for lane in LANES
            },
            workers=_serving(cards, models),
        )

    def _waiting(self, lane: Lane, model: str) -> Waiting:
        messages = self._publisher.waiting(queue_name(lane, model))
        return Waiting(messages, None if messages else 0.0)


class RedisOverviews:
    """`model`: one that is shown even when nobody serves it and nothing waits for it.

    Remembers what never changes: the model of a job.
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
            left: Counter[str] = Counter()
            for job_id, row in rows.items():
                left[self._models[job_id]] += _left(row)
            cards = self._fleet.alive()
            models = sorted({self._model, *left, *(card.model for card in cards)})
            return Overview(
                jobs=self._ledger.count_jobs(),
                left={model: left[model] for model in models},
                queues=self._queues(models),
                workers=_serving(cards, models),
            )

    def _active(self) -> dict[str, dict[str, Any]]:
        """What is counted of the jobs that are queued or running, by id."""
        found: Any = self._redis.smembers(f"{ROOT}jobs:active")
        ids = sorted(one.decode() for one in found)
        rows = self._each(ids, lambda pipe, key: pipe.hmget(key, COUNTS))
        new = [job_id for job_id in ids if job_id not in self._models]
        told = self._each(new, lambda pipe, key: pipe.hget(key, "new"))
        known = {job_id: self._models[job_id] for job_id in ids if job_id in self._models}
        told_of = {job_id: raw for job_id, raw in zip(new, told, strict=True) if raw}
        self._models = known | {one: json.loads(raw)["model"] for one, raw in told_of.items()}
        read = {job_id: _row(raw) for job_id, raw in zip(ids, rows, strict=True)}
        return {
            job_id: row
            for job_id, row in read.items()
            if job_id in self._models and row["state"] in GOING_ON
        }

    def _queues(self, models: Sequence[str]) -> dict[tuple[Lane, str], Waiting]:
        now = self._clock()
        places: list[tuple[Lane, str]] = [(lane, model) for model in models for lane in LANES]
        pipe = self._redis.pipeline(transaction=False)
        for lane, model in places:
            for key in queue_keys(queue_name(lane, model)):
                pipe.llen(key)
                pipe.lindex(key, -1)  # kombu puts in on the left, and takes from the right
        answers: list[Any] = pipe.execute()
        each = len(answers) // len(places)
        parts = [answers[n : n + each] for n in range(0, len(answers), each)]
        return {place: _waiting(part, now) for place, part in zip(places, parts, strict=True)}

    def _each(self, ids: Sequence[str], ask: Callable[[Any, str], Any]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            ask(pipe, f"{ROOT}job:{job_id}")
        rows: list[Any] = pipe.execute()
        return rows


def _row(raw: Sequence[bytes | None]) -> dict[str, Any]:
    state, planned, *counts = ((one or b"").decode() for one in raw)
    numbers = (int(one or 0) for one in counts)
    return {
        "state": state,
        "planned": planned == "1",
        **dict(zip(COUNTS[2:], numbers, strict=True)),
    }


def _left(row: Mapping[str, Any]) -> int:
    """Pending, leased, and what is estimated to come: all that is not finished."""
    total = row["total"] if row["planned"] else max(row["total"], row["estimated"])
    return max(0, int(total - row["done"] - row["failed"] - row["skipped"]))


def _waiting(answers: Sequence[Any], now: float) -> Waiting:
    """Of a queue's lists: each one's length and oldest message, in turn."""
    messages, oldest = sum(answers[::2]), [raw for raw in answers[1::2] if raw]
    if not messages:
        return Waiting(0, 0.0)
    sent = [at for raw in oldest if (at := _sent_at(raw)) is not None]
    return Waiting(messages, max(0.0, now - min(sent)) if sent else None)


def _sent_at(raw: bytes) -> float | None:
    """None for a message of an older version, or of somebody else."""
    try:
        return float(json.loads(raw)["headers"][SENT_AT])
    except (ValueError, KeyError, TypeError):
        return None


def _serving(cards: Sequence[WorkerCard], models: Sequence[str]) -> dict[tuple[Lane, str], int]:
    count = Counter((lane, card.model) for card in cards for lane in card.lanes)
    return {(lane, model): count[lane, model] for model in models for lane in LANES}
