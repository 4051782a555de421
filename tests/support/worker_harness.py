"""What planner and worker talk to, in memory, for the tests of either."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.fetch import Fetcher
from clipfleet.common.fetch.look_ups import LookUp, look_up
from clipfleet.common.http import uris
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import Embedder, HashEmbedder
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.ledger import Claim, Item, Job, JobRoom, NewJob, OpenChunk, Outcome, Unknown
from clipfleet.common.ledger.catalogue import MemoryCatalogue
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.queue.broker import MemoryPublisher
from clipfleet.common.queue.fleet import MemoryFleet, WorkerCard
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.settings import Settings
from clipfleet.common.store import Record
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.embedding.guarded import GuardedEmbedder
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import ingest_next
from clipfleet.workers.ingest.feeders import Feeders, ThreadFeeders
from clipfleet.workers.ingest.fetch_pool import fetch_pool
from clipfleet.workers.ingest.prepare import Kit
from clipfleet.workers.metrics import PlannerMetrics, WorkerMetrics
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.storage.locations import Storage
from support.ledgers import LEASE_S, MAX_ATTEMPTS, MODEL, Clock

BUCKETS = {**uris.BUCKETS, "memory": ("fsspec", "parts")}


def storage_of(settings: Settings, blobs: Blobs | None = None) -> Storage:
    """A storage for which `memory://` is the scheme of a bucket."""
    blobs = blobs or Blobs("memory://clipfleet-unit-tests")
    return Storage(settings, blobs, Fetcher(settings.fetch), BUCKETS)


def counts(job: Job) -> tuple[str, int, int, int]:
    return job.state, job.done, job.skipped, job.failed


class Planning:
    """A planner with everything it talks to; `serve` plays a worker."""

    def __init__(
        self, ledger: MemoryLedger | None = None, roots: tuple[Path, ...] = (), **settings: Any
    ) -> None:
        self.settings = Settings(source_roots=roots, **settings)
        self.clock = Clock()
        self.ledger = ledger or MemoryLedger(self.clock)
        if ledger is not None:
            self.ledger._clock = self.clock
        self.fleet, self.publisher = MemoryFleet(), MemoryPublisher()
        self.metrics = PlannerMetrics()
        self.planner = self.new_planner("one")

    def new_planner(self, name: str) -> Planner:
        storage = storage_of(self.settings)
        # Its sources answer: a round is over when they have, on a busy machine, too.
        readers = Readers(patience_s=30, listing_s=30, clock=self.clock)
        return Planner(
            name, self.ledger, self.fleet, self.publisher, self.settings, storage, readers,
            self.metrics, self.clock,
        )  # fmt: skip

    def worker(self, rate: float | None = None, name: str = "w") -> None:
        now = time.time()
        spec = Preprocess(shortest=8, height=8, width=8)
        card = WorkerCard(
            id=name, model=MODEL, dim=4, lanes=("ingest",), device="none", preprocess=spec,
            rate=rate, started_at=now, progress_at=now + 3_600,  # alive for as long as a test takes
        )  # fmt: skip
        self.fleet.announce(card)

    def job(self, images: int, name: str = "job", collection: str = "c", key: str = "") -> str:
        items = [{"id": f"{name}-{n}", "uri": "", "read": f"blob:{n}"} for n in range(images)]
        source: dict[str, object] = {"type": "upload", "items": items}
        return self.job_of(source, name, collection=collection, key=key)

    def job_of(
        self,
        source: dict[str, object],
        name: str = "job",
        retry_of: str = "",
        collection: str = "c",
        model: str = MODEL,
        key: str = "",
    ) -> str:
        new = NewJob(
            id=name, collection=collection, generation="g", model=model, namespace="n",
            source=source, retry_of=retry_of,
        )  # fmt: skip
        return self.ledger.create(new, room=JobRoom(key=key)).id

    def tick(self, times: int = 1, planner: Planner | None = None, seconds: float = 0) -> None:
        for _ in range(times):
            self.clock.now += seconds
            (planner or self.planner).tick()

    def finish(self, planner: Planner | None = None) -> list[str]:
        """Plan and work until nothing is left; every id that was worked on, in order."""
        seen: list[str] = []
        for _ in range(500):
            self.tick(planner=planner)
            if not self.ledger.active():
                return seen
            seen += self.serve_all()
        raise AssertionError("the job does not end")

    def nudges(self) -> int:
        """How many messages lie in the queue."""
        assert all(isinstance(message, IngestNudge) for message in self.publisher.sent)
        return len(self.publisher.sent)

    def pending(self) -> int:
        return self.ledger.pending(MODEL, 1_000)

    def names(self, job: str = "job") -> list[str]:
        """Of the open chunks."""
        return [chunk.name for chunk in self.ledger.open_chunks(job)]

    def next_claim(self, seconds: float = LEASE_S) -> Claim | None:
        claim = self.ledger.claim(MODEL, "w", seconds, self.settings.max_attempts)
        assert not isinstance(claim, Unknown)
        return claim

    def take(self) -> Claim:
        claim = self.next_claim()
        assert claim is not None
        return claim

    def serve(self) -> list[str]:
        """Work on the next chunk; the ids of its images."""
        claim = self.take()
        assert self.ledger.mark(claim, Outcome(done=len(claim.items)))
        return [item.id for item in claim.items]

    def serve_all(self) -> list[str]:
        """Work on chunks until none is pending."""
        seen: list[str] = []
        while self.pending():
            seen += self.serve()
        return seen


class Workplace:
    """Everything a worker needs, in memory, and photos of one colour each on disk."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.folder, self.threads = folder / "photos", threads
        self.folder.mkdir()
        self.clock, self.stopping = Clock(), threading.Event()
        self.ledger, self.catalogue = MemoryLedger(self.clock), MemoryCatalogue(self.clock)
        self.store = MemoryStore()
        self.embedder: Embedder = HashEmbedder()
        self.blobs = Blobs("memory://clipfleet-unit-tests")
        self.metrics = WorkerMetrics()
        self.settings = Settings(model=MODEL)
        self.look_up: LookUp = look_up
        self.weights_id = ""
        self.feeders: Callable[[Kit], Feeders] = partial(ThreadFeeders, 4)
        self.collection = self.catalogue.add(
            Collection.new("c", metric="cosine", model=MODEL, dim=16, fields={"year": "int"})
        )
        self.store.create(self.collection)

    def photo(self, name: str, shade: int = 0, **more: Any) -> Item:
        path = self.folder / name
        data = io.BytesIO()
        Image.new("RGB", (16, 12), (shade, shade, shade)).save(data, "JPEG")
        path.write_bytes(data.getvalue())
        return self.item(path, **more)

    def item(self, path: Path, **more: Any) -> Item:
        fields = {"id": path.name, "uri": str(path), "read": f"file:{path}"}
        return Item(**{**fields, **more})

    def plan(self, items: Sequence[Item], job: str = "job", **more: Any) -> str:
        fields = {"collection": "c", "generation": self.collection.generation, "model": MODEL}
        new = NewJob(**{**fields, "id": job, "namespace": "n", "source": {}, **more})
        self.ledger.create(new)
        lease = self.ledger.lease(job, "planner", 60)
        assert lease
        chunk = self.ledger.plan(job, lease.token, items, "", "")
        assert chunk
        self.ledger.finish_planning(job, lease.token, "")
        return chunk

    def next_claim(self, worker: str = "another", seconds: float = LEASE_S) -> Claim | None:
        claim = self.ledger.claim(MODEL, worker, seconds, MAX_ATTEMPTS)
        assert not isinstance(claim, Unknown)
        return claim

    def work(self, *, remote: bool = False, storage: Storage | None = None) -> int:
        """Work on the next chunk; the number of its images that were worked on.

        Args:
            remote: one whose images come from others' servers.
        """
        settings = self.settings.model_copy(update={"source_roots": (self.folder,)})
        with closing(Fetcher(settings.fetch, look_up=self.look_up)) as fetcher:
            storage = storage or Storage(settings, self.blobs, fetcher, BUCKETS)
            embedder = GuardedEmbedder(self.embedder)
            kit = Kit.of(settings, storage.access, embedder.preprocess)
            with closing(self.feeders(kit)) as feeders:
                parts = IngestParts(
                    "w", self.ledger, self.store, self.catalogue, embedder, self.blobs, settings,
                    self.threads, feeders, self.stopping, storage, self.metrics,
                    fetch_pool(settings.fetch), self.weights_id,
                )  # fmt: skip
                return ingest_next(parts, remote=remote).images

    def run(self, items: Sequence[Item], job: str = "job", **more: Any) -> Job:
        self.plan(items, job, **more)
        self.work()
        return self.ledger.job(job)

    def reasons(self, job: str = "job") -> dict[str, str]:
        return {failure.id: failure.reason for failure in self.ledger.failures(job)}

    def chunk(self, job: str = "job") -> OpenChunk:
        (chunk,) = self.ledger.open_chunks(job)
        return chunk

    def row(self, name: str) -> Record | None:
        key = primary_key("n", name)
        return self.store.fetch(self.collection, [key]).get(key)
