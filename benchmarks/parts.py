"""The parts of a service as processes of their own, for the benchmarks that need them apart."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

import psutil
import redis

from clipfleet import Client
from clipfleet.common.fleet import RedisFleet
from clipfleet.embedded import commands

HERE = Path(__file__).parent
CELERY = [sys.executable, "-m", "celery", "-A", "sleeper", "worker", "-l", "WARNING"]
SLEEPER = [*CELERY, "-Q", "ingest.sleeper"]
PLANNER = [sys.executable, "-m", "clipfleet.workers.planner"]


@contextmanager
def process(command: Sequence[str], log: Path, **env: str) -> Iterator[psutil.Process]:
    """Ended with SIGTERM at the end; what it says goes into `log`."""
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(60)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    port = commands.free_port()
    url = commands.valkey_url(port, "secret")
    with process(commands.valkey(folder / "valkey", port, "secret"), folder / "valkey.log"):
        until(lambda: redis.Redis.from_url(url).ping())
        yield url


@contextmanager
def milvus(folder: Path) -> Iterator[str]:
    port = commands.free_port()
    command = commands.milvus_lite(folder / "milvus", port)
    with process(command, folder / "milvus.log", **commands.MILVUS_LITE_ENVIRONMENT):
        yield commands.milvus_uri(port)


@contextmanager
def sleepers(folder: Path, workers: int) -> Iterator[tuple[Client, str]]:
    """A whole service whose model only sleeps: a client, and the address of its Redis."""
    with ExitStack() as running:
        url = running.enter_context(valkey(folder))
        env = {
            "CLIPFLEET_REDIS_URL": url,
            "CLIPFLEET_MILVUS_URI": running.enter_context(milvus(folder)),
            "CLIPFLEET_SOURCE_ROOTS": '["/"]',
            "CLIPFLEET_BLOBS": str(folder / "blobs"),
            "CLIPFLEET_MODEL": "sleeper",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        }
        port = commands.free_port()
        programs = [commands.gateway(commands.LOOPBACK, port), PLANNER]
        programs += [[*SLEEPER, "-n", f"w{n}@%h"] for n in range(workers)]
        for number, program in enumerate(programs):
            running.enter_context(process(program, folder / f"{number}.log", **env))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        fleet = RedisFleet(redis.Redis.from_url(url))
        until(lambda: len(fleet.alive()) == workers)
        client.create_collection("c", model="sleeper", dim=16)
        yield client, url


def linked(photos: Path, folder: Path, images: int) -> Path:
    """A folder of so many images: links to the photos, again and again."""
    kinds = (".jpg", ".jpeg")
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in kinds)
    folder.mkdir()
    for number, path in enumerate(islice(cycle(found), images)):
        (folder / f"{number:06d}.jpg").symlink_to(path.resolve())
    return folder


def until(done: Callable[[], object], timeout_s: float = 180.0) -> None:
    """Tried again and again, whatever it raises meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if done():
                return
        except Exception:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.1)
