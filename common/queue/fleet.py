"""The fleet port: announcements of live workers and planners, which expire unless repeated."""

import time
from contextlib import suppress
from typing import Any, Literal, Protocol

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.redis.client import RedisUnavailable, redis_time, translating_redis_errors
from clipfleet.common.versions import OtherVersion, parse_versioned, warn_once

CARD_S = 15.0  # the time after which an announcement expires
IDS = "clipfleet:workers"
CARD = "clipfleet:worker:"
PLANNERS = "clipfleet:planners"
EXIT_REASON = "clipfleet:last-word:"
KEEP_EXIT_REASON_S = 300


class WorkerInfo(BaseModel):
    """Details of a worker that help to find out why it is slow. 0 and "" mean unknown.

    Attributes:
        version: its version of clipfleet.
        torch: its version of torch.
        cores: the number of processor cores that it may use.
        gpus: the number of GPUs that it sees.
        feeders: the number of its feeders, which read and decode images.
        concurrency: the number of images, passes or chunks that each stage works on at once.
        images: the number of images that it has embedded for jobs since its start.
        spent: the seconds that these took in each stage, summed over its threads.
    """

    model_config = ConfigDict(frozen=True)

    version: str = ""
    torch: str = ""
    cores: int = 0
    gpus: int = 0
    feeders: int = 1
    concurrency: dict[str, int] = {}
    images: int = 0
    spent: dict[str, float] = {}


class WorkerCard(BaseModel):
    """The announcement of a worker.

    Attributes:
        v: the version of this record.
        id: its name, HOST-PROCESS-RANDOM.
        model: the model that it serves.
        dim: the length of an embedding.
        lanes: the lanes that it serves.
        device: its device, such as "cpu" or "cuda:0".
        preprocess: how the pixels of its images are prepared.
        weights_id: which weights its model has; "": not known.
        rate: images per second of its last chunks; None before the first.
        started_at: when it started, unix seconds.
        progress_at: when it last made progress, unix seconds.
        about: further details.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    model: str
    dim: int
    lanes: tuple[Lane, ...]
    device: str
    preprocess: Preprocess
    weights_id: str = ""
    rate: float | None = None
    started_at: float
    progress_at: float
    about: WorkerInfo = WorkerInfo()


def host_of(card: WorkerCard) -> str:
    """The name of the host on which a worker runs, from its id HOST-PROCESS-RANDOM."""
    return card.id.rsplit("-", 2)[0]


class Fleet(Protocol):
    """The port of the fleet: which workers and planners are alive.

    Implementations: `RedisFleet` for a service, `MemoryFleet` for tests. Every call raises
    Unavailable when Redis is away.
    """

    def announce(self, card: WorkerCard) -> None:
        """Announce that a worker is alive, for CARD_S seconds.

        Args:
            card: the announcement. It replaces the last one with the same `card.id`.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def deregister(self, worker: str) -> None:
        """Remove the announcement of a worker that ends. An unknown worker is no error.

        Args:
            worker: the id of the worker.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def record_exit_reason(self, model: str, why: str) -> None:
        """Record why a worker of this model ends itself, for the jobs that wait for a worker.

        Args:
            model: the model that the worker serves.
            why: the reason. It replaces the last one, and is kept for KEEP_EXIT_REASON_S seconds.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def last_exit_reason(self, model: str) -> str:
        """Read why a worker of this model last ended itself.

        Args:
            model: the model that the worker served.

        Returns:
            The last recorded reason; "" when there is none, or when it is no longer kept.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def alive(self) -> list[WorkerCard]:
        """List the workers whose last announcement has not expired.

        Returns:
            Their cards. Cards of another version are left out, with a warning in the log.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def announce_planner(self, name: str) -> None:
        """Announce that a planner is alive, for CARD_S seconds.

        Args:
            name: the name of the planner.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def planners(self) -> list[str]:
        """List the planners whose last announcement has not expired.

        Returns:
            Their names.

        Raises:
            Unavailable: Redis is away.
        """
        ...


def serving(cards: list[WorkerCard], lane: Lane, model: str) -> list[WorkerCard]:
    """The workers that serve this lane of this model."""
    return [card for card in cards if card.model == model and lane in card.lanes]


class NoWorker(Unavailable):
    """No live worker serves this lane of the model."""

    def __init__(self, lane: Lane, model: str) -> None:
        super().__init__(
            f"no live worker serves the {lane} lane of model {model!r}; start one with "
            f"CLIPFLEET_MODEL={model}",
            retry_after_s=5,
            model=model,
        )


class MemoryFleet:
    """A fleet in the memory of one process, for tests. Planners never expire."""

    def __init__(self) -> None:
        self._cards: dict[str, WorkerCard] = {}
        self._planners: set[str] = set()
        self._exit_reasons: dict[str, str] = {}

    def announce(self, card: WorkerCard) -> None:
        self._cards[card.id] = card

    def deregister(self, worker: str) -> None:
        self._cards.pop(worker, None)

    def record_exit_reason(self, model: str, why: str) -> None:
        self._exit_reasons[model] = why

    def last_exit_reason(self, model: str) -> str:
        return self._exit_reasons.get(model, "")

    def alive(self) -> list[WorkerCard]:
        return [c for c in list(self._cards.values()) if time.time() - c.progress_at < CARD_S]

    def announce_planner(self, name: str) -> None:
        self._planners.add(name)

    def planners(self) -> list[str]:
        return sorted(self._planners)


class RedisFleet:
    """The fleet in Redis: a key for each worker, which expires, and a set of their ids."""

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
            self._redis.set(EXIT_REASON + model, why, ex=KEEP_EXIT_REASON_S)

    def last_exit_reason(self, model: str) -> str:
        with translating_redis_errors():
            raw: Any = self._redis.get(EXIT_REASON + model)
        return raw.decode() if raw else ""

    def alive(self) -> list[WorkerCard]:
        with translating_redis_errors():
            members: Any = self._redis.smembers(IDS)
            ids = sorted(worker.decode() for worker in members)
            cards: Any = self._redis.mget([CARD + worker for worker in ids]) if ids else []
            expired = [worker for worker, raw in zip(ids, cards, strict=True) if raw is None]
        if expired:
            # A replica answers the reads above, and refuses this write.
            with suppress(RedisUnavailable), translating_redis_errors():
                self._redis.srem(IDS, *expired)
        return [card for raw in cards if raw is not None and (card := _card(raw))]

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
            names: Any = self._redis.zrangebyscore(PLANNERS, since, "+inf")
        return [name.decode() for name in names]


def _card(raw: bytes) -> WorkerCard | None:
    """The card; None for one of another version, whose worker is sent no work."""
    try:
        return parse_versioned(WorkerCard, raw, "the announcement of worker")
    except OtherVersion as error:
        warn_once(error.detail)
    except ValidationError as error:
        warn_once(f"the announcement of a worker is invalid and ignored: {error}")
    return None
