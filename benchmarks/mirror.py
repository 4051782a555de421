"""Measures mirrors of a folder of which nothing has changed, and the memory of large ones.

    python benchmarks/mirror.py [--images 100000] [--rounds 3] [--entries 1000000]

Valkey, milvus-lite, the planner and a gateway are real. This program acts as the worker: the first
mirror stores a row with a random embedding for each file. Then nothing changes, and each round is
one mirror from its request to its end. Processor time is in milliseconds a file.

The memory is that of a planner alone, in a process of its own, for a manifest of so many rows, of
which nothing has changed either; the store and the ledger are stand-ins.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import redis
from parts import PLANNER, milvus, process, shown, until, valkey

from clipfleet import Client
from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.fetch import Fetcher
from clipfleet.common.http.mirror import MirrorIn, source_identity
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.ledger import FINAL, Claim, Job, Ledger, NewJob, Outcome
from clipfleet.common.ledger.catalogue import MemoryCatalogue, RedisCatalogue
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.broker import MemoryPublisher, queue_keys
from clipfleet.common.queue.fleet import MemoryFleet, RedisFleet, WorkerCard
from clipfleet.common.queue.messages import queue_name
from clipfleet.common.settings import Settings
from clipfleet.common.store import Record
from clipfleet.common.store.memory import MemoryStore
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands, processes
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.tracking import TrackingParts
from clipfleet.workers.storage.locations import Storage

MODEL, DIM = "benchmark", 64
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        planner_alone(args.entries)
        return
    if args.images:
        whole_service(args.images, args.rounds)
    if args.entries:
        command = [sys.executable, __file__, "--alone", "--entries", str(args.entries)]
        subprocess.run(command, check=True)
    print(f"load {os.getloadavg()[0]:.1f}")


def whole_service(images: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        photos = folder_of(folder / "photos", images)
        url = running.enter_context(valkey(folder))
        uri = running.enter_context(milvus(folder))
        env = {
            "CLIPFLEET_REDIS_URL": url,
            "CLIPFLEET_MILVUS_URI": uri,
            "CLIPFLEET_SOURCE_ROOTS": f'["{photos}"]',
            "CLIPFLEET_BLOBS": str(folder / "blobs"),
        }
        port = commands.free_port()
        gateway = processes.gateway(commands.LOOPBACK, port)
        running.enter_context(process(gateway, folder / "gateway.log", **env))
        planner = running.enter_context(process(PLANNER, folder / "planner.log", **env))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        until(lambda: client.jobs() == [])
        worker = Worker(redis.Redis.from_url(url), MilvusStore(uri, timeout_s=60), folder)
        running.callback(worker.stopping.set)
        threading.Thread(target=worker.run, daemon=True).start()
        first = mirrored(client, photos, planner)
        print(f"first mirror: {first.rate:,.0f} files/s, with a worker that does nothing but store")
        times = [mirrored(client, photos, planner) for _ in range(rounds)]
        print(f"unchanged, files/s: {shown([each.rate for each in times], 0)}")
        print(f"planner, core-ms a file: {shown([each.core_ms for each in times], 4)}")
        print(f"planner, resident: {planner.memory_info().rss / MB:.0f} MB")


@dataclass(frozen=True)
class Mirrored:
    """A mirror: files a second from its request to its end, and core-milliseconds a file."""

    rate: float
    core_ms: float


def mirrored(client: Client, photos: Path, planner: psutil.Process) -> Mirrored:
    before, began = spent_s(planner), time.monotonic()
    job = client.index("c", photos, mirror=True, wait=True, create=False)
    took_s = time.monotonic() - began
    assert job.state == "succeeded", job
    return Mirrored(job.total / took_s, 1e3 * (spent_s(planner) - before) / job.total)


class Worker:
    """Stores a row with a random embedding for each image."""

    def __init__(self, served: "redis.Redis", store: MilvusStore, folder: Path) -> None:
        self._served, self._store, self.stopping = served, store, threading.Event()
        self._ledger = RedisLedger(served, blobs=Blobs(str(folder / "blobs")))
        self._collection = a_collection()
        until(lambda: store.version())
        store.create(self._collection)
        RedisCatalogue(served).add(self._collection)
        self._random = np.random.default_rng(0)

    def run(self) -> None:
        fleet = RedisFleet(self._served)
        announced = 0.0
        while not self.stopping.is_set():
            if time.monotonic() - announced > 2:
                announced = time.monotonic()
                fleet.announce(card())
            self._served.delete(*queue_keys(queue_name("ingest", MODEL)))
            claim = self._ledger.claim(MODEL, "w", 60, 2)
            if isinstance(claim, Claim):
                self._store.upsert(self._collection, self._records(claim))
                self._ledger.mark(claim, Outcome(done=len(claim.items)))
            else:
                self.stopping.wait(0.02)

    def _records(self, claim: Claim) -> list[Record]:
        vectors = self._random.standard_normal((len(claim.items), DIM)).astype(np.float32)
        return [
            Record(
                pk=primary_key("default", item.id),
                id=item.id,
                namespace="default",
                uri=item.uri,
                embedding=row,
                content_hash="0" * 32,
                job_id=claim.job_id,
            )
            for item, row in zip(claim.items, vectors, strict=True)
        ]


def planner_alone(entries: int) -> None:
    """Mirror a manifest twice, and print the peak of this process's memory."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        manifest = folder / "photos.jsonl"
        with manifest.open("w") as out:
            for number in range(entries):
                out.write(f'{{"uri": "https://example.org/{number:09d}.jpg"}}\n')
        settings = Settings(source_roots=(folder,))
        blobs = Blobs(str(folder / "blobs"))
        fetcher = Fetcher(settings.fetch)
        running.callback(fetcher.close)
        ledger, catalogue = MemoryLedger(), MemoryCatalogue()
        catalogue.add(a_collection())
        planner = Planner(
            "planner", ledger, MemoryFleet(), MemoryPublisher(), settings,
            Storage(settings, blobs, fetcher),
            tracking=TrackingParts(ledger, Everything(), catalogue, blobs),
        )  # fmt: skip
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for name in ("first", "unchanged"):
            began, cpu = time.monotonic(), time.process_time()
            job = planned(planner, ledger, manifest, name)
            took, core_s = time.monotonic() - began, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{name} mirror of {entries:,} rows: {took:.1f} s, {1e3 * core_s / entries:.4f} "
                f"core-ms a row, {peak:.0f} MB at most, {base:.0f} MB before; {job.state}"
            )


def planned(planner: Planner, ledger: Ledger, manifest: Path, name: str) -> Job:
    source = {"type": "manifest", "uri": str(manifest), "format": "jsonl", "fields": {}}
    ledger.create(
        NewJob(
            v=3,
            id=name,
            collection="c",
            generation=a_collection().generation,
            model=MODEL,
            namespace="default",
            source=source,
            mirror=MirrorIn(),
            origin=source_identity("default", source),
        )
    )
    while ledger.job(name).state not in FINAL:
        planner.tick()
        while isinstance(claim := ledger.claim(MODEL, "w", 60, 2, remote=True), Claim):
            ledger.mark(claim, Outcome(done=len(claim.items), rate=1e6))
    return ledger.job(name)


class Everything(MemoryStore):
    """A store that has every image."""

    def present(self, collection: Collection, keys: Sequence[str]) -> set[str]:  # noqa: ARG002
        return set(keys)


def a_collection() -> Collection:
    return Collection(
        name="c", generation="0" * 12, metric="cosine", model=MODEL, dim=DIM, fields={},
        created_at=1.0,
    )  # fmt: skip


def folder_of(folder: Path, files: int) -> Path:
    for number in range(files):
        path = folder / f"{number // 1_000:03d}" / f"{number:09d}.jpg"
        if number % 1_000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    return folder


def spent_s(watched: psutil.Process) -> float:
    """The processor time of a process so far, in seconds."""
    times = watched.cpu_times()
    return float(times.user + times.system)


def card() -> WorkerCard:
    now = time.time()
    spec = Preprocess(shortest=8, height=8, width=8)
    return WorkerCard(
        id="w",
        model=MODEL,
        dim=DIM,
        lanes=("ingest",),
        device="none",
        preprocess=spec,
        rate=10_000.0,
        started_at=now,
        progress_at=now,
    )


if __name__ == "__main__":
    main()
