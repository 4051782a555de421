"""Measures memory and processor time of planner, gateway and Redis while a source is planned.

    python benchmarks/planning.py [--images 10000000] [--source manifest|bad-lines|...]

An archive has one member per image. The folder has one file per image and no folder below it; with
`links`, each file is a link to one picture. No line of bad-lines is JSON, so each fails.

Processor time is that of the process from the request of the job to its end, in milliseconds an
image. That of Redis includes the claims and marks of this program.

Valkey, the planner and a gateway are real. This program acts as a worker that marks a chunk as done
at once, so that the planner is the slowest part. Items that the source says are bad are marked as
failed, as a worker does, and their failures are written to the blob store.
"""

import argparse
import os
import tarfile
import tempfile
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

import psutil
import redis
from parts import PLANNER, process, until, valkey

from clipfleet import Client
from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.ledger import FINAL, Claim, Failure, Outcome
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.broker import queue_keys
from clipfleet.common.queue.fleet import RedisFleet, WorkerCard
from clipfleet.common.queue.messages import queue_name
from clipfleet.embedded import commands, processes

MODEL = "benchmark"
RATE = 128.0  # images a second that the worker claims to do: chunks of 512
PAUSE_S = 0.01  # between two looks for chunks
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--source", choices=SOURCES, default="manifest")
    args = parser.parse_args()
    images = args.images
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        source = SOURCES[args.source](folder, images)
        url = running.enter_context(valkey(folder))
        env = {
            "CLIPFLEET_REDIS_URL": url,
            "CLIPFLEET_SOURCE_ROOTS": f'["{folder}"]',
            "CLIPFLEET_BLOBS": str(folder / "blobs"),
        }
        port = commands.free_port()
        gateway = running.enter_context(
            process(processes.gateway(commands.LOOPBACK, port), folder / "gateway.log", **env)
        )
        planner = running.enter_context(process(PLANNER, folder / "planner.log", **env))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        until(lambda: client.jobs() == [])
        served = redis.Redis.from_url(url)
        RedisCatalogue(served).add(
            Collection.new("c", metric="cosine", model=MODEL, dim=4, fields={})
        )
        ledger = RedisLedger(served, blobs=Blobs(str(folder / "blobs")))
        work(client, served, ledger, source, {"planner": planner, "gateway": gateway}, images)


def work(
    client: Client,
    served: "redis.Redis",
    ledger: RedisLedger,
    source: Path,
    watched: dict[str, psutil.Process],
    images: int,
) -> None:
    fleet = RedisFleet(served)
    before = int(served.info("memory")["used_memory"])
    watched["Redis"] = psutil.Process(int(served.info("server")["process_id"]))
    times = {name: spent_s(process_) for name, process_ in watched.items()}
    began = time.monotonic()
    fleet.announce(card())
    job = client.index("c", source, create=False)
    peaks, announced, done, mark = dict.fromkeys(watched, 0.0), began, 0, images // 5
    while ledger.job(job.id).state not in FINAL:
        served.delete(*queue_keys(queue_name("ingest", MODEL)))  # as a worker takes its messages
        while isinstance(claim := ledger.claim(MODEL, "w", 60, 2), Claim):
            ledger.mark(claim, outcome(claim))
            done += len(claim.items)
        time.sleep(PAUSE_S)
        for name, process_ in watched.items():
            peaks[name] = max(peaks[name], process_.memory_info().rss / MB)
        if time.monotonic() - announced > 2:
            announced = time.monotonic()
            fleet.announce(card())
        if done >= mark:
            mark += images // 5
            grown = (int(served.info("memory")["used_memory"]) - before) / MB
            shown = ", ".join(f"{name} {rss:.0f} MB" for name, rss in peaks.items())
            rate = done / (time.monotonic() - began)
            print(f"{done:,} images, {rate:,.0f}/s; most so far: {shown}; Redis +{grown:.1f} MB")
    ended = ledger.job(job.id)
    assert (ended.total, ended.done + ended.failed) == (images, images), ended
    cost = ", ".join(
        f"{name} {1e3 * (spent_s(process_) - times[name]) / images:.4f}"
        for name, process_ in watched.items()
    )
    print(f"core-milliseconds an image: {cost}")
    print(f"load {os.getloadavg()[0]:.1f}; {ended.chunks:,} chunks")
    print(f"state {ended.state}, done {ended.done:,}, failed {ended.failed:,}; {ended.error}")
    print(
        f"Redis, highest since its start: {served.info('memory')['used_memory_peak'] / MB:.1f} MB"
    )
    for offset in (0, ended.failed // 2, max(0, ended.failed - 1_000)):
        sent = time.monotonic()
        page = client.failures(job.id, 1_000, offset)
        taken = 1_000 * (time.monotonic() - sent)
        print(f"{len(page.failures)} of {page.total:,} failures at {offset:,}: {taken:.0f} ms")


def outcome(claim: Claim) -> Outcome:
    """What a worker marks that finds no fault in the images."""
    bad = [item for item in claim.items if item.problem]
    failures = tuple(Failure.of(item, "list", str(item.problem), 1) for item in bad)
    return Outcome(done=len(claim.items) - len(bad), failures=failures)


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
        dim=4,
        lanes=("ingest",),
        device="none",
        preprocess=spec,
        rate=RATE,
        started_at=now,
        progress_at=now,
    )


def manifest_of(folder: Path, lines: int) -> Path:
    path = folder / "manifest.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number in range(lines):
            name = f"{number:09d}"
            out.write(f'{{"id": "{name}", "uri": "photos/{name}.jpg", "year": {number % 50}}}\n')
    return path


def csv_of(folder: Path, lines: int) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", encoding="utf-8") as out:
        out.write("id,uri,year\n")
        for number in range(lines):
            name = f"{number:09d}"
            out.write(f"{name},photos/{name}.jpg,{number % 50}\n")
    return path


def tar_of(folder: Path, members: int) -> Path:
    path = folder / "photos.tar"
    with tarfile.open(path, "w") as out:
        for number in range(members):
            out.addfile(tarfile.TarInfo(f"photos/{number:09d}.jpg"))
    return path


def bad_lines_of(folder: Path, lines: int) -> Path:
    path = folder / "manifest.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number in range(lines):
            out.write(f"photos/{number:09d}.jpg, no line of JSON\n")
    return path


def zip_of(folder: Path, members: int) -> Path:
    path = folder / "photos.zip"
    with zipfile.ZipFile(path, "w") as out:
        for number in range(members):
            out.writestr(zipfile.ZipInfo(f"photos/{number:09d}.jpg"), b"x")
    return path


def folder_of(folder: Path, files: int) -> Path:
    path = folder / "photos"
    path.mkdir()
    for number in range(files):
        (path / f"{number:09d}.jpg").touch()
    return path


def links_of(folder: Path, links: int) -> Path:
    path, photo = folder / "photos", folder / "photo.jpg"
    path.mkdir()
    photo.touch()
    for number in range(links):
        (path / f"{number:09d}.jpg").symlink_to(photo)
    return path


SOURCES = {
    "manifest": manifest_of,
    "bad-lines": bad_lines_of,
    "csv": csv_of,
    "tar": tar_of,
    "zip": zip_of,
    "folder": folder_of,
    "links": links_of,
}


if __name__ == "__main__":
    main()
