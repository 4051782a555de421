"""Who is alive: workers announce what they serve, under a key that expires."""

import time
from contextlib import suppress
from typing import Any, Literal, Protocol

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.redis.client import RedisUnavailable, redis_time, translating_redis_errors
from clipfleet.common.versions import OtherVersion, read, warn_once

CARD_S = 15.0
IDS = "clipfleet:workers"
CARD = "clipfleet:worker:"
PLANNERS = "clipfleet:planners"
LAST_WORD = "clipfleet:last-word:"
WORD_S = 300


class WorkerInfo(BaseModel):
    """What helps to find out why a worker is slow. Zeros and "": it did not say.

    `images`: through the model for jobs since its start; `spent`: the seconds they took by stage,
    added up over its threads.
    """

    model_config = ConfigDict(frozen=True)

    version: str = ""
    torch: str = ""
    cores: int = 0
    gpus: int = 0
    decode_threads: int = 1
    images: int = 0
    spent: dict[str, float] = {}


class WorkerCard(BaseModel):
    """`rate`: images/s of the last chunks, None before the first."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    model: str
    dim: int
    lanes: tuple[Lane, ...]
    device: str
    preprocess: Preprocess
    rate: float | None = None
    started_at: float
    progress_at: float
    about: WorkerInfo = WorkerInfo()


def host_of(card: WorkerCard) -> str:
    """Where it runs: workers are named HOST-PROCESS-RANDOM."""
    return card.id.rsplit("-", 2)[0]


class Fleet(Protocol):
    def announce(self, card: WorkerCard) -> None: ...

    def deregister(self, worker: str) -> None: ...

    def record_exit_reason(self, model: str, why: str) -> None:
        """Why a worker of this model ended itself, for those who miss it."""
        ...

    def last_exit_reason(self, model: str) -> str:
        """Of the last minutes; "" when there is none."""
        ...

    def alive(self) -> list[WorkerCard]: ...

    def announce_planner(self, name: str) -> None: ...

    def planners(self) -> list[str]: ...


def serving(cards: list[WorkerCard], lane: Lane, model: str) -> list[WorkerCard]:
    return [card for card in cards if card.model == model and lane in card.lanes]


class NoWorker(Unavailable):
    """Nobody alive serves the model."""

    def __init__(self, lane: Lane, model: str) -> None:
        super().__init__(
            f"no live worker serves the {lane} lane of model {model!r}; start one with "
            f"CLIPFLEET_MODEL={model}",
            retry_after_s=5,
            model=model,
        )


class MemoryFleet:
    def __init__(self) -> None:
        self._cards: dict[str, WorkerCard] = {}
        self._planners: set[str] = set()
        self._words: dict[str, str] = {}

    def announce(self, card: WorkerCard) -> None:
        self._cards[card.id] = card

    def deregister(self, worker: str) -> None:
        self._cards.pop(worker, None)

    def record_exit_reason(self, model: str, why: str) -> None:
        self._words[model] = why

    def last_exit_reason(self, model: str) -> str:
        return self._words.get(model, "")

    def alive(self) -> list[WorkerCard]:
        return [c for c in list(self._cards.values()) if time.time() - c.progress_at < CARD_S]

    def announce_planner(self, name: str) -> None:
        self._planners.add(name)

    def planners(self) -> list[str]:
        return sorted(self._planners)


class RedisFleet:
    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def announce(self, card: WorkerCard) -> None:
        with translating_redis_errors():
            pipe = self._redis.pipeline()
            pipe.sadd(IDS, card.id)
            pipe.set(CARD + card.id, card.model_dump_json(), px=int(CARD_S * 1000))
            pipe.execute()

    def deregister(self, worker: str) -> None:
        with translating_redis_errors():
            pipe = self._redis.pipeline()
            pipe.srem(IDS, worker)
            pipe.delete(CARD + worker)
            pipe.execute()

    def record_exit_reason(self, model: str, why: str) -> None:
        with translating_redis_errors():
            self._redis.set(LAST_WORD + model, why, ex=WORD_S)

    def last_exit_reason(self, model: str) -> str:
        with translating_redis_errors():
            found: Any = self._redis.get(LAST_WORD + model)
        return found.decode() if found else ""

    def alive(self) -> list[WorkerCard]:
        with translating_redis_errors():
            found: Any = self._redis.smembers(IDS)
            ids = sorted(one.decode() for one in found)
            raw: Any = self._redis.mget([CARD + one for one in ids]) if ids else []
            gone = [one for one, card in zip(ids, raw, strict=True) if card is None]
        if gone:
            with (
                suppress(RedisUnavailable),
                translating_redis_errors(),
            ):  # reads are answered by a replica, too
                self._redis.srem(IDS, *gone)
        return [card for one in raw if one is not None and (card := _card(one))]

    def announce_planner(self, name: str) -> None:
        now = redis_time(self._redis)
        with translating_redis_errors():
            pipe = self._redis.pipeline()
            pipe.zadd(PLANNERS, {name: now})
            pipe.zremrangebyscore(PLANNERS, 0, now - CARD_S)
            pipe.execute()

    def planners(self) -> list[str]:
        since = redis_time(self._redis) - CARD_S
        with translating_redis_errors():
            found: Any = self._redis.zrangebyscore(PLANNERS, since, "+inf")
        return [one.decode() for one in found]


def _card(raw: bytes) -> WorkerCard | None:
    """None for one of another version: such a worker is not ours to send work to."""
    try:
        return read(WorkerCard, raw, "the announcement of worker")
    except OtherVersion as error:
        warn_once(error.detail)
    except ValidationError as error:
        warn_once(f"a worker announces itself in a way that is not understood: {error}")
    return None
