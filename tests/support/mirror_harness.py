"""A service in memory, step by step, for tests of mirrors. Any call can end the planner."""

import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from PIL import Image

from clipfleet.api.jobs.service import new_job
from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.fetch import Fetcher
from clipfleet.common.http.mirror import MirrorIn
from clipfleet.common.identity import bytes_hash, details_hash, primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import Claim, Job
from clipfleet.common.ledger.catalogue import MemoryCatalogue
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.unreadable import MemoryUnreadable
from clipfleet.common.queue.broker import MemoryPublisher
from clipfleet.common.queue.fleet import MemoryFleet
from clipfleet.common.settings import Settings
from clipfleet.common.snapshots import Missing
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.embedding.guarded import GuardedEmbedder
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import ingest_next
from clipfleet.workers.ingest.feeders import ThreadFeeders
from clipfleet.workers.ingest.fetch_pool import fetch_pool
from clipfleet.workers.ingest.prepare import Kit
from clipfleet.workers.planner.generation_source import Generations
from clipfleet.workers.planner.mirror import Closing, Closings
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.planner.tracking import TrackingParts
from clipfleet.workers.storage.locations import Storage
from support.ledgers import LEASE_S, MAX_ATTEMPTS, MODEL, Clock
from support.worker_harness import BUCKETS

NAMESPACE = "n"


class Killed(BaseException):
    """The process that made this call has ended."""


class Countdown:
    """Ends the caller of the n-th call of all parts that it watches."""

    def __init__(self) -> None:
        self.calls = 0
        self.ends_at = 0

    def watch(self, part: Any) -> Any:
        """A stand-in for the part, whose calls are counted."""
        return _Watched(part, self)

    def count(self) -> None:
        """Count a call; Killed if it is the last one."""
        self.calls += 1
        if self.calls == self.ends_at:
            raise Killed


class _Watched:
    def __init__(self, part: Any, countdown: Countdown) -> None:
        self._part, self._countdown = part, countdown

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown.count()  # before or after a call are the same: nothing is in between
            return value(*args, **kwargs)

        return call


class AtOnce(Closings):
    """Ends mirrors on the caller's thread."""

    def __init__(self, parts: TrackingParts) -> None:
        super().__init__(parts)
        self._services = parts

    def begin(self, job: Job, token: str) -> None:
        Closing(job, token, self._services).run()


class World:
    """Folders, a planner and a worker.

    Args:
        folder: a folder of the test; the images are below `photos`.
        running: ends with the test.
    """

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.photos = folder / "photos"
        self.photos.mkdir(exist_ok=True)
        self.clock, self.countdown = Clock(), Countdown()
        self.ledger, self.catalogue = MemoryLedger(self.clock), MemoryCatalogue(self.clock)
        self.store, self.fleet, self.publisher = MemoryStore(), MemoryFleet(), MemoryPublisher()
        self.blobs = Blobs(str(folder / "blobs"))
        self.settings = Settings(model=MODEL, source_roots=(self.photos,))
        fetcher = running.enter_context(closing(Fetcher(self.settings.fetch)))
        self.storage = Storage(self.settings, self.blobs, fetcher, BUCKETS)
        embedder = GuardedEmbedder(HashEmbedder())
        kit = Kit.of(self.settings, self.storage.access, embedder.preprocess)
        threads = running.enter_context(ThreadPoolExecutor(2))
        self.worker = IngestParts(
            "w", self.ledger, self.store, self.catalogue, embedder, self.blobs, self.settings,
            threads, running.enter_context(closing(ThreadFeeders(1, kit))),
            storage=self.storage, fetches=fetch_pool(self.settings.fetch),
            stopping=threading.Event(),
        )  # fmt: skip
        self.planners = 0
        self.planner = self.new_planner()

    def new_planner(self) -> Planner:
        """Start a planner, as the one before has ended."""
        self.planners += 1
        self.clock.now += 10 * self.settings.plan_lease_s
        watch = self.countdown.watch
        ledger = watch(self.ledger)
        parts = TrackingParts(
            ledger, watch(self.store), watch(self.catalogue), watch(self.blobs)
        )  # fmt: skip
        readers = Readers(patience_s=30, listing_s=30, clock=self.clock)
        self.planner = Planner(
            f"planner-{self.planners}", ledger, self.fleet, self.publisher, self.settings,
            self.storage, readers, clock=self.clock, tracking=parts, closings=AtOnce(parts),
            generations=Generations(self.catalogue, self.store, MemoryUnreadable()),
        )  # fmt: skip
        return self.planner

    def collection(self, name: str = "c") -> Collection:
        """A collection, which is made when it does not exist."""
        if existing := self.catalogue.find(name):
            return existing
        collection = Collection.new(name, metric="cosine", model=MODEL, dim=16, fields={})
        self.store.create(collection)
        return self.catalogue.add(collection)

    def write(self, name: str, content: int) -> Path:
        """Write an image; another number is another image with as many bytes."""
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(content))
        return path

    def start(self, source: dict[str, Any], collection: str = "c", **options: Any) -> str:
        """Start a job; `mirror` are the options of a mirror."""
        mirror = options.pop("mirror", None)
        new = new_job(
            self.collection(collection), source, NAMESPACE, options.pop("on_existing", "skip"),
            mirror=None if mirror is None else MirrorIn(**mirror), **options,
        )  # fmt: skip
        return self.ledger.create(new).id

    def folder(self, name: str = "", **more: Any) -> dict[str, Any]:
        """The source of a folder below `photos`."""
        path = str(self.photos / name) if name else str(self.photos)
        return {"type": "folder", "path": path, **more}

    def finish(self, limit: int = 300) -> None:
        """Plan and work until no job is active."""
        for _ in range(limit):
            self.step()
            if not self.ledger.active():
                return
        raise AssertionError([self.ledger.job(job_id) for job_id in self.ledger.active()])

    def step(self) -> None:
        """A round of the planner, and all that a worker finds then. A planner that ends is
        replaced by another one."""
        try:
            self.planner.tick()
        except Killed:
            self.new_planner()
        while ingest_next(self.worker).claim:  # a chunk that failed too often is the planner's
            pass

    def lose_chunk(self) -> None:
        """A worker claims a chunk and ends."""
        claim = self.ledger.claim(MODEL, "dies", LEASE_S, MAX_ATTEMPTS)
        assert claim is None or isinstance(claim, Claim)
        self.clock.now += 2 * LEASE_S

    def run(self, source: dict[str, Any], collection: str = "c", **options: Any) -> Job:
        """Start a job and finish it."""
        job_id = self.start(source, collection, **options)
        self.finish()
        return self.ledger.job(job_id)

    def mirror(self, name: str = "", collection: str = "c", **mirror: Any) -> Job:
        """Mirror a folder below `photos`."""
        return self.run(self.folder(name), collection, mirror=mirror)

    def ids(self, collection: str = "c") -> list[str]:
        """The ids of the indexed images, below `photos`."""
        rows = self.store.scan(self.collection(collection), limit=100_000)
        return sorted(row.id.removeprefix(f"{self.photos}/") for row in rows)

    def index(self, collection: str = "c") -> dict[str, str]:
        """The content hashes of the indexed images, by path."""
        rows = self.store.scan(self.collection(collection), limit=100_000)
        return {row.id: row.content_hash for row in rows}

    def files(self, names: Sequence[str] = ("",), label: str = "") -> dict[str, str]:
        """The content hashes of the images in folders, by path."""
        return {
            str(path): bytes_hash(path.read_bytes(), MODEL) + details_hash(label, {}, str(path))
            for name in names
            for path in (self.photos / name).rglob("*.png")
        }

    def missing(self, job: Job) -> list[str]:
        """The ids that a mirror names, below `photos`."""
        ids = Missing(self.blobs, job.id).ids(0, 10_000)
        return sorted(name.removeprefix(f"{self.photos}/") for name in ids)

    def delete(self, name: str, collection: str = "c") -> None:
        """Delete an indexed image by hand."""
        key = primary_key(NAMESPACE, str(self.photos / name))
        self.store.delete(self.collection(collection), [key])


def picture(content: int) -> bytes:
    """A small image; each number below 16 million is another one, of the same size in bytes."""
    data = io.BytesIO()
    pixels = bytes((content & 255, content >> 8 & 255, content >> 16 & 255))
    Image.frombytes("RGB", (1, 1), pixels).save(data, "PNG", compress_level=0)
    return data.getvalue()
