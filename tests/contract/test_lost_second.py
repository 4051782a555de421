"""Redis comes back without its last second while a planner and two workers are at work.

Planner, workers and Valkey are real; the store is in memory. Whatever was forgotten: every image is
in the store, and the job's counts add up.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.settings import Settings
from clipfleet.embedded import commands
from support import services
from support.ledgers import LEASE_S, MODEL, dumped, restore
from support.worker_harness import Planning, Workplace

PHOTOS = 250  # chunks of 32, four of them in each round of the planner


class Disk:
    """Redis comes back with what was on disk at some moment."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def keep(self) -> Callable[[], None]:
        """What is written from now on is forgotten when the answer is called."""
        return partial(restore, self._client, dumped(self._client))


class Replica:
    """A replica takes over that the primary's last writes never reached."""

    def __init__(self, client: "redis.Redis", folder: Path, running: ExitStack) -> None:
        self._client, self._folder, self._running = client, folder, running

    def keep(self) -> Callable[[], None]:
        port = commands.free_port()
        command = commands.valkey(self._folder / f"replica-{port}", port, "a-password")
        log = self._folder / f"replica-{port}.log"
        self._running.enter_context(services.process(command, log))
        replica = redis.Redis(port=port, password="a-password")
        self._running.callback(replica.close)
        services.eventually(replica.ping, 20, "a replica")
        primary = self._client.connection_pool.connection_kwargs
        replica.config_set("masterauth", primary.get("password") or "")
        replica.replicaof("127.0.0.1", primary["port"])
        services.eventually(lambda: self._reached(replica), 20, "a replica that has it all")
        replica.replicaof("NO", "ONE")
        return partial(self._take_over, replica)

    def _reached(self, replica: "redis.Redis") -> bool:
        mine: Any = self._client.info("replication")
        its: Any = replica.info("replication")
        all_of_it = mine["master_repl_offset"] == its.get("slave_repl_offset")
        return bool(its["master_link_status"] == "up" and all_of_it)

    def _take_over(self, replica: "redis.Redis") -> None:
        """Under the address that everybody has."""
        self._client.connection_pool.disconnect()
        self._client.connection_pool = replica.connection_pool


class Interrupting(HashEmbedder):
    """Something happens to Redis at the n-th batch of images."""

    def __init__(self, batch: int, happens: Callable[[], None]) -> None:
        super().__init__()
        self._batches, self._happens = batch, happens

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        self._batches -= 1
        if self._batches == 0:
            self._happens()
        return super().embed_images(pixels)


class Service:
    """A job on a folder. Worker A is in the midst of a chunk when Redis forgets; B goes on."""

    def __init__(
        self,
        client: "redis.Redis",
        folder: Path,
        threads: ThreadPoolExecutor,
        losing: Disk | Replica,
    ) -> None:
        self.client, self.keep = client, losing.keep
        self.planning = Planning(roots=(folder,))
        ledger: Any = RedisLedger(client, self.planning.clock)
        self.ledger: RedisLedger = ledger
        self.planning.ledger = ledger
        self.planning.planner = self.planning.new_planner("one")
        self.planning.worker()
        self.a, self.b = Workplace(folder / "a", threads), Workplace(folder / "b", threads)
        self.photos = folder / "all"
        self.photos.mkdir()
        for worker in (self.a, self.b):
            worker.ledger, worker.folder = ledger, self.photos
            worker.settings = Settings(source_roots=(self.photos,), model=MODEL)
            worker.store, worker.catalogue = self.a.store, self.a.catalogue
            worker.clock = self.planning.clock
        for n in range(PHOTOS):
            self.a.photo(f"{n:03d}.jpg", n)
        collection = self.a.collection
        self.ledger.create(
            NewJob(
                id="job", collection=collection.name, generation=collection.generation,
                model=MODEL, namespace="n", source={"type": "folder", "path": str(self.photos)},
            )
        )  # fmt: skip

    def finish(self) -> None:
        """The planner and B go on until the job is over; leases of the dead run out."""
        for _ in range(100):
            self.planning.tick(seconds=1)
            while self.planning.pending():
                self.b.work()
            if self.ledger.job("job").finished_at is not None:
                return
        raise AssertionError(f"the job does not end: {self.ledger.job('job')}")

    def require_exact(self) -> None:
        job = self.ledger.job("job")
        counts = (job.state, job.total, job.done, job.skipped, job.failed)
        assert counts == ("succeeded", PHOTOS, PHOTOS, 0, 0)
        ids = [str(path) for path in self.photos.iterdir()]
        keys = [primary_key("n", image_id) for image_id in ids]
        assert len(self.a.store.fetch(self.a.collection, keys)) == PHOTOS
        assert self.a.store.count(self.a.collection) == PHOTOS


@pytest.fixture
def service(
    client: "redis.Redis", tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Service]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ThreadPoolExecutor(2) as threads, ExitStack() as running:
        by_replica = getattr(request, "param", "") == "replica"
        losing = Replica(client, tmp_path, running) if by_replica else Disk(client)
        yield Service(client, tmp_path, threads, losing)


BOTH_WAYS = pytest.mark.parametrize("service", ["disk", "replica"], indirect=True)


@BOTH_WAYS
@pytest.mark.parametrize("planner", ["one", "two"])
@pytest.mark.parametrize("rate", [None, 9.5], ids=["chunks of the same size", "of another size"])
def test_a_chunk_that_was_planned_and_claimed_in_the_lost_second(
    service: Service, rate: float | None, planner: str
) -> None:
    """It is planned again, perhaps by another planner. What its first holder did is in the store,
    and its mark counts nothing."""
    service.planning.tick()
    while service.planning.pending():
        service.a.work()
    forget_the_rest = service.keep()
    done: list[int] = []

    def forget() -> None:
        forget_the_rest()
        if planner == "two":
            service.planning.clock.now += service.planning.settings.plan_lease_s + 1
        service.planning.worker(rate)
        service.planning.tick(planner=service.planning.new_planner(planner))
        service.b.work()
        done.append(service.ledger.job("job").done)

    service.planning.tick()
    service.a.embedder = Interrupting(1, forget)
    service.a.work()
    (before,) = done
    assert before > 4 * 32, "B's chunk counts"
    assert service.ledger.job("job").done == before, "A's does not"
    service.finish()
    service.require_exact()


@BOTH_WAYS
@pytest.mark.parametrize("moment", ["planned", "claimed", "half done"])
def test_a_chunk_that_was_planned_before_the_lost_second(service: Service, moment: str) -> None:
    """Its claim may be forgotten, or not; either way it counts once."""
    service.planning.tick()
    kept = [service.keep()]

    def keep() -> None:
        kept.append(service.keep())

    service.a.embedder = Interrupting(1, keep)
    service.a.work()
    service.a.embedder = HashEmbedder()
    if moment == "half done":
        service.a.work()
    kept[0 if moment == "planned" else 1]()
    service.finish()
    service.require_exact()


def test_the_end_of_a_job_that_redis_forgot(service: Service) -> None:
    moments: list[Callable[[], None]] = []
    for _ in range(20):
        service.planning.tick()
        moments.append(service.keep())
        while service.planning.pending():
            service.a.work()
    assert service.ledger.job("job").state == "succeeded"
    for go_back in reversed(moments):
        go_back()
        service.planning.clock.now += LEASE_S
        service.finish()
        service.require_exact()


@BOTH_WAYS
def test_a_planner_that_is_ahead_of_redis_plans_nothing_twice_and_leaves_nothing_out(
    service: Service,
) -> None:
    """It goes on with the source where it is, and finds the ledger at an earlier place."""
    service.planning.tick()
    forget_the_rest = service.keep()
    service.planning.tick(2)
    forget_the_rest()
    service.finish()
    service.require_exact()


def test_counts_that_do_not_add_up_make_the_planner_begin_anew(service: Service) -> None:
    service.planning.tick(2)
    service.a.work()
    service.client.hincrby("clipfleet:job:job", "done", -7)
    service.finish()
    service.require_exact()
    assert service.client.hget("clipfleet:job:job", "replans") == b"1"


def test_counts_that_never_add_up_fail_the_job(service: Service) -> None:
    for _ in range(100):
        service.planning.tick()
        while service.planning.pending():
            service.b.work()
            service.client.hincrby("clipfleet:job:job", "skipped", 1)
        if service.ledger.job("job").finished_at is not None:
            break
    job = service.ledger.job("job")
    assert job.state == "failed"
    assert job.error == "its counts do not add up, however often it is planned"
    assert service.a.store.count(service.a.collection) == PHOTOS
